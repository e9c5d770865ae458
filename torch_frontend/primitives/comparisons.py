"""Comparisons, and selection by them. Subnormal numbers are no zeros, zeros are equal, NaN is unlike everything.

Semantics and errors: `samebits.core.primitives`.
"""

import torch
from torch import Tensor

from ..expressions import carried
from .arithmetic import bits, from_bits
from .operands import Operand, operands, primitive


@primitive(2)
def equal(a: Operand, b: Operand) -> Tensor:
    """``a == b``."""
    return carried(a) == carried(b)


@primitive(2)
def not_equal(a: Operand, b: Operand) -> Tensor:
    """``a != b``: true where one is NaN."""
    return carried(a) != carried(b)


@primitive(2)
def less(a: Operand, b: Operand) -> Tensor:
    """``a < b``."""
    return carried(a) < carried(b)


@primitive(2)
def less_equal(a: Operand, b: Operand) -> Tensor:
    """``a <= b``."""
    return carried(a) <= carried(b)


@primitive(2)
def greater(a: Operand, b: Operand) -> Tensor:
    """``a > b``."""
    return carried(a) > carried(b)


@primitive(2)
def greater_equal(a: Operand, b: Operand) -> Tensor:
    """``a >= b``."""
    return carried(a) >= carried(b)


@primitive(1)
def is_nan(x: Operand) -> Tensor:
    """Whether ``x`` is NaN."""
    return carried(x) != carried(x)


@primitive(1)
def is_finite(x: Operand) -> Tensor:
    """Whether ``x`` is neither NaN nor infinite."""
    return carried(x).abs() < torch.inf


@primitive(2, conditions=1)
def where(condition: Tensor, a: Operand, b: Operand) -> Tensor:
    """``a`` where the condition is true, else ``b``: every bit of it.

    Args:
        condition: bool, as comparisons give; broadcasts with ``a`` and ``b``. TypeError for other dtypes.
    """
    return from_bits(torch.where(condition, bits(a), bits(b)), a)


def where_by_bytes(condition: Tensor, a: Operand, b: Operand) -> Tensor:
    """`where`, for gradients in compiled code, which hands its condition on from the forward pass.

    As bytes: inductor writes truth values one after the other, in thirty times as long (`expressions.where_passing`).
    """
    a, b = operands(("a", "b"), (a, b))
    one, other = bits(a), bits(b)
    wide = carried(a)  # of truth values as integers, inductor makes those of 64 bits first
    mask = -torch.where(condition, torch.ones_like(wide), torch.zeros_like(wide)).to(torch.uint8).to(one.dtype)
    return from_bits((one & mask) | (other & ~mask), a)
