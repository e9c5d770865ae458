"""Zero points."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .clamp import clamp
from .descriptions import Quantizer
from .operations import multiply_add, true_divide
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


def float_zero_point(q: Quantizer, low: Array, scale: Array) -> Array:
    """The value of `middle_code`: ``scale * mid + low``, in the dtype of both, per block; infinite if too large.

    Source: torchao ``_choose_qparams_affine_tinygemm``.
    """
    return multiply_add(scale, np.asarray(middle_code(q), scale.dtype), low, q.arithmetic)


def middle_code(q: Quantizer) -> int:
    """The code halfway up the range, the upper one of two: 8 of 0 to 15, 0 of -8 to 7."""
    return int(q.format.hi + q.format.lo + 1) // 2
