"""Numbers by place: entries of a table, random bits, repetition; and what only changes derivatives.

Semantics and errors: `samebits.core.primitives`, of which these have the bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.checks import scale_dtype
from ...core.granularity import Shape
from ...core.operands import check_table
from ..operations import round_to_dtype
from ..threefry import rounding_noise
from .arithmetic import is_not_a_number
from .operands import COMPUTE, Operand, broadcast, moved, operands, primitive

Array = jax.Array


def take(table: Operand, index: Operand) -> Array:
    """The entry of a table at each index, which is rounded toward zero and limited to the table; NaN for NaN.

    Derivative: to the table, at each entry the `sum` of what it was taken for; none to the index.

    Args:
        table: one axis, at least one entry.
        index: of the dtype of the table.
    Raises:
        ValueError: another table. TypeError: other dtypes.
    """
    entries, where = (operands((name,), (v,))[0] for name, v in (("table", table), ("index", index)))
    check_table(entries.shape, entries.dtype.name, where.dtype.name)
    places = jnp.arange(entries.shape[0], dtype=scale_dtype(entries.dtype.name))
    return moved("looked_up", (), entries, lax.stop_gradient(where), places)


def random_bits(seed: int, shape: Shape) -> Array:
    """For every element 24 random bits, a whole number in [0, 2**24) as float32 (which holds no more): Threefry-2x32.

    Derivative 0. ``multiply(random_bits(seed, shape), 2**-24)`` is uniform in [0, 1); for stochastic rounding see
    `round`.

    Args:
        seed: integer in ``[0, 2**32)``, 0-d: see `threefry.rounding_noise`.
    """
    return rounding_noise(seed, shape)


def broadcast_to(x: Operand, shape: Shape) -> Array:
    """``x`` repeated to a shape that it broadcasts to. Derivative: the `sum` over what was repeated.

    So that of every operand that is broadcast.
    """
    return broadcast(operands(("x",), (x,))[0], tuple(shape))


@primitive(2)
def straight_through(forward: Operand, surrogate: Operand) -> Array:
    """``forward``, every bit of it, with the derivative of ``surrogate``. (Bengio et al., arXiv 1308.3432.)"""
    del surrogate
    value: Array = forward
    return value


@primitive(1)
def stop_gradient(x: Operand) -> Array:
    """``x``, with the derivative 0."""
    fixed: Array = lax.stop_gradient(x)
    return fixed


def _looked_up(table: Array, index: Array, _places: Array) -> Array:
    wide = round_to_dtype(index, np.dtype(scale_dtype(index.dtype.name)))
    at = jnp.clip(jnp.where(is_not_a_number(wide), 0, wide), 0, table.shape[0] - 1).astype(np.int32)
    return jnp.where(is_not_a_number(index), jnp.asarray(jnp.nan, table.dtype), table[at])


COMPUTE["looked_up"] = _looked_up
