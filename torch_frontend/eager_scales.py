"""The most frequent rule for scales, by few operations: the route of ordinary tensors in eager mode."""

import math

import torch
from torch import Tensor

from ..core import checks
from ..core.descriptions import Quantizer
from ..core.granularity import PerTensor
from ..core.scales import Denominator, Restriction, Statistic
from .arrays import wide_dtype, widened
from .scaling import divisor
from .statistics import absmax


def takes_absmax(q: Quantizer) -> bool:
    """Whether the scale is the largest magnitude over a divisor, raised to the smallest normal number: no more."""
    rule = q.scale
    plain = rule.statistic is Statistic.EXTREMES and rule.restriction is Restriction.FLOAT and rule.floor is None
    plain &= q.is_usual and not q.affine
    return plain and rule.denominator is not Denominator.LARGER and divisor(q) >= 1  # no overflow


def scale_of_absmax(q: Quantizer, x: Tensor) -> Tensor:
    """The scale of `takes_absmax` in eager mode, by few operations: what a small array takes is their number.

    A single one by numbers of Python: a float64 quotient of float32 numbers, rounded once more, is the float32 one.
    """
    dtype = wide_dtype(x.dtype)
    least = torch.finfo(dtype).smallest_normal
    if isinstance(q.granularity, PerTensor):
        magnitude = max(-x.amin().item(), x.amax().item())
        checks.check_finite_statistic(magnitude < math.inf)
        return torch.full((), max(magnitude / divisor(q), least), dtype=dtype, device=x.device)
    magnitudes = widened(absmax(x, q.granularity))
    checks.check_finite_statistic(magnitudes.amax().item() < math.inf)
    return (magnitudes / torch.full((), divisor(q), dtype=dtype, device=x.device)).clamp_(min=least)
