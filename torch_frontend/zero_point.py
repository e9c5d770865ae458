"""Zero points."""

import torch
from torch import Tensor

from ..core.descriptions import Quantizer, Rounding
from .clamp import clamp
from .rounding import round_to_integer


def affine_zero_point(q: Quantizer, low: Tensor, scale: Tensor) -> Tensor:
    """The code of 0.0: ``clamp(lo - ties_to_even(low / scale), lo, hi)``, int32, per block.

    The quotient rounds to nearest even whatever the quantizer's own direction is. A NaN scale gives the code nearest 0.
    """
    lo, hi = q.format.lo, q.format.hi
    code = clamp(lo - round_to_integer(low / scale, Rounding.TIES_TO_EVEN), lo, hi)
    return torch.where(code.isnan(), float(min(max(0, lo), hi)), code).to(torch.int32)
