"""The same operations in place, over chunks that stay in cache: the route of ordinary tensors in eager mode.

A chain of native operators over a large tensor reads and writes main memory once per operator; over a chunk of it, once
in all. Per-tensor quantizers take an array in the order in which it lies in memory, so transposed and channels-last
arrays are not copied. Scale and zero point come in the wide dtype.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..core import checks
from ..core.descriptions import Quantizer
from ..core.formats import CodebookFormat, FloatFormat, IntegerFormat
from ..core.granularity import PerTensor
from .arrays import WHOLE, broadcast_views, dense_order, pieces
from .elementwise import value_of_code_0
from .in_place import from_codes, to_codes, to_grid
from .zero_point import middle_code

View = Callable[[Any], Any]  # of a tensor, or of None, which stays None


def fake_quantize(q: Quantizer, x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """``(code - z) * s`` in the dtype of ``x``."""
    return fake_quantize_and_nan(q, x, scale, zero, False)[0]


def fake_quantize_and_nan(
    q: Quantizer, x: Tensor, scale: Tensor, zero: Tensor | None, watched: bool
) -> tuple[Tensor, bool]:
    """`fake_quantize`, and whether NaN may be among the codes: known only if ``watched``, while they are in cache."""
    x, view, spread = layout(q, x)
    out = torch.empty_like(x)
    scratch = None if x.dtype == scale.dtype else _scratch(x, scale.dtype)
    nothing, one_zero = _zero(scale.dtype, scale.device), _needs_one_zero(q)
    may_be_nan = not watched
    for xs, ys, s, z in pieces(view(x), view(out), spread(scale), spread(zero)):
        work = ys if scratch is None else scratch[: xs.numel()].view(xs.shape)
        _codes_into(work, q, xs, s, z)
        may_be_nan = may_be_nan or math.isnan(work.sum().item())
        if z is not None and q.arithmetic.has_float_zeros:
            _values_into(work, q, s, z)
        elif z is not None:
            work.sub_(z).mul_(s)
        elif not one_zero:
            work.mul_(s)
        elif s.numel() == 1:
            torch.add(nothing, work, alpha=s.item(), out=work)  # 0 + code * s in one pass: what was -0 becomes +0
        else:
            work.add_(0.0).mul_(s)
        if work is not ys:
            ys.copy_(work)
    return out, may_be_nan


def codes(q: Quantizer, x: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Codes in an integer ``dtype``, where NaN is refused if no code stands for it; in the wide one, the numbers."""
    x, view, spread = layout(q, x)
    out = torch.empty_like(x, dtype=dtype)
    scratch, one_zero = None if dtype == scale.dtype else _scratch(x, scale.dtype), _needs_one_zero(q)
    for xs, ys, s, z in pieces(view(x), view(out), spread(scale), spread(zero)):
        work = ys if scratch is None else scratch[: xs.numel()].view(xs.shape)
        if scratch is not None and isinstance(q.format, CodebookFormat):
            quotients_into(work, xs, s)  # a code is found before its number
        else:
            _codes_into(work, q, xs, s, z)
        if scratch is not None:
            if not q.format.has_nan and math.isnan(work.amax().item()):
                checks.check_no_nan(bool(xs.isnan().any()))
                work.nan_to_num_(nan=min(max(0, q.format.lo), q.format.hi))  # inf - inf of floating-point zero points
            ys.copy_(to_codes(q, work))
        elif one_zero:
            work.add_(0.0)
    return out


def values(q: Quantizer, codes: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``(code - z) * s`` of codes in the format's `storage`, in ``dtype``."""
    codes, view, spread = layout(q, codes)
    out = torch.empty_like(codes, dtype=dtype)
    scratch = None if dtype == scale.dtype else _scratch(codes, scale.dtype)
    for cs, ys, s, z in pieces(view(codes), view(out), spread(scale), spread(zero)):
        work = ys if scratch is None else scratch[: cs.numel()].view(cs.shape)
        from_codes(q, cs, work)
        if z is not None and q.arithmetic.has_float_zeros:
            _values_into(work, q, s, z)
        else:
            work.mul_(s) if z is None else work.sub_(z).mul_(s)
        if work is not ys:
            ys.copy_(work)
    return out


def layout(q: Quantizer, x: Tensor) -> tuple[Tensor, View, View]:
    """``x``, dense, and the two views under which tensors laid out like it, and its parameters, broadcast."""
    if not isinstance(q.granularity, PerTensor):
        x = x.contiguous()
        array, own = broadcast_views(q.granularity, tuple(x.shape))
        return x, lambda t: None if t is None else t.reshape(array), lambda p: None if p is None else p.reshape(own)
    order = None if x.is_contiguous() else dense_order(x)
    if order is None:
        return x.contiguous(), lambda t: None if t is None else t.reshape(-1), lambda p: p
    return x, lambda t: None if t is None else t.permute(order).reshape(-1), lambda p: p


def _codes_into(work: Tensor, q: Quantizer, x: Tensor, s: Tensor, z: Tensor | None) -> None:
    """Numbers of the format for ``x``, in the wide dtype; a zero of integers may have either sign."""
    if z is not None and q.arithmetic.has_float_zeros:
        work.copy_(x).sub_(value_of_code_0(q, s, z)).div_(s)
        z = None
    else:
        quotients_into(work, x, s)
    to_grid(q, work, z)


def _values_into(work: Tensor, q: Quantizer, s: Tensor, z: Tensor) -> None:
    """``(code - mid) * s + z`` for the codes in ``work``."""
    middle = middle_code(q)
    work.sub_(middle) if middle else work.add_(0.0)  # one zero
    work.mul_(s).add_(z)


def quotients_into(work: Tensor, x: Tensor, s: Tensor) -> None:
    """``x / s`` in the wide dtype."""
    if x.dtype == work.dtype:
        torch.div(x, s, out=work)
    else:
        work.copy_(x).div_(s)


def _needs_one_zero(q: Quantizer) -> bool:
    """Whether `to_grid` may leave a -0.0 that the format does not have."""
    return isinstance(q.format, IntegerFormat | FloatFormat) and not q.format.negative_zero


@lru_cache
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    """0, to be read only."""
    return torch.zeros((), dtype=dtype, device=device)


def _scratch(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for one piece."""
    return torch.empty(min(x.numel(), WHOLE), dtype=dtype, device=x.device)
