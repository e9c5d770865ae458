"""Factors between two layers: what one gives is divided by them, what the next takes is multiplied by them.

In exact arithmetic the two together compute what they did. Here every weight is rounded once, so outputs move by
roundings of the weights; factors that are powers of two move nothing, where nothing overflows or becomes subnormal.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import scale_dtype
from .layerwise import check_factors

Array = NDArray[Any]


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
    check_factors(factors.shape, p.shape[:1], bool((factors > 0).all() and np.isfinite(factors).all()))
    column = factors.reshape(-1, *(1 for _ in p.shape[1:]))
    return (p.astype(scale_dtype(p.dtype.name)) / column).astype(p.dtype)


def multiply_columns(w: Array, factors: Array) -> Array:
    """A weight whose second axis is what the layer takes, each column times its factor; else as `divide_rows`."""
    check_factors(factors.shape, w.shape[1:2], bool((factors > 0).all() and np.isfinite(factors).all()))
    row = factors.reshape(1, -1, *(1 for _ in w.shape[2:]))
    return (w.astype(scale_dtype(w.dtype.name)) * row).astype(w.dtype)
