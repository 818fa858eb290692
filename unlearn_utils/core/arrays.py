"""Arrays as the measures of this package take them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def as_vector(values: ArrayLike, what: str, dtype: type = np.float64) -> np.ndarray:
    """Return `values` as a one-dimensional array.

    Raises:
        ValueError: there are none, or they have another dimension; the message begins with `what`.
    """
    array = np.asarray(values, dtype=dtype)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"{what}: expected a non-empty one-dimensional array, not shape {array.shape}"
        )
    return array
