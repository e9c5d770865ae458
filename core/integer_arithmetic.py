"""Arithmetic of whole integer networks: from codes of 8 bits to codes of 8 bits, with no floating-point number between.

    integer_matmul   sum (a - a_zero) * b + bias                       int32, exact in any order
    requantize       clamp(zero_point + round(acc * multiplier / 2**shift))
    integer_add      clamp(zero_point + round(((a - a_zero) * m_a + (b - b_zero) * m_b) / 2**shift))
    lookup           table[code - smallest code of the dtype]

``round`` is to the nearest integer, ties to even, once, of the exact number. No number on the way leaves int32 but the
product in `requantize`, which has 62 bits. What could overflow is refused: `core.integer_checks`. Multipliers and
tables come from `core.integer_tables`. Integers have no gradients.

Source of the multiplier with a shift: Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference (CVPR 2018), section 2.2. There halves go another way, and rounding happens twice.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import integer_checks as checks
from .arguments import as_array, ends
from .formats import IntegerFormat

Array = NDArray[Any]
INT8 = IntegerFormat(8)


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
    total = (a.astype(np.int64) - a_zero) @ b.astype(np.int64).swapaxes(-2, -1)
    if bias is not None:
        bias = as_array("bias", bias)
        checks.check_bias(bias.shape, bias.dtype.name, b.shape, ends(bias))
        total = total + bias
    return total.astype(np.int32)


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
    whole = _rounded_quotient(acc.astype(np.int64) * multiplier, np.int64(1) << shift.astype(np.int64))
    return (whole.clip(lo, hi) + zero_point).astype(format.storage)


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
    total = (a.astype(np.int64) - a_zero) * multipliers[0] + (b.astype(np.int64) - b_zero) * multipliers[1]
    return (_rounded_quotient(total, np.int64(1 << shift)).clip(lo, hi) + zero_point).astype(format.storage)


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
    return np.asarray(table[codes.astype(np.int64) - lo])


def _rounded_quotient(numerator: Array, denominator: Array | np.int64) -> Array:
    """The integer nearest to the exact quotient, ties to even; int64, positive denominators."""
    whole, rest = np.divmod(numerator, denominator)  # toward negative; 0 <= rest < denominator
    up = (rest > denominator - rest) | ((rest == denominator - rest) & (whole % 2 == 1))
    return np.asarray(whole + up)
