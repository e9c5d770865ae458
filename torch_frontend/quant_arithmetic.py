"""Sums, differences, products and negatives of `QuantTensor`, on codes; see `quant_operators`."""

from typing import Any

import torch
from torch import Tensor

from ..core.formats import FloatFormat
from ..core.integer_range import IntegerRange, integer_range
from .quant_operators import aten, handles, same_parameter
from .quant_tensor import QuantTensor


@handles(aten.add.Tensor, aten.sub.Tensor)
def added(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sums and differences of tensors of one scale; a tensor plus a number, or plus one for each of its channels."""
    a, b = args[:2]
    if func is aten.add.Tensor and kwargs.get("alpha", 1) == 1 and not (type(a) is type(b) is QuantTensor):
        return _shifted(a, b) if type(a) is QuantTensor else _shifted(b, a)
    ranges = _integers(a, b)
    if ranges is None or kwargs.get("alpha", 1) != 1:
        return NotImplemented
    plus = func is aten.add.Tensor
    format = ranges[0].plus(ranges[1]) if plus else ranges[0].minus(ranges[1])
    if format.carrier is None:
        return NotImplemented
    scale = same_parameter(a.scale, b.scale)
    if scale is None:
        return NotImplemented
    left, right = (carried(t.codes, format) for t in (a, b))
    zero = a.zero
    if b.zero is not None:
        other = b.zero if plus else -b.zero
        zero = other if zero is None else zero + other
    codes = whole(left + right if plus else left - right)
    return a.with_codes(codes, scale=scale, zero=zero, format=format, training=a.training or b.training)


def _shifted(t: QuantTensor, b: Tensor | float) -> Any:
    """The tensor with ``b`` behind the product, where that has fewer axes: the values that adding it has."""
    if t.offset is not None or t.dtype not in (torch.float32, torch.float64):
        return NotImplemented
    if not isinstance(b, Tensor):
        return t.with_codes(t.codes, offset=torch.full((), b, dtype=t.scale.dtype, device=t.device))
    same = b.dtype == t.dtype and b.ndim < t.ndim and torch.broadcast_shapes(b.shape, t.shape) == t.shape  # type: ignore[no-untyped-call]
    return t.with_codes(t.codes, offset=b) if same else NotImplemented


@handles(aten.mul.Tensor)
def multiplied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Products, of centred codes."""
    a, b = args
    ranges = _integers(a, b, centred=True)
    format = None if ranges is None else ranges[0].times(ranges[1])
    if format is None or format.carrier is None:
        return NotImplemented
    codes = whole(carried(centred(a), format) * carried(centred(b), format))
    scale = product_of_scales(a.scale, b.scale)
    return a.with_codes(codes, scale=scale, zero=None, format=format, training=a.training or b.training)


@handles(aten.neg.default)
def negated(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Negatives: of codes, zero points and offsets."""
    (t,) = args
    parts = {name: None if p is None else -p for name, p in (("zero", t.zero), ("offset", t.offset))}
    if isinstance(t.format, FloatFormat) and t.format.negative_zero:
        return t.with_codes(-t.codes, **parts)
    format = t.format.negated() if isinstance(t.format, IntegerRange) else t.format
    if integer_range(format) is None:
        return NotImplemented
    return t.with_codes(whole(-carried(t.codes, format)), format=format, **parts)


@handles(aten.abs.default)
def magnitudes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Absolute values: of centred codes."""
    (t,) = args
    ranges = _integers(t, t, centred=True)
    if ranges is None:
        return t.with_codes(t.codes.abs()) if isinstance(t.format, FloatFormat) and t.offset is None else NotImplemented
    format = ranges[0].magnitude()
    return t.with_codes(carried(centred(t), format).abs(), zero=None, format=format)


def _integers(a: Any, b: Any, centred: bool = False) -> tuple[IntegerRange, IntegerRange] | None:
    """The ranges of two tensors of integer codes, None if one is none. ``centred``: without their zero points."""
    if type(a) is not QuantTensor or type(b) is not QuantTensor or a.dtype != b.dtype:
        return None
    pair = integer_range(a.format), integer_range(b.format)
    if pair[0] is None or pair[1] is None or a.offset is not None or b.offset is not None:
        return None
    if not centred:
        return pair[0], pair[1]
    return centred_range(a, pair[0]), centred_range(b, pair[1])


def centred_range(t: QuantTensor, integers: IntegerRange) -> IntegerRange:
    """The range of `centred`."""
    return integers if t.zero is None else integers.centred()


def centred(t: QuantTensor) -> Tensor:
    """``code - z``."""
    return t.codes if t.zero is None else t.codes - t.zero


def carried(codes: Tensor, format: IntegerRange | Any) -> Tensor:
    """Codes in a dtype that holds every integer of the range; never a narrower one than they have."""
    wide = isinstance(format, IntegerRange) and format.carrier == "float64"
    return codes.double() if wide else codes


def whole(codes: Tensor) -> Tensor:
    """Integers with +0 for -0, as `elementwise.one_zero` does it; of a `IntegerRange.carrier`'s size."""
    large = 1.5 * 2.0**52 if codes.dtype == torch.float64 else 1.5 * 2.0**23
    return (codes + large) - large


def product_of_scales(a: Tensor, b: Tensor) -> Tensor:
    """``max(a * b, smallest normal number)``, as layers over codes have it."""
    return (a * b).clamp(min=torch.finfo(a.dtype).smallest_normal)
