"""Rounding to integers, to the numbers of a format and to another dtype. Nothing but `cast` has a derivative.

Semantics and errors: `samebits.core.primitives`, of which these have the bits.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ...core.checks import check_float, scale_dtype
from ...core.choice import choice
from ...core.directions import Rounding
from ...core.formats import Format, IntegerFormat
from ...core.operands import grid_of
from ..arrays import with_float64
from ..grid import limit_to_grid, round_to_grid
from ..ieee_any import is_zero
from ..operations import round_to_dtype
from ..rounding import round_to_integer
from .operands import Operand, primitive

Array = jax.Array


@primitive(1)
def round(x: Operand, direction: Rounding | str = Rounding.TIES_TO_EVEN, noise: Array | None = None) -> Array:
    """``x`` rounded to an integer in a direction of `Rounding`; NaN, infinities and the sign of zero are kept.

    Args:
        noise: of stochastic rounding: whole numbers in [0, 2**24), of the shape of ``x``, as `random_bits` gives them.
    Raises:
        ValueError: no direction, or stochastic rounding without ``noise``.
    """
    return _rounded(x, choice("direction", direction, Rounding), noise)


@primitive(1)
def floor(x: Operand) -> Array:
    """The largest integer of at most ``x``."""
    return _rounded(x, Rounding.TOWARD_NEGATIVE)


@primitive(1)
def ceil(x: Operand) -> Array:
    """The smallest integer of at least ``x``; -0 between -1 and 0."""
    return _rounded(x, Rounding.TOWARD_POSITIVE)


@primitive(1)
def trunc(x: Operand) -> Array:
    """The integer part, with the sign of ``x``."""
    return _rounded(x, Rounding.TOWARD_ZERO)


@primitive(1)
def to_format(
    x: Operand, format: Format, rounding: Rounding | str = Rounding.TIES_TO_EVEN, noise: Array | None = None
) -> Array:
    """The number of a format that ``x`` is rounded to, in the dtype of ``x``; at the ends as the format says.

    16-bit ``x`` is computed with in float32, and the number rounded to its dtype. The zero of integers is +0.

    Args:
        format: one of `samebits.core.formats`. The direction does not matter to binary, ternary and codebook formats.
        noise: as in `round`.
    Raises:
        ValueError: as `round`. TypeError: no format.
    """
    q = grid_of(format, rounding)
    value = limit_to_grid(q, round_to_grid(q, _wide(x), noise))
    if isinstance(format, IntegerFormat):
        value = jnp.where(is_zero(value), jnp.zeros_like(value), value)
    return round_to_dtype(value, x.dtype)


@primitive(1)
def cast(x: Operand, dtype: str) -> Array:
    """``x`` rounded once to another dtype, given by its name; the derivative is cast back.

    Raises:
        TypeError: a name that is none of float32, float64, bfloat16, float16; float64 while ``jax_enable_x64`` is off.
    """
    check_float("dtype", dtype)
    if dtype == "float64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise TypeError("`dtype` must not be float64 unless jax_enable_x64 is set")
    to = jnp.dtype(dtype)
    if x.dtype.itemsize == 2 and to.itemsize == 2 and x.dtype != to:
        return round_to_dtype(round_to_dtype(x, np.float32), to)
    with with_float64(x.dtype, to):
        return round_to_dtype(x, to)


def _wide(x: Array) -> Array:
    return round_to_dtype(x, np.dtype(scale_dtype(x.dtype.name)))


def _rounded(x: Array, direction: Rounding, noise: Array | None = None) -> Array:
    return round_to_dtype(round_to_integer(_wide(x), direction, noise), x.dtype)
