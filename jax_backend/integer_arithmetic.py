"""Arithmetic of whole integer networks: from codes of 8 bits to codes of 8 bits, with no floating-point number between.

    integer_matmul   sum (a - a_zero) * b + bias                       int32, exact in any order
    requantize       clamp(zero_point + round(acc * multiplier / 2**shift))
    integer_add      clamp(zero_point + round(((a - a_zero) * m_a + (b - b_zero) * m_b) / 2**shift))
    lookup           table[code - smallest code of the dtype]

``round`` is to the nearest integer, ties to even, once, of the exact number. What could overflow is refused:
`core.integer_checks`. Multipliers and tables come from `core.integer_tables`. Integers have no gradients.

Here everything is int32 and uint32, which JAX has without ``jax_enable_x64``: the product of 62 bits is two words, made
of halves of 16 bits, and what a shift drops is compared with a half.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import integer_checks as checks
from ..core.formats import IntegerFormat
from .arguments import ends
from .arrays import as_array

Array = jax.Array
INT8 = IntegerFormat(8)
HALF_WORD = np.uint32(0xFFFF)


def integer_matmul(a: Array, b: Array, bias: Array | None = None, a_zero: int = 0) -> Array:
    """``sum (a - a_zero) * b`` over the last axes, plus ``bias``: a linear layer, or each matrix of a batch.

    Args:
        a: codes ``(..., rows, n)``, int8 or uint8; ``(..., n)`` where ``b`` has 2 axes.
        b: codes ``(out, n)``, or ``(..., out, n)`` with the axes of ``a`` before its last two; int8 or uint8.
        bias: int32 ``(out,)``, at most 2**30 in magnitude.
        a_zero: zero point of ``a``.
    Returns:
        int32 ``(..., rows, out)``.
    Raises:
        TypeError: other dtypes. ValueError: other shapes; or so many terms that a sum could leave int32.
    """
    a, b = as_array("a", a), as_array("b", b)
    checks.check_matmul(a.shape, a.dtype.name, b.shape, b.dtype.name, a_zero, bias is not None)
    batch = tuple(range(b.ndim - 2))
    contracted = ((a.ndim - 1,), (b.ndim - 1,)), (batch, batch)
    centred = a.astype(np.int32) - np.int32(a_zero)
    total = lax.dot_general(centred, b.astype(np.int32), contracted, preferred_element_type=np.int32)
    if bias is None:
        return total
    bias = as_array("bias", bias)
    checks.check_bias(bias.shape, bias.dtype.name, b.shape, ends(bias))
    return total + bias


def requantize(acc: Array, multiplier: Array, shift: Array, zero_point: int = 0, format: IntegerFormat = INT8) -> Array:
    """``clamp(zero_point + round(acc * multiplier / 2**shift))``: sums of products as codes of the next layer.

    Args:
        acc: int32 ``(..., channels)``.
        multiplier, shift: int32, 0-d or ``(channels,)``, 2**30 to 2**31 - 1, and 23 to 62: the scale of ``acc`` over
            that of the result as `core.integer_tables.fixed_point` has it.
        zero_point: of the result.
        format: of the result, at most 8 bits. Unsigned with zero point 0 is a ReLU.
    Returns:
        Codes in the storage dtype of ``format``.
    Raises:
        TypeError: other dtypes. ValueError: other shapes, or numbers outside these ranges.
    """
    acc, multiplier, shift = as_array("acc", acc), as_array("multiplier", multiplier), as_array("shift", shift)
    checks.check_int32("acc", acc.dtype.name)
    checks.check_multiplier(acc.shape, multiplier.shape, multiplier.dtype.name, shift.shape, shift.dtype.name)
    checks.check_ends("multiplier", ends(multiplier), checks.MULTIPLIERS)
    checks.check_ends("shift", ends(shift), checks.SHIFTS)
    lo, hi = checks.check_format(format, zero_point)
    negative = acc < 0
    size = jnp.where(negative, jnp.uint32(0) - acc.astype(np.uint32), acc.astype(np.uint32))
    high, low = _product(size, multiplier.astype(np.uint32))
    whole = _rounded_shift(high, low, shift.astype(np.uint32), np.uint32(2 * max(-lo, hi) + 2)).astype(np.int32)
    return (jnp.where(negative, -whole, whole).clip(lo, hi) + zero_point).astype(format.storage)


def integer_add(
    a: Array,
    b: Array,
    multipliers: tuple[int, int],
    shift: int,
    a_zero: int = 0,
    b_zero: int = 0,
    zero_point: int = 0,
    format: IntegerFormat = INT8,
) -> Array:
    """``clamp(zero_point + round(((a - a_zero) * m_a + (b - b_zero) * m_b) / 2**shift))``: a residual connection.

    Args:
        a, b: codes of one shape, int8 or uint8.
        multipliers, shift: ``m_a`` and ``m_b``, positive, of a sum of at most 2**23, and 0 to 30: both scales over that
            of the result, as `core.integer_tables.fixed_points` has them.
        a_zero, b_zero, zero_point: of ``a``, ``b`` and the result.
        format: of the result, at most 8 bits.
    Returns:
        Codes in the storage dtype of ``format``.
    Raises:
        TypeError: other dtypes. ValueError: other shapes, or numbers outside these ranges.
    """
    a, b = as_array("a", a), as_array("b", b)
    for name, codes, zero in (("a", a, a_zero), ("b", b, b_zero)):
        checks.check_codes_dtype(name, codes.dtype.name)
        checks.check_zero(f"{name}_zero", zero, codes.dtype.name)
    checks.check_same_shape(a.shape, b.shape)
    checks.check_addition(multipliers, shift)
    lo, hi = checks.check_format(format, zero_point)
    first = (a.astype(np.int32) - np.int32(a_zero)) * np.int32(multipliers[0])
    total = first + (b.astype(np.int32) - np.int32(b_zero)) * np.int32(multipliers[1])
    whole = total >> shift  # toward negative
    rest, half = total - (whole << shift), np.int32((1 << shift) >> 1)
    up = (rest > half) | ((rest == half) & (whole % 2 == 1)) if shift else jnp.zeros_like(whole, bool)
    return ((whole + up).clip(lo, hi) + zero_point).astype(format.storage)


def lookup(codes: Array, table: Array) -> Array:
    """The entry of a table for each code: a nonlinearity, as `core.integer_tables.lookup_table` has computed it.

    Args:
        codes: int8 or uint8, any shape.
        table: ``(256,)``, an entry for each code of the dtype in its order, so that -128 comes first in int8.
    Returns:
        Shape of ``codes``, dtype of ``table``.
    Raises:
        TypeError: other dtypes. ValueError: another table.
    """
    codes, table = as_array("codes", codes), as_array("table", table)
    lo, _ = checks.check_codes_dtype("codes", codes.dtype.name)
    checks.check_table(table.shape)
    return jnp.take(table, codes.astype(np.int32) - lo, mode="clip")


def _rounded_division(numerator: Array, denominator: Array) -> Array:
    """The integer nearest to the exact quotient, ties to even; none is negative, and no denominator is 0."""
    whole: Array = lax.div(numerator, denominator)
    rest = numerator - whole * denominator
    up = (rest > denominator - rest) | ((rest == denominator - rest) & ((whole & 1) == 1))
    return whole + up


def _product(a: Array, b: Array) -> tuple[Array, Array]:
    """The product of two words, as its high and its low word. ``a`` is at most 2**31, ``b`` below it."""
    a_high, a_low, b_high, b_low = a >> 16, a & HALF_WORD, b >> 16, b & HALF_WORD
    low = a_low * b_low
    middle = a_low * b_high + (low >> 16)
    other = a_high * b_low + (middle & HALF_WORD)
    return a_high * b_high + (middle >> 16) + (other >> 16), (other << 16) | (low & HALF_WORD)


def _rounded_shift(high: Array, low: Array, shift: Array, most: Any) -> Array:
    """``round((high * 2**32 + low) / 2**shift)``, ties to even, for 23 to 62; ``most`` where it is above that."""
    far = shift >= 32
    over = jnp.where(far, shift - 32, np.uint32(0))  # below 31
    near = jnp.where(far, np.uint32(31), shift)  # 23 to 31
    whole = jnp.where(far, high >> over, (high << (32 - near)) | (low >> near))
    too_large = ~far & ((high >> near) > 0)  # bits that the shift to the left has lost
    one = jnp.uint32(1)
    rest_high = jnp.where(far, high & ((one << over) - one), np.uint32(0))
    rest_low = jnp.where(far, low, low & ((one << near) - one))
    half_high = jnp.where(over > 0, one << jnp.maximum(over, one) - one, np.uint32(0))
    half_low = jnp.where(far, jnp.where(over > 0, np.uint32(0), np.uint32(2**31)), one << (near - one))
    same = (rest_high == half_high) & (rest_low == half_low)
    more = (rest_high > half_high) | ((rest_high == half_high) & (rest_low > half_low))
    rounded: Array = jnp.where(too_large, most, jnp.minimum(whole, most))
    up: Array = more | (same & (whole & one == one))
    return rounded + up.astype(np.uint32)
