"""Numbers by place: entries of a table, random bits, repetition; and what only changes derivatives."""

import numpy as np

from ..granularity import Shape
from ..operands import check_table
from ..threefry import rounding_noise
from .operands import Array, Operand, operands, primitive


def take(table: Operand, index: Operand) -> Array:
    """The entry of a table at each index, which is rounded toward zero and limited to the table; NaN for NaN.

    Derivative: to the table, at each entry the `sum` of what it was taken for; none to the index.

    Args:
        table: one axis, at least one entry.
        index: of the dtype of the table.
    Raises:
        ValueError: another table. TypeError: other dtypes.
    """
    entries, places = (operands((name,), (v,))[0] for name, v in (("table", table), ("index", index)))
    check_table(entries.shape, entries.dtype.name, places.dtype.name)
    at = np.clip(np.where(np.isnan(places), 0, places.astype(np.float64)), 0, len(entries) - 1).astype(np.int64)
    return np.where(np.isnan(places), np.asarray(np.nan, entries.dtype), entries[at])


def random_bits(seed: int, shape: Shape) -> Array:
    """For every element 24 random bits, a whole number in [0, 2**24) as float32 (which holds no more): Threefry-2x32.

    Derivative 0. ``multiply(random_bits(seed, shape), 2**-24)`` is uniform in [0, 1); for stochastic rounding see
    `round`.

    Args:
        seed: integer in ``[0, 2**32)``, 0-d: see `threefry.rounding_noise`.
    """
    return rounding_noise(seed, shape)


@primitive(1)
def broadcast_to(x: Operand, shape: Shape) -> Array:
    """``x`` repeated to a shape that it broadcasts to. Derivative: the `sum` over what was repeated.

    So that of every operand that is broadcast.
    """
    return np.broadcast_to(np.asarray(x), tuple(shape))


@primitive(2)
def straight_through(forward: Operand, surrogate: Operand) -> Array:
    """``forward``, every bit of it, with the derivative of ``surrogate``. (Bengio et al., arXiv 1308.3432.)"""
    return np.broadcast_arrays(np.asarray(forward), np.asarray(surrogate))[0].copy()


@primitive(1)
def stop_gradient(x: Operand) -> Array:
    """``x``, with the derivative 0."""
    return np.array(x)
