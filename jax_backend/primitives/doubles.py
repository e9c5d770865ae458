"""float32 in float64 and back, subnormal numbers included, cheaply: what rounds twice by way of float64 rounds once.

Sums, quotients and square roots of numbers of 24 bits, rounded to 53 and then to 24 bits, are correctly rounded, since
53 >= 2 * 24 + 2 (Figueroa, 1995); products of two are exact. In float64 none of them is subnormal.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..arrays import bit_pattern, from_pattern, layout, magnitude
from ..operations import FLOAT32, FLOAT64, round_to_dtype

Array = jax.Array
SMALLEST = np.float64(2.0**-126)
UNIT = np.float64(2.0**-149)


def widened(x: Array) -> Array:
    """Any dtype in float64, exactly. Where float64 exists (`with_float64`)."""
    if x.dtype == FLOAT64:
        return x
    single = x if x.dtype == FLOAT32 else round_to_dtype(x, FLOAT32)
    size = magnitude(single)
    count = jnp.where(bit_pattern(single) < 0, -size, size).astype(FLOAT64)
    subnormal = (size - 1).astype(np.uint32) < np.uint32((1 << 23) - 1)  # and not 0, which has a sign
    return jnp.where(subnormal, count * UNIT, lax.convert_element_type(single, FLOAT64))


def narrowed(value: Array, dtype: Any) -> Array:
    """float64 rounded once to a dtype."""
    if dtype != FLOAT32:
        return round_to_dtype(value, dtype)
    return narrowed_to_single(value)


def narrowed_to_single(value: Array) -> Array:
    """float64 rounded once to float32: what is subnormal there as a count of the smallest number.

    ``value`` is used once, as bits: XLA on CPU stores a quotient that is used twice.
    """
    bits, sign = bit_pattern(value), layout(FLOAT64).sign
    size = from_pattern(bits & ~sign, FLOAT64)
    small = size < SMALLEST
    count = lax.round(jnp.where(small, size, 0) * (1 / UNIT), lax.RoundingMethod.TO_NEAREST_EVEN).astype(np.int32)
    pattern = jnp.where(small, count, bit_pattern(lax.convert_element_type(size, FLOAT32)))
    return from_pattern(pattern | ((bits >> 32).astype(np.int32) & layout(FLOAT32).sign), FLOAT32)
