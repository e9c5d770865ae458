"""The two routes behind every function: `eager` for ordinary tensors, `elementwise` for everything else. Same bits.

Other arithmetics than the usual (`Quantizer.usual`) always take the second, and so does rounding that looks at more
than the number. What it looks at is called ``seed``: that of stochastic rounding is a 0-d tensor, of learned rounding
the parameter of each element; None for all other directions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import checks
from ..core.arithmetic import ZeroPointDomain
from ..core.descriptions import Gradient, QParams, Quantizer, QuantizerGradients
from ..core.directions import Rounding
from ..core.granularity import Granularity, PerTensor
from . import arithmetics, eager, eager_gradients
from .arrays import broadcast_views, is_batched, is_concrete, narrowed, records_gradient, wide_dtype, widened
from .bit_width import code_range, range_slopes, whole_width
from .elementwise import codes_of, gradient_terms, one_zero, passing, values_of
from .grid import decode
from .learned_rounding import rounding_offset, rounding_slope
from .operations import round_to_dtype, working_dtype
from .signs import with_positive_scales, with_signs
from .ste import block_sum, learned_scale_factor
from .threefry import rounding_noise


def forward(
    q: Quantizer,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    seed: Tensor | None = None,
    bit_width: Tensor | None = None,
) -> Tensor:
    """``(code - z) * s`` in the dtype of ``x``; parameters already checked."""
    if q.scale.signed and q.usual:
        return with_signs(q, _forward(q, *with_positive_scales(q, x, scale), zero_point, seed, bit_width), scale)
    return _forward(q, x, scale, zero_point, seed, bit_width)


def _forward(
    q: Quantizer, x: Tensor, scale: Tensor, zero_point: Tensor | None, seed: Tensor | None, bit_width: Tensor | None
) -> Tensor:
    """`forward` for positive scales.

    Calls nothing that would have nothing to do: compiled code is guarded by every function that was traced.
    """
    q, limits = (q, None) if bit_width is None else _at_width(q, bit_width, scale.dtype)
    zero = None if zero_point is None else zero_point.to(scale.dtype)
    usual = q.usual
    plain = seed is None and limits is None and usual
    if plain and is_concrete(x, scale, zero) and not records_gradient(x, scale, zero):
        return eager.fake_quantize(q, x, scale, zero)
    value, s, z = views(q, x, scale, zero)
    noise = None if seed is None else noise_like(q, value, x, seed)
    codes = codes_of(q, value, s, z, noise, limits)[2]
    y = values_of(q, codes, s, z)
    return (narrowed(y, x.dtype) if usual else _rounded(q, y, x.dtype)).reshape(x.shape)


def codes(
    q: Quantizer,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    seed: Tensor | None = None,
    bit_width: Tensor | None = None,
) -> Tensor:
    """Numbers of the format in the wide dtype, NaN where ``x`` is NaN, -0.0 only in formats that have it."""
    if q.scale.signed and q.usual:
        x, scale = with_positive_scales(q, x, scale)
    q, limits = _at_width(q, bit_width, scale.dtype)
    zero = wide(zero_point, scale)
    if seed is None and limits is None and q.usual and is_concrete(x, scale, zero):
        return eager.codes(q, x, scale, zero, scale.dtype)
    value, s, z = views(q, x, scale, zero)
    numbers = one_zero(q, codes_of(q, value, s, z, noise_like(q, value, x, seed), limits)[2])
    return numbers.to(scale.dtype).reshape(x.shape)


def values(q: Quantizer, codes: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``(code - z) * s`` of codes in the format's `storage`, rounded once to ``dtype``; parameters already checked."""
    if q.scale.signed and q.usual:
        return with_signs(q, _values(q, codes, scale.abs(), zero_point, dtype), scale)
    return _values(q, codes, scale, zero_point, dtype)


