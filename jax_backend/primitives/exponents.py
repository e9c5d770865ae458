"""Exponent and significand, and scaling by a power of two, put together from bits.

Semantics and errors: `samebits.core.primitives`, of which these have the bits.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..arrays import bit_pattern, from_pattern, layout, magnitude, with_float64, with_sign_of
from ..ieee import from_one_to_two, parts, placed
from ..ieee_any import is_zero
from ..operations import FLOAT64, round_to_dtype
from .doubles import narrowed, widened
from .operands import Operand, primitive

Array = jax.Array
LARGE = 1.5 * 2.0**52  # from there on float64 holds the whole numbers only


@primitive(1)
def exponent(x: Operand) -> Array:
    """``floor(log2 |x|)``, exact, also of subnormal numbers: -inf for zeros, inf for infinities, NaN for NaN."""
    dtype = x.dtype
    wide = _wide(x)
    size = from_pattern(magnitude(x), dtype)
    special = jnp.where(is_zero(x), jnp.asarray(-np.inf, dtype), size)
    return jnp.where(_ordinary(x), parts(wide)[1].astype(dtype), special)


@primitive(1)
def significand(x: Operand) -> Array:
    """``x / 2**exponent(x)``, exact: its magnitude is in [1, 2). Zeros, infinities and NaN are themselves."""
    wide = _wide(x)
    within = with_sign_of(from_one_to_two(parts(wide)[0], wide.dtype), wide)
    return jnp.where(_ordinary(x), round_to_dtype(within, x.dtype), x)


@primitive(2)
def scale_by_power(x: Operand, n: Operand) -> Array:
    """``x * 2**n``, rounded once (IEEE 754 ``scaleB``).

    Args:
        n: whole numbers; others count as they are rounded toward zero. Infinities count as the limits: ``x * inf`` and
            ``x * 0``.
    """
    dtype = x.dtype
    with with_float64(FLOAT64):
        wide, power = widened(x), widened(n)
        infinite = jnp.isinf(power)
        value = scaled(wide, _trunc(jnp.where(jnp.isnan(power), 0, power)), dtype)
        invalid = jnp.where(power > 0, is_zero(wide), jnp.isinf(wide)) & infinite
        limit = jnp.where(power > 0, np.inf, 0.0)
        value = jnp.where(infinite, with_sign_of(jnp.where(jnp.isnan(wide), jnp.nan, limit), wide), value)
        return narrowed(jnp.where(invalid | jnp.isnan(power), jnp.nan, value), dtype)


def scaled(x: Array, n: Array, dtype: Any) -> Array:
    """``x * 2**n`` of float64, which is rounded to ``dtype`` afterwards, for whole ``n``."""
    if dtype != FLOAT64:  # whatever lies beyond is 0 or infinite there
        return x * power_of_two(jnp.clip(n, -500, 500))
    significand, exponents = parts(x)
    total = jnp.clip(exponents + jnp.clip(n, -5000, 5000).astype(np.int64), -1200, 1200)
    pattern = placed(significand, total, jnp.zeros_like(significand), FLOAT64) | (bit_pattern(x) & layout(FLOAT64).sign)
    ordinary = ~is_zero(x) & (magnitude(x) < layout(FLOAT64).exponent)
    return jnp.where(ordinary, from_pattern(pattern, FLOAT64), x)


def power_of_two(n: Array) -> Array:
    """``2**n`` in float64, a normal number, of whole ``n`` in float64 (which are the last bits of a large sum)."""
    return from_pattern(bit_pattern(n + (LARGE + 1023)) << 52, FLOAT64)


def _trunc(n: Array) -> Array:
    return jnp.where(n < 0, lax.ceil(n), lax.floor(n))


def _wide(x: Array) -> Array:
    """In float32, of which `parts` knows the bits; float64 stays."""
    return x if x.dtype == FLOAT64 else round_to_dtype(x, np.float32)


def _ordinary(x: Array) -> Array:
    return ~is_zero(x) & jnp.less(magnitude(x), layout(x.dtype).exponent)
