"""Clamping, in floating point and before any cast to an integer."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def clamp(x: NDArray[Any], lo: ArrayLike, hi: ArrayLike) -> NDArray[Any]:
    """``x`` limited to ``[lo, hi]``, bounds included; NaN stays NaN. Shape and dtype as ``x``."""
    low, high = np.asarray(lo, x.dtype), np.asarray(hi, x.dtype)
    limited = np.array(x)
    np.copyto(limited, low, where=x < low)
    np.copyto(limited, high, where=x > high)
    return limited
