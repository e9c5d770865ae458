"""Numbers by place: entries of a table, random bits, repetition; and what only changes derivatives.

Semantics and errors: `samebits.core.primitives`, of which these have the bits.
"""

import torch
from torch import Tensor

from ...core.checks import scale_dtype
from ...core.granularity import Shape
from ...core.operands import check_table
from ..arrays import dtype_name
from ..expressions import carried
from ..threefry import rounding_noise
from .arithmetic import bits, from_bits
from .operands import COMPUTE, Operand, broadcast, differentiable, operands, primitive


def take(table: Operand, index: Operand) -> Tensor:
    """The entry of a table at each index, which is rounded toward zero and limited to the table; NaN for NaN.

    Derivative: to the table, at each entry the `sum` of what it was taken for; none to the index.

    Args:
        table: one axis, at least one entry.
        index: of the dtype of the table.
    Raises:
        ValueError: another table. TypeError: other dtypes.
    """
    entries, where = (operands((name,), (v,))[0] for name, v in (("table", table), ("index", index)))
    check_table(tuple(entries.shape), dtype_name(entries.dtype), dtype_name(where.dtype))
    wide = getattr(torch, scale_dtype(dtype_name(entries.dtype)))
    places = torch.arange(entries.shape[0], dtype=wide, device=entries.device)
    return differentiable("looked_up", (entries, where.detach(), places))


def random_bits(seed: int, shape: Shape) -> Tensor:
    """For every element 24 random bits, a whole number in [0, 2**24) as float32 (which holds no more): Threefry-2x32.

    Derivative 0. ``multiply(random_bits(seed, shape), 2**-24)`` is uniform in [0, 1); for stochastic rounding see
    `round`.

    Args:
        seed: integer in ``[0, 2**32)``, 0-d: see `threefry.rounding_noise`.
    """
    return rounding_noise(seed, shape)


def broadcast_to(x: Operand, shape: Shape) -> Tensor:
    """``x`` repeated to a shape that it broadcasts to. Derivative: the `sum` over what was repeated.

    So that of every operand that is broadcast.
    """
    return broadcast(operands(("x",), (x,))[0], tuple(shape))


@primitive(2)
def straight_through(forward: Operand, surrogate: Operand) -> Tensor:
    """``forward``, every bit of it, with the derivative of ``surrogate``. (Bengio et al., arXiv 1308.3432.)"""
    shape = torch.broadcast_shapes(forward.shape, surrogate.shape)  # type: ignore[no-untyped-call]
    value: Tensor = forward.expand(shape)
    return value


@primitive(1)
def stop_gradient(x: Operand) -> Tensor:
    """``x``, with the derivative 0."""
    fixed: Tensor = x.detach()
    return fixed


def _looked_up(table: Tensor, index: Tensor, _places: Tensor) -> Tensor:
    wide = carried(index)
    at = torch.where(wide != wide, 0.0, wide).clamp(0.0, float(table.shape[0] - 1)).to(torch.int64)
    nan = torch.full_like(table[0], torch.nan)
    return from_bits(torch.where(wide != wide, bits(nan), bits(table[at])), table)


COMPUTE["looked_up"] = _looked_up
