"""Scales from the range of a block. Scalars per block, by scaled operands and exponent bits."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.descriptions import Quantizer
from ..core.formats import significand_bits
from ..core.scales import INTEGER_SCALE, SHARED_EXPONENT, Denominator, Restriction
from .arrays import (
    Layout,
    add,
    barrier,
    bit_pattern,
    divide,
    from_pattern,
    is_subnormal_or_zero,
    layout,
    ordered,
    scaled,
)
from .elementary import exp2, log2

SHIFT = 24  # makes a subnormal float32 normal


def symmetric_scale(q: Quantizer, low: jax.Array, high: jax.Array) -> jax.Array:
    """Scale of a symmetric quantizer, before the floor: ``max(-low, high) / denominator``.

    Or as `shared_exponent_scale` and `quantized_scale` say, for those rules; POWER_OF_TWO rounds after the floor.
    A quotient below the smallest normal number comes out as zero: `restrict_scale` raises both to the floor.

    Args:
        low: at most 0, per block; ``high``: at least 0, per block; same dtype, in which the division rounds.
    """
    lo, hi = q.format.lo, q.format.hi
    magnitude = _larger(-low, high)
    match q.scale.restriction:
        case Restriction.QUANTIZED:
            return quantized_scale(q, magnitude)
        case Restriction.POWER_OF_TWO_FLOOR | Restriction.POWER_OF_TWO_CEIL | Restriction.POWER_OF_TWO_EVEN:
            return shared_exponent_scale(q, magnitude)
        case _ if q.scale.denominator is Denominator.LARGER:
            return jnp.maximum(_over(-low, -lo), _over(high, hi)) if lo else _over(high, hi)
        case _:
            return _over(magnitude, divisor(q))


def shared_exponent_scale(q: Quantizer, magnitude: jax.Array) -> jax.Array:
    """``2**(e - floor(log2 divisor))``: e the exponent of the magnitude, by the rule of the restriction.

    The magnitude is divided by the divisor's power of two first; then the power of two below it is doubled where the
    significand field says so. Below the smallest normal number, 0, which `restrict_scale` raises to the floor.

    Source: OCP Microscaling Formats 1.0, section 6.3 (FLOOR); torchao `ScaleCalculationMode` (all).
    """
    form = layout(magnitude.dtype)
    divided = magnitude * np.dtype(magnitude.dtype).type(2.0 ** (1 - math.frexp(divisor(q))[1]))
    field = bit_pattern(divided) & form.integer((1 << form.mantissa) - 1)
    below = from_pattern(bit_pattern(divided) & form.exponent, magnitude.dtype)
    match q.scale.restriction:
        case Restriction.POWER_OF_TWO_CEIL:
            up = field > 0
        case Restriction.POWER_OF_TWO_EVEN:
            bits = significand_bits(q.format) + 1
            up = field >= form.integer(((1 << bits) - 1) << (form.mantissa - bits))
        case _:
            up = jnp.zeros(field.shape, bool)
    largest = np.dtype(magnitude.dtype).type(2.0 ** (-form.min_exponent + 1))
    power = jnp.where(up, jnp.where(below < largest, below * 2, largest), below)
    return jnp.where(jnp.isfinite(magnitude), power, jnp.nan)


def quantized_scale(q: Quantizer, magnitude: jax.Array) -> jax.Array:
    """``t * scale_format(clamp((magnitude / divisor) / t))``, every operation rounded; the clamp is to normal numbers.

    ``t`` is 1, or with two levels ``max(magnitudes) / (divisor * scale_format.hi)``. It and ``magnitude / divisor`` are
    raised to the floor. Among normal numbers, rounding to the scale's format is rounding of the significand field.

    Source: NVFP4 of torchao (`nvfp4_quantize`, `per_tensor_amax_to_scale`).
    """
    format, form = q.scale.scale_format, layout(magnitude.dtype)
    if format is None:
        raise TypeError("`q.scale.scale_format` must be a FloatFormat, got None")
    level, tensor = jnp.maximum(_over(magnitude, divisor(q)), _floor(q, form)), jnp.ones_like(magnitude)
    if q.scale.two_level:
        largest = from_pattern(jnp.max(bit_pattern(magnitude), initial=0), magnitude.dtype)  # NaN is the largest
        tensor = jnp.broadcast_to(jnp.maximum(_over(largest, divisor(q) * format.hi), _floor(q, form)), level.shape)
        level = divide(level, tensor)
    bits = bit_pattern(jnp.clip(level, 2.0**format.min_exponent, format.hi))
    drop = form.mantissa - format.mantissa_bits
    one = form.integer(1)
    nearest = (bits + (((bits >> drop) & one) + form.integer((1 << (drop - 1)) - 1))) & ~form.integer((1 << drop) - 1)
    return jnp.where(jnp.isfinite(level), barrier(from_pattern(nearest, level.dtype) * tensor), jnp.nan)


def affine_scale(q: Quantizer, low: jax.Array, high: jax.Array) -> jax.Array:
    """Scale of an affine quantizer, before floor and restriction: ``(high - low) / (hi - lo)``, each step rounded.

    Where ``high - low`` overflows, both it and the divisor are halved first, which changes nothing else. A quotient
    below the smallest normal number comes out as zero, as in `symmetric_scale`.
    """
    span = q.format.hi - q.format.lo
    whole = _over(_difference(high, low), span)
    half = _over(high / 2 - low / 2, span / 2)
    return jnp.where(jnp.isinf(whole) & jnp.isfinite(low) & jnp.isfinite(high), half, whole)


def restrict_scale(q: Quantizer, scale: jax.Array) -> jax.Array:
    """``scale`` raised to the floor of the rule, then restricted. NaN and infinities become NaN: no scale.

    Where scales may be negative, their magnitudes are; zeros count as positive.

    Source: of that, Brevitas ``ScalarSignedClampMinSte``.
    """
    if q.scale.floor == 0:
        return _restrict_unraised(q, scale)
    form = layout(scale.dtype)
    if q.scale.signed:
        size = jnp.maximum(jnp.abs(scale), _floor(q, form))
        bits = bit_pattern(scale)
        below_zero = (bits < 0) & (bits > form.sign)  # not by the number: XLA takes a subnormal for zero
        return jnp.where(jnp.isfinite(scale), jnp.where(below_zero, -size, size), jnp.nan)
    floored = jnp.maximum(scale, _floor(q, form))
    if q.scale.restriction in INTEGER_SCALE:
        floored = _whole(q, floored)
    elif q.scale.restriction is Restriction.LOG_FLOAT:
        floored = scale_of_logarithm(q, log2(floored))
    elif q.scale.restriction not in (Restriction.FLOAT, Restriction.QUANTIZED):
        up = (bit_pattern(floored) + form.integer((1 << form.mantissa) - 1)) & form.exponent
        largest = form.exponent - form.integer(1 << form.mantissa)
        floored = from_pattern(jnp.minimum(up, largest), scale.dtype)
    return jnp.where(jnp.isfinite(scale), floored, jnp.nan)


def _whole(q: Quantizer, scale: jax.Array) -> jax.Array:
    """The integer that the restriction takes, at least 1."""
    nearest = q.scale.restriction is Restriction.INTEGER_NEAREST
    return jnp.maximum(lax.round(scale, lax.RoundingMethod.TO_NEAREST_EVEN) if nearest else jnp.ceil(scale), 1)


def _restrict_unraised(q: Quantizer, scale: jax.Array) -> jax.Array:
    """`restrict_scale` where there is no floor: scales may be zero or subnormal. The power of two of 0 is 1."""
    form, bits = layout(scale.dtype), bit_pattern(scale)
    nan = jnp.asarray(jnp.nan, scale.dtype)
    if q.scale.signed:
        return jnp.where(jnp.isfinite(scale), scale, nan)
    raised = jnp.where(jnp.isnan(scale) | (ordered(scale) > 0), scale, jnp.zeros_like(scale))
    if q.scale.restriction is Restriction.POWER_OF_TWO or q.scale.restriction in SHARED_EXPONENT:
        width = form.integer(8 * bits.dtype.itemsize)
        small = form.integer(1) << (width - lax.clz(jnp.maximum(bits - 1, 0)))  # patterns count smallest subnormals
        up = (bits + form.integer((1 << form.mantissa) - 1)) & form.exponent
        up = jnp.where(bits < form.integer(1 << form.mantissa), small, up)
        up = jnp.minimum(up, form.exponent - form.integer(1 << form.mantissa))
        raised = from_pattern(jnp.where(bits < 1, form.one, up), scale.dtype)
    if q.scale.restriction in INTEGER_SCALE:
        raised = _whole(q, raised)
    if q.scale.restriction is Restriction.LOG_FLOAT:
        raised = scale_of_logarithm(q, log2(raised))
    return jnp.where(jnp.isfinite(scale), raised, nan)


def scale_slope(q: Quantizer, magnitude: jax.Array, slope: jax.Array) -> jax.Array:
    """Derivative of a symmetric scale whose magnitude has the derivative ``slope``: ``fl(slope / divisor)``.

    +0.0 where the magnitude over the divisor lies below the floor, where that is NaN, and where the quotient is below
    the smallest normal number. Restrictions pass it unchanged.

    Args:
        magnitude: per block, at least 0; ``slope``: of the same shape and dtype, at least 0.
    """
    form = layout(slope.dtype)
    raised = _over(magnitude, divisor(q)) < _floor(q, form)
    quotient = _over(slope, divisor(q))
    return jnp.where(raised | jnp.isnan(magnitude) | ~(quotient >= form.smallest), jnp.zeros_like(quotient), quotient)


def scale_of_logarithm(q: Quantizer, v: jax.Array) -> jax.Array:
    """``exp2(v)``, at least the floor of the rule and at most the largest float32. NaN for NaN."""
    limits = _floor(q, layout(v.dtype)), type(layout(v.dtype).smallest)(np.finfo(np.float32).max)
    scale = exp2(v)
    return jnp.where(jnp.isnan(scale), scale, jnp.clip(scale, *limits))


def divisor(q: Quantizer) -> float:
    """What a magnitude is divided by."""
    lo, hi = q.format.lo, q.format.hi
    halves = {Denominator.HALF_RANGE: (hi - lo) / 2, Denominator.EDGE: hi + 0.5}
    return {**halves, Denominator.LO: -lo, Denominator.NEXT: hi + 1}.get(q.scale.denominator, hi)


def _floor(q: Quantizer, form: Layout) -> Any:
    """The smallest scale, in the dtype of the scale."""
    return form.smallest if q.scale.floor is None else type(form.smallest)(q.scale.floor)


def _over(a: jax.Array, b: float) -> jax.Array:
    if abs(b) < layout(a.dtype).smallest:  # the largest number of a format may be a subnormal of float32
        a, b = scaled(a, SHIFT), b * 2.0**SHIFT
    return divide(a, jnp.full_like(a, b))


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The larger of two numbers that are not negative; NaN if either is. By patterns, which have the same order."""
    return from_pattern(jnp.maximum(bit_pattern(jnp.abs(a)), bit_pattern(jnp.abs(b))), a.dtype)


def _difference(high: jax.Array, low: jax.Array) -> jax.Array:
    """``high - low`` for ``low <= 0 <= high``, rounded; where both are subnormal, exact by adding mantissas.

    The sum of two subnormal patterns is the pattern of the sum: a carry out of the mantissa makes a normal number.
    """
    both = is_subnormal_or_zero(high) & is_subnormal_or_zero(low)
    patterns = bit_pattern(jnp.abs(high)) + bit_pattern(jnp.abs(low))
    return jnp.where(both, from_pattern(patterns, high.dtype), add(high, -low))
