"""Scales from the range of a block, by torch operators on one number per block; powers of two by exponent bits."""

import math

import torch
from torch import Tensor

from ..core.descriptions import Quantizer
from ..core.directions import Rounding
from ..core.formats import FloatFormat, significand_bits
from ..core.scales import INTEGER_SCALE, SHARED_EXPONENT, Denominator, Restriction
from . import devices
from .arithmetics import number_of, with_one_zero
from .elementary import exp2, log2
from .expressions import carried
from .minifloat import round_to_float
from .operations import add, flush, multiply, round_to_dtype, true_divide


def symmetric_scale(q: Quantizer, low: Tensor, high: Tensor) -> Tensor:
    """Scale of a symmetric quantizer, before the floor: ``max(-low, high) / denominator``.

    Or as `shared_exponent_scale` and `quantized_scale` say, for those rules; POWER_OF_TWO rounds after the floor.

    Args:
        low: at most 0, per block; ``high``: at least 0, per block; same dtype, in which the division rounds.
    """
    lo, hi = q.format.lo, q.format.hi
    if q.scale.denominator is Denominator.LARGER:
        return torch.maximum(_over(q, -low, -lo), _over(q, high, hi)) if lo else _over(q, high, hi)
    magnitude = torch.maximum(-low, high)
    if q.scale.restriction in SHARED_EXPONENT:
        return shared_exponent_scale(q, magnitude)
    if q.scale.restriction is Restriction.QUANTIZED:
        return quantized_scale(q, magnitude)
    return _over(q, magnitude, divisor(q))


def shared_exponent_scale(q: Quantizer, magnitude: Tensor) -> Tensor:
    """``2**(e - floor(log2 divisor))``: e the exponent of the magnitude, by the rule of the restriction.

    All in the exponent field: rounding up, or to some bits of the significand, is an addition that carries into it.
    Below the smallest normal number, that number.

    Source: OCP Microscaling Formats 1.0, section 6.3 (FLOOR); torchao `ScaleCalculationMode` (all).
    """
    dtype, magnitude = magnitude.dtype, carried(magnitude)
    integer, mantissa, top = (torch.int64, 52, 2046) if magnitude.dtype == torch.float64 else (torch.int32, 23, 254)
    least, most = (113, 142) if dtype == torch.float16 else (1, top)  # exponents of normal numbers
    carry = {
        Restriction.POWER_OF_TWO_FLOOR: 0,
        Restriction.POWER_OF_TWO_CEIL: 2**mantissa - 1,
        Restriction.POWER_OF_TWO_EVEN: 2 ** (mantissa - 1 - significand_bits(q.format)),
    }[q.scale.restriction]
    field = ((magnitude.view(integer) + carry) >> mantissa) - (math.frexp(divisor(q))[1] - 1)
    power = (field.clamp(least, most) << mantissa).view(magnitude.dtype)
    if not q.is_usual:  # where the floor, if there is one, is another
        power = torch.where(magnitude == 0, 0.0, power)
    return torch.where(magnitude < torch.inf, power, torch.nan).to(dtype)


def quantized_scale(q: Quantizer, magnitude: Tensor) -> Tensor:
    """``t * scale_format(clamp((magnitude / divisor) / t))``, every operation rounded; the clamp is to normal numbers.

    ``t`` is 1, or with two levels ``max(magnitudes) / (divisor * scale_format.hi)``. It and ``magnitude / divisor`` are
    raised to the floor.

    Source: NVFP4 of torchao (`nvfp4_quantize`, `per_tensor_amax_to_scale`).
    """
    format = q.scale.scale_format
    if format is None:
        raise TypeError("`q.scale.scale_format` must be a FloatFormat, got None")
    if q.is_usual:
        return _quantized(q, format, magnitude)
    a, dtype, one = q.arithmetic, magnitude.dtype, torch.ones_like(magnitude)
    floor = torch.full_like(one, number_of(_floor(q, dtype), dtype))
    tensor = one
    if q.scale.two_level:
        largest = magnitude.amax() if magnitude.numel() else magnitude.sum()
        tensor = torch.maximum(_over(q, largest, divisor(q) * format.hi).expand_as(one), floor)
    level = true_divide(torch.maximum(_over(q, magnitude, divisor(q)), floor), tensor, a)
    within = carried(level).clamp(number_of(2.0**format.min_exponent, dtype), number_of(format.hi, dtype))
    return multiply(round_to_dtype(round_to_float(carried(within), format, Rounding.TIES_TO_EVEN), dtype), tensor, a)


def _quantized(q: Quantizer, format: FloatFormat, magnitude: Tensor) -> Tensor:
    """`quantized_scale` in the default arithmetic."""
    floor = _floor(q, magnitude.dtype)
    level, tensor = _over(q, magnitude, divisor(q)).clamp(min=floor), torch.ones_like(magnitude)
    if q.scale.two_level:
        largest = magnitude.amax() if magnitude.numel() else magnitude.sum()
        tensor = _over(q, largest, divisor(q) * format.hi).clamp(min=floor).expand_as(magnitude)
        level = devices.quotient(level, tensor)
    within = level.clamp(2.0**format.min_exponent, format.hi)
    return round_to_float(within, format, Rounding.TIES_TO_EVEN) * tensor


