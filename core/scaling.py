"""Scales from the range of a block. Scalars per block, so written for clarity."""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .arithmetic import Arithmetic
from .descriptions import Quantizer
from .directions import Rounding
from .elementary import exp2, log2
from .formats import significand_bits
from .minifloat import round_to_float
from .operations import add, flush, multiply, round_to_dtype, smallest_normal, true_divide
from .rounding import round_to_integer
from .scales import INTEGER_SCALE, SHARED_EXPONENT, Denominator, Restriction

Array = NDArray[Any]


def symmetric_scale(q: Quantizer, low: Array, high: Array) -> Array:
    """Scale of a symmetric quantizer, before the floor: ``max(-low, high) / denominator``.

    Or as `shared_exponent_scale` and `quantized_scale` say, for those rules; POWER_OF_TWO rounds after the floor.

    Args:
        low: at most 0, per block; ``high``: at least 0, per block; same dtype, in which the division rounds.
    """
    lo, hi = q.format.lo, q.format.hi
    magnitude = np.maximum(-low, high)
    if q.scale.restriction in SHARED_EXPONENT:
        return shared_exponent_scale(q, magnitude)
    if q.scale.restriction is Restriction.QUANTIZED:
        return quantized_scale(q, magnitude)
    if q.scale.denominator is not Denominator.LARGER:
        return _over(magnitude, divisor(q), q.arithmetic)
    larger = _over(high, hi, q.arithmetic)
    return np.maximum(_over(-low, -lo, q.arithmetic), larger) if lo else larger


def shared_exponent_scale(q: Quantizer, magnitude: Array) -> Array:
    """``2**(e - floor(log2 divisor))``: e the exponent of the magnitude, by the rule of the restriction. 0 for 0.

    ``floor(log2 magnitude)``; the ceiling of it for CEIL; and for EVEN the floor after rounding, halves up, to as many
    bits behind the point as the format's largest number has.

    Source: OCP Microscaling Formats 1.0, section 6.3 (FLOOR); torchao `ScaleCalculationMode` (all).
    """
    significand, exponent = np.frexp(magnitude)  # significand in [1/2, 1)
    top = exponent - 1
    if q.scale.restriction is Restriction.POWER_OF_TWO_CEIL:
        top += significand > 0.5
    if q.scale.restriction is Restriction.POWER_OF_TWO_EVEN:
        top += significand >= 1 - 2.0 ** -(significand_bits(q.format) + 2)  # there, rounding up carries
    info: Any = ml_dtypes.finfo(magnitude.dtype)  # type: ignore[no-untyped-call]
    shared = np.clip(top - (np.frexp(divisor(q))[1] - 1), info.minexp, info.maxexp - 1)
    powers = np.ldexp(np.ones_like(magnitude), shared)
    powers = np.where(magnitude == 0, np.zeros_like(powers), powers)
    return np.where(np.isfinite(magnitude), powers, np.asarray(np.nan, powers.dtype))


def quantized_scale(q: Quantizer, magnitude: Array) -> Array:
    """``t * scale_format(clamp((magnitude / divisor) / t))``, every operation rounded; the clamp is to normal numbers.

    ``t`` is 1, or with two levels ``max(magnitudes) / (divisor * scale_format.hi)``. It and ``magnitude / divisor`` are
    raised to the floor.

    Source: NVFP4 of torchao (`nvfp4_quantize`, `per_tensor_amax_to_scale`).
    """
    format = q.scale.scale_format
    if format is None:
        raise TypeError("`q.scale.scale_format` must be a FloatFormat, got None")
    tensor, floor = np.ones((), magnitude.dtype), np.asarray(_floor(q, magnitude.dtype), magnitude.dtype)
    if q.scale.two_level:
        largest = np.max(magnitude, initial=0)
        tensor = np.maximum(_over(largest, divisor(q) * format.hi, q.arithmetic), floor)
    level = true_divide(np.maximum(_over(magnitude, divisor(q), q.arithmetic), floor), tensor, q.arithmetic)
    least, most = (np.asarray(end, level.dtype) for end in (2.0**format.min_exponent, format.hi))
    within = np.minimum(np.maximum(level, least), most)
    return np.asarray(multiply(round_to_float(within, format, Rounding.TIES_TO_EVEN), tensor, q.arithmetic))


