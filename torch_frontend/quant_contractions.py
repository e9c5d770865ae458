"""Products of matrices, convolutions and averages of `QuantTensor`: sums over centred codes, exact in any order.

Float32 products where every partial sum stays within 2**24 and codes within 256 (which products in TensorFloat-32 or
bfloat16 keep, too), else float64. Scales must not vary along what is summed. See `quant_operators`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.integer_range import IntegerRange, integer_range
from . import devices
from .quant_arithmetic import centred, centred_range, product_of_scales, whole
from .quant_operators import aten, constant_along, handles, same_parameter
from .quant_operators import plain_parameters as plain
from .quant_tensor import QuantTensor


@handles(aten.mm.default, aten.bmm.default)
def multiplied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``a @ b``."""
    a, b = args
    return _matrix_product(a, b, None, func)


@handles(aten.mv.default, aten.dot.default)
def multiplied_by_a_vector(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``a @ b`` where b, or both, have one axis."""
    a, b = args
    return (a.unsqueeze(0) @ b.unsqueeze(1)).reshape(()) if a.ndim == 1 else (a @ b.unsqueeze(1)).squeeze(1)


@handles(aten.addmm.default)
def multiplied_and_added(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``a @ b + bias``, the bias in codes if it is a tensor of that scale, else behind the product."""
    bias, a, b = args
    if any(kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return NotImplemented
    return _matrix_product(a, b, bias, aten.mm.default)


@handles(aten.convolution.default)
def convolved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cross-correlations, and transposed ones."""
    x, w, bias, stride, padding, dilation, transposed, output_padding, groups = args
    if type(x) is not QuantTensor or type(w) is not QuantTensor or not constant_along(x, x.ndim - 1):
        return NotImplemented
    channel, ones, scale = 1 if transposed else 0, [1] * (w.ndim - 2), plain(w)["scale"]
    if scale is not None and scale.ndim:
        if scale.ndim != w.ndim or scale.numel() != scale.shape[channel]:
            return NotImplemented
        scale = scale.reshape(1, -1, *ones)
        scale = scale.repeat(1, groups, *ones) if transposed else scale  # its channels are those of one group
    if transposed:
        steps = [-(-k // s) for k, s in zip(list(w.shape[2:]), stride, strict=True)]
        terms = terms_of((w.shape[0] // groups, *steps))
    else:
        terms = terms_of(w.shape[1:])

    def contract(a: Tensor, b: Tensor) -> Tensor:
        y: Tensor = func(a, b, None, stride, padding, dilation, transposed, output_padding, groups)
        return y

    shaped = None if bias is None else bias.reshape(1, -1, *ones)
    return _contracted(x, w, terms, contract, plain(x)["scale"], scale, shaped)


@handles(aten.avg_pool2d.default, aten.avg_pool3d.default)
def averaged(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Averages over windows of one size: padding counts, and no window ends early."""
    t, size, *rest = args
    axes = 2 if func is aten.avg_pool2d.default else 3
    defaults: list[Any] = [[], 0, False, True, None]
    stride, padding, ceil_mode, counts_padding, divisor = [*rest, *defaults[len(rest) :]]
    size = list(size) * (axes if len(size) == 1 else 1)
    uneven = ceil_mode or (not counts_padding and any([padding] if isinstance(padding, int) else padding))
    if uneven and divisor is None:
        return NotImplemented
    return _averaged(t, terms_of(size), divisor, axes, lambda c: func(c, size, stride, padding, ceil_mode, True, 1))


@handles(aten._adaptive_avg_pool2d.default)
def averaged_adaptively(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Averages over windows of one size, where the input's is a multiple of the output's."""
    t, size = args
    if any(n % m or not m for n, m in zip(t.shape[-2:], size, strict=True)):
        return NotImplemented
    window = [n // m for n, m in zip(t.shape[-2:], size, strict=True)]
    return _averaged(t, terms_of(window), None, 2, lambda c: aten.avg_pool2d(c, window, window, 0, False, True, 1))


@handles(aten.mean.dim)
def averaged_over_axes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The average over the last two axes, which is what adaptive pooling to one element is."""
    t, axes, keeps = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    if not axes or sorted(a % t.ndim for a in axes) != [t.ndim - 2, t.ndim - 1] or not keeps or kwargs.get("dtype"):
        return NotImplemented
    return _averaged(t, terms_of(t.shape[-2:]), None, 2, lambda c: c.sum((-2, -1), keepdim=True))


def _averaged(t: Any, terms: int, divisor: int | None, axes: int, add: Callable[[Tensor], Tensor]) -> Any:
    integers = integer_range(t.format)
    if integers is None or t.offset is not None or not constant_along(t, axes) or (divisor or terms) < 1:
        return NotImplemented
    format = centred_range(t, integers).summed(terms)
    if format.carrier is None:
        return NotImplemented
    codes = centred(t)
    scale = plain(t)["scale"]
    assert scale is not None
    mean = devices.quotient(scale, torch.full_like(scale, divisor or terms))
    scale = mean.clamp(min=torch.finfo(scale.dtype).smallest_normal)
    total = whole(add(codes.double() if format.carrier == "float64" else codes))
    return t.with_codes(total, scale=scale, zero=None, format=format)


def _matrix_product(a: Any, b: Any, bias: Any, multiply: Callable[[Tensor, Tensor], Tensor]) -> Any:
    if type(a) is not QuantTensor or type(b) is not QuantTensor:
        return NotImplemented
    scales = plain(a)["scale"], plain(b)["scale"]
    for scale, axis in zip(scales, (-1, -2), strict=True):
        if scale is not None and scale.ndim and (scale.ndim < 2 or scale.shape[axis] != 1):
            return NotImplemented
    shaped = bias if bias is None or bias.ndim == 2 else bias.reshape(1, -1)
    return _contracted(a, b, terms_of(a.shape[-1:]), multiply, *scales, shaped)


def _contracted(
    a: QuantTensor,
    b: QuantTensor,
    terms: int,
    contract: Callable[[Tensor, Tensor], Tensor],
    a_scale: Tensor | None,
    b_scale: Tensor | None,
    bias: Any,
) -> Any:
    """The exact contraction, with ``bias`` shaped as it broadcasts against the result."""
    pair = integer_range(a.format), integer_range(b.format)
    if pair[0] is None or pair[1] is None or a.offset is not None or b.offset is not None or a.dtype != b.dtype:
        return NotImplemented
    left, right = centred_range(a, pair[0]), centred_range(b, pair[1])
    format = left.contracted(right, terms)
    if format.carrier is None or a_scale is None or b_scale is None:
        return NotImplemented
    total = _exact_sums(centred(a), left, centred(b), right, terms, contract)
    codes = whole(total.double() if format.carrier == "float64" else total)
    scale = product_of_scales(a_scale, b_scale)
    result = a.with_codes(codes, scale=scale, zero=None, format=format, training=a.training or b.training)
    return result if bias is None else with_bias(result, bias)


def with_bias(t: QuantTensor, bias: Tensor) -> Any:
    """The tensor plus a bias: in codes where that is a tensor of the same scale, else behind the product."""
    own = integer_range(t.format)
    if type(bias) is QuantTensor and bias.zero is None and bias.offset is None and own is not None:
        of_bias = integer_range(bias.format)
        scale = None if of_bias is None else same_parameter(t.scale, bias.scale)
        if of_bias is not None and scale is not None:
            total = own.plus(of_bias)
            grown = IntegerRange(total.lo, total.hi, max(own.bits, of_bias.bits) + 1, total.signed)
            wide = grown.carrier == "float64"
            codes = [c.double() if wide else c for c in (t.codes, bias.codes)]
            return NotImplemented if grown.carrier is None else t.with_codes(whole(codes[0] + codes[1]), format=grown)
    values = bias.dequantize() if isinstance(bias, QuantTensor) else bias
    return t.with_codes(t.codes, offset=values.to(t.scale.dtype))


def _exact_sums(
    a: Tensor,
    left: IntegerRange,
    b: Tensor,
    right: IntegerRange,
    terms: int,
    contract: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Sums of ``terms`` products of integers of these ranges."""
    fits = terms * left.largest * right.largest <= 2**24 and max(left.largest, right.largest) <= 256
    if fits and a.dtype == b.dtype == torch.float32:
        return contract(a, b)
    return contract(a.double(), b.double())


def terms_of(shape: Any) -> int:
    """The number of elements of a shape, at least 1."""
    return max(int(math.prod(shape)), 1)
