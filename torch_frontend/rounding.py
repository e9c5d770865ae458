"""Rounding to integers by torch's native round, trunc, ceil and floor; ties are found by exact subtraction.

Source of the names: IEEE 754-2019 section 4.3; `ties_toward_positive` and `dpu` see `Rounding`.
"""

import torch
from torch import Tensor

from ..core.descriptions import Rounding


def round_to_integer(x: Tensor, rounding: Rounding) -> Tensor:
    """``x`` rounded to an integer in the given direction; NaN, infinities and the sign of zero are kept.

    Args:
        x: any shape, floating point.
        rounding: the direction.
    Returns:
        Same shape and dtype; zero results carry the sign of ``x``.
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


def _tie(x: Tensor) -> Tensor:
    """Whether ``x`` lies halfway between two integers. The difference to the nearest integer is exact."""
    return (x - x.round()).abs() == 0.5
