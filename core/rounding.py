"""Rounding to integers, by definition: the exact fraction and the exact integer part decide, no addition of 1/2.

Source of the names: IEEE 754-2019 section 4.3; `ties_toward_positive` and `dpu` see `Rounding`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .directions import Rounding

Array = NDArray[Any]


def round_to_integer(x: Array, rounding: Rounding, noise: Array | None = None) -> Array:
    """``x`` rounded to an integer in the given direction; NaN, infinities and the sign of zero are kept.

    Args:
        x: any shape, floating point.
        rounding: the direction.
        noise: of stochastic rounding, as `rounding_noise` gives it, shape of ``x``. Away from zero if
            ``|x - trunc(x)| * 2**24 > noise``: with a probability of the fraction, rounded up to a multiple of 2**-24.
            Of learned rounding, as `rounding_offset` gives it: ``floor(x) + noise``, one addition; None for the floor.
    Returns:
        Same shape and dtype; zero results carry the sign of ``x`` (a floor to which noise was added: +0).
    Raises:
        ValueError: stochastic rounding without ``noise``.
    """
    whole = np.trunc(x)  # exact, and with the sign of x
    with np.errstate(invalid="ignore"):
        fraction = x - whole  # exact; NaN for an infinity, which no direction moves
    size = np.abs(fraction)
    positive = fraction > 0
    half = size == 0.5
    beyond = size > 0.5
    match rounding:
        case Rounding.TIES_TO_EVEN:
            away = beyond | (half & _odd(whole))
        case Rounding.TIES_TO_AWAY:
            away = beyond | half
        case Rounding.TIES_TOWARD_POSITIVE:
            away = beyond | (half & positive)
        case Rounding.DPU:
            away = beyond | (half & positive & _odd(whole))
        case Rounding.TOWARD_ZERO:
            away = np.zeros_like(half)
        case Rounding.TOWARD_POSITIVE:
            away = (size > 0) & positive
        case Rounding.TOWARD_NEGATIVE:
            away = (size > 0) & ~positive
        case Rounding.STOCHASTIC:
            if noise is None:
                raise ValueError("`noise` must be given for stochastic rounding, got None")
            away = np.asarray(size, np.float64) * 2.0**24 > noise  # exact
        case Rounding.LEARNED:
            if noise is not None:
                return np.asarray(np.floor(x) + noise, x.dtype)
            away = (size > 0) & ~positive
    step = np.copysign(np.asarray(away, x.dtype), x)  # one away from zero, or a zero of the sign of x
    return np.asarray(whole + step, x.dtype)


def _odd(whole: Array) -> Array:
    half = whole * whole.dtype.type(0.5)  # exact: an integer is 0 or at least 1
    return np.asarray(half != np.trunc(half))
