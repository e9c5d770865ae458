"""Division and multiplication as IEEE 754 has them, also where operands or results are subnormal.

XLA on CPU reads and writes subnormals as zero. Here significands between 1 and 2 are divided and multiplied, which is
never near the subnormals; what the rounding of that lost is known from its remainder, an integer, so that a result that
ends among the subnormals is rounded only once.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import platforms
from .arrays import (
    barrier,
    bit_pattern,
    from_pattern,
    is_subnormal_or_zero,
    layout,
    magnitude,
    narrow,
    scaled_subnormal,
    veiled,
)
from .devices import quotient_of

Array = jax.Array


def divide_exactly(x: Array, s: Array) -> Array:
    """``x / s``, correctly rounded.

    Args:
        x: float32 or float64; ``s``: same dtype and shape, positive normal numbers, or NaN.
    """
    significand, exponent = parts(x)
    divisor, divisor_exponent = parts(s)
    quotient, shift, lost = quotient_of_parts(significand, divisor, x.dtype)
    return _rounded(x, s, quotient, exponent - divisor_exponent + shift, lost)


def quotient_of_parts(significand: Array, divisor: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """The quotient of two significands: its own, its exponent, and the rest, whose sign says what the rounding lost."""
    if not platforms.rounds_once():
        quotient, less, rest = quotient_of(significand, divisor, dtype)
        return quotient, -less, rest
    dividend, by = from_one_to_two(significand, dtype), from_one_to_two(divisor, dtype)
    rounded = veiled(dividend, by) / veiled(by, dividend)
    quotient, shift = parts(rounded)  # in (1/2, 2)
    lost = (significand << (layout(dtype).mantissa - shift)) - quotient * divisor  # small: wrapping does no harm
    return quotient, shift, lost


def multiply_exactly(x: Array, s: Array) -> Array:
    """``x * s``, correctly rounded.

    Args:
        x: float32 or float64; ``s``: same dtype and shape, positive normal numbers, or NaN.
    """
    significand, exponent = parts(x)
    factor, factor_exponent = parts(s)
    rounded = from_one_to_two(significand, x.dtype) * from_one_to_two(factor, x.dtype)
    product, shift = parts(rounded)  # in [1, 4)
    lost = significand * factor - (product << (layout(x.dtype).mantissa + shift))  # small: wrapping does no harm
    return _rounded(x, s, product, exponent + factor_exponent + shift, lost)


def narrow_exactly(x: Array, dtype: Any) -> Array:
    """`arrays.narrow`, also of subnormals: those of float32 are subnormals of bfloat16, and zeros of float16."""
    if jnp.dtype(dtype) != jnp.bfloat16:
        return narrow(x, dtype)
    bits = bit_pattern(x)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    kept = from_pattern(nearest.astype(jnp.int16), jnp.bfloat16)
    return barrier(jnp.where(jnp.isnan(x), jnp.asarray(jnp.nan, jnp.bfloat16), kept))


def parts(x: Array) -> tuple[Array, Array]:
    """Significand, an integer with its leading one at the bit `Layout.mantissa`, and exponent, of finite ``x``.

    Zero is 1 with an exponent so low that its products and quotients are rounded to zero.
    """
    form, small = layout(x.dtype), is_subnormal_or_zero(x)
    bits = magnitude(jnp.where(small, scaled_subnormal(x), x))
    leading = form.integer(1 << form.mantissa)
    field = jnp.where(bits < leading, 8 * form.min_exponent, bits >> form.mantissa)
    exponent = field - (1 - form.min_exponent) + jnp.where(small, form.min_exponent, 0)
    return bits & (leading - 1) | leading, exponent.astype(form.integer)


def from_one_to_two(significand: Array, dtype: Any) -> Array:
    """The number in [1, 2) with this significand."""
    form = layout(dtype)
    return from_pattern(significand + (form.one - form.integer(1 << form.mantissa)), dtype)


def _rounded(x: Array, s: Array, significand: Array, exponent: Array, lost: Array) -> Array:
    """``significand`` at ``exponent``, with the sign of ``x``; ``x`` where it is infinite or NaN, NaN where ``s`` is.

    Args:
        lost: of the sign of what the exact result is more than ``significand``, where its last bit was rounded.
    """
    form = layout(x.dtype)
    result = placed(significand, exponent, lost, x.dtype) | (bit_pattern(x) & form.sign)
    number = jnp.where(magnitude(x) >= form.exponent, x, from_pattern(result, x.dtype))
    return jnp.where(jnp.isnan(s), s, number)


def placed(significand: Array, exponent: Array, lost: Array, dtype: Any, *, odd: bool = False) -> Array:
    """Pattern of ``significand * 2**(exponent - mantissa)``, rounded once; infinity where that is too large.

    Args:
        significand: an integer with its leading one at the bit `Layout.mantissa`, rounded to nearest.
        lost: of the sign of what the exact result is more than ``significand``, where its last bit was rounded.
        odd: rounded to odd: what is not exact becomes the one of its two neighbours whose last bit is 1. A later
            rounding to fewer bits (by two or more) is then the only one.
    """
    form, top = layout(dtype), layout(dtype).integer(1 << layout(dtype).mantissa)
    field = exponent + (1 - form.min_exponent)
    normal = (field << form.mantissa) + (significand - top)
    if odd:
        beside = jnp.where((lost != 0) & (significand & 1 == 0), jnp.where(lost > 0, 1, -1), 0)
        normal = normal + beside.astype(normal.dtype)
    normal = jnp.where(field >= (form.exponent >> form.mantissa), form.exponent, normal)
    drop = lax.clamp(form.integer(1), 1 - field, form.integer(form.mantissa + 2))
    count, rest = significand >> drop, significand & ((form.integer(1) << drop) - 1)  # of the smallest subnormal
    if odd:
        least = jnp.where((rest == 0) & (lost < 0), count - 1, count)
        small = least | ((rest != 0) | (lost != 0)).astype(count.dtype)
        return jnp.where(field > 0, normal, small)
    half = form.integer(1) << (drop - 1)
    up = (rest > half) | ((rest == half) & ((lost > 0) | ((lost == 0) & (count & 1 == 1))))
    return jnp.where(field > 0, normal, count + up.astype(count.dtype))
