"""Zero points."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .clamp import clamp
from .descriptions import Quantizer
from .operations import true_divide
from .rounding import round_to_integer

Array = NDArray[Any]


def affine_zero_point(q: Quantizer, low: Array, scale: Array) -> Array:
    """The code of 0.0: ``clamp(lo - round(low / scale), lo, hi)``, int32, per block.

    The quotient rounds as `ScaleRule.zero_point_rounding` says. A NaN scale gives the code nearest 0.
    """
    lo, hi = q.format.lo, q.format.hi
    code = lo - round_to_integer(true_divide(low, scale, q.arithmetic), q.scale.zero_point_rounding)
    code = clamp(code.astype(np.float64), lo, hi)  # where the limits are exact; 16-bit dtypes do not hold them all
    return np.where(np.isnan(code), np.clip(0, lo, hi), code).astype(np.int32)
