"""Sums, products, quotients, square roots, and what only looks at signs and order: each result rounded once.

Every function takes arrays of one dtype (float32, float64, bfloat16, float16) and numbers of Python, which are rounded
to it, of shapes that broadcast; it gives that dtype. Subnormal numbers count, zeros have signs, NaN propagates (IEEE
754). TypeError for other dtypes, for two different ones, and if none is an array; ValueError for shapes that do not
broadcast. The derivative of each stands in `samebits.core.derivatives`.
"""

import numpy as np

from .. import operations
from ..arithmetic import Arithmetic, ComputeDtype
from .operands import Array, Operand, primitive

EXACT = Arithmetic(compute_dtype=ComputeDtype.INPUT, fused_multiply_add=True, keep_negative_zero=True)


@primitive(2)
def add(a: Operand, b: Operand) -> Array:
    """``a + b``."""
    return operations.add(a, b, EXACT)  # type: ignore[arg-type]


@primitive(2)
def subtract(a: Operand, b: Operand) -> Array:
    """``a - b``."""
    return operations.add(a, np.negative(b), EXACT)  # type: ignore[arg-type]


@primitive(2)
def multiply(a: Operand, b: Operand) -> Array:
    """``a * b``."""
    return operations.multiply(a, b, EXACT)  # type: ignore[arg-type]


@primitive(2)
def divide(a: Operand, b: Operand) -> Array:
    """``a / b``; infinite for a zero ``b``, NaN for two zeros."""
    return operations.true_divide(a, b, EXACT)  # type: ignore[arg-type]


@primitive(1)
def sqrt(x: Operand) -> Array:
    """The square root; -0 for -0, NaN for other negative numbers."""
    return np.sqrt(x)


@primitive(3)
def fused_multiply_add(a: Operand, b: Operand, c: Operand) -> Array:
    """``a * b + c``, rounded once."""
    return operations.multiply_add(a, b, c, EXACT)  # type: ignore[arg-type]


@primitive(2)
def minimum(a: Operand, b: Operand) -> Array:
    """The smaller one; NaN if one is, and -0 is smaller than +0 (IEEE 754-2019, ``minimum``)."""
    return _chosen(np.asarray(a), np.asarray(b), larger=False)


@primitive(2)
def maximum(a: Operand, b: Operand) -> Array:
    """The larger one; NaN if one is, and -0 is smaller than +0 (IEEE 754-2019, ``maximum``)."""
    return _chosen(np.asarray(a), np.asarray(b), larger=True)


@primitive(3)
def clamp(x: Operand, lo: Operand, hi: Operand) -> Array:
    """``minimum(maximum(x, lo), hi)``: so hi wins where ``lo > hi``, and NaN propagates from a bound, too."""
    inner = _chosen(np.asarray(x), np.asarray(lo), larger=True)
    return _chosen(inner, np.asarray(hi), larger=False)


@primitive(1)
def absolute(x: Operand) -> Array:
    """``|x|``."""
    return np.abs(x)


@primitive(1)
def negative(x: Operand) -> Array:
    """``-x``, also of zeros."""
    return np.negative(x)


@primitive(1)
def sign(x: Operand) -> Array:
    """1 or -1; a zero for itself, with its sign; NaN for NaN."""
    x = np.asarray(x)
    return np.where((x == 0) | np.isnan(x), x, np.copysign(np.ones_like(x), x))


@primitive(2)
def copysign(x: Operand, of: Operand) -> Array:
    """``|x|`` with the sign of ``of``, a zero's too; NaN if one is."""
    x, of = np.asarray(x), np.asarray(of)
    return np.where(np.isnan(of), of, np.copysign(x, of))


def _chosen(a: Array, b: Array, *, larger: bool) -> Array:
    a, b = np.broadcast_arrays(a, b)
    first = (a > b) if larger else (a < b)
    first |= (a == b) & (np.signbit(a) != larger)  # of equal ones, which may be zeros, the sign tells
    return np.where(np.isnan(a) | (first & ~np.isnan(b)), a, b)
