"""Sums over blocks whose bits do not depend on who adds: one fixed order, numbers that are never subnormal.

Every step lies behind a barrier, so that XLA neither merges nor repeats them. Square roots are taken bit by bit, in
integers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .arrays import (
    barrier,
    bit_pattern,
    from_pattern,
    is_subnormal_or_zero,
    layout,
    magnitude,
    scaled_subnormal,
    with_sign_of,
)
from .ieee import multiply_exactly

Array = jax.Array


def ordered_sum(terms: Array) -> Array:
    """Sum over the last axis: zeros appended up to a power of two, then ``v[: n/2] + v[n/2 :]`` until one is left.

    Every addition is rounded. With ``u = 2**-24`` (float64: 2**-53) and ``d = ceil(log2 n)``, the error is at most
    ``((1 + u)**d - 1) * sum(|terms|)``. 0 for an empty axis.
    """
    n = terms.shape[-1]
    steps = max(n - 1, 0).bit_length()
    v = jnp.pad(terms, [(0, 0)] * (terms.ndim - 1) + [(0, (1 << steps) - n)])
    for _ in range(steps):
        first, second = jnp.split(barrier(v), 2, axis=-1)
        v = first + second
    return v[..., 0]


def square_root(x: Array) -> Array:
    """The square root, correctly rounded (IEEE 754). ``x``: 0 or positive normal numbers.

    Of the integer ``m * 2**(mantissa + 2)`` with ``x = m * 4**k``: one bit after another, one more than the result has.
    That bit rounds: no root of a number of the dtype lies halfway between two.
    """
    form = layout(x.dtype)
    bits, mantissa = bit_pattern(x), form.mantissa
    exponent = (bits >> mantissa) - (form.one >> mantissa)
    odd = exponent & 1
    whole = ((bits & form.integer((1 << mantissa) - 1)) | form.integer(1 << mantissa)) << odd

    def bit(_: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        root, rest, digits = state
        rest = (rest << 2) | ((digits >> mantissa) & 3)
        trial = (root << 2) | 1
        fits = rest >= trial
        rest = jnp.where(fits, rest - trial, rest)
        digits = (digits << 2) & form.integer((1 << (mantissa + 2)) - 1)
        return (root << 1) | fits.astype(root.dtype), rest, digits

    zero = jnp.zeros_like(whole)
    root = (lax.fori_loop(0, mantissa + 2, bit, (zero, zero, whole))[0] + 1) >> 1  # in [2**mantissa, 2**(mantissa + 1)]
    field = ((exponent - odd) >> 1) + (form.one >> mantissa)
    pattern = (field << mantissa) + (root - form.integer(1 << mantissa))
    return jnp.where(x > 0, from_pattern(pattern, x.dtype), jnp.zeros_like(x))


def unit_of(largest: Array) -> Array:
    """The power of two ``2**floor(log2 largest)``, within [2**-126, 2**126] (float64: 1022). No meaning for NaN."""
    form = layout(largest.dtype)
    least = form.integer(1 << form.mantissa)
    return from_pattern(jnp.clip(bit_pattern(largest) & form.exponent, least, 2 * form.one - least), largest.dtype)


def in_units(x: Array, unit: Array) -> Array:
    """``x / unit``, exact, with 0 for quotients below 2**-60 in magnitude (float64: 2**-508).

    A subnormal ``x`` takes part ``2**126`` times as large, with the power of two that makes up for it; where that power
    is none, the quotient is too small to count.

    Args:
        x: one axis more than ``unit``, the last.
    """
    form = layout(x.dtype)
    least = form.integer(1 << form.mantissa)
    pattern = bit_pattern(unit)[..., None]
    inverse = from_pattern(2 * form.one - pattern, x.dtype)
    rest = from_pattern(jnp.maximum(form.one + least - pattern, least), x.dtype)
    small = with_sign_of(scaled_subnormal(x), x)
    return without_small(jnp.where(is_subnormal_or_zero(x), small * rest, x * inverse))


def without_small(x: Array) -> Array:
    """``x`` with 0 for numbers below 2**-60 (float64: 2**-508) in magnitude: their squares are normal numbers or 0."""
    form = layout(x.dtype)
    least = form.one + form.integer((form.min_exponent // 2 + 3) << form.mantissa)
    return jnp.where(magnitude(x) < least, jnp.zeros_like(x), x)


def of_units(value: Array, unit: Array) -> Array:
    """``value * unit``, rounded; the largest number instead of an infinity. Same shapes."""
    exact = multiply_exactly(value, unit)
    largest = from_pattern(jnp.full_like(bit_pattern(exact), layout(exact.dtype).exponent - 1), exact.dtype)
    return jnp.where(jnp.isinf(exact), with_sign_of(largest, exact), exact)
