"""Arithmetic of whole integer networks: from codes of 8 bits to codes of 8 bits, with no rounded number between.

    integer_matmul   sum (a - a_zero) * b + bias                       int32, exact in any order
    requantize       clamp(zero_point + round(acc * multiplier / 2**shift))
    integer_add      clamp(zero_point + round(((a - a_zero) * m_a + (b - b_zero) * m_b) / 2**shift))
    lookup           table[code - smallest code of the dtype]

``round`` is to the nearest integer, ties to even, once, of the exact number. What could overflow is refused:
`core.integer_checks`. Multipliers and tables come from `core.integer_tables`. Integers have no gradients.

Here sums of products are products of floats that cannot round, float32 where every partial sum stays within 2**24;
quotients by small powers of two are exact float64, rounded by ``torch.round``; and the product of 62 bits is an int64,
rounded by an addition and a shift. `int8.integer_matmul_int8` is the same matrix product by ``torch._int_mm``.
"""

import torch
from torch import Tensor

from ..core import integer_checks as checks
from ..core.formats import IntegerFormat
from .arguments import check_codes, check_tensor, ends
from .arrays import dtype_name, without_autocast

INT8 = IntegerFormat(8)
EXACT = 2**24  # every integer up to here is a float32


def integer_matmul(a: Tensor, b: Tensor, bias: Tensor | None = None, a_zero: int = 0) -> Tensor:
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
    bound = _check_matmul(a, b, bias, a_zero)
    carrier = torch.float32 if bound <= EXACT else torch.float64
    with without_autocast(a):
        total = ((a.to(carrier) - a_zero) @ b.to(carrier).transpose(-2, -1)).to(torch.int32)
    return total if bias is None else total + bias


def requantize(
    acc: Tensor, multiplier: Tensor, shift: Tensor, zero_point: int = 0, format: IntegerFormat = INT8
) -> Tensor:
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
    for name, tensor in (("acc", acc), ("multiplier", multiplier), ("shift", shift)):
        check_tensor(name, tensor)
    checks.check_int32("acc", dtype_name(acc.dtype))
    checks.check_multiplier(
        tuple(acc.shape),
        tuple(multiplier.shape),
        dtype_name(multiplier.dtype),
        tuple(shift.shape),
        dtype_name(shift.dtype),
    )
    checks.check_ends("multiplier", ends(multiplier), checks.MULTIPLIERS)
    checks.check_ends("shift", ends(shift), checks.SHIFTS)
    lo, hi = checks.check_format(format, zero_point)
    product, places = acc.long() * multiplier.long(), shift.long()
    odd = (product >> places) & 1  # of the floor: a half is pushed over only if that is odd
    whole = (product + ((torch.ones_like(places) << (places - 1)) - 1 + odd)) >> places
    return (whole.clamp(lo, hi) + zero_point).to(getattr(torch, format.storage))


def integer_add(
    a: Tensor,
    b: Tensor,
    multipliers: tuple[int, int],
    shift: int,
    a_zero: int = 0,
    b_zero: int = 0,
    zero_point: int = 0,
    format: IntegerFormat = INT8,
) -> Tensor:
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
    for name, codes, zero in (("a", a, a_zero), ("b", b, b_zero)):
        check_codes(name, codes)
        checks.check_zero(f"{name}_zero", zero, dtype_name(codes.dtype))
    checks.check_same_shape(tuple(a.shape), tuple(b.shape))
    checks.check_addition(multipliers, shift)
    lo, hi = checks.check_format(format, zero_point)
    total = (a.double() - a_zero) * multipliers[0] + (b.double() - b_zero) * multipliers[1]  # below 2**31: exact
    return ((total * 2.0**-shift).round().clamp(lo, hi) + zero_point).to(getattr(torch, format.storage))


def lookup(codes: Tensor, table: Tensor) -> Tensor:
    """The entry of a table for each code: a nonlinearity, as `core.integer_tables.lookup_table` has computed it.

    Args:
        codes: int8 or uint8, any shape.
        table: ``(256,)``, an entry for each code of the dtype in its order, so that -128 comes first in int8.
    Returns:
        Shape of ``codes``, dtype of ``table``.
    Raises:
        TypeError: other dtypes. ValueError: another table.
    """
    lo = check_codes("codes", codes)
    check_tensor("table", table)
    checks.check_table(tuple(table.shape))
    return table[codes.long() - lo]


def _check_matmul(a: Tensor, b: Tensor, bias: Tensor | None, a_zero: int) -> int:
    """Arguments of `integer_matmul`; the largest magnitude that its sum can have."""
    check_codes("a", a)
    check_codes("b", b)
    shapes = tuple(a.shape), tuple(b.shape)
    bound = checks.check_matmul(
        shapes[0], dtype_name(a.dtype), shapes[1], dtype_name(b.dtype), a_zero, bias is not None
    )
    if bias is not None:
        check_tensor("bias", bias)
        checks.check_bias(tuple(bias.shape), dtype_name(bias.dtype), shapes[1], ends(bias))
    return bound
