"""Rounding to integers, to the numbers of a format and to another dtype. Operands and errors as in `arithmetic`.

What is rounded has the derivative 0, except for `cast`; `straight_through` gives it another.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..checks import check_float, scale_dtype
from ..choice import choice
from ..directions import Rounding
from ..formats import Format, IntegerFormat
from ..grid import limit_to_grid, round_to_grid
from ..operands import grid_of
from ..operations import BFLOAT16, round_to_dtype
from ..rounding import round_to_integer
from .operands import Array, Operand, primitive


@primitive(1)
def round(x: Operand, direction: Rounding | str = Rounding.TIES_TO_EVEN, noise: ArrayLike | None = None) -> Array:
    """``x`` rounded to an integer in a direction of `Rounding`; NaN, infinities and the sign of zero are kept.

    Args:
        noise: of stochastic rounding: whole numbers in [0, 2**24), of the shape of ``x``, as `random_bits` gives them.
    Raises:
        ValueError: no direction, or stochastic rounding without ``noise``.
    """
    x = np.asarray(x)
    return round_to_integer(_wide(x), choice("direction", direction, Rounding), _noise(noise)).astype(x.dtype)


@primitive(1)
def floor(x: Operand) -> Array:
    """The largest integer of at most ``x``."""
    return np.floor(x)


@primitive(1)
def ceil(x: Operand) -> Array:
    """The smallest integer of at least ``x``; -0 between -1 and 0."""
    return np.ceil(x)


@primitive(1)
def trunc(x: Operand) -> Array:
    """The integer part, with the sign of ``x``."""
    return np.trunc(x)


@primitive(1)
def to_format(
    x: Operand, format: Format, rounding: Rounding | str = Rounding.TIES_TO_EVEN, noise: ArrayLike | None = None
) -> Array:
    """The number of a format that ``x`` is rounded to, in the dtype of ``x``; at the ends as the format says.

    16-bit ``x`` is computed with in float32, and the number rounded to its dtype. The zero of
    integers is +0.

    Args:
        format: one of `samebits.core.formats`. The direction does not matter to binary, ternary and codebook formats.
        noise: as in `round`.
    Raises:
        ValueError: as `round`. TypeError: no format.
    """
    x = np.asarray(x)
    q = grid_of(format, rounding)
    value = round_to_dtype(limit_to_grid(q, round_to_grid(q, _wide(x), _noise(noise))), x.dtype)
    return np.where(value == 0, np.zeros_like(value), value) if isinstance(format, IntegerFormat) else value


@primitive(1)
def cast(x: Operand, dtype: str) -> Array:
    """``x`` rounded once to another dtype, given by its name; the derivative is cast back.

    Raises:
        TypeError: a name that is none of float32, float64, bfloat16, float16.
    """
    check_float("dtype", dtype)
    return round_to_dtype(np.asarray(x), BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype))


def _wide(x: Array) -> Array:
    return x.astype(scale_dtype(x.dtype.name))


def _noise(noise: Any) -> Array | None:
    return None if noise is None else np.asarray(noise)
