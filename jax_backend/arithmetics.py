"""Codes and values of every `Arithmetic` but the default, whose own are in `kernels`: other people's formulas.

Without checks and without `jax.jit`, as `kernels`. Numbers are those of the working dtype (`operations.working_dtype`);
``subnormals`` says whether they are computed by `operations`, which heeds subnormals, or by `ordinary`, which XLA
vectorizes; `by_range` decides that when the program runs. Scales may be zero or subnormal, where a rule has no floor.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arithmetic import ClampOrder, Division, NanRule, ZeroPointDomain, ZeroPointOrder
from ..core.descriptions import Gradient, Quantizer
from ..core.formats import IntegerFormat
from ..core.granularity import Shape
from . import operations, ordinary
from .arrays import (
    barrier,
    bit_pattern,
    from_pattern,
    hidden_zero,
    is_subnormal_or_zero,
    layout,
    short_product,
    with_float64,
    with_sign_of,
)
from .bit_width import code_range
from .blocks import expand_blocks
from .grid import encode, limit_to_grid, round_to_grid
from .ieee_any import is_zero
from .operations import FLOAT64, round_to_dtype, working_dtype
from .small_numbers import adds_to_signed_zeros, flushes, keeps_signs
from .ste import passing_mask
from .zero_point import middle_code

Array = jax.Array
Operation = Callable[..., Array]


class Operations(NamedTuple):
    """Those of `operations`, or of `ordinary`."""

    multiply: Operation
    add: Operation
    divide: Operation
    true_divide: Operation
    multiply_add: Operation


def operations_for(subnormals: bool, x: Array | None = None, scale: Array | None = None) -> Operations:
    """`operations` where subnormals must be heeded, else `ordinary`.

    Args:
        x, scale: which a compiler does not know; None where there is nothing but the operands, which costs more.
    """
    if subnormals:
        return Operations(*(getattr(operations, name) for name in Operations._fields))
    zero = None if x is None or scale is None else ordinary.hidden_zero(x, scale)
    return Operations(*(partial(getattr(ordinary, name), zero=zero) for name in Operations._fields))


def unclamped_codes(
    q: Quantizer, x: Array, scale: Array, zero_point: Array | None, noise: Array | None = None, *, subnormals: bool
) -> tuple[Array, Array, Array | None]:
    """``x / s``; the codes as the clamp sees them; and the zero point where it is still to be added after the clamp.

    The codes are rounded unless the arithmetic clamps first. The zero point comes after the clamp when it comes after a
    rounding that itself comes after the clamp.
    """
    a, by = q.arithmetic, operations_for(subnormals, x, scale)
    work = working_dtype(a, x.dtype)
    expand = partial(expand_blocks, granularity=q.granularity, shape=x.shape)
    value, s = round_to_dtype(x, work), round_to_dtype(scale, work)
    zero = expand(in_work(zero_point, s))
    if a.zero_point_domain is ZeroPointDomain.FLOAT:
        low = operations.multiply_add(s, jnp.full_like(s, -middle_code(q)), in_work(zero_point, s), a)
        value, zero = by.add(value, expand(barrier(-low)), a), jnp.zeros_like(zero)
    elif a.zero_point_domain is ZeroPointDomain.SHIFT:
        value, zero = _sum(q, value, zero, by), jnp.zeros_like(zero)
    quick = not subnormals and flushes(work, x.dtype)
    if quick and adds_to_signed_zeros(q):  # a quotient that is flushed keeps the sign of x; -0.0 + 0 has none
        nothing = expand(hidden_zero(scale).astype(work))
        zero_of_x = is_subnormal_or_zero(value) if a.flush_subnormals else bit_pattern(value) == layout(work).sign
        value = jnp.where(zero_of_x, nothing, value)
    multiplies = a.division is Division.RECIPROCAL
    over = expand(barrier(operations.reciprocal(s, a)) if multiplies else s)
    quotient = (by.multiply if multiplies else by.true_divide)(value, over, a)
    if a.zero_point_order is ZeroPointOrder.AFTER_ROUNDING:
        if a.clamp_order is ClampOrder.BEFORE_ROUNDING:
            return quotient, _seen(q, quotient, subnormals), zero
        rounded = _on_grid(q, quotient, noise)
        return quotient, _sum(q, rounded, zero, by) if q.affine else rounded, None
    shifted = quotient
    if q.affine or (keeps_signs(q) and not quick):
        if not (multiplies and a.fused_multiply_add):
            shifted = by.add(quotient, zero, a) if quick else _sum(q, quotient, zero, by)
        elif subnormals or work.itemsize == 2 or not q.affine:
            shifted = by.multiply_add(value, over, zero, a)
        else:
            shifted = ordinary.multiply_add_integer(value, over, zero, ordinary.hidden_zero(x, scale))
        if quick and keeps_signs(q):
            shifted = jnp.where(zero == 0, quotient, shifted)
    shifted = _seen(q, shifted, subnormals)
    if a.clamp_order is ClampOrder.BEFORE_ROUNDING:
        return quotient, shifted, None
    return quotient, _on_grid(q, shifted, noise), None


def _seen(q: Quantizer, u: Array, subnormals: bool) -> Array:
    """``u``, where integers follow with the smallest normal number for subnormals: XLA compares those as zeros."""
    if not (subnormals and isinstance(q.format, IntegerFormat)) or u.dtype == jnp.float16:
        return u
    form = layout(u.dtype)
    return jnp.where(is_subnormal_or_zero(u) & ~is_zero(u), with_sign_of(jnp.asarray(form.smallest), u), u)


def in_work(zero_point: Array | None, scale: Array) -> Array:
    """The zero point in the dtype of a scale, 0 when symmetric; integers rounded once."""
    if zero_point is None:
        return jnp.zeros_like(scale)
    if jnp.issubdtype(zero_point.dtype, jnp.floating):
        return round_to_dtype(zero_point, scale.dtype)
    wide = FLOAT64 if scale.dtype == FLOAT64 else np.dtype(np.float32)
    return round_to_dtype(zero_point.astype(wide), scale.dtype)


def _sum(q: Quantizer, a: Array, b: Array, by: Operations) -> Array:
    """``a + b``, with its sign where that counts, also where ``b`` is a constant zero, which compilers do not add."""
    total = by.add(a, b, q.arithmetic)
    if not keeps_signs(q):
        return total
    a, b = operations.flush(a, q.arithmetic), operations.flush(b, q.arithmetic)
    both = from_pattern(bit_pattern(a) & bit_pattern(b), total.dtype)
    return jnp.where(is_zero(a) & is_zero(b), both, total)


def _on_grid(q: Quantizer, u: Array, noise: Array | None) -> Array:
    return round_to_dtype(round_to_grid(q, _wide(u), noise), u.dtype)


def _wide(x: Array) -> Array:
    return x if x.dtype == FLOAT64 else round_to_dtype(x, np.float32)


def _limits(q: Quantizer, later: Array | None, dtype: Any, bit_width: Array | None) -> tuple[Array, Array]:
    """Limits of the clamp: the format's, inwards to a number of the dtype, less the zero point that is added later."""
    wide = FLOAT64 if dtype == FLOAT64 else np.dtype(np.float32)
    drop = {2: 16 if dtype == jnp.bfloat16 else 13}.get(np.dtype(dtype).itemsize, 0)
    largest = float(jnp.finfo(dtype).max)  # type: ignore[no-untyped-call]
    if bit_width is None:
        ends = np.clip(np.asarray((q.format.lo, q.format.hi), np.float64), -largest, largest).astype(wide)
        patterns = ends.view(layout(wide).integer) >> drop << drop
        limits = [jnp.asarray(end) for end in patterns.view(wide)]
    else:
        patterns = (bit_pattern(jnp.clip(end.astype(wide), -largest, largest)) for end in code_range(q, bit_width))
        limits = [from_pattern(bits >> drop << drop, wide) for bits in patterns]
    if later is not None:
        limits = [_wide(round_to_dtype(limit - _wide(later), dtype)) for limit in limits]
    low, high = (round_to_dtype(limit, dtype) for limit in limits)
    return low, high


