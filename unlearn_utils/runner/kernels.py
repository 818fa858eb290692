"""What the kernels of a run inherit: this interpreter, the folders, and nobody's own settings."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from unlearn_utils.cache import memory, paths
from unlearn_utils.data import hub
from unlearn_utils.runner.places import Places

QUIET = "--IPKernelApp.log_level=50"  # else every kernel warns of plain TCP, on the loopback
NO_BARS = "ignore:IProgress not found"  # tqdm asks for a package that only draws its bars


def prepare(places: Places, fresh: bool) -> None:
    """Set the environment of the kernels, which is that of this process and its children.

    Args:
        places: of the run.
        fresh: what was stored before now counts as missing.
    """
    places.write(places.kernels / "kernels" / "python3" / "kernel.json", _kernel())
    places.write(places.progress, "")
    os.environ |= _chosen_folders(places)
    paths.figures_folder(places.profile)  # makes it, before a notebook writes there
    os.environ |= _jupyter_folders(places)
    os.environ |= dict.fromkeys(hub.OFFLINE, "1")  # what a profile reads of the hub is there by now
    os.environ |= memory.KEEP_FREED
    os.environ[paths.PROGRESS] = str(places.progress)
    os.environ["PYTHONWARNINGS"] = NO_BARS  # else it would stand in the outputs
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if fresh:
        os.environ[paths.FRESH] = str(time.time())
    os.environ.pop("MPLBACKEND", None)  # Agg would leave the figures out of the notebooks


def _kernel() -> str:
    """Return the description of the kernel that runs in this interpreter, as JSON."""
    from ipykernel.kernelspec import get_kernel_dict

    kernel = get_kernel_dict()
    kernel["display_name"] = "Python 3"
    kernel["argv"] = [*kernel["argv"], QUIET]
    return json.dumps(kernel)


def _chosen_folders(places: Places) -> dict[str, str]:
    """Return the variables of the folders, as the user set them or as the profile has them.

    They are absolute, for kernels work in notebooks/.
    """
    chosen = {paths.FIGURES: places.figures, paths.STORE: places.runs / "store"}
    for name in (paths.FIGURES, paths.STORE, paths.HUB, paths.BOOKS):
        if os.environ.get(name):
            chosen[name] = Path(os.environ[name])
    return {name: str(folder.resolve()) for name, folder in chosen.items()}


def _jupyter_folders(places: Places) -> dict[str, str]:
    """Return the variables that keep Jupyter and IPython from the user's own settings."""
    search = [str(places.kernels)]
    if os.environ.get("JUPYTER_PATH"):
        search.append(os.environ["JUPYTER_PATH"])
    return {
        "JUPYTER_PATH": os.pathsep.join(search),
        "JUPYTER_RUNTIME_DIR": str(places.connections),
        "IPYTHONDIR": str(places.kernels / "ipython"),
    }
