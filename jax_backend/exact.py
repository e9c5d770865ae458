"""Exact sums of products of integers, by floating-point contractions that never round.

A float32 sum of integers is exact while it stays within 2**24, in any order; so contractions run over parts of the
contracted axes short enough for that, and the parts are added as integers. Operands are integers held in floats, split
into two bytes where they exceed 256, so that bfloat16, which some hardware multiplies fastest, holds each part. NaN
stays NaN.
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
Axes = tuple[int, ...]
BYTE = 256
EXACT = 2**24  # every integer up to here is a float32


def integer_contraction(
    contract: Contraction, a: Array, b: Array, summed: Axes, inputs: int, largest: tuple[int, int], bound: int
) -> Array:
    """``contract(a, b)`` over integers in floats, correctly rounded to their dtype; NaN where NaN enters the sum.

    Args:
        contract: bilinear; sums over the last axis of ``a`` and the axes ``summed`` of ``b``.
        a, b: float32, or float64 (whose sums are exact to 2**53 in one go); integers of at most ``largest``.
        inputs: the one of ``summed`` that is the last axis of ``a``.
        bound: largest magnitude the sum can have.
    Raises:
        ValueError: ``bound`` above 2**48, for float32.
    """
    if a.dtype == np.float64:
        return contract(a, b)
    if bound > 2**48:
        raise ValueError(f"the contraction must stay within 2**48 to be exact, its bound is {bound}; use fewer bits")
    terms = EXACT // (min(largest[0], BYTE) * min(largest[1], BYTE))
    sums = [
        (shift_a + shift_b, contract(lax.slice_in_dim(part_a, start, stop, axis=-1), piece))
        for shift_a, part_a in _parts(a, largest[0])
        for shift_b, part_b in _parts(b, largest[1])
        for start, stop, piece in _pieces(part_b, summed, inputs, terms)
    ]
    return sums[0][1] if len(sums) == 1 else _total(sums, bound)


def _parts(a: Array, largest: int) -> list[Part]:
    """``a`` as bytes of weight 1 and 256, or as it is where it fits in one."""
    if largest <= BYTE:
        return [(0, a)]
    high = lax.round(a * np.float32(1 / BYTE), lax.RoundingMethod.TO_NEAREST_EVEN)
    return [(0, a - high * BYTE), (8, high)]


def _pieces(b: Array, summed: Axes, inputs: int, terms: int) -> list[tuple[int, int, Array]]:
    """``b`` cut along ``inputs`` so that no more than ``terms`` of its elements are summed: start, stop, and the piece.

    Where the other axes of the sum hold more than that already, they are cut too, by setting the rest to zero.
    """
    places = prod(b.shape[axis] for axis in summed if axis != inputs)
    step = max(1, terms // max(places, 1))
    starts = range(0, b.shape[inputs], step) or [0]
    ends = [(start, min(start + step, b.shape[inputs])) for start in starts]
    shape = [b.shape[axis] if axis in summed and axis != inputs else 1 for axis in range(b.ndim)]
    group = np.arange(places).reshape(shape) // terms
    groups = [b] if places <= terms else [jnp.where(group == i, b, 0) for i in range(group.max() + 1)]
    return [(start, stop, lax.slice_in_dim(part, start, stop, axis=inputs)) for part in groups for start, stop in ends]


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