def _clamped(x: Array, low: Array, high: Array, signed: bool) -> Array:
    """As `clamp`, with limits that may be arrays; zeros keep their sign."""
    wide = _wide(x)
    if not signed:
        return round_to_dtype(jnp.clip(wide, _wide(low), _wide(high)), x.dtype)
    limited = jnp.where(wide < _wide(low), _wide(low), jnp.where(wide > _wide(high), _wide(high), wide))
    return round_to_dtype(limited, x.dtype)


def codes(
    q: Quantizer,
    x: Array,
    scale: Array,
    zero_point: Array | None,
    noise: Array | None = None,
    *,
    subnormals: bool,
    bit_width: Array | None = None,
) -> Array:
    """Codes in the working dtype; NaN where the NaN rule propagates it."""
    _, unclamped, later = unclamped_codes(q, x, scale, zero_point, noise, subnormals=subnormals)
    found = limited(q, unclamped, later, noise, bit_width)
    quick = not subnormals and _short(q, found.dtype)
    nothing = expand_blocks(hidden_zero(scale).astype(found.dtype), q.granularity, x.shape)
    if not keeps_signs(q):
        if not quick:
            zero = found == 0 if isinstance(q.format, IntegerFormat) else is_zero(found)
            found = jnp.where(zero, jnp.zeros_like(found), found)
        elif q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:  # else values see to that
            found = found + nothing
    match q.arithmetic.nan:
        case NanRule.PROPAGATE:
            return found
        case NanRule.ZERO_POINT:
            propagating = q.replace(nan=NanRule.PROPAGATE)
            zeros = jnp.zeros_like(x)
            instead = codes(propagating, zeros, scale, zero_point, noise, subnormals=subnormals, bit_width=bit_width)
        case rule:
            lo, hi = (q.format.lo, q.format.hi) if bit_width is None else code_range(q, bit_width)
            nearest = np.clip(0, lo, hi) if bit_width is None else jnp.clip(0, lo, hi)
            number = {NanRule.LOWEST: lo, NanRule.HIGHEST: hi}.get(rule, nearest)
            wide = FLOAT64 if found.dtype == FLOAT64 else np.dtype(np.float32)
            instead = round_to_dtype(jnp.asarray(number, wide), found.dtype)
            if quick and bit_width is None and number == 0:
                instead = nothing
    return jnp.where(jnp.isnan(found), instead, found)


