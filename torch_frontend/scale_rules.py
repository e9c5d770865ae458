"""What a `ScaleRule` says beyond its defaults: how other systems choose scales and zero points.

A range is a pair ``(low, high)`` per block; symmetric ones are ``(-absmax, absmax)``. Numbers of the rule are read as
text, which is a constant to a compiler, and are rounded in Python to the dtype in which they meet a tensor.
"""

import torch
from torch import Tensor

from ..core.arithmetic import (
    ComputeDtype,
    Division,
    RangeRule,
    Threshold,
    ZeroPointDomain,
    ZeroPointRule,
    ZeroPointScale,
)
from ..core.descriptions import QParams, Quantizer
from ..core.granularity import qparams_shape
from ..core.scales import DECIMALS
from . import devices
from .arithmetics import as_operand, bound_of, ends_of, number_of
from .arrays import wide_dtype
from .blocks import split_blocks
from .clamp import clamp
from .expressions import bits_of, carried, sign_of
from .operations import add, flush, multiply, round_to_dtype, smallest_normal, true_divide, working_dtype
from .rounding import round_to_integer
from .scaling import affine_scale, restrict_scale, symmetric_scale
from .zero_point import affine_zero_point, float_zero_point


def scale_dtypes(q: Quantizer, dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Dtypes in which the range and its division round, and in which the scale is used and the zero point computed."""
    used = working_dtype(q.arithmetic, dtype)
    match q.scale.scale_dtype:
        case None:
            return used, used
        case ComputeDtype.INPUT:
            return dtype, used
        case ComputeDtype.WIDENED:
            of_range = wide_dtype(dtype)
        case ComputeDtype.FLOAT64:
            of_range = torch.float64
    return of_range, of_range if of_range.itemsize > used.itemsize else used


def data_range(q: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest element of each block, widened to 0 as `RangeRule` says; zeros for empty blocks.

    A smallest element that is 0 is -0 if one of them is: the zero points of `ZeroPointDomain.SHIFT` have its sign.
    """
    blocks = split_blocks(x, q.granularity)
    if not x.numel():
        nothing = x.new_zeros(blocks.shape[:-1])
        return nothing, nothing
    low, high = widened_range(q, blocks.amin(-1), blocks.amax(-1))
    if q.arithmetic.zero_point_domain is not ZeroPointDomain.SHIFT:
        return low, high
    wide = carried(blocks)
    integer, sign = bits_of(wide.dtype), sign_of(wide.dtype)
    negative = (wide.view(integer) == sign).any(-1)
    bits = torch.where(carried(low) == 0, torch.where(negative, sign, 0).to(integer), carried(low).view(integer))
    return bits.view(wide.dtype).to(low.dtype), high


def widened_range(q: Quantizer, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """A range, widened to 0 as `RangeRule` says."""
    match q.scale.range:
        case RangeRule.WITH_ZERO:
            return low.clamp(max=0), high.clamp(min=0)
        case RangeRule.LOW_WITH_ZERO:
            return low.clamp(max=0), high
        case RangeRule.OF_DATA:
            return low, high


def scale_of_range(q: Quantizer, low: Tensor, high: Tensor, final: torch.dtype) -> Tensor:
    """Scale before it is replaced, raised and restricted; in the dtype of the range.

    Args:
        final: dtype of the scale in the end, to which it is rounded here already under `ZeroPointRule.SMALLER_SUM`.
    """
    size = _size(q, low, high)
    for name, exactly in (("empty_range", True), ("range_floor", False)):
        least = number_of(_number(q, name), low.dtype)
        if least == 0:
            continue  # sizes are not negative, and one that is 0 stays
        applies = carried(size) == 0 if exactly else carried(size) < bound_of(_number(q, name), low.dtype)
        low = torch.where(applies, torch.zeros_like(low) if q.affine else torch.full_like(low, -least), low)
        high = torch.where(applies, torch.full_like(high, least), high)
    scale = affine_scale if q.affine else symmetric_scale
    if q.scale.scale_division is Division.RECIPROCAL and low.numel() > 1:
        one = torch.ones((), dtype=low.dtype, device=low.device)
        of_one = scale(q, torch.zeros_like(one) if q.affine else -one, one)
        return multiply(_size(q, low, high), of_one, q.arithmetic)
    raw = scale(q, low, high)
    if q.scale.zero_point_rule is ZeroPointRule.SMALLER_SUM:
        return round_to_dtype(round_to_dtype(raw, final), raw.dtype)
    return raw


def replace_small(q: Quantizer, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales below `ScaleRule.replace_below` replaced.

    Args:
        dtype: that a threshold is one of.
    """
    match q.scale.replace_below:
        case Threshold.EPSILON:
            limit = torch.finfo(dtype).eps
        case Threshold.SQRT_SMALLEST_NORMAL:
            limit = torch.finfo(dtype).smallest_normal ** 0.5
        case _:
            limit = _number(q, "replace_below")
    if limit == 0:
        return scale
    instead = limit if q.scale.replacement is None else _number(q, "replacement")
    kept = carried(scale)  # a limit may be smaller than any number of 16 bits
    return torch.where(
        kept < number_of(limit, kept.dtype), torch.full_like(scale, number_of(instead, scale.dtype)), scale
    )


def zero_point_of_range(q: Quantizer, low: Tensor, high: Tensor, raw: Tensor, scale: Tensor) -> Tensor:
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
        scale = scale.to(low.dtype)
    elif q.scale.zero_point_scale is ZeroPointScale.RAW:
        scale = raw
    if q.scale.zero_point_rule is ZeroPointRule.ROUNDED_QUOTIENT:
        return affine_zero_point(q, low, scale)
    a, below = q.arithmetic, true_divide(low, scale, q.arithmetic)
    lo, hi = (torch.full_like(low, number_of(end, low.dtype)) for end in ends_of(q))
    code = add(lo, -below, a)
    if q.scale.zero_point_rule is not ZeroPointRule.ROUNDED_CODE:
        above = true_divide(high, scale, a)
        sign = 1 if q.scale.zero_point_rule is ZeroPointRule.SMALLER_SUM else -1
        errors = (_plus(lo.abs(), sign * below.abs()), _plus(hi.abs(), sign * above.abs()))
        code = torch.where(errors[0] < errors[1], code, add(hi, -above, a))
    wide = clamp(code.to(torch.float64), *ends_of(q))
    whole = round_to_integer(wide, q.scale.zero_point_rounding)
    return torch.where(whole.isnan(), min(max(0.0, ends_of(q)[0]), ends_of(q)[1]), whole).to(torch.int32)


def flushed(q: Quantizer, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in the dtype its range is computed in."""
    return flush(as_operand(x, dtype), q.arithmetic)


def parameters_of_range(
    q: Quantizer, dtype: torch.dtype, low: Tensor, high: Tensor, lower_end: Tensor | None = None
) -> QParams:
    """Scale and zero point of a range, for an array of this dtype.

    Args:
        lower_end: what the zero point comes from in the place of ``low``.
    """
    of_range, used = scale_dtypes(q, dtype)
    final = wide_dtype(dtype)
    raw = round_to_dtype(scale_of_range(q, low, high, final), used)
    scale = replace_small(q, raw, of_range)
    if q.scale.floor != 0:
        least = smallest_normal(used if used.itemsize == 2 else final)  # the scale is a number of both dtypes
        scale = torch.maximum(scale, least.to(scale.device, used))
    unrounded = q.scale.scale_dtype is ComputeDtype.FLOAT64 and q.scale.zero_point_rule is not ZeroPointRule.SMALLER_SUM
    scale = restrict_scale(q, round_to_dtype(scale, torch.float64 if unrounded else final))
    scale = round_to_dtype(scale, used)
    if not q.affine:
        return QParams(round_to_dtype(scale, final))
    low, high, raw = (round_to_dtype(v, used) for v in (low if lower_end is None else lower_end, high, raw))
    match q.arithmetic.zero_point_domain:
        case ZeroPointDomain.INTEGER:
            zero = zero_point_of_range(q, low, high, raw, scale)
        case ZeroPointDomain.FLOAT:
            zero = round_to_dtype(float_zero_point(q, low, scale), final)
        case ZeroPointDomain.SHIFT:
            zero = round_to_dtype(-low, final)
    return QParams(round_to_dtype(scale, final), zero)


def given_parameters(q: Quantizer, x: Tensor) -> QParams:
    """`ScaleRule.scale_value` and `ScaleRule.zero_point_value` for every block."""
    final, shape = wide_dtype(x.dtype), qparams_shape(q.granularity, tuple(x.shape))
    value = 0.0 if q.scale.scale_value is None else q.scale.scale_value
    scale = restrict_scale(q, torch.full(shape, value, dtype=final, device=x.device))
    scale = round_to_dtype(round_to_dtype(scale, scale_dtypes(q, x.dtype)[1]), final)
    integers = q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER
    kind = torch.int32 if integers else final
    return QParams(scale, torch.full_like(scale, q.scale.zero_point_value, dtype=kind) if q.affine else None)


def _number(q: Quantizer, name: str) -> float:
    return float(q.scale.decimals[DECIMALS.index(name)])


def _size(q: Quantizer, low: Tensor, high: Tensor) -> Tensor:
    """What a scale is a part of."""
    return add(high, -low, q.arithmetic) if q.affine else torch.maximum(-low, high)


def _plus(a: Tensor, b: Tensor) -> Tensor:
    """``a + b`` rounded to their dtype, to be compared."""
    return carried(round_to_dtype(carried(a) + carried(b), a.dtype))


def _stretched(q: Quantizer, low: Tensor, high: Tensor, raw: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The range multiplied by ``floor / raw`` where the scale was raised to the floor, in float32.

    A range that ends at 0 becomes ``(hi - lo) * floor`` long.
    """
    least = 0.0 if q.scale.floor is None else number_of(_number(q, "floor"), torch.float32)
    raised = (raw.to(torch.float64) < least) & (scale.to(torch.float64) == least)
    floor = torch.full_like(raw, least, dtype=torch.float32)
    factor = devices.quotient(floor, round_to_dtype(raw, torch.float32))
    whole = floor * (ends_of(q)[1] - ends_of(q)[0])
    kind = low.dtype if low.dtype == torch.float64 else torch.float32
    narrow_low, narrow_high = round_to_dtype(low, torch.float32), round_to_dtype(high, torch.float32)
    nothing = torch.zeros_like(whole)
    below = torch.where(low == 0, nothing, torch.where(high == 0, -whole, narrow_low * factor))
    above = torch.where(high == 0, nothing, torch.where(low == 0, whole, narrow_high * factor))
    return torch.where(raised, below.to(kind), low.to(kind)), torch.where(raised, above.to(kind), high.to(kind))
