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
from ..arrays import divide as divided
from ..ieee_any import exact_sum, is_zero, to_odd
from ..operations import FLOAT64, round_to_dtype
from ..sums import square_root
from .doubles import narrowed, narrowed_to_single, widened
from .operands import Operand, primitive

Array = jax.Array
EXACT = Arithmetic(compute_dtype=ComputeDtype.INPUT, fused_multiply_add=True, keep_negative_zero=True)


@primitive(2)
def add(a: Operand, b: Operand) -> Array:
    """``a + b``."""
    return _added(a, b)


@primitive(2)
def subtract(a: Operand, b: Operand) -> Array:
    """``a - b``."""
    return _added(a, _negated(b))


@primitive(2)
def multiply(a: Operand, b: Operand) -> Array:
    """``a * b``."""
    if a.dtype == FLOAT64:
        return operations.multiply(a, b, EXACT)
    with with_float64(FLOAT64):
        return _by_single(widened(a) * widened(b), a)


@primitive(2)
def divide(a: Operand, b: Operand) -> Array:
    """``a / b``; infinite for a zero ``b``, NaN for two zeros."""
    if a.dtype == FLOAT64:
        return operations.true_divide(a, b, EXACT)
    with with_float64(FLOAT64):
        return _by_single(divided(widened(a), widened(b), subnormals=False), a)


@primitive(1)
def sqrt(x: Operand) -> Array:
    """The square root; -0 for -0, NaN for other negative numbers.

    Bit by bit; of a number below 2**-900 that of one 2**200 times as large.
    """
    dtype = x.dtype
    with with_float64(FLOAT64):
        wide = widened(x)
        if dtype == FLOAT64:
            small = magnitude(wide) < np.float64(2.0**-900).view(np.int64)
            root = square_root(jnp.where(small, operations.multiply(wide, jnp.full_like(wide, 2.0**200), EXACT), wide))
            root = jnp.where(small, root * 2.0**-100, root)
        else:
            root = lax.sqrt(wide)  # off by one in the last place at most, which rounding to half the bits removes
        ordinary = (bit_pattern(wide) > 0) & (magnitude(wide) < layout(FLOAT64).exponent)
        root = jnp.where(ordinary, root, jnp.where(is_zero(wide) | (bit_pattern(wide) > 0), wide, jnp.nan))
        return narrowed(root, dtype)


@primitive(3)
def fused_multiply_add(a: Operand, b: Operand, c: Operand) -> Array:
    """``a * b + c``, rounded once."""
    if a.dtype == FLOAT64:
        return operations.multiply_add(a, b, c, EXACT)
    with with_float64(FLOAT64):
        total, rest = exact_sum(widened(a) * widened(b), widened(c))
        odd = jnp.where(jnp.isfinite(total) & ~is_zero(total), to_odd(total, rest), total)
        return narrowed(odd, a.dtype)


@primitive(2)
def minimum(a: Operand, b: Operand) -> Array:
    """The smaller one; NaN if one is, and -0 is smaller than +0 (IEEE 754-2019, ``minimum``)."""
    return _chosen(a, b, larger=False)


@primitive(2)
def maximum(a: Operand, b: Operand) -> Array:
    """The larger one; NaN if one is, and -0 is smaller than +0 (IEEE 754-2019, ``maximum``)."""
    return _chosen(a, b, larger=True)


@primitive(3)
def clamp(x: Operand, lo: Operand, hi: Operand) -> Array:
    """``minimum(maximum(x, lo), hi)``: so hi wins where ``lo > hi``, and NaN propagates from a bound, too."""
    return _chosen(_chosen(x, lo, larger=True), hi, larger=False)


@primitive(1)
def absolute(x: Operand) -> Array:
    """``|x|``."""
    return from_pattern(magnitude(x), x.dtype)


@primitive(1)
def negative(x: Operand) -> Array:
    """``-x``, also of zeros."""
    return _negated(x)


@primitive(1)
def sign(x: Operand) -> Array:
    """1 or -1; a zero for itself, with its sign; NaN for NaN."""
    form = layout(x.dtype)
    signed = from_pattern((bit_pattern(x) & form.sign) | form.one, x.dtype)
    return jnp.where(is_zero(x) | is_not_a_number(x), x, signed)


@primitive(2)
def copysign(x: Operand, of: Operand) -> Array:
    """``|x|`` with the sign of ``of``, a zero's too; NaN if one is."""
    form = layout(x.dtype)
    pattern = magnitude(x) | (bit_pattern(of) & form.sign)
    return jnp.where(is_not_a_number(of), of, from_pattern(pattern, x.dtype))


def is_not_a_number(x: Array) -> Array:
    """Whether ``x`` is NaN, by its bits."""
    nan: Array = magnitude(x) > layout(x.dtype).exponent
    return nan


def _added(a: Array, b: Array) -> Array:
    """The sum; where it is 0, by the signs of both: of ``0.0 + x`` with a constant XLA makes ``x``, also of -0.0."""
    if a.dtype == FLOAT64:
        total = operations.add(a, b, EXACT)
    else:
        with with_float64(FLOAT64):
            total = _by_single(widened(a) + widened(b), a)
    of_zero = bit_pattern(a) & bit_pattern(b) & layout(a.dtype).sign
    return from_pattern(jnp.where(is_zero(total), of_zero, bit_pattern(total)), total.dtype)


def _by_single(value: Array, like: Array) -> Array:
    """A sum, product or quotient in float64, rounded to float32, and from there to 16 bits if these are asked for."""
    return round_to_dtype(narrowed_to_single(value), like.dtype)


def _negated(x: Array) -> Array:
    return from_pattern(bit_pattern(x) ^ layout(x.dtype).sign, x.dtype)


def _chosen(a: Array, b: Array, *, larger: bool) -> Array:
    first = ordered(a) > ordered(b) if larger else ordered(a) < ordered(b)
    return jnp.where(is_not_a_number(a) | (first & ~is_not_a_number(b)), a, b)
