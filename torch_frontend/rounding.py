"""Rounding to integers by torch's native round, trunc, ceil and floor; ties are found by exact subtraction.

Source of the names: IEEE 754-2019 section 4.3; `ties_toward_positive` and `dpu` see `Rounding`.
"""

import torch
from torch import Tensor

from ..core.directions import Rounding
from .arrays import wide_dtype


def round_to_integer(x: Tensor, rounding: Rounding, noise: Tensor | None = None) -> Tensor:
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
    match rounding:
        case Rounding.TIES_TO_EVEN:
            return x.round()
        case Rounding.TIES_TO_AWAY:
            return torch.where(_tie(x), torch.where(x > 0, x.ceil(), x.floor()), x.round())
        case Rounding.TIES_TOWARD_POSITIVE:
            return torch.where(_tie(x), x.ceil(), x.round())
        case Rounding.DPU:
            return torch.where(_tie(x) & (x < 0), x.ceil(), x.round())
        case Rounding.TOWARD_ZERO:
            return x.trunc()
        case Rounding.TOWARD_POSITIVE:
            return x.ceil()
        case Rounding.TOWARD_NEGATIVE:
            return x.floor()
        case Rounding.LEARNED:
            return x.floor() if noise is None else x.floor() + noise
        case Rounding.STOCHASTIC:
            if noise is None:
                raise ValueError("`noise` must be given for stochastic rounding, got None")
            whole = x.trunc()
            away = (x - whole).abs().to(wide_dtype(x.dtype)) * 2.0**24 > noise  # exact; false for NaN
            return torch.where(away, whole + x.sign(), whole)


def _tie(x: Tensor) -> Tensor:
    """Whether ``x`` lies halfway between two integers. The difference to the nearest integer is exact."""
    return (x - x.round()).abs() == 0.5
