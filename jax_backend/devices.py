"""What is computed in another way for devices that do not round once (`platforms.rounds_once`): in integers.

A quotient of two significands is guessed by the device's own division; the rest, an integer, says by how much that is
off. A division of that rest says it nearly, and two comparisons exactly. So it does not matter how a device divides.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .arrays import barrier, bit_pattern, from_pattern, layout, magnitude, with_sign_of

Array = jax.Array


def quotient_of(significand: Array, divisor: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """The correctly rounded quotient of two significands, as one; by how much its exponent is less; and the rest.

    ``(significand << (mantissa + less)) = quotient * divisor + rest`` with ``|rest| < divisor / 2``: no such quotient
    lies halfway between two others.

    Args:
        significand, divisor: integers with their leading one at the bit `Layout.mantissa` of ``dtype``.
    """
    integer, mantissa = layout(dtype).integer, layout(dtype).mantissa
    less = (significand < divisor).astype(integer)
    over = divisor.astype(dtype)
    guess = about(significand.astype(dtype) * (1 + less).astype(dtype), over)  # in [1, 2)
    found = (guess * np.dtype(dtype).type(2.0**mantissa)).astype(integer)
    rest = (significand << (mantissa + less)) - found * divisor  # small: wrapping does no harm
    step = about(rest.astype(dtype), over).astype(integer)
    found, rest = found + step, rest - step * divisor
    step = (2 * rest > divisor).astype(integer) - (2 * rest < -divisor).astype(integer)
    return found + step, less, rest - step * divisor


def about(a: Array, b: Array) -> Array:
    """The quotient as a device has it: `quotient_of` is right if it is off by four units in the last place, or more."""
    return a / b


def widened(x: Array) -> Array:
    """16-bit ``x`` in float32, rounded to 16 bits also where a compiler left out that conversion. By its bits."""
    if x.dtype == jnp.bfloat16:
        return from_pattern(bit_pattern(x).astype(np.int32) << 16, np.float32)
    return as_float16(lax.convert_element_type(barrier(x), np.float32))


def as_float16(x: Array) -> Array:
    """float32 rounded to the numbers of float16, to nearest even, and still float32."""
    form, size = layout(np.float32), magnitude(x)
    nearest = (size + 0xFFF + ((size >> 13) & 1)) & ~0x1FFF
    large = form.one + np.int32(16 << 23)  # 65536
    normal = from_pattern(jnp.where(nearest >= large, form.exponent, nearest), np.float32)
    units = lax.round(jnp.abs(x) * np.float32(2.0**24), lax.RoundingMethod.TO_NEAREST_EVEN)  # exact but for the round
    small = form.one - np.int32(14 << 23)  # 2**-14
    rounded = with_sign_of(jnp.where(size < small, units * np.float32(2.0**-24), normal), x)
    return jnp.where(jnp.isnan(x), x, rounded)
