"""The two routes behind every function: `eager` for ordinary tensors, `elementwise` for everything else. Same bits.

Rounding that looks at more than the number always takes the second. What it looks at is called ``seed``: that of
stochastic rounding is a 0-d tensor, of learned rounding the parameter of each element; None for all other directions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.descriptions import Gradient, QParams, Quantizer, QuantizerGradients, Rounding
from . import eager
from .arrays import broadcast_views, is_concrete, narrowed, records_gradient, wide_dtype, widened
from .elementwise import codes_of, gradient_terms, one_zero, values_of
from .grid import decode
from .learned_rounding import rounding_offset, rounding_slope
from .ste import block_sum, clip_mask, learned_scale_factor
from .threefry import rounding_noise


def forward(q: Quantizer, x: Tensor, scale: Tensor, zero_point: Tensor | None, seed: Tensor | None = None) -> Tensor:
    """``(code - z) * s`` in the dtype of ``x``; parameters already checked."""
    zero = wide(zero_point, scale)
    if seed is None and is_concrete(x, scale, zero) and not records_gradient(x, scale, zero):
        return eager.fake_quantize(q, x, scale, zero)
    value, s, z = views(q, x, scale, zero)
    codes = codes_of(q, value, s, z, noise_like(q, value, x, seed))[2]
    return narrowed(values_of(q, codes, s, z), x.dtype).reshape(x.shape)


def codes(q: Quantizer, x: Tensor, scale: Tensor, zero_point: Tensor | None, seed: Tensor | None = None) -> Tensor:
    """Numbers of the format in the wide dtype, NaN where ``x`` is NaN, -0.0 only in formats that have it."""
    zero = wide(zero_point, scale)
    if seed is None and is_concrete(x, scale, zero):
        return eager.codes(q, x, scale, zero, scale.dtype)
    value, s, z = views(q, x, scale, zero)
    return one_zero(q, codes_of(q, value, s, z, noise_like(q, value, x, seed))[2]).reshape(x.shape)


def values(q: Quantizer, codes: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``(code - z) * s`` of codes in the format's `storage`, rounded once to ``dtype``; parameters already checked."""
    zero = wide(zero_point, scale)
    if is_concrete(codes, scale, zero) and not records_gradient(scale, zero):
        return eager.values(q, codes, scale, zero, dtype)
    value, s, z = views(q, decode(q, codes, wide_dtype(dtype)), scale, zero)
    return narrowed((value if z is None else value - z) * s, dtype).reshape(codes.shape)


def gradients(
    q: Quantizer,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    g: Tensor,
    wanted: Sequence[bool],
    seed: Tensor | None = None,
) -> QuantizerGradients:
    """Those of the gradients of x, scale and zero point that are wanted, else None."""
    zero = wide(zero_point, scale)
    if seed is None and is_concrete(x, scale, zero, g) and not records_gradient(x, scale, zero, g):
        dx, *sums = eager.gradients(q, x, scale, zero, g, wanted)
    else:
        value, s, z = views(q, x, scale, zero)
        noise = noise_like(q, value, x, seed)
        dx, *terms = gradient_terms(q, value, s, z, g.reshape(value.shape), wanted, noise)
        dx = None if dx is None else dx.reshape(x.shape)
        sums = [None if t is None else block_sum(t.reshape(x.shape), q.granularity) for t in terms]
    factor = learned_scale_factor(q, x.numel() // max(1, scale.numel()))
    return QuantizerGradients(dx, *(None if t is None else t.to(scale.dtype) * factor for t in sums))


def wide(zero_point: Tensor | None, scale: Tensor) -> Tensor | None:
    """The zero point in the dtype of the scale."""
    return None if zero_point is None else zero_point.to(scale.dtype)


def rounding_gradient(
    q: Quantizer, x: Tensor, scale: Tensor, zero_point: Tensor | None, g: Tensor, v: Tensor
) -> Tensor:
    """``g * s * h'(v)`` where the code was not clamped and the slope is not 0, else +0.0; see `core.quantizer`."""
    value, s, z = views(q, x, scale, wide(zero_point, scale))
    unclamped = codes_of(q, value, s, z, noise_like(q, value, x, v))[1]
    slope = rounding_slope(q.learned_rounding, v).reshape(value.shape)
    passes = slope != 0
    if q.gradient is not Gradient.PASS_THROUGH:
        passes = passes & clip_mask(q, unclamped)
    product = widened(g).reshape(value.shape) * s * slope
    return torch.where(passes, product, torch.zeros_like(product)).reshape(x.shape)


def seed_of(q: Quantizer, x: Tensor, qparams: QParams) -> Tensor | None:
    """The seed of stochastic rounding as int64 on the device of ``x``, 0 where none is given.

    Of learned rounding the parameter, zeros where none is given and it is soft, else None.
    """
    if q.rounding is Rounding.LEARNED:
        v: Tensor | None = qparams.rounding
        return torch.zeros(x.shape, dtype=qparams.scale.dtype, device=x.device) if v is None and q.relaxed else v
    if q.rounding is not Rounding.STOCHASTIC:
        return None
    seed = 0 if qparams.seed is None else qparams.seed
    if isinstance(seed, Tensor):
        return seed.detach().to(x.device, torch.int64)
    return torch.full((), seed, dtype=torch.int64, device=x.device)


def noise_like(q: Quantizer, value: Tensor, x: Tensor, seed: Tensor | None) -> Tensor | None:
    """What stochastic rounding of ``x``, of which ``value`` is a view, compares with, or learned rounding adds.

    None for other directions.
    """
    if seed is None:
        return None
    if q.rounding is Rounding.LEARNED:
        return rounding_offset(q.learned_rounding, seed).reshape(value.shape)
    return rounding_noise(seed, tuple(x.shape)).reshape(value.shape)


def views(q: Quantizer, x: Tensor, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """``x``, widened, and its parameters in shapes that broadcast."""
    array, own = broadcast_views(q.granularity, tuple(x.shape))
    return widened(x).reshape(array), scale.reshape(own), None if zero is None else zero.reshape(own)