def limited(
    q: Quantizer,
    unclamped: Array,
    later: Array | None,
    noise: Array | None,
    bit_width: Array | None,
) -> Array:
    """Codes for those that the clamp sees; integers may have either sign where they are 0."""
    if isinstance(q.format, IntegerFormat):
        found = _clamped(unclamped, *_limits(q, later, unclamped.dtype, bit_width), keeps_signs(q))
    else:
        found = round_to_dtype(limit_to_grid(q, _wide(unclamped)), unclamped.dtype)
    if q.arithmetic.clamp_order is ClampOrder.BEFORE_ROUNDING:
        found = _on_grid(q, found, noise)
        if later is not None and q.affine:
            found = _sum(q, found, later, operations_for(False))  # of integers
    return found


def _short(q: Quantizer, work: Any) -> bool:
    """Whether a value is a `short_product`, which sees to the sign of zeros."""
    return isinstance(q.format, IntegerFormat) and np.dtype(work).itemsize > 2 and not q.relaxed


def passing(
    q: Quantizer,
    quotient: Array,
    unclamped: Array,
    later: Array | None,
    bit_width: Array | None = None,
    *,
    subnormals: bool,
) -> Array:
    """Where the gradient passes, also where the limits of the clamp move with the zero point."""
    if q.gradient is Gradient.PASS_THROUGH or (later is None and bit_width is None):
        return passing_mask(q, _wide(_seen(q, quotient, subnormals)), _wide(unclamped))
    if later is None:  # exact limits
        low, high = code_range(q, bit_width)  # type: ignore[arg-type]
        low, high = low.astype(_wide(unclamped).dtype), high.astype(_wide(unclamped).dtype)
    else:
        low, high = map(_wide, _limits(q, later, unclamped.dtype, bit_width))
    return ~((_wide(unclamped) < low) | (_wide(unclamped) > high))


