"""How all figures look: sizes, colours, and what a file says of itself."""

from __future__ import annotations

import seaborn as sns

STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
FIXED = {  # metadata of a saved figure: nothing that changes with time
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
}
COLOUR_NAMES = (
    *("blue", "orange", "green", "red", "purple"),
    *("brown", "pink", "grey", "yellow", "sky"),
)
COLOURS = dict(zip(COLOUR_NAMES, sns.color_palette("colorblind", 10), strict=True))
