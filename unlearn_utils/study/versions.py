"""The memoised steps of the study, each a plain function of a profile and its choices. What is stored is not computed again.

torch is imported by what computes, not by what reads: a notebook that finds its results in the store starts in a second.
"""

from __future__ import annotations

VERSIONS = {
    "pretrained": 4,
    "measured": 2,
    "unlearned": 7,
    "repeated": 3,
    "continued": 1,
    "diverged": 1,
    "answered": 1,
    "grid": 4,
    "counted": 2,
    "timed": 3,
}  # raise when a step's code changes its result
