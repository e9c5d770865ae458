"""Gradients of ordinary tensors in eager mode, in place over chunks that stay in cache.

A select by a mask takes as long there as thirty other operations. So what passes is told by the backward operation of
`hardtanh`, which gives a number where another lies inside an open interval, else 0. Of NaN its vectorized loop makes 0,
its scalar loop the number: where NaN comes out of a sum, or may have gone in, other operations have the last word.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.descriptions import ON_QUOTIENT, Gradient, Quantizer
from . import in_place
from .arrays import CHUNK, WHOLE, dtype_name, numpy_of, pieces
from .eager import layout, quotients_into
from .elementwise import gradient_terms, value_of_code_0
from .expressions import Terms
from .thresholds import passing_interval
from .zero_point import middle_code

INSIDE = torch.ops.aten.hardtanh_backward.grad_input


def gradients(
    q: Quantizer,
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    g: Tensor,
    wanted: Sequence[bool],
    may_be_nan: bool = True,
) -> Terms:
    """Gradients of x, scale and zero point; the latter two float64 sums over each block, not yet rounded."""
    if any(wanted[1:]):
        return _with_parameters(q, x, scale, zero, g, wanted)
    if q.gradient is Gradient.PASS_THROUGH:
        return Terms(g.clone(), None, None)
    one_interval = scale.numel() == 1 and x.dtype != torch.float64 and not q.arithmetic.has_float_zeros
    if one_interval and q.gradient not in ON_QUOTIENT:
        return Terms(_by_interval(q, x, scale, zero, g, may_be_nan), None, None)
    x, view, spread = layout(q, x)
    dx = torch.empty_like(x)
    for xs, gs, out, s, z, work in _with_room(scale.dtype, view(x), view(g), view(dx), spread(scale), spread(zero)):
        looked_at = _gradient_of_x(q, xs, s, z, gs, out, work)
        if math.isnan(looked_at.sum().item()):
            out.copy_(torch.where(looked_at.isnan(), gs, out))
    return Terms(dx, None, None)


def _by_interval(q: Quantizer, x: Tensor, scale: Tensor, zero: Tensor | None, g: Tensor, may_be_nan: bool) -> Tensor:
    """Gradient of ``x`` for a single scale, by comparing ``x`` with the ends of the interval that passes."""
    low, high = (end.item() for end in passing_interval(q, numpy_of(scale), None if zero is None else numpy_of(zero)))
    x, view, _ = layout(q, x)
    dx = torch.empty_like(x)
    for xs, gs, out in pieces(view(x), view(g), view(dx), size=WHOLE):
        INSIDE(gs, xs, low, high, grad_input=out)
        if may_be_nan and math.isnan(xs.sum().item()):
            out.copy_(torch.where(xs.isnan(), gs, out))
    return dx


def _with_parameters(
    q: Quantizer, x: Tensor, scale: Tensor, zero: Tensor | None, g: Tensor, wanted: Sequence[bool]
) -> Terms:
    """`gradients`, where that of the scale or the zero point is among them."""
    x, view, spread = layout(q, x)
    dx = torch.empty_like(x) if wanted[0] or wanted[2] else None  # the terms of the zero point are made from it
    d_scale = torch.zeros_like(scale, dtype=torch.float64)
    d_zero = torch.zeros_like(d_scale) if wanted[2] else None
    totals = [total for total in (d_scale, d_zero) if total is not None]
    arrays = view(x), view(g), view(dx), spread(scale), spread(zero), *map(spread, totals)
    for xs, gs, out, s, z, *sums, work in _with_room(scale.dtype, *arrays):
        for total, terms in zip(sums, _terms(q, xs, s, z, gs, out, work), strict=False):
            _add_to(total, terms)
    if any(math.isnan(total.sum().item()) for total in totals):
        for total in totals:
            total.zero_()
        for xs, gs, out, s, z, *sums in pieces(*arrays):
            of_x, *others = gradient_terms(q, xs.to(scale.dtype), s, z, gs, (True, True, wanted[2]))
            if out is not None:
                out.copy_(of_x)
            for total, of_total in zip(sums, others, strict=False):
                if of_total is not None:
                    _add_to(total, of_total)
    return Terms(dx if wanted[0] else None, d_scale if wanted[1] else None, d_zero)


def _terms(
    q: Quantizer, x: Tensor, s: Tensor, z: Tensor | None, g: Tensor, dx: Tensor | None, work: Tensor
) -> tuple[Tensor, ...]:
    """`gradient_terms`: of x into ``dx``, of scale and zero point (where there is one) in ``work``.

    They have no meaning if one of them is NaN, and those of the zero point none without ``dx``.
    """
    looked_at = _gradient_of_x(q, x, s, z, g, dx, work)
    quotient, codes, wide_g, wide_dx = work if x.dtype != s.dtype else (*work[:2], g, dx)
    if z is not None and q.arithmetic.has_float_zeros:
        quotient.copy_(x).sub_(z).div_(s)
    if q.gradient is not Gradient.LEARNED_CLIP:
        _inside(q, quotient, looked_at, quotient)
    in_place.limit_to_grid(q, codes)
    if q.gradient is Gradient.LEARNED_CLIP:  # what passes has no part in it
        _inside(q, codes, looked_at, quotient)
    if z is not None:
        codes.sub_(middle_code(q) if q.arithmetic.has_float_zeros else z)
    codes.sub_(quotient).mul_(wide_g)
    if z is None or dx is None:
        return (codes,)
    torch.sub(wide_g, wide_dx, out=quotient)
    return codes, quotient if q.arithmetic.has_float_zeros else quotient.mul_(-s)


def _gradient_of_x(
    q: Quantizer, x: Tensor, s: Tensor, z: Tensor | None, g: Tensor, dx: Tensor | None, work: Tensor
) -> Tensor:
    """Written into ``dx``, if given; what the mask looks at, NaN where ``dx`` may be wrong.

    Args:
        work: two arrays as large as ``x``, in the wide dtype, in which quotients and what the clamp sees are left;
            four, the last for ``g`` and ``dx``, if that is not the dtype of ``x``.
    """
    quotient, rounded = work[:2]
    if z is not None and q.arithmetic.has_float_zeros:
        quotient.copy_(x).sub_(value_of_code_0(q, s, z)).div_(s)
    else:
        quotients_into(quotient, x, s)
    in_place.round_to_grid(q, quotient, rounded)
    if z is not None and not q.arithmetic.has_float_zeros:
        rounded.add_(z)
    looked_at: Tensor = quotient if q.gradient in ON_QUOTIENT else rounded
    wide_g, wide_dx = (work[2].copy_(g), work[3]) if x.dtype != s.dtype else (g, dx)
    if dx is not None and wide_dx is not None:
        _inside(q, wide_g, looked_at, wide_dx)
        if wide_dx is not dx:
            dx.copy_(wide_dx)
    return looked_at


def _inside(q: Quantizer, number: Tensor, looked_at: Tensor, out: Tensor) -> None:
    """``number`` where the gradient passes, else +0.0; where ``looked_at`` is NaN, either."""
    if q.gradient is not Gradient.PASS_THROUGH:
        INSIDE(number, looked_at, *_ends(q, dtype_name(looked_at.dtype)), grad_input=out)
    elif out is not number:
        out.copy_(number)


@lru_cache
def _ends(q: Quantizer, dtype: str) -> tuple[float, float]:
    """Of the open interval that passes."""
    number, clip = np.dtype(dtype).type, q.gradient is Gradient.LEARNED_CLIP
    lo, hi = number(0 if clip else q.format.lo), number(q.format.hi)
    return float(np.nextafter(lo, number(-np.inf))), float(hi if clip else np.nextafter(hi, number(np.inf)))


def _with_room(wide: torch.dtype, x: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """`pieces` of a chunk, each with the room that `_gradient_of_x` works in."""
    rows = 2 if x.dtype == wide else 4
    room = torch.empty(rows * min(x.numel(), CHUNK), dtype=wide, device=x.device)
    for piece in pieces(x, *others, size=CHUNK, whole=CHUNK):
        work = room[: rows * piece[0].numel()].view(rows, *piece[0].shape)
        yield *piece, work


def _add_to(total: Tensor, terms: Tensor) -> None:
    """Sums of ``terms`` in float64 over the axes along which ``total`` has one entry are added to it."""
    axes = [axis for axis, n in enumerate(terms.shape) if total.ndim == 0 or total.shape[axis] == 1 != n]
    total += terms.sum(axes, keepdim=total.ndim > 0, dtype=torch.float64) if axes else terms
