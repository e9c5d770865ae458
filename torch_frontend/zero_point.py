"""Zero points."""

import torch
from torch import Tensor

from ..core.descriptions import Quantizer
from .clamp import clamp
from .rounding import round_to_integer


def affine_zero_point(q: Quantizer, low: Tensor, scale: Tensor) -> Tensor:
    """The code of 0.0: ``clamp(lo - round(low / scale), lo, hi)``, int32, per block.

    The quotient rounds as `ScaleRule.zero_point_rounding` says. A NaN scale gives the code nearest 0.
    """
    lo, hi = q.format.lo, q.format.hi
    code = clamp(lo - round_to_integer(low / scale, q.scale.zero_point_rounding), lo, hi)
    return torch.where(code.isnan(), float(min(max(0, lo), hi)), code).to(torch.int32)
