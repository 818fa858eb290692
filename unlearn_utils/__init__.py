"""Methods, metrics and experiments behind the notebooks."""

import warnings

__version__ = "0.1.0"

# tqdm, which several libraries import, asks for a package that only draws its bars; in a kernel the request would stand in the outputs.
warnings.filterwarnings("ignore", message="IProgress not found")
