"""What a `ScaleRule` says beyond its defaults: how other systems choose scales and zero points.

A range is a pair ``(low, high)`` per block; symmetric ones are ``(-absmax, absmax)``.
"""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from . import checks
from .arithmetic import ComputeDtype, Division, RangeRule, Threshold, ZeroPointDomain, ZeroPointRule, ZeroPointScale
from .blocks import split_blocks
from .clamp import clamp
from .descriptions import QParams, Quantizer
from .granularity import qparams_shape
from .operations import (
    add,
    flush,
    multiply,
    round_to_dtype,
    smallest_normal,
    true_divide,
    working_dtype,
)
from .rounding import round_to_integer
from .scaling import affine_scale, restrict_scale, symmetric_scale
from .zero_point import affine_zero_point, float_zero_point

Array = NDArray[Any]


def scale_dtypes(q: Quantizer, dtype: np.dtype[Any]) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Dtypes in which the range and its division round, and in which the scale is used and the zero point computed."""
    used = working_dtype(q.arithmetic, dtype)
    match q.scale.scale_dtype:
        case None:
            return used, used
        case ComputeDtype.INPUT:
            return dtype, used
        case ComputeDtype.WIDENED:
            of_range = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        case ComputeDtype.FLOAT64:
            of_range = np.dtype(np.float64)
    return of_range, of_range if of_range.itemsize > used.itemsize else used


def data_range(q: Quantizer, x: Array) -> tuple[Array, Array]:
    """Smallest and largest element of each block, widened to 0 as `RangeRule` says; zeros for empty blocks.

    A smallest element that is 0 is -0 if one of them is: the zero points of `ZeroPointDomain.SHIFT` have its sign.
    """
    blocks = split_blocks(x, q.granularity)
    if blocks.shape[-1] == 0:
        return np.min(blocks, axis=-1, initial=0), np.max(blocks, axis=-1, initial=0)
    low, high = widened_range(q, np.min(blocks, axis=-1), np.max(blocks, axis=-1))
    negative = (np.signbit(blocks) & (blocks == 0)).any(axis=-1)
    return np.where(low == 0, np.copysign(np.zeros_like(low), np.where(negative, -1, 1).astype(low.dtype)), low), high


def widened_range(q: Quantizer, low: Array, high: Array) -> tuple[Array, Array]:
    """A range, widened to 0 as `RangeRule` says."""
    zero = np.zeros_like(low)
    match q.scale.range:
        case RangeRule.WITH_ZERO:
            return np.minimum(low, zero), np.maximum(high, zero)
        case RangeRule.LOW_WITH_ZERO:
            return np.minimum(low, zero), high
        case RangeRule.OF_DATA:
            return low, high


def scale_of_range(q: Quantizer, low: Array, high: Array, final: np.dtype[Any]) -> Array:
    """Scale before it is replaced, raised and restricted; in the dtype of the range.

    Args:
        final: dtype of the scale in the end, to which it is rounded here already under `ZeroPointRule.SMALLER_SUM`.
    """
    a = q.arithmetic
    size = add(high, -low, a) if q.affine else np.maximum(-low, high)
    for wanted, applies in ((q.scale.empty_range, size == 0), (q.scale.range_floor, size < q.scale.range_floor)):
        least = np.asarray(wanted, low.dtype)
        low = np.where(applies, np.zeros_like(low) if q.affine else -least, low)
        high = np.where(applies, least, high)
    scale = affine_scale if q.affine else symmetric_scale
    if q.scale.scale_division is Division.RECIPROCAL and low.size > 1:
        one = np.ones((), low.dtype)
        size = add(high, -low, a) if q.affine else np.maximum(-low, high)
        return multiply(size, scale(q, -one * (not q.affine), one), a)
    raw = scale(q, low, high)
    return raw.astype(final).astype(raw.dtype) if q.scale.zero_point_rule is ZeroPointRule.SMALLER_SUM else raw


def replace_small(q: Quantizer, scale: Array, dtype: np.dtype[Any]) -> Array:
    """Scales below `ScaleRule.replace_below` replaced.

    Args:
        dtype: that a threshold is one of.
    """
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    match q.scale.replace_below:
        case Threshold.EPSILON:
            limit = float(info.eps)
        case Threshold.SQRT_SMALLEST_NORMAL:
            limit = float(info.smallest_normal) ** 0.5
        case number:
            limit = number
    instead = limit if q.scale.replacement is None else q.scale.replacement
    wide = np.promote_types(scale.dtype, np.float32)  # a limit may be smaller than any number of 16 bits
    return np.where(
        scale.astype(wide) < wide.type(limit), round_to_dtype(np.asarray(instead, np.float64), scale.dtype), scale
    )


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
    elif q.scale.zero_point_scale is ZeroPointScale.RAW:
        scale = raw
    lo, hi, a = np.asarray(q.format.lo, low.dtype), np.asarray(q.format.hi, low.dtype), q.arithmetic
    match q.scale.zero_point_rule:
        case ZeroPointRule.ROUNDED_QUOTIENT:
            return affine_zero_point(q, low, scale)
        case ZeroPointRule.ROUNDED_CODE:
            code = add(lo, -true_divide(low, scale, a), a)
        case ZeroPointRule.SMALLER_SUM | ZeroPointRule.SMALLER_DIFFERENCE:
            below, above = true_divide(low, scale, a), true_divide(high, scale, a)
            sign = 1 if q.scale.zero_point_rule is ZeroPointRule.SMALLER_SUM else -1
            from_low = np.abs(lo) + sign * np.abs(below) < np.abs(hi) + sign * np.abs(above)
            code = np.where(from_low, add(lo, -below, a), add(hi, -above, a))
    code = round_to_integer(clamp(code.astype(np.float64), q.format.lo, q.format.hi), q.scale.zero_point_rounding)
    return np.where(np.isnan(code), np.clip(0, q.format.lo, q.format.hi), code).astype(np.int32)


def _stretched(q: Quantizer, low: Array, high: Array, raw: Array, scale: Array) -> tuple[Array, Array]:
    """The range multiplied by ``floor / raw`` where the scale was raised to the floor, in float32.

    A range that ends at 0 becomes ``(hi - lo) * floor`` long.
    """
    floor = np.float32(q.scale.floor or 0)
    raised = (raw < floor) & (scale == floor)
    factor, whole = floor / raw.astype(np.float32), np.float32(q.format.hi - q.format.lo) * floor
    below = np.where(high == 0, -whole, low.astype(np.float32) * factor)
    above = np.where(low == 0, whole, high.astype(np.float32) * factor)
    below, above = np.where(low == 0, np.float32(0), below), np.where(high == 0, np.float32(0), above)
    return np.where(raised, below, low), np.where(raised, above, high)


def flushed(q: Quantizer, x: Array, dtype: np.dtype[Any]) -> Array:
    """``x`` in the dtype its range is computed in."""
    return flush(round_to_dtype(x, dtype), q.arithmetic)


def parameters_of_range(
    q: Quantizer, dtype: np.dtype[Any], low: Array, high: Array, lower_end: Array | None = None
) -> QParams:
    """Scale and zero point of a range, for an array of this dtype.

    Args:
        lower_end: what the zero point comes from in the place of ``low``.
    """
    of_range, used = scale_dtypes(q, dtype)
    final = np.dtype(checks.scale_dtype(dtype.name))
    raw = scale_of_range(q, low, high, final).astype(used)
    scale = replace_small(q, raw, of_range)
    if q.scale.floor != 0:
        least = smallest_normal(used if used.itemsize == 2 else final)  # the scale is a number of both dtypes
        scale = np.maximum(scale, least.astype(used))
    unrounded = q.scale.scale_dtype is ComputeDtype.FLOAT64 and q.scale.zero_point_rule is not ZeroPointRule.SMALLER_SUM
    scale = round_to_dtype(restrict_scale(q, scale.astype(np.float64 if unrounded else final)), used)
    if not q.affine:
        return QParams(scale.astype(final))
    low, high, raw = (v.astype(used) for v in (low if lower_end is None else lower_end, high, raw))
    match q.arithmetic.zero_point_domain:
        case ZeroPointDomain.INTEGER:
            zero = zero_point_of_range(q, low, high, raw, scale)
        case ZeroPointDomain.FLOAT:
            zero = float_zero_point(q, low, scale).astype(final)
        case ZeroPointDomain.SHIFT:
            zero = (-low).astype(final)
    return QParams(scale.astype(final), zero)


def given_parameters(q: Quantizer, x: Array) -> QParams:
    """`ScaleRule.scale_value` and `ScaleRule.zero_point_value` for every block."""
    final, shape = np.dtype(checks.scale_dtype(x.dtype.name)), qparams_shape(q.granularity, x.shape)
    scale = restrict_scale(q, np.full(shape, q.scale.scale_value, final))
    scale = round_to_dtype(scale, scale_dtypes(q, x.dtype)[1]).astype(final)
    integers = q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER
    zero = np.full(shape, q.scale.zero_point_value, np.int32 if integers else final)
    return QParams(scale, zero if q.affine else None)
