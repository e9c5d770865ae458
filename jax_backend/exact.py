"""Exact sums of products of integers, by floating-point contractions that never round.

A float32 sum of integers is exact while it stays within 2**24, in any order; so contractions run over parts of the
contracted axes short enough for that, and the parts are added as integers. Operands are integers held in floats, split
into two bytes where they exceed 256, so that bfloat16 holds each part: hardware multiplies that fastest. NaN stays NaN.
"""

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Contraction = Callable[[Array, Array], Array]
Part = tuple[int, Array]  # the number 2**shift * array, whose elements are integers of at most 256
BYTE = 256
EXACT = 2**24  # every integer up to here is a float32


def integer_contraction(
    contract: Contraction, axis: int, a: Array, b: Array, largest_a: int, largest_b: int, bound: int
) -> Array:
    """``contract(a, b)`` over integers in floats, correctly rounded to their dtype; NaN where NaN enters the sum.

    Args:
        contract: bilinear; sums over ``axis`` of ``a``, axis 1 of ``b``, and the later axes of ``b``.
        a, b: float32, or float64 (whose sums are exact to 2**53 in one go); integers of at most ``largest_a``,
            ``largest_b``.
        bound: largest magnitude the sum can have.
    Raises:
        ValueError: ``bound`` above 2**48, for float32.
    """
    if a.dtype == np.float64:
        return contract(a, b)
    if bound > 2**48:
        raise ValueError(f"the contraction must stay within 2**48 to be exact, its bound is {bound}; use fewer bits")
    sums = [
        (shift_a + shift_b, contract(lax.slice_in_dim(part_a, start, stop, axis=axis), piece))
        for shift_a, part_a in _parts(a, largest_a)
        for shift_b, part_b in _parts(b, largest_b)
        for start, stop, piece in _pieces(part_b, EXACT // (min(largest_a, BYTE) * min(largest_b, BYTE)))
    ]
    return sums[0][1] if len(sums) == 1 else _total(sums, bound)


def _parts(a: Array, largest: int) -> list[Part]:
    """``a`` as bytes of weight 1 and 256, or as it is where it fits in one."""
    if largest <= BYTE:
        return [(0, a)]
    high = lax.round(a * np.float32(1 / BYTE), lax.RoundingMethod.TO_NEAREST_EVEN)
    return [(0, a - high * BYTE), (8, high)]


def _pieces(b: Array, terms: int) -> list[tuple[int, int, Array]]:
    """``b`` cut along axis 1 so that no more than ``terms`` of its elements are summed: start, stop, and the piece.

    Where the axes after it hold more than that already, pieces of those are cut by setting the others to zero.
    """
    inner = prod(b.shape[2:])
    if inner <= terms:
        step = terms // max(inner, 1)
        starts = range(0, b.shape[1], step) or [0]
        ends = [(start, min(start + step, b.shape[1])) for start in starts]
        return [(start, stop, lax.slice_in_dim(b, start, stop, axis=1)) for start, stop in ends]
    place = np.arange(inner).reshape(b.shape[2:]) // terms
    groups = [jnp.where(place == group, b, 0) for group in range(place.max() + 1)]
    return [(i, i + 1, lax.slice_in_dim(b, i, i + 1, axis=1)) for b in groups for i in range(b.shape[1])]


def _total(sums: list[Part], bound: int) -> Array:
    """The sum of exact sums, correctly rounded to float32.

    As int32 where it fits (wrapping around on the way does no harm). Else as ``high * 2**24 + low``, both exact floats,
    so that one addition rounds.
    """
    nan = jnp.isnan(sum((value for _, value in sums[1:]), sums[0][1]))
    integers = [(shift, value.astype(np.int32)) for shift, value in sums]
    high = low = jnp.zeros_like(integers[0][1])
    if bound < 2**31:
        for shift, value in integers:
            low = low + (value << shift)
        return jnp.where(nan, jnp.nan, low.astype(np.float32))
    for shift, value in integers:
        low = low + ((value & ((EXACT >> shift) - 1)) << shift)
        high, low = high + (value >> (24 - shift)) + (low >> 24), low & (EXACT - 1)
    return jnp.where(nan, jnp.nan, high.astype(np.float32) * np.float32(EXACT) + low.astype(np.float32))
