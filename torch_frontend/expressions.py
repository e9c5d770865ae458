"""What the expressions of `elementwise` and `arithmetics` have in common: forms that compilers keep, and vectorize."""

from typing import NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """Gradient of x, and the terms whose sums over blocks are those of scale and zero point; None if not wanted."""

    x: Tensor | None
    scale: Tensor | None
    zero_point: Tensor | None


def nearest(x: Tensor) -> Tensor:
    """The nearest integer, halves to even, +0 for either zero: adding and subtracting a large even number.

    One operation less than rounding and then `elementwise.one_zero`. ``x`` is a code's size at most. As of rounding,
    its gradient is 0.
    """
    large = 1.5 * 2.0**52 if x.dtype == torch.float64 else 1.5 * 2.0**23
    return (x.detach() + large) - large


def where_passing(passes: Tensor, g: Tensor, like: Tensor) -> Tensor:
    """``g`` where the gradient passes, else +0.0.

    Compiled, the mask is handed on to the backward pass. Inductor writes truth values one after the other, in thirty
    times as long as small integers; and unless those become bits before they meet ``g``, it hands on truth values.

    Args:
        like: float32 or float64, of the shape of the mask.
    """
    if not torch.compiler.is_compiling():
        return torch.where(passes, g, torch.zeros_like(g))
    mask = torch.where(passes, torch.ones_like(like), torch.zeros_like(like)).to(torch.uint8)
    wide = g.to(like.dtype)
    integer = torch.int64 if wide.dtype == torch.float64 else torch.int32
    return (wide.view(integer) & -mask.to(integer)).view(wide.dtype).to(g.dtype)


def signed_sum(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """``total = a + b`` with the sign of IEEE 754, should it be 0: -0 if both numbers have that sign."""
    a, b, wide = carried(a), carried(b), carried(total)
    integer = bits_of(wide.dtype)
    signs = a.view(integer) & b.view(integer) & sign_of(wide.dtype)
    return torch.where(wide == 0, signs, wide.view(integer)).view(wide.dtype).to(total.dtype)


def carried(x: Tensor) -> Tensor:
    """``x`` in the dtype that compilers hold it in, float32 for 16 bits: exactly."""
    return x.to(torch.float32) if x.element_size() == 2 else x


def bits_of(dtype: torch.dtype) -> torch.dtype:
    """The integer dtype of the bits of float32 or float64."""
    return torch.int64 if dtype == torch.float64 else torch.int32


def sign_of(dtype: torch.dtype) -> int:
    """The bit of the sign, as a number of that integer dtype."""
    return -(2**63) if dtype == torch.float64 else -(2**31)
