"""Measures of forgetting, membership and memorisation, and their intervals: pure functions of arrays.

Log-probabilities and negative log-likelihoods (NLL) are in nats. One array of true-token log-probabilities per document, over its
predicted tokens only. Every membership score is oriented so that higher means "member".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def as_vector(values: ArrayLike, what: str, dtype: type = np.float64) -> np.ndarray:
    """`values` as a one-dimensional array; ValueError if there are none."""
    array = np.asarray(values, dtype=dtype)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{what}: expected a non-empty one-dimensional array, not shape {array.shape}")
    return array