def affine_scale(q: Quantizer, low: Array, high: Array) -> Array:
    """Scale of an affine quantizer, before floor and restriction: ``(high - low) / (hi - lo)``, each step rounded.

    Where ``high - low`` overflows, both it and the divisor are halved first, which changes nothing else.
    """
    span = q.format.hi - q.format.lo
    whole = _over(add(high, -low, q.arithmetic), span, q.arithmetic)
    half = _over(add(high / 2, -low / 2, q.arithmetic), span / 2, q.arithmetic)
    return np.where(np.isinf(whole) & np.isfinite(low) & np.isfinite(high), half, whole)


def restrict_scale(q: Quantizer, scale: Array) -> Array:
    """``scale`` raised to the floor of the rule, then restricted. NaN and infinities become NaN: no scale.

    Where scales may be negative, their magnitudes are; zeros count as positive.

    Source: of that, Brevitas ``ScalarSignedClampMinSte``.
    """
    if q.scale.signed:
        size = np.maximum(np.abs(scale), np.asarray(_floor(q, scale.dtype), scale.dtype))
        return np.where(np.isfinite(scale), np.where(scale < 0, -size, size), np.asarray(np.nan, scale.dtype))
    floored = np.maximum(scale, np.asarray(_floor(q, scale.dtype), scale.dtype))
    if q.scale.restriction is Restriction.POWER_OF_TWO or q.scale.restriction in SHARED_EXPONENT:
        significand, exponent = np.frexp(floored)  # floored = significand * 2**exponent, significand in [1/2, 1)
        exponent = np.minimum(exponent - (significand == 0.5), np.finfo(scale.dtype).maxexp - 1)
        floored = np.ldexp(np.ones_like(floored), exponent)
    if q.scale.restriction in INTEGER_SCALE:
        nearest = q.scale.restriction is Restriction.INTEGER_NEAREST
        direction = Rounding.TIES_TO_EVEN if nearest else Rounding.TOWARD_POSITIVE
        floored = np.maximum(round_to_integer(floored, direction), np.ones_like(floored))
    if q.scale.restriction is Restriction.LOG_FLOAT:
        floored = scale_of_logarithm(q, log2(floored))
    floored = floored + np.zeros((), scale.dtype)  # one zero, where there is no floor
    return np.where(np.isfinite(scale), floored, np.asarray(np.nan, scale.dtype))


def scale_slope(q: Quantizer, magnitude: Array, slope: Array) -> Array:
    """Derivative of a symmetric scale whose magnitude has the derivative ``slope``: ``fl(slope / divisor)``.

    +0.0 where the magnitude over the divisor lies below the floor, where that is NaN, and where the quotient is below
    the smallest normal number. Restrictions pass it unchanged.

    Args:
        magnitude: per block, at least 0; ``slope``: of the same shape and dtype, at least 0.
    """
    level, quotient = (_over(v, divisor(q), q.arithmetic) for v in (magnitude, slope))
    moves = (level >= _floor(q, level.dtype)) & (quotient >= np.finfo(quotient.dtype).smallest_normal)
    return np.where(moves, quotient, np.zeros_like(quotient))


def scale_of_logarithm(q: Quantizer, v: Array) -> Array:
    """``exp2(v)``, at least the floor of the rule and at most the largest float32. NaN for NaN.

    That of ``log2(s)`` lies within ``2**-24 * (|log2 s| + 6)`` of ``s``, relative; it is ``s`` for powers of two.
    """
    largest = np.asarray(np.finfo(np.float32).max, v.dtype)
    return np.asarray(np.maximum(np.minimum(exp2(v), largest), np.asarray(_floor(q, v.dtype), v.dtype)))


def divisor(q: Quantizer) -> float:
    """What a magnitude is divided by."""
    lo, hi = q.format.lo, q.format.hi
    halves = {Denominator.HALF_RANGE: (hi - lo) / 2, Denominator.EDGE: hi + 0.5}
    return {**halves, Denominator.LO: -lo, Denominator.NEXT: hi + 1}.get(q.scale.denominator, hi)


def _floor(q: Quantizer, dtype: np.dtype[Any]) -> float:
    return float(smallest_normal(dtype)) if q.scale.floor is None else q.scale.floor


def _over(a: Array, divisor: float, arithmetic: Arithmetic) -> Array:
    """``a / divisor``; through float32 for 16-bit dtypes, which do not hold every divisor (torch does the same)."""
    wide = np.float32 if a.dtype.itemsize == 2 else a.dtype
    quotient = true_divide(a.astype(wide), np.asarray(divisor, wide), arithmetic)
    return flush(round_to_dtype(quotient, a.dtype), arithmetic)
