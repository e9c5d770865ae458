"""The two routes behind every function: `eager` for ordinary tensors, `elementwise` for everything else. Same bits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.descriptions import Quantizer, QuantizerGradients
from . import eager
from .arrays import broadcast_views, is_concrete, narrowed, records_gradient, wide_dtype, widened
from .elementwise import codes_of, gradient_terms, one_zero, values_of
from .grid import decode
from .ste import block_sum, learned_scale_factor


def forward(q: Quantizer, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """``(code - z) * s`` in the dtype of ``x``; parameters already checked."""
    zero = wide(zero_point, scale)
    if is_concrete(x, scale, zero) and not records_gradient(x, scale, zero):
        return eager.fake_quantize(q, x, scale, zero)
    value, s, z = views(q, x, scale, zero)
    return narrowed(values_of(q, codes_of(q, value, s, z)[2], s, z), x.dtype).reshape(x.shape)


def codes(q: Quantizer, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Numbers of the format in the wide dtype, NaN where ``x`` is NaN, -0.0 only in formats that have it."""
    zero = wide(zero_point, scale)
    if is_concrete(x, scale, zero):
        return eager.codes(q, x, scale, zero, scale.dtype)
    return one_zero(q, codes_of(q, *views(q, x, scale, zero))[2]).reshape(x.shape)


def values(q: Quantizer, codes: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``(code - z) * s`` of codes in the format's `storage`, rounded once to ``dtype``; parameters already checked."""
    zero = wide(zero_point, scale)
    if is_concrete(codes, scale, zero) and not records_gradient(scale, zero):
        return eager.values(q, codes, scale, zero, dtype)
    value, s, z = views(q, decode(q, codes, wide_dtype(dtype)), scale, zero)
    return narrowed((value if z is None else value - z) * s, dtype).reshape(codes.shape)


def gradients(
    q: Quantizer, x: Tensor, scale: Tensor, zero_point: Tensor | None, g: Tensor, wanted: Sequence[bool]
) -> QuantizerGradients:
    """Those of the gradients of x, scale and zero point that are wanted, else None."""
    zero = wide(zero_point, scale)
    if is_concrete(x, scale, zero, g) and not records_gradient(x, scale, zero, g):
        dx, *sums = eager.gradients(q, x, scale, zero, g, wanted)
    else:
        value, s, z = views(q, x, scale, zero)
        dx, *terms = gradient_terms(q, value, s, z, g.reshape(value.shape), wanted)
        dx = None if dx is None else dx.reshape(x.shape)
        sums = [None if t is None else block_sum(t.reshape(x.shape), q.granularity) for t in terms]
    factor = learned_scale_factor(q, x.numel() // max(1, scale.numel()))
    return QuantizerGradients(dx, *(None if t is None else t.to(scale.dtype) * factor for t in sums))


def wide(zero_point: Tensor | None, scale: Tensor) -> Tensor | None:
    """The zero point in the dtype of the scale."""
    return None if zero_point is None else zero_point.to(scale.dtype)


def views(q: Quantizer, x: Tensor, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """``x``, widened, and its parameters in shapes that broadcast."""
    array, own = broadcast_views(q.granularity, tuple(x.shape))
    return widened(x).reshape(array), scale.reshape(own), None if zero is None else zero.reshape(own)