def values(
    q: Quantizer, codes: Array, scale: Array, zero_point: Array | None, dtype: Any, *, subnormals: bool
) -> Array:
    """``(code - z) * s`` in the working dtype, that of ``codes``, rounded once to ``dtype``."""
    a, by = q.arithmetic, operations_for(subnormals)
    expand = partial(expand_blocks, granularity=q.granularity, shape=codes.shape)
    s = round_to_dtype(scale, codes.dtype)
    zero, spread = expand(in_work(zero_point, s)), expand(s)
    plain, signed = subnormals or not _short(q, codes.dtype), keeps_signs(q)
    quick = not subnormals and flushes(codes.dtype, dtype)  # no zero point is -0.0 then
    if a.zero_point_domain is ZeroPointDomain.INTEGER:
        centred = codes
        if q.affine:
            centred = by.add(codes, -zero, a) if quick else _sum(q, codes, -zero, by)
        value = by.multiply(centred, spread, a) if plain else short_product(centred, spread, signed_zero=signed)
    else:
        shift = a.zero_point_domain is ZeroPointDomain.SHIFT
        centred = codes if shift else _sum(q, codes, jnp.full_like(codes, -middle_code(q)), by)
        offset = -zero if shift else zero
        if a.fused_multiply_add:
            value = by.multiply_add(centred, spread, offset, a)
        else:
            steps = by.multiply(centred, spread, a) if plain else short_product(centred, spread, signed_zero=True)
            value = by.add(steps, offset, a)
            if not quick or signed:  # as in `_sum`
                zeros = from_pattern(bit_pattern(steps) & bit_pattern(offset), value.dtype)
                value = jnp.where(is_zero(steps) & is_zero(offset), zeros, value)
    value = round_to_dtype(value, dtype)
    if q.scale.signed:
        return jnp.where(is_zero(value), jnp.zeros_like(value), value)
    return value


def centred(q: Quantizer, codes: Array, scale: Array, zero_point: Array | None) -> Array:
    """``code - z`` of integer codes and zero points, exact, in float32 (or float64)."""
    if not q.affine:
        return _wide(codes)
    zero = in_work(zero_point, round_to_dtype(scale, codes.dtype))
    return _wide(codes) - expand_blocks(_wide(zero), q.granularity, codes.shape)


def zero_points(q: Quantizer, zero_point: Array | None, scale: Array, dtype: Any, shape: Shape) -> Array:
    """The zero point of every element as it is computed with, in the dtype of the scale.

    Args:
        dtype: of ``x``.
    """
    with with_float64(working_dtype(q.arithmetic, dtype)):
        s = round_to_dtype(scale, working_dtype(q.arithmetic, dtype))
        return round_to_dtype(expand_blocks(in_work(zero_point, s), q.granularity, shape), scale.dtype)


def encoded(q: Quantizer, codes: Array) -> Array:
    """Codes as integers; NaN, if the format has none, as 0 or the code next to it."""
    wide = _wide(codes)
    if not q.format.has_nan:
        wide = jnp.where(jnp.isnan(wide), jnp.clip(0, q.format.lo, q.format.hi).astype(wide.dtype), wide)
    return encode(q, wide)