def _values(q: Quantizer, codes: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`values` for positive scales."""
    zero = wide(zero_point, scale)
    if not q.usual:
        work = working_dtype(q.arithmetic, dtype)
        value, s, z = _views(q, round_to_dtype(decode(q, codes, wide_dtype(work)), work), scale, zero, work)
        return _rounded(q, values_of(q, value, s, z), dtype).reshape(codes.shape)
    if is_concrete(codes, scale, zero) and not records_gradient(scale, zero):
        return eager.values(q, codes, scale, zero, dtype)
    value, s, z = views(q, decode(q, codes, wide_dtype(dtype)), scale, zero)
    if z is not None and q.arithmetic.has_float_zeros:
        return narrowed(values_of(q, value, s, z), dtype).reshape(codes.shape)
    return narrowed((value if z is None else value - z) * s, dtype).reshape(codes.shape)


def gradients(
    q: Quantizer,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    g: Tensor,
    wanted: Sequence[bool],
    seed: Tensor | None = None,
    bit_width: Tensor | None = None,
    may_be_nan: bool = True,
) -> QuantizerGradients:
    """Those of the gradients of x, scale, zero point and bit width (where there is one) that are wanted, else None.

    Args:
        may_be_nan: False where it is known that ``x`` holds no NaN.
    """
    if q.scale.signed and q.usual:  # the signs cancel in d(code * s) / dx and / ds
        x, scale = with_positive_scales(q, x, scale)
    container, (q, limits) = q, _at_width(q, bit_width, scale.dtype)
    zero = wide(zero_point, scale)
    plain = seed is None and limits is None and q.usual
    if plain and is_concrete(x, scale, zero, g) and not records_gradient(x, scale, zero, g) and not is_batched(g):
        dx, *sums = eager_gradients.gradients(q, x, scale, zero, g, wanted[:3], may_be_nan)
    else:
        value, s, z = views(q, x, scale, zero)
        noise = noise_like(q, value, x, seed)
        dx, *terms = gradient_terms(q, value, s, z, g.reshape(value.shape), wanted, noise, limits)
        dx = None if dx is None else dx.reshape(x.shape)
        sums = [None if t is None else _sum(t.reshape(x.shape), q.granularity) for t in terms]
    block_elements = x.numel() // max(1, scale.numel())
    factor: float | Tensor = learned_scale_factor(q, block_elements)
    if limits is not None and bit_width is not None and q.gradient is Gradient.LEARNED_SCALE:
        factor = _factor_at_width(q, bit_width, block_elements, scale.dtype)
    d = QuantizerGradients(dx, *(None if t is None else _times(q, t, factor, scale.dtype) for t in sums))
    if bit_width is None or not wanted[3]:
        return d
    value, s, z = views(q, x, scale, zero)
    noise = noise_like(q, value, x, seed)
    clamped = _ends(container, q, value, s, z, widened(g).reshape(value.shape), noise, bit_width, limits)
    slope = _slope(container, bit_width, clamped.dtype)
    return d._replace(bit_width=_times(q, _sum(clamped.reshape(x.shape), PerTensor()), slope, scale.dtype))


def tangent(
    q: Quantizer,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    tangents: Sequence[Tensor | None],
    seed: Tensor | None = None,
    bit_width: Tensor | None = None,
) -> Tensor:
    """The derivative of `forward` along tangents of x, scale, zero point, bit width and ``seed``; None: not along that.

    The terms of `gradients`, each with its tangent in the place of ``g``, before they are summed over blocks; those of
    scale, zero point and width with their factors, which multiply the tangent first. Added in the wide dtype in this
    order, rounded once to the dtype of ``x``. One tangent alone gives the bits of its term.
    """
    if q.scale.signed and q.usual:
        x, scale = with_positive_scales(q, x, scale)
    container, (q, limits) = q, _at_width(q, bit_width, scale.dtype)
    value, s, z = views(q, x, scale, wide(zero_point, scale))
    noise, block_elements = noise_like(q, value, x, seed), x.numel() // max(1, scale.numel())
    factor: float | Tensor = learned_scale_factor(q, block_elements)
    if limits is not None and bit_width is not None and q.gradient is Gradient.LEARNED_SCALE:
        factor = _factor_at_width(q, bit_width, block_elements, scale.dtype)
    parts: list[Tensor | None] = []
    for place, t in enumerate(tangents[:3]):
        if t is not None:
            g = t.reshape(value.shape) if place == 0 else (t.to(scale.dtype) * factor).reshape(s.shape)
            parts.append(gradient_terms(q, value, s, z, g, [place == k for k in range(3)], noise, limits)[place])
    if tangents[3] is not None and bit_width is not None:
        g = (tangents[3].to(scale.dtype) * _slope(container, bit_width, scale.dtype)).expand(value.shape)
        parts.append(_ends(container, q, value, s, z, g, noise, bit_width, limits))
    if tangents[4] is not None and seed is not None:
        parts.append(rounding_gradient(q, x, scale, zero_point, tangents[4], seed).reshape(value.shape))
    total = None
    for part in parts:
        if part is not None:
            total = widened(part) if total is None else total + widened(part)
    return torch.zeros_like(x) if total is None else narrowed(total, x.dtype).reshape(x.shape)


def _ends(
    container: Quantizer,
    q: Quantizer,
    value: Tensor,
    s: Tensor,
    z: Tensor | None,
    g: Tensor,
    noise: Tensor | None,
    bit_width: Tensor,
    limits: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """``g * s`` where a code was clamped to the largest of this width, ``-g * s`` to a smallest that moves, else 0."""
    if not q.usual:
        return arithmetics.clamped_ends(q, value, s, z, g, noise, limits)
    quotient, unclamped, _ = codes_of(q, value, s, z, noise)
    lo, hi = code_range(container, bit_width)
    nothing = torch.zeros_like(value)
    ends = torch.where(unclamped > hi, g, torch.where(unclamped < lo, -g if q.format.lo else nothing, nothing))
    return torch.where(passing(q, quotient, unclamped, limits), nothing, ends * s)


def _slope(q: Quantizer, bit_width: Tensor, dtype: torch.dtype) -> Tensor:
    return range_slopes(q, bit_width)[1].to(dtype)


def _at_width(
    q: Quantizer, bit_width: Tensor | None, dtype: torch.dtype
) -> tuple[Quantizer, tuple[Tensor, Tensor] | None]:
    """The quantizer of this width, where it can be looked at; else the limits of its codes."""
    if bit_width is None:
        return q, None
    if is_concrete(bit_width):
        return checks.at_width(q, bit_width.item()), None
    lo, hi = code_range(q, bit_width)
    return q, (lo.to(dtype), hi.to(dtype))


def _factor_at_width(q: Quantizer, bit_width: Tensor, block_elements: int, dtype: torch.dtype) -> Tensor:
    """`learned_scale_factor` at a width that cannot be looked at: one of those of all widths."""
    least, most = checks.widths(q)
    factors = [learned_scale_factor(checks.at_width(q, bits), block_elements) for bits in range(least, most + 1)]
    place = (whole_width(bit_width) - least).clamp(0, most - least)
    table = torch.tensor(factors, dtype=dtype, device=bit_width.device)
    return table.index_select(0, place.reshape(1)).reshape(())


def wide(zero_point: Tensor | None, scale: Tensor) -> Tensor | None:
    """The zero point in the dtype of the scale."""
    return None if zero_point is None else zero_point.to(scale.dtype)


def _rounded(q: Quantizer, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of other arithmetics, rounded once to the dtype of the result."""
    value = round_to_dtype(value, dtype)
    return arithmetics.with_one_zero(value) if q.scale.signed else value


def _sum(terms: Tensor, granularity: Granularity) -> Tensor:
    """`block_sum`, rounded to the dtype of the terms once, whichever that is."""
    if terms.element_size() > 2:
        return block_sum(terms, granularity)
    return round_to_dtype(block_sum(terms.to(torch.float64), granularity), terms.dtype)


def _times(q: Quantizer, total: Tensor, factor: float | Tensor, dtype: torch.dtype) -> Tensor:
    """A sum times a number, in the dtype of a parameter; in other arithmetics in that of the sum first."""
    if q.usual:
        return total.to(dtype) * factor
    if isinstance(factor, float):
        factor = torch.full_like(total, arithmetics.number_of(factor, total.dtype))
    return round_to_dtype(arithmetics.product(total, round_to_dtype(factor, total.dtype)), dtype)


def rounding_gradient(
    q: Quantizer, x: Tensor, scale: Tensor, zero_point: Tensor | None, g: Tensor, v: Tensor
) -> Tensor:
    """``g * s * h'(v)`` where the code was not clamped and the slope is not 0, else +0.0; see `core.quantizer`."""
    value, s, z = views(q, x, scale, wide(zero_point, scale))
    quotient, unclamped, _ = codes_of(q, value, s, z, noise_like(q, value, x, v))
    slope = rounding_slope(q.learned_rounding, v).reshape(value.shape)
    if q.usual:
        product = widened(g).reshape(value.shape) * s * slope
    else:
        product = arithmetics.products(q, g.reshape(value.shape), s, slope)
    passes = passing(q, quotient, unclamped, z=z) & (slope != 0)
    return torch.where(passes, product, torch.zeros_like(product)).to(scale.dtype).reshape(x.shape)


def seed_of(q: Quantizer, x: Tensor, qparams: QParams) -> Tensor | None:
    """The seed of stochastic rounding as int64 on the device of ``x``, 0 where none is given.

    Of learned rounding the parameter, zeros where none is given and it is soft, else None.
    """
    if q.deterministic:
        return None
    if q.rounding is Rounding.LEARNED:
        v: Tensor | None = qparams.rounding
        return torch.zeros(x.shape, dtype=qparams.scale.dtype, device=x.device) if v is None and q.relaxed else v
    seed = 0 if qparams.seed is None else qparams.seed
    if isinstance(seed, Tensor):
        return seed.detach().to(x.device, torch.int64)
    known = torch.full((), seed, dtype=torch.int64, device=x.device)
    return known + _hidden_zero(qparams.scale) if torch.compiler.is_compiling() else known


def _hidden_zero(scale: Tensor) -> Tensor:
    """0, as something that is read: of random bits that depend on no input, inductor unfolds every round anew."""
    bits = scale.detach().view(torch.int64 if scale.dtype == torch.float64 else torch.int32)
    return bits.reshape(-1)[:1].sum() & 0


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
    """``x``, widened, and its parameters in shapes that broadcast; in other arithmetics all in the working dtype."""
    if not q.usual:
        work = working_dtype(q.arithmetic, x.dtype)
        return _views(q, arithmetics.as_operand(x, work), scale, zero, work)
    array, own = broadcast_views(q.granularity, tuple(x.shape))
    return widened(x).reshape(array), scale.reshape(own), None if zero is None else zero.reshape(own)


def _views(
    q: Quantizer, value: Tensor, scale: Tensor, zero: Tensor | None, work: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A value in the working dtype, and its parameters rounded to it. No zero point is 0, where that counts."""
    array, own = broadcast_views(q.granularity, tuple(value.shape))
    if zero is None and q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:
        zero = torch.zeros_like(scale)
    z = None if zero is None else round_to_dtype(zero, work).reshape(own)
    return value.reshape(array), round_to_dtype(scale, work).reshape(own), z


def in_blocks(q: Quantizer, scale: Tensor, zero: Tensor | None, work: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Parameters that broadcast against an array of `split_blocks`, rounded to the dtype of what is computed."""
    if zero is None and not q.usual and q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:
        zero = torch.zeros_like(scale)
    zero = wide(zero, scale)
    z = None if zero is None else round_to_dtype(zero, work)[..., None]
    return round_to_dtype(scale, work)[..., None], z
