"""Sums, products, quotients, square roots, and what only looks at signs and order: each result rounded once.

Semantics, errors and derivatives: `samebits.core.primitives`, of which these have the bits. What rounds is put together
from integers, so that XLA flushes, contracts and rewrites nothing; what does not is done on bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.arithmetic import Arithmetic, ComputeDtype
from .. import operations
from ..arrays import bit_pattern, from_pattern, layout, magnitude, ordered, with_float64
from ..ieee_any import is_zero
from ..operations import FLOAT64, round_to_dtype
from ..sums import square_root
from .operands import Operand, primitive

Array = jax.Array
EXACT = Arithmetic(compute_dtype=ComputeDtype.INPUT, fused_multiply_add=True, keep_negative_zero=True)


@primitive(2)
def add(a: Operand, b: Operand) -> Array:
    """``a + b``."""
    return operations.add(a, b, EXACT)  # type: ignore[arg-type]


@primitive(2)
def subtract(a: Operand, b: Operand) -> Array:
    """``a - b``."""
    return operations.add(a, _negated(b), EXACT)  # type: ignore[arg-type]


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
    """The square root; -0 for -0, NaN for other negative numbers.

    Bit by bit; of a number below 2**-900 that of one 2**200 times as large.
    """
    dtype = x.dtype  # type: ignore[union-attr]
    with with_float64(FLOAT64):
        wide = round_to_dtype(x, FLOAT64)  # type: ignore[arg-type]
        if dtype == FLOAT64:
            small = magnitude(wide) < np.float64(2.0**-900).view(np.int64)
            root = square_root(jnp.where(small, operations.multiply(wide, jnp.full_like(wide, 2.0**200), EXACT), wide))
            root = jnp.where(small, root * 2.0**-100, root)
        else:
            root = lax.sqrt(wide)  # off by one in the last place at most, which rounding to half the bits removes
        ordinary = (bit_pattern(wide) > 0) & (magnitude(wide) < layout(FLOAT64).exponent)
        root = jnp.where(ordinary, root, jnp.where(is_zero(wide) | (bit_pattern(wide) > 0), wide, jnp.nan))
        return round_to_dtype(root, dtype)


@primitive(3)
def fused_multiply_add(a: Operand, b: Operand, c: Operand) -> Array:
    """``a * b + c``, rounded once."""
    return operations.multiply_add(a, b, c, EXACT)  # type: ignore[arg-type]


@primitive(2)
def minimum(a: Operand, b: Operand) -> Array:
    """The smaller one; NaN if one is, and -0 is smaller than +0 (IEEE 754-2019, ``minimum``)."""
    return _chosen(a, b, larger=False)  # type: ignore[arg-type]


@primitive(2)
def maximum(a: Operand, b: Operand) -> Array:
    """The larger one; NaN if one is, and -0 is smaller than +0 (IEEE 754-2019, ``maximum``)."""
    return _chosen(a, b, larger=True)  # type: ignore[arg-type]


@primitive(3)
def clamp(x: Operand, lo: Operand, hi: Operand) -> Array:
    """``minimum(maximum(x, lo), hi)``: so hi wins where ``lo > hi``, and NaN propagates from a bound, too."""
    return _chosen(_chosen(x, lo, larger=True), hi, larger=False)  # type: ignore[arg-type]


@primitive(1)
def absolute(x: Operand) -> Array:
    """``|x|``."""
    return from_pattern(magnitude(x), x.dtype)  # type: ignore[arg-type, union-attr]


@primitive(1)
def negative(x: Operand) -> Array:
    """``-x``, also of zeros."""
    return _negated(x)  # type: ignore[arg-type]


@primitive(1)
def sign(x: Operand) -> Array:
    """1 or -1; a zero for itself, with its sign; NaN for NaN."""
    form = layout(x.dtype)  # type: ignore[union-attr]
    signed = from_pattern((bit_pattern(x) & form.sign) | form.one, x.dtype)  # type: ignore[arg-type, union-attr]
    return jnp.where(is_zero(x) | is_not_a_number(x), x, signed)  # type: ignore[arg-type]


@primitive(2)
def copysign(x: Operand, of: Operand) -> Array:
    """``|x|`` with the sign of ``of``, a zero's too; NaN if one is."""
    form = layout(x.dtype)  # type: ignore[union-attr]
    pattern = magnitude(x) | (bit_pattern(of) & form.sign)  # type: ignore[arg-type]
    return jnp.where(is_not_a_number(of), of, from_pattern(pattern, x.dtype))  # type: ignore[arg-type, union-attr]


def is_not_a_number(x: Array) -> Array:
    """Whether ``x`` is NaN, by its bits."""
    return magnitude(x) > layout(x.dtype).exponent


def _negated(x: Array) -> Array:
    return from_pattern(bit_pattern(x) ^ layout(x.dtype).sign, x.dtype)


def _chosen(a: Array, b: Array, *, larger: bool) -> Array:
    first = ordered(a) > ordered(b) if larger else ordered(a) < ordered(b)
    return jnp.where(is_not_a_number(a) | (first & ~is_not_a_number(b)), a, b)
