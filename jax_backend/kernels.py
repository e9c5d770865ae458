"""What the five functions and the layers share: codes and values of one array, without checks and without `jax.jit`.

Scales and zero points come as one per block; ``zero_point`` is None when symmetric. What other arithmetics than the
default do is in `arithmetics`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.descriptions import ON_QUOTIENT, Quantizer
from ..core.directions import Rounding
from ..core.formats import BinaryFormat, CodebookFormat, FloatFormat, IntegerFormat, TernaryFormat
from ..core.granularity import Shape
from . import arithmetics
from .arrays import (
    add,
    bit_pattern,
    divide,
    layout,
    magnitude,
    multiple,
    narrow,
    ordered,
    product,
    short_product,
    tiny_quotient,
    vanishing,
    widen,
)
from .bit_width import code_range
from .blocks import expand_blocks
from .clamp import clamp
from .grid import limit_to_grid, round_to_grid
from .ieee import divide_exactly, multiply_exactly, narrow_exactly
from .learned_rounding import rounding_offset
from .small_numbers import by_range, is_other
from .threefry import rounding_noise
from .zero_point import middle_code

Array = jax.Array
Result = TypeVar("Result")
# those that tell the least quotient from 0
DIRECTED = (Rounding.TOWARD_POSITIVE, Rounding.TOWARD_NEGATIVE, Rounding.STOCHASTIC, Rounding.LEARNED)
SMALL = 2.0**-60
LARGE = 2.0**10


def by_scale(
    q: Quantizer,
    scale: Array,
    compute: Callable[[bool], Result],
    x: Array | None = None,
    zero_point: Array | None = None,
    dtype: Any = None,
) -> Result:
    """``compute(subnormals)``: whether subnormals must be heeded, decided by the scales when the program runs.

    With scales of at least 2**-63 a subnormal ``x``, or a subnormal quotient, means a quotient below 2**-63, and a
    subnormal value a code below 2**-63. Where a format decides nothing and has no number between that and zero, it may
    read them as zero. So may the mask of binary formats; their `codes` need no quotient. Directed rounding tells the
    least quotient from zero, and others have numbers so small: they heed, unless ``x`` is given and shows that there is
    nothing to heed. Other arithmetics look at the zero point, too; see `arithmetics.by_range`.

    Args:
        zero_point, dtype: which they look at; ``dtype`` of the values where there is no ``x``.
    """
    if is_other(q):
        return by_range(q, scale, zero_point, compute, x, dtype if x is None else x.dtype)
    least = 2.0 ** (layout(scale.dtype).min_exponent // 2)
    if isinstance(q.format, BinaryFormat) or not (_decides_at_zero(q) or _decides_below(q)):
        ordinary = jnp.all(scale >= least)
    elif x is not None and isinstance(q.format, FloatFormat) and q.format.hi >= LARGE:
        ordinary = _far_from_subnormals(widen(x), expand_blocks(scale, q.granularity, x.shape))
    else:
        return compute(True)
    chosen: Result = lax.cond(ordinary, lambda: compute(False), lambda: compute(True))
    return chosen


def _far_from_subnormals(x: Array, s: Array) -> Array:
    """Whether neither quotients nor their roundings to a format, nor these times ``s``, are subnormal.

    Every ``x`` is zero or well above the smallest normal number, and so is its quotient; rounding at most halves it, or
    clamps it to a number of at least `LARGE`.
    """
    form = layout(x.dtype)
    least = jnp.maximum(s * 2.0 ** (form.min_exponent + 26), 2.0 ** (form.min_exponent + 6))
    unsigned = np.dtype(f"uint{8 * x.dtype.itemsize}")  # where 0 - 1 is the largest integer
    return jnp.all((magnitude(x) - 1).astype(unsigned) >= (bit_pattern(least) - 1).astype(unsigned))


def _decisions(q: Quantizer) -> tuple[float, ...]:
    """Magnitudes of the quotients where codes or the clipping mask change, and of the numbers; at least the least."""
    directed = (0.0,) if q.rounding in DIRECTED or (q.gradient in ON_QUOTIENT and q.format.lo == 0) else ()
    match q.format:
        case IntegerFormat():
            return (0.5, *directed)
        case FloatFormat():
            return (2.0 ** (q.format.min_exponent - q.format.mantissa_bits - 1), *directed)
        case BinaryFormat():
            return (0.0, 1.0)
        case TernaryFormat():
            return (q.format.threshold, 1.0)
        case CodebookFormat():
            numbers = (number for number in q.format.values if number)
            return tuple(map(abs, (*q.format.midpoints, *numbers, q.format.lo, q.format.hi)))


def _decides_at_zero(q: Quantizer) -> bool:
    return 0.0 in _decisions(q)


def _decides_below(q: Quantizer) -> bool:
    return any(0 < size < SMALL for size in _decisions(q))


def zero_points(q: Quantizer, zero_point: Array | None, scale: Array, shape: Shape) -> Array:
    """The zero point of every element, 0 when symmetric, in the dtype of the scale."""
    if zero_point is None:
        return jnp.zeros(shape, scale.dtype)
    return expand_blocks(zero_point.astype(scale.dtype), q.granularity, shape)


def noise_of(q: Quantizer, seed: Array | None, shape: Shape) -> Array | None:
    """What stochastic rounding of an array of this shape compares with, or learned rounding adds; else None.

    Args:
        seed: of learned rounding, the parameter of each element; None for zeros.
    """
    if q.rounding is Rounding.LEARNED:
        if seed is None:
            return rounding_offset(q.learned_rounding, jnp.zeros(shape, np.float32)) if q.relaxed else None
        return rounding_offset(q.learned_rounding, seed)
    if q.rounding is not Rounding.STOCHASTIC:
        return None
    return rounding_noise(0 if seed is None else seed, shape)


def unclamped_codes(
    q: Quantizer, x: Array, scale: Array, zero_point: Array | None, noise: Array | None = None, *, subnormals: bool
) -> tuple[Array, Array]:
    """``x / s``, and the codes as the clamp sees them; `by_scale` says whether ``subnormals`` count."""
    wide = widen(x)
    if zero_point is not None and q.arithmetic.has_float_zeros:
        wide, zero_point = _from_code_0(q, wide, scale, zero_point, subnormals), None
    quotient = _quotient(q, wide, expand_blocks(scale, q.granularity, x.shape), subnormals)
    rounded = round_to_grid(q, quotient, noise)
    return quotient, rounded if zero_point is None else rounded + zero_points(q, zero_point, scale, x.shape)


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
    """Codes, as numbers of the format, in the dtype of the scale; NaN for NaN. Zero integers may have either sign.

    Of other arithmetics in the working dtype, and NaN as `NanRule` says.
    """
    if is_other(q):
        return arithmetics.codes(q, x, scale, zero_point, noise, subnormals=subnormals, bit_width=bit_width)
    unclamped = unclamped_codes(q, x, scale, zero_point, noise, subnormals=subnormals)[1]
    return limited(q, x, scale, unclamped, bit_width)


def limited(q: Quantizer, x: Array, scale: Array, unclamped: Array, bit_width: Array | None = None) -> Array:
    """Codes for those that the clamp sees.

    Binary codes are the sign of the quotient, and that of ``x`` where the quotient is not zero: XLA drops the division.
    """
    if bit_width is not None:
        return clamp(unclamped, *code_range(q, bit_width))
    if not isinstance(q.format, BinaryFormat):
        return limit_to_grid(q, unclamped)
    ends, zeros = vanishing(scale), scale - scale  # NaN where the scale is
    expand = partial(expand_blocks, granularity=q.granularity, shape=x.shape)
    wide = widen(x)
    place, end = ordered(wide), expand(ends)  # as `magnitude(wide) <= end`, which a constant end of 0 makes a float's
    return limit_to_grid(q, jnp.where((place <= end) & (place >= ~end), expand(zeros), wide))


def centred(q: Quantizer, codes: Array, scale: Array, zero_point: Array | None) -> Array:
    """``code - z``, or ``code - mid`` with floating-point zero points; exact."""
    if is_other(q):
        return arithmetics.centred(q, codes, scale, zero_point)
    if q.arithmetic.has_float_zeros:
        return codes - middle_code(q)
    return codes if zero_point is None else codes - zero_points(q, zero_point, scale, codes.shape)


def values(
    q: Quantizer, codes: Array, scale: Array, zero_point: Array | None, dtype: Any, *, subnormals: bool
) -> Array:
    """``(code - z) * s``, rounded once to ``dtype``; `by_scale` says whether ``subnormals`` count.

    Or ``(code - mid) * s + z``, with floating-point zero points.
    """
    if is_other(q):
        return arithmetics.values(q, codes, scale, zero_point, dtype, subnormals=subnormals)
    expanded = expand_blocks(scale, q.granularity, codes.shape)
    if q.arithmetic.has_float_zeros:
        zeros = zero_points(q, zero_point, scale, codes.shape)
        steps = (multiply_exactly if q.relaxed else short_product)(centred(q, codes, scale, zero_point), expanded)
        total = add(steps, zeros) if subnormals else _sum(steps, zeros)
        if q.relaxed:  # where a product may be -0
            both = (bit_pattern(steps) == bit_pattern(zeros)) & (magnitude(zeros) < 1)
            total = jnp.where(both, zeros, total)
        return narrow_exactly(total, dtype)
    if subnormals and (isinstance(q.format, FloatFormat | CodebookFormat) or q.relaxed):  # other codes are at least 1
        return narrow_exactly(multiply_exactly(centred(q, codes, scale, zero_point), expanded), dtype)
    short = isinstance(q.format, IntegerFormat | FloatFormat) and not q.relaxed
    multiply = short_product if short else product
    value = multiply(centred(q, codes, scale, zero_point), expanded, signed_zero=q.format.negative_zero)
    return narrow(value, dtype)


def _from_code_0(q: Quantizer, x: Array, scale: Array, zero_point: Array, subnormals: bool) -> Array:
    """``x`` less the value of code 0: ``x - (z - mid * s)``, every operation rounded.

    Where subnormals need no heed, the value of code 0 is 0 or at least 2**-87 (or z itself, if mid is 0), so that what
    XLA flushes is less than half a unit of ``x`` or of the difference, or the quotient is below 2**-60.
    """
    zero, steps = zero_point.astype(scale.dtype), multiple(middle_code(q), scale)
    low = expand_blocks(add(zero, -steps) if subnormals else zero - steps, q.granularity, x.shape)
    return add(x, -low) if subnormals else x - low


def quotient_of_rest(q: Quantizer, x: Array, scale: Array, zero_point: Array | None) -> Array:
    """``(x - z) / s``, both operations rounded; what is below the smallest normal number may come out as zero."""
    zeros = zero_points(q, zero_point, scale, x.shape)
    return divide(add(widen(x), -zeros), expand_blocks(scale, q.granularity, x.shape))


def _sum(steps: Array, zeros: Array) -> Array:
    """``steps + zeros``, where ``steps`` are 0 or at least 2**-63; zeros may be subnormal, and there is one zero."""
    alone = jnp.where(bit_pattern(zeros) == layout(zeros.dtype).sign, jnp.zeros_like(zeros), zeros)
    return jnp.where(steps == 0, alone, steps + zeros)


def code_of_zero(q: Quantizer, zero_point: Array | None, scale: Array, shape: Shape) -> Array:
    """The code of 0.0 for every element, as a number of the format; what compiled `quantize` makes of NaN.

    With floating-point zero points code 0, or the nearest: what is left there when NaN was read as 0.0.
    """
    zero_point = None if q.arithmetic.has_float_zeros else zero_point
    zeros = zero_points(q, zero_point, scale, shape)
    return zeros if isinstance(q.format, IntegerFormat) else limit_to_grid(q, zeros)


def _quotient(q: Quantizer, x: Array, s: Array, subnormals: bool) -> Array:
    """``x / s`` as far as ``q`` heeds it."""
    if subnormals and _decides_below(q):
        return divide_exactly(x, s)
    quotient = divide(x, s, subnormals=subnormals)
    return tiny_quotient(x, s, quotient) if subnormals and _decides_at_zero(q) else quotient
