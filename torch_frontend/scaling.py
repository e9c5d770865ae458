"""Scales from the range of a block, by torch operators on one number per block; powers of two by exponent bits."""

import torch
from torch import Tensor

from ..core.descriptions import Denominator, Quantizer, Restriction


def symmetric_scale(q: Quantizer, low: Tensor, high: Tensor) -> Tensor:
    """Scale of a symmetric quantizer, before floor and restriction: ``max(-low, high) / denominator``.

    Args:
        low: at most 0, per block; ``high``: at least 0, per block; same dtype, in which the division rounds.
    """
    lo, hi = q.format.lo, q.format.hi
    magnitude = torch.maximum(-low, high)
    match q.scale.denominator:
        case Denominator.HI:
            return _over(magnitude, hi)
        case Denominator.HALF_RANGE:
            return _over(magnitude, (hi - lo) / 2)
        case Denominator.LO:
            return _over(magnitude, -lo)
        case Denominator.EDGE:
            return _over(magnitude, hi + 0.5)
        case Denominator.LARGER:
            return torch.maximum(_over(-low, -lo), _over(high, hi)) if lo else _over(high, hi)


def affine_scale(q: Quantizer, low: Tensor, high: Tensor) -> Tensor:
    """Scale of an affine quantizer, before floor and restriction: ``(high - low) / (hi - lo)``, each step rounded.

    Where ``high - low`` overflows, both it and the divisor are halved first, which changes nothing else.
    """
    span = q.format.hi - q.format.lo
    whole = _over(high - low, span)
    half = _over(high / 2 - low / 2, span / 2)
    return torch.where(whole.isinf() & (-low < torch.inf) & (high < torch.inf), half, whole)


def restrict_scale(q: Quantizer, scale: Tensor) -> Tensor:
    """``scale`` raised to the floor of the rule, then restricted. NaN and infinities become NaN: no scale."""
    smallest = torch.finfo(scale.dtype).smallest_normal if q.scale.floor is None else q.scale.floor
    restricted = scale.clamp(min=smallest)
    if q.scale.restriction is Restriction.POWER_OF_TWO:
        restricted = _power_of_two_above(restricted)
    return torch.where(scale < torch.inf, restricted, torch.nan)


def _over(a: Tensor, b: float) -> Tensor:
    """``a / b``, correctly rounded: dividing by a Python number multiplies by its reciprocal on some devices."""
    return a / torch.full_like(a, b)


def _power_of_two_above(scale: Tensor) -> Tensor:
    """The smallest power of two that is at least ``scale``, or the largest there is."""
    integer, mantissa = (torch.int64, 52) if scale.dtype == torch.float64 else (torch.int32, 23)
    below = 2**mantissa - 1  # carries into the exponent exactly where a bit of the significand is set
    power: Tensor = ((scale.view(integer) + below) & ~below).view(scale.dtype)
    return power.clamp(max=2.0 ** (1023 if scale.dtype == torch.float64 else 127))