def affine_scale(q: Quantizer, low: Tensor, high: Tensor) -> Tensor:
    """Scale of an affine quantizer, before floor and restriction: ``(high - low) / (hi - lo)``, each step rounded.

    Where ``high - low`` overflows, both it and the divisor are halved first, which changes nothing else.
    """
    span = q.format.hi - q.format.lo
    if q.arithmetic.is_default:
        whole, half = _over(q, high - low, span), _over(q, high * 0.5 - low * 0.5, span / 2)
    else:
        whole = _over(q, add(high, -low, q.arithmetic), span)
        half = _over(q, add(high * 0.5, low * -0.5, q.arithmetic), span / 2)
    return torch.where(whole.isinf() & (-low < torch.inf) & (high < torch.inf), half, whole)


def restrict_scale(q: Quantizer, scale: Tensor) -> Tensor:
    """``scale`` raised to the floor of the rule, then restricted. NaN and infinities become NaN: no scale.

    Where scales may be negative, their magnitudes are; zeros count as positive.

    Source: of that, Brevitas ``ScalarSignedClampMinSte``.
    """
    if q.scale.signed:
        size = scale.abs().clamp(min=_floor(q, scale.dtype))
        return torch.where(scale.abs() < torch.inf, torch.where(scale < 0, -size, size), torch.nan)
    restricted = scale.clamp(min=_floor(q, scale.dtype))
    if q.scale.restriction is Restriction.POWER_OF_TWO or q.scale.restriction in SHARED_EXPONENT:
        restricted = _power_of_two_above(restricted) if q.scale.floor != 0 else _any_power_of_two_above(restricted)
    elif q.scale.restriction in INTEGER_SCALE:
        restricted = restricted.ceil() if q.scale.restriction is Restriction.INTEGER else restricted.round()
        restricted = restricted.clamp(min=1)
    elif q.scale.restriction is Restriction.LOG_FLOAT:
        restricted = scale_of_logarithm(q, log2(restricted))
    if q.scale.floor == 0:
        restricted = with_one_zero(restricted)
    return torch.where(scale < torch.inf, restricted, torch.nan)


def scale_slope(q: Quantizer, magnitude: Tensor, slope: Tensor) -> Tensor:
    """Derivative of a symmetric scale whose magnitude has the derivative ``slope``: ``fl(slope / divisor)``.

    +0.0 where the magnitude over the divisor lies below the floor, where that is NaN, and where the quotient is below
    the smallest normal number. Restrictions pass it unchanged.

    Args:
        magnitude: per block, at least 0; ``slope``: of the same shape and dtype, at least 0.
    """
    quotient = _over(q, slope, divisor(q))
    still = (quotient < torch.finfo(quotient.dtype).smallest_normal) | (quotient != quotient)
    return torch.where(_over(q, magnitude, divisor(q)) >= _floor(q, slope.dtype), quotient.masked_fill(still, 0.0), 0.0)


def scale_of_logarithm(q: Quantizer, v: Tensor) -> Tensor:
    """``exp2(v)``, at least the floor of the rule and at most the largest float32. NaN for NaN."""
    return exp2(v).clamp(max=torch.finfo(torch.float32).max).clamp(min=_floor(q, v.dtype))


def divisor(q: Quantizer) -> float:
    """What a magnitude is divided by."""
    match q.scale.denominator:
        case Denominator.HALF_RANGE:
            return (q.format.hi - q.format.lo) / 2
        case Denominator.LO:
            return -q.format.lo
        case Denominator.EDGE:
            return q.format.hi + 0.5
        case Denominator.NEXT:
            return q.format.hi + 1
        case _:
            return q.format.hi


def _floor(q: Quantizer, dtype: torch.dtype) -> float:
    floor = q.scale.decimals[7]
    return torch.finfo(dtype).smallest_normal if floor == "None" else float(floor)


def _over(q: Quantizer, a: Tensor, b: float) -> Tensor:
    """``a / b``, correctly rounded: dividing by a Python number multiplies by its reciprocal on some devices.

    In other arithmetics through float32 for 16-bit dtypes, which do not hold every divisor (torch does the same).
    """
    if q.arithmetic.is_default and a.element_size() > 2:
        return devices.quotient(a, torch.full_like(a, b))
    wide = carried(a)
    return flush(round_to_dtype(true_divide(wide, torch.full_like(wide, b), q.arithmetic), a.dtype), q.arithmetic)


def _power_of_two_above(scale: Tensor) -> Tensor:
    """The smallest power of two that is at least ``scale``, or the largest there is."""
    integer, mantissa = (torch.int64, 52) if scale.dtype == torch.float64 else (torch.int32, 23)
    below = 2**mantissa - 1  # carries into the exponent exactly where a bit of the significand is set
    power: Tensor = ((scale.view(integer) + below) & ~below).view(scale.dtype)
    return power.clamp(max=2.0 ** (1023 if scale.dtype == torch.float64 else 127))


def _any_power_of_two_above(scale: Tensor) -> Tensor:
    """The same of subnormal numbers, too, which have no exponent; 1 for 0."""
    small, places = scale < torch.finfo(scale.dtype).smallest_normal, 2.0**60
    power = torch.where(small, _power_of_two_above(scale * places) * (1 / places), _power_of_two_above(scale))
    return torch.where(scale == 0, 1.0, power)
