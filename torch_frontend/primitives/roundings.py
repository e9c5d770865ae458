"""Rounding to integers, to the numbers of a format and to another dtype. Nothing but `cast` has a derivative.

Semantics and errors: `samebits.core.primitives`, of which these have the bits.
"""

import torch
from torch import Tensor

from ...core.checks import check_float
from ...core.choice import choice
from ...core.directions import Rounding
from ...core.formats import Format, IntegerFormat
from ...core.operands import grid_of
from ..arrays import narrowed
from ..expressions import carried
from ..grid import limit_to_grid, round_to_grid
from ..operations import round_to_dtype
from ..rounding import round_to_integer
from .arithmetic import bits, from_bits
from .operands import Operand, primitive


@primitive(1)
def round(x: Operand, direction: Rounding | str = Rounding.TIES_TO_EVEN, noise: Tensor | None = None) -> Tensor:
    """``x`` rounded to an integer in a direction of `Rounding`; NaN, infinities and the sign of zero are kept.

    Args:
        noise: of stochastic rounding: whole numbers in [0, 2**24), of the shape of ``x``, as `random_bits` gives them.
    Raises:
        ValueError: no direction, or stochastic rounding without ``noise``.
    """
    value = round_to_integer(carried(x), choice("direction", direction, Rounding), noise)
    return narrowed(value, x.dtype)


@primitive(1)
def floor(x: Operand) -> Tensor:
    """The largest integer of at most ``x``."""
    return narrowed(carried(x).floor(), x.dtype)


@primitive(1)
def ceil(x: Operand) -> Tensor:
    """The smallest integer of at least ``x``; -0 between -1 and 0."""
    return narrowed(carried(x).ceil(), x.dtype)


@primitive(1)
def trunc(x: Operand) -> Tensor:
    """The integer part, with the sign of ``x``."""
    return narrowed(carried(x).trunc(), x.dtype)


@primitive(1)
def to_format(
    x: Operand, format: Format, rounding: Rounding | str = Rounding.TIES_TO_EVEN, noise: Tensor | None = None
) -> Tensor:
    """The number of a format that ``x`` is rounded to, in the dtype of ``x``; at the ends as the format says.

    16-bit ``x`` is computed with in float32, and the number rounded to its dtype. The zero of integers is +0.

    Args:
        format: one of `samebits.core.formats`. The direction does not matter to binary, ternary and codebook formats.
        noise: as in `round`.
    Raises:
        ValueError: as `round`. TypeError: no format.
    """
    q = grid_of(format, rounding)
    value = limit_to_grid(q, round_to_grid(q, carried(x), noise))
    if isinstance(format, IntegerFormat):
        value = from_bits(torch.where(value == 0, 0, bits(value)), value)
    return narrowed(value, x.dtype)


@primitive(1)
def cast(x: Operand, dtype: str) -> Tensor:
    """``x`` rounded once to another dtype, given by its name; the derivative is cast back.

    Raises:
        TypeError: a name that is none of float32, float64, bfloat16, float16.
    """
    check_float("dtype", dtype)
    to = getattr(torch, dtype)
    return x if x.dtype == to else round_to_dtype(carried(x), to)
