"""SmoothQuant: the outliers of inputs are moved into weights, column by column, so that both quantize well.

    f = x_absmax**alpha / w_absmax**(1 - alpha)         x / f and w * f take the place of x and w

Powers are those of `elementary`, so factors have the same bits everywhere; the division is correctly rounded. A column
of which inputs or weights are all 0, or whose factor is no normal number, keeps 1. Source: Xiao et al., arXiv
2211.10438, equation 4.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .elementary import power
from .layerwise import check_alpha, check_ranges

Array = NDArray[Any]


@np.errstate(all="ignore")  # where a range is 0
def smoothing_factors(x_absmax: Array, w_absmax: Array, alpha: float = 0.5) -> Array:
    """The factor of every column.

    Args:
        x_absmax, w_absmax: float32, ``(in,)``: the largest magnitudes in each column of inputs and weights.
        alpha: in [0, 1]: 0 makes the ranges of all columns of weights 1, and 1 those of inputs.
    Returns:
        float32, ``(in,)``, positive.
    Raises:
        ValueError: another ``alpha``, ranges that are not finite, negative, or of different shapes.
    """
    check_alpha(alpha)
    check_ranges(x_absmax.shape, w_absmax.shape, bool(np.isfinite(x_absmax).all() and np.isfinite(w_absmax).all()))
    factors = power(x_absmax, alpha) / power(w_absmax, 1 - alpha)
    smallest = np.finfo(np.float32).smallest_normal
    used = (x_absmax >= smallest) & (w_absmax >= smallest) & np.isfinite(factors) & (factors >= smallest)
    return np.where(used, factors, np.float32(1))
