"""Cross-layer equalization: of two layers with ReLU between them, the ranges of each channel are made equal.

    s = sqrt(r_out / r_in)              row / s of the first layer, column * s of the second: both sqrt(r_out * r_in)

A channel of which one range is 0, or whose factor is no normal number, keeps 1. Division and root are correctly
rounded. Source: Nagel et al., arXiv 1906.04721, equation 11.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layerwise import check_ranges
from .sums import square_root

Array = NDArray[Any]


@np.errstate(all="ignore")  # where a range is 0
def equalization_factors(r_out: Array, r_in: Array) -> Array:
    """The factor of every channel.

    Args:
        r_out, r_in: float32, ``(n,)``: the largest magnitudes in the rows of the first layer, and in the columns of
            the second.
    Returns:
        float32, ``(n,)``, positive.
    Raises:
        ValueError: ranges that are not finite, or of different shapes.
    """
    check_ranges(r_out.shape, r_in.shape, bool(np.isfinite(r_out).all() and np.isfinite(r_in).all()))
    smallest = np.finfo(np.float32).smallest_normal
    ratio = r_out / r_in
    used = (r_out >= smallest) & (r_in >= smallest) & np.isfinite(ratio) & (ratio >= smallest)
    return square_root(np.where(used, ratio, np.float32(1)))
