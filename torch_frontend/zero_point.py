"""Zero points."""

import torch
from torch import Tensor

from ..core.descriptions import Quantizer
from . import devices
from .clamp import clamp
from .expressions import carried
from .operations import multiply_add, round_to_dtype, true_divide
from .rounding import round_to_integer


def affine_zero_point(q: Quantizer, low: Tensor, scale: Tensor) -> Tensor:
    """The code of 0.0: ``clamp(lo - round(low / scale), lo, hi)``, int32, per block.

    The quotient rounds as `ScaleRule.zero_point_rounding` says. A NaN scale gives the code nearest 0.
    """
    lo, hi = q.format.lo, q.format.hi
    if q.arithmetic.is_default and low.element_size() > 2:
        code = clamp(lo - round_to_integer(devices.quotient(low, scale), q.scale.zero_point_rounding), lo, hi)
    else:
        quotient = carried(true_divide(low, scale, q.arithmetic))
        code = round_to_dtype(_number(lo, low) - round_to_integer(quotient, q.scale.zero_point_rounding), low.dtype)
        code = clamp(code.to(torch.float64), lo, hi)  # where the limits are exact; 16-bit dtypes do not hold them all
    return torch.where(code.isnan(), float(min(max(0, lo), hi)), code).to(torch.int32)


def float_zero_point(q: Quantizer, low: Tensor, scale: Tensor) -> Tensor:
    """The value of `middle_code`: ``scale * mid + low``, in the dtype of both, per block; infinite if too large.

    Source: torchao ``_choose_qparams_affine_tinygemm``.
    """
    if q.is_usual:
        return devices.product(scale, float(middle_code(q))) + low
    middle = _number(middle_code(q), scale).to(scale.dtype).expand_as(scale)
    return multiply_add(scale, middle, low, q.arithmetic)


def middle_code(q: Quantizer) -> int:
    """The code halfway up the range, the upper one of two: 8 of 0 to 15, 0 of -8 to 7."""
    return int(q.format.lo) + (int(q.format.hi - q.format.lo) + 1) // 2


def _number(code: float, like: Tensor) -> Tensor:
    """A code rounded to the dtype of a tensor, in what that is carried in; 0-d."""
    known = torch.full((), code, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)
    return carried(round_to_dtype(known.to(like.device), like.dtype))
