"""Factors between two layers, folded into the weights of both; see `samebits.core.folding`.

Of numbers below the smallest normal one nothing is promised, since XLA takes them for zero.
"""

import jax
import jax.numpy as jnp

from ...core.layerwise import check_factors
from ..arrays import divide, narrow, product, widen, widen_exactly

Array = jax.Array


def divide_rows(p: Array, factors: Array) -> Array:
    """A weight or bias whose first axis is what the layer gives, each row divided by its factor.

    Args:
        p: any floating-point dtype, ``(n, ...)``; divided in float64 for float64, else in float32, and rounded once
            more to 16 bits.
        factors: float32, ``(n,)``, positive and finite.
    Returns:
        Shape and dtype of ``p``.
    Raises:
        ValueError: factors that do not fit, or are not positive and finite.
    """
    check_factors(factors.shape, p.shape[:1], _positive(factors))
    rows: Array = _divided(p, factors)
    return rows


def multiply_columns(w: Array, factors: Array) -> Array:
    """A weight whose second axis is what the layer takes, each column times its factor; else as `divide_rows`."""
    check_factors(factors.shape, w.shape[1:2], _positive(factors))
    columns: Array = _multiplied(w, factors)
    return columns


@jax.jit
def _divided(p: Array, factors: Array) -> Array:
    wide = widen(p)
    column = jnp.broadcast_to(widen_exactly(factors, wide.dtype).reshape(-1, *(1 for _ in p.shape[1:])), p.shape)
    return narrow(divide(wide, column), p.dtype)


@jax.jit
def _multiplied(w: Array, factors: Array) -> Array:
    wide = widen(w)
    row = jnp.broadcast_to(widen_exactly(factors, wide.dtype).reshape(1, -1, *(1 for _ in w.shape[2:])), w.shape)
    return narrow(product(wide, row, signed_zero=True), w.dtype)


def _positive(factors: Array) -> bool:
    return bool(jnp.all((factors > 0) & jnp.isfinite(factors)))
