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


def float_zero_point(q: Quantizer, low: Tensor, scale: Tensor) -> Tensor:
    """The value of `middle_code`: ``scale * mid + low``, in the dtype of both, per block; infinite if too large.

    Source: torchao ``_choose_qparams_affine_tinygemm``.
    """
    return scale * middle_code(q) + low


def middle_code(q: Quantizer) -> int:
    """The code halfway up the range, the upper one of two: 8 of 0 to 15, 0 of -8 to 7."""
    return int(q.format.lo) + (int(q.format.hi - q.format.lo) + 1) // 2
