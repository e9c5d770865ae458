"""What a `ScaleRule` says beyond its defaults: how other systems choose scales and zero points.

A range is a pair ``(low, high)`` per block; symmetric ones are ``(-absmax, absmax)``. All of `operations`, one number
per block; compared by bit patterns, since XLA takes subnormals for zeros. Where the default rule and arithmetic hold,
`scaling` does the same with less.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks
from ..core.arithmetic import (
    Arithmetic,
    ComputeDtype,
    Division,
    RangeRule,
    Threshold,
    ZeroPointDomain,
    ZeroPointRule,
    ZeroPointScale,
)
from ..core.descriptions import QParams, Quantizer
from ..core.directions import Rounding
from ..core.formats import significand_bits
from ..core.granularity import qparams_shape
from ..core.scales import SHARED_EXPONENT, Denominator, Restriction
from .arrays import barrier, bit_pattern, from_pattern, layout, ordered, with_float64
from .blocks import split_blocks
from .clamp import clamp
from .ieee import parts
from .ieee_any import is_zero
from .minifloat import round_to_float
from .operations import (
    FLOAT32,
    FLOAT64,
    add,
    flush,
    multiply,
    multiply_add,
    round_to_dtype,
    smallest_normal,
    true_divide,
    working_dtype,
)
from .rounding import round_to_integer
from .scaling import divisor, restrict_scale
from .zero_point import middle_code

Array = jax.Array
PLAIN = Arithmetic()


def scale_dtypes(q: Quantizer, dtype: Any) -> tuple[Any, Any]:
    """Dtypes in which the range and its division round, and in which the scale is used and the zero point computed."""
    used = working_dtype(q.arithmetic, dtype)
    match q.scale.scale_dtype:
        case None:
            return used, used
        case ComputeDtype.INPUT:
            return np.dtype(dtype), used
        case ComputeDtype.WIDENED:
            of_range = FLOAT64 if np.dtype(dtype) == FLOAT64 else FLOAT32
        case ComputeDtype.FLOAT64:
            of_range = FLOAT64
    return of_range, of_range if of_range.itemsize > used.itemsize else used


def data_range(q: Quantizer, x: Array) -> tuple[Array, Array]:
    """Smallest and largest element of each block, widened to 0 as `RangeRule` says; zeros for empty blocks."""
    blocks = split_blocks(x, q.granularity)
    if blocks.shape[-1] == 0:
        zero = jnp.zeros(blocks.shape[:-1], x.dtype)
        return zero, zero
    places, nan = ordered(blocks), jnp.isnan(blocks).any(-1)
    low, high = (_of_place(extreme(places, axis=-1), x.dtype) for extreme in (jnp.min, jnp.max))
    low, high = (jnp.where(nan, jnp.asarray(jnp.nan, x.dtype), end) for end in (low, high))
    return widened_range(q, low, high)


def _of_place(place: Array, dtype: Any) -> Array:
    """The number at a place of `ordered`."""
    bits = 8 * place.dtype.itemsize
    return from_pattern(place ^ ((place >> (bits - 1)) & ~layout(dtype).sign), dtype)


def widened_range(q: Quantizer, low: Array, high: Array) -> tuple[Array, Array]:
    """A range, widened to 0 as `RangeRule` says."""
    zero = jnp.zeros_like(low)
    below = jnp.where(jnp.isnan(low) | (ordered(low) < 0), low, zero)
    above = jnp.where(jnp.isnan(high) | (ordered(high) > 0), high, zero)
    match q.scale.range:
        case RangeRule.WITH_ZERO:
            return below, above
        case RangeRule.LOW_WITH_ZERO:
            return below, high
        case RangeRule.OF_DATA:
            return low, high


def scale_of_range(q: Quantizer, low: Array, high: Array, final: Any) -> Array:
    """Scale before it is replaced, raised and restricted; in the dtype of the range.

    Args:
        final: dtype of the scale in the end, to which it is rounded here already under `ZeroPointRule.SMALLER_SUM`.
    """
    a = q.arithmetic
    size = add(high, -low, a) if q.affine else _larger(-low, high)
    least = _constant(q.scale.range_floor, low.dtype)
    for wanted, applies in (
        (q.scale.empty_range, is_zero(size)),
        (q.scale.range_floor, _below(size, jnp.broadcast_to(least, size.shape))),
    ):
        number = jnp.broadcast_to(_constant(wanted, low.dtype), low.shape)
        low = jnp.where(applies, jnp.zeros_like(low) if q.affine else -number, low)
        high = jnp.where(applies, number, high)
    scale = _affine if q.affine else _symmetric
    if q.scale.scale_division is Division.RECIPROCAL and low.size > 1:
        one = jnp.ones((), low.dtype)
        size = add(high, -low, a) if q.affine else _larger(-low, high)
        return multiply(size, scale(q, jnp.zeros_like(one) if q.affine else -one, one), a)
    raw = scale(q, low, high)
    if q.scale.zero_point_rule is not ZeroPointRule.SMALLER_SUM:
        return raw
    return round_to_dtype(round_to_dtype(raw, final), raw.dtype)


def _symmetric(q: Quantizer, low: Array, high: Array) -> Array:
    """As `scaling.symmetric_scale`."""
    lo, hi, size = q.format.lo, q.format.hi, _larger(-low, high)
    if q.scale.restriction in SHARED_EXPONENT:
        return _shared_exponent(q, size)
    if q.scale.restriction is Restriction.QUANTIZED:
        return _quantized(q, size)
    if q.scale.denominator is not Denominator.LARGER:
        return _over(size, divisor(q), q.arithmetic)
    larger = _over(high, hi, q.arithmetic)
    return _larger(_over(-low, -lo, q.arithmetic), larger) if lo else larger


def _shared_exponent(q: Quantizer, size: Array) -> Array:
    """As `scaling.shared_exponent_scale`, in any dtype: by significand and exponent."""
    wide = size if size.dtype == FLOAT64 else round_to_dtype(size, FLOAT32)
    form, own = layout(wide.dtype), layout(size.dtype)
    significand, top = parts(wide)
    field = significand & form.integer((1 << form.mantissa) - 1)
    if q.scale.restriction is Restriction.POWER_OF_TWO_CEIL:
        top = top + (field > 0)
    if q.scale.restriction is Restriction.POWER_OF_TWO_EVEN:
        bits = significand_bits(q.format) + 1
        top = top + (field >= ((1 << bits) - 1) << (form.mantissa - bits))
    shared = top - (int(np.frexp(divisor(q))[1]) - 1)
    shared = jnp.clip(shared, own.min_exponent, 1 - own.min_exponent).astype(form.integer)
    power = from_pattern((shared + form.integer(1 - form.min_exponent)) << form.mantissa, wide.dtype)
    power = jnp.where(is_zero(wide), jnp.zeros_like(power), power)
    return round_to_dtype(jnp.where(jnp.isfinite(wide), power, jnp.nan).astype(wide.dtype), size.dtype)


def _quantized(q: Quantizer, size: Array) -> Array:
    """As `scaling.quantized_scale`, in any dtype."""
    format, a = q.scale.scale_format, q.arithmetic
    if format is None:
        raise TypeError("`q.scale.scale_format` must be a FloatFormat, got None")
    given = q.scale.floor
    floor = jnp.asarray(smallest_normal(size.dtype)) if given is None else _constant(given, size.dtype)
    tensor = jnp.ones((), size.dtype)
    if q.scale.two_level:
        largest = _of_place(jnp.max(ordered(size), initial=0), size.dtype)
        tensor = _larger(_over(largest, divisor(q) * format.hi, a), floor)
    level = true_divide(_larger(_over(size, divisor(q), a), floor), tensor, a)
    least, most = (_constant(end, size.dtype) for end in (2.0**format.min_exponent, format.hi))
    within = jnp.where(_below(level, jnp.broadcast_to(least, level.shape)), least, level)
    within = jnp.where(_below(jnp.broadcast_to(most, level.shape), within), most, within)
    wide = within if size.dtype == FLOAT64 else round_to_dtype(within, FLOAT32)
    rounded = round_to_dtype(round_to_float(wide, format, Rounding.TIES_TO_EVEN), size.dtype)
    return multiply(rounded, tensor, a)


def _affine(q: Quantizer, low: Array, high: Array) -> Array:
    """As `scaling.affine_scale`."""
    span, a = q.format.hi - q.format.lo, q.arithmetic
    whole = _over(add(high, -low, a), span, a)
    half = jnp.full_like(low, 0.5)
    halves = add(multiply(high, half, PLAIN), multiply(-low, half, PLAIN), a)
    finite = jnp.isfinite(low) & jnp.isfinite(high)
    return jnp.where(jnp.isinf(whole) & finite, _over(halves, span / 2, a), whole)


def _over(size: Array, number: float, arithmetic: Arithmetic) -> Array:
    """``size / number``; through float32 for 16-bit dtypes, which do not hold every divisor."""
    wide = FLOAT64 if size.dtype == FLOAT64 else FLOAT32
    quotient = true_divide(round_to_dtype(size, wide), jnp.full(size.shape, np.asarray(number, wide)), arithmetic)
    return flush(round_to_dtype(quotient, size.dtype), arithmetic)


def _constant(number: float, dtype: Any) -> Array:
    """A number of a description in a dtype, as NumPy has it."""
    with np.errstate(over="ignore", under="ignore"):
        return jnp.asarray(np.asarray(number, dtype))


def _ceiling(number: float, dtype: Any) -> Array:
    """The smallest number of a dtype that is not below one of float32 (float64): less than either is the same."""
    wide = np.asarray(number, np.promote_types(dtype, np.float32))
    with np.errstate(over="ignore", under="ignore"):
        near = wide.astype(dtype)
    return jnp.asarray(np.nextafter(near, np.asarray(np.inf, dtype)) if near.astype(wide.dtype) < wide else near)


def _below(a: Array, b: Array) -> Array:
    """``a < b``, also of subnormals; false where either is NaN. Zeros are equal."""
    place, other = (jnp.where(is_zero(v), 0, ordered(v)) for v in (a, b))
    return (place < other) & ~jnp.isnan(a) & ~jnp.isnan(b)


def _larger(a: Array, b: Array) -> Array:
    """The larger of both; NaN where either is."""
    a, b = jnp.broadcast_arrays(a, b)
    return jnp.where(jnp.isnan(a) | _below(b, a), a, b)


def replace_small(q: Quantizer, scale: Array, dtype: Any) -> Array:
    """Scales below `ScaleRule.replace_below` replaced.

    Args:
        dtype: that a threshold is one of.
    """
    info = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    match q.scale.replace_below:
        case Threshold.EPSILON:
            limit = float(info.eps)
        case Threshold.SQRT_SMALLEST_NORMAL:
            limit = float(info.smallest_normal) ** 0.5
        case number:
            limit = float(number)
    instead = limit if q.scale.replacement is None else q.scale.replacement
    small = _below(scale, jnp.broadcast_to(_ceiling(limit, scale.dtype), scale.shape))
    with with_float64(FLOAT64):
        other = round_to_dtype(jnp.asarray(np.float64(instead)), scale.dtype)
    return jnp.where(small, other, scale)


def zero_point_of_range(q: Quantizer, low: Array, high: Array, raw: Array, scale: Array) -> Array:
    """Zero point of a range, int32, as `ZeroPointRule` and `ZeroPointScale` say.

    The last two take ``lo - min / s`` where the lower end has less rounding error, else ``hi - max / s``; they judge it
    by what is added. Source: fbgemm ``ChooseQuantizationParams``, and the function
    of that name in ATen/native/quantized/cpu/QuantUtils.h.

    Args:
        low, high: the range; ``raw``: its scale before anything was done to it; ``scale``: the one that is used. All of
            the dtype in which the zero point is computed.
    """
    if q.scale.zero_point_scale is ZeroPointScale.STRETCHED:
        low, high = _stretched(q, low, high, raw, scale)
        scale = round_to_dtype(scale, low.dtype)
    elif q.scale.zero_point_scale is ZeroPointScale.RAW:
        scale = raw
    a, dtype = q.arithmetic, low.dtype
    lo, hi = (jnp.broadcast_to(_constant(end, dtype), low.shape) for end in (q.format.lo, q.format.hi))
    wide = FLOAT64 if dtype == FLOAT64 else FLOAT32
    match q.scale.zero_point_rule:
        case ZeroPointRule.ROUNDED_QUOTIENT:
            quotient = round_to_dtype(true_divide(low, scale, a), wide)
            rounded = round_to_integer(quotient, q.scale.zero_point_rounding)
            code = add(lo, -round_to_dtype(rounded, dtype), PLAIN)
            return _code(q, clamp(round_to_dtype(code, wide), q.format.lo, q.format.hi))
        case ZeroPointRule.ROUNDED_CODE:
            code = add(lo, -true_divide(low, scale, a), a)
        case ZeroPointRule.SMALLER_SUM | ZeroPointRule.SMALLER_DIFFERENCE:
            below, above = true_divide(low, scale, a), true_divide(high, scale, a)
            sums = q.scale.zero_point_rule is ZeroPointRule.SMALLER_SUM
            at_low, at_high = (
                add(jnp.abs(end), jnp.abs(v) if sums else -jnp.abs(v), PLAIN) for end, v in ((lo, below), (hi, above))
            )
            code = jnp.where(_below(at_low, at_high), add(lo, -below, a), add(hi, -above, a))
    limited = clamp(round_to_dtype(code, wide), q.format.lo, q.format.hi)
    return _code(q, round_to_integer(limited, q.scale.zero_point_rounding))


def _code(q: Quantizer, code: Array) -> Array:
    nearest = int(np.clip(0, q.format.lo, q.format.hi))
    return jnp.where(jnp.isnan(code), nearest, code).astype(jnp.int32)


def _stretched(q: Quantizer, low: Array, high: Array, raw: Array, scale: Array) -> tuple[Array, Array]:
    """The range multiplied by ``floor / raw`` where the scale was raised to the floor, in float32.

    A range that ends at 0 becomes ``(hi - lo) * floor`` long. The result is at least float32.
    """
    number, span = np.float32(q.scale.floor or 0), np.float32(q.format.hi - q.format.lo)
    wide = FLOAT64 if low.dtype == FLOAT64 else FLOAT32
    floor = jnp.full(raw.shape, number)
    exact = round_to_dtype(floor, wide)
    raised = _below(round_to_dtype(raw, wide), exact) & (bit_pattern(round_to_dtype(scale, wide)) == bit_pattern(exact))
    factor = true_divide(floor, round_to_dtype(raw, FLOAT32), PLAIN)
    with np.errstate(over="ignore"):
        whole = jnp.full(raw.shape, span * number)
    below = jnp.where(is_zero(high), -whole, multiply(round_to_dtype(low, FLOAT32), factor, PLAIN))
    above = jnp.where(is_zero(low), whole, multiply(round_to_dtype(high, FLOAT32), factor, PLAIN))
    below = jnp.where(is_zero(low), jnp.zeros_like(below), below)
    above = jnp.where(is_zero(high), jnp.zeros_like(above), above)
    ends = ((below, low), (above, high))
    low, high = (jnp.where(raised, round_to_dtype(v, wide), round_to_dtype(end, wide)) for v, end in ends)
    return low, high


def flushed(q: Quantizer, x: Array, dtype: Any) -> Array:
    """``x`` in the dtype its range is computed in."""
    return flush(round_to_dtype(x, dtype), q.arithmetic)


def parameters_of_range(q: Quantizer, dtype: Any, low: Array, high: Array, lower_end: Array | None = None) -> QParams:
    """Scale and zero point of a range, for an array of this dtype.

    Args:
        lower_end: what the zero point comes from in the place of ``low``.
    """
    of_range, used = scale_dtypes(q, dtype)
    final = np.dtype(checks.scale_dtype(np.dtype(dtype).name))
    raw = round_to_dtype(scale_of_range(q, low, high, final), used)
    scale = replace_small(q, raw, of_range)
    if q.scale.floor != 0:
        least = smallest_normal(used if used.itemsize == 2 else final)  # the scale is a number of both dtypes
        scale = _larger(scale, round_to_dtype(jnp.asarray(least), used))
    unrounded = q.scale.scale_dtype is ComputeDtype.FLOAT64 and q.scale.zero_point_rule is not ZeroPointRule.SMALLER_SUM
    scale = round_to_dtype(restrict_scale(q, round_to_dtype(scale, FLOAT64 if unrounded else final)), used)
    if not q.affine:
        return QParams(round_to_dtype(scale, final))
    low, high, raw = (round_to_dtype(v, used) for v in (low if lower_end is None else lower_end, high, raw))
    match q.arithmetic.zero_point_domain:
        case ZeroPointDomain.INTEGER:
            zero = zero_point_of_range(q, low, high, raw, scale)
        case ZeroPointDomain.FLOAT:
            middle = jnp.broadcast_to(_constant(middle_code(q), used), scale.shape)
            zero = round_to_dtype(multiply_add(scale, middle, low, q.arithmetic), final)
        case ZeroPointDomain.SHIFT:
            zero = round_to_dtype(-low, final)
    return QParams(barrier(round_to_dtype(scale, final)), zero)


def given_parameters(q: Quantizer, x: Array) -> QParams:
    """`ScaleRule.scale_value` and `ScaleRule.zero_point_value` for every block."""
    final, shape = np.dtype(checks.scale_dtype(x.dtype.name)), qparams_shape(q.granularity, x.shape)
    scale = restrict_scale(q, jnp.full(shape, q.scale.scale_value or 0, final))
    scale = round_to_dtype(round_to_dtype(scale, scale_dtypes(q, x.dtype)[1]), final)
    integers = q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER
    zero = jnp.full(shape, q.scale.zero_point_value, np.int32 if integers else final)
    return QParams(scale, zero if q.affine else None)
