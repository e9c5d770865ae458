"""Scales from the range of a block. Scalars per block, by scaled operands and exponent bits."""

import jax
import jax.numpy as jnp
import numpy as np

from ..core.descriptions import Denominator, Quantizer, Restriction
from .arrays import add, bit_pattern, divide, from_pattern, is_subnormal_or_zero, layout, scaled

SHIFT = 24  # makes a subnormal float32 normal


def symmetric_scale(q: Quantizer, low: jax.Array, high: jax.Array) -> jax.Array:
    """Scale of a symmetric quantizer, before floor and restriction: ``max(-low, high) / denominator``.

    A quotient below the smallest normal number comes out as zero: `restrict_scale` raises both to the floor.

    Args:
        low: at most 0, per block; ``high``: at least 0, per block; same dtype, in which the division rounds.
    """
    lo, hi = q.format.lo, q.format.hi
    magnitude = _larger(-low, high)
    match q.scale.denominator:
        case Denominator.HI:
            return _over(magnitude, hi)
        case Denominator.HALF_RANGE:
            return _over(magnitude, (hi - lo) / 2)
        case Denominator.LO:
            return _over(magnitude, -lo)
        case Denominator.LARGER:
            return jnp.maximum(_over(-low, -lo), _over(high, hi)) if lo else _over(high, hi)


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
    """``scale`` raised to the floor of the rule, then restricted. NaN and infinities become NaN: no scale."""
    form = layout(scale.dtype)
    floor = form.smallest if q.scale.floor is None else np.dtype(scale.dtype).type(q.scale.floor)
    floored = jnp.maximum(scale, floor)
    if q.scale.restriction is Restriction.POWER_OF_TWO:
        up = (bit_pattern(floored) + form.integer((1 << form.mantissa) - 1)) & form.exponent
        largest = form.exponent - form.integer(1 << form.mantissa)
        floored = from_pattern(jnp.minimum(up, largest), scale.dtype)
    return jnp.where(jnp.isfinite(scale), floored, jnp.nan)


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
