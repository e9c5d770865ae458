"""Linear and convolution layers over quantized operands: contract integer codes exactly, apply the scales once.

With ``a = code(x) - z_x`` and ``b = code(w) - z_w`` (integers) and ``acc = sum a * b`` over the contraction, exact:

    scale = max(fl(s_x * s_w), smallest normal number)
    y     = fl(fl(fl(acc) * scale) + bias)

in float32 (float64 for float64 ``x``), rounded once to the dtype of ``x``; without a bias the addition is left out.
``fl(acc)`` is the correctly rounded integer; 0 is +0.0. Where a scale varies along the contraction
(`core.contraction.contracts_codes`) the dequantized values are contracted instead, in any order, and
`contraction_bound` holds. NaN in ``x`` or ``w`` makes NaN of every output whose sum it enters, and in a kernel of every
output of its channel, also where it meets margins only.

Gradients are those of the contraction of the dequantized values, handed on as `fake_quantize_vjp` does. How native
products are kept exact: see `exact`. Under ``torch.autocast`` nothing here is cast: contractions stay exact, and the
result has the dtype of ``x``.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import checks
from ..core.contraction import check_matrices
from ..core.descriptions import QParams, Quantizer
from ..core.windows import Margins, Sizes, check_fits_window, transposed_window, window
from . import exact, int8, routes
from .arguments import check_operands, check_tensor
from .arrays import (
    apply,
    apply_plainly,
    dtype_name,
    is_concrete,
    narrowed,
    records_gradient,
    under_autocast,
    wide_dtype,
    widened,
    without_autocast,
)
from .convolution import Layer, convolution_gradients, spoiled
from .packed import PackedWeight


def linear(
    q_x: Quantizer,
    x: Tensor,
    x_qparams: QParams,
    q_w: Quantizer,
    w: Tensor | PackedWeight,
    w_qparams: QParams,
    bias: Tensor | None = None,
) -> Tensor:
    """``x @ w.T + bias`` over quantized ``x`` and ``w``; see the module.

    Args:
        x: ``(..., in)``; ``w``: ``(out, in)``, same dtype (under autocast one of them may be float32 and the other
            of 16 bits); ``bias``: ``(out,)`` in the dtype of the scales.
    Returns:
        ``(..., out)``, dtype of ``x``.
    Raises:
        TypeError, ValueError: as `fake_quantize`; and ValueError when the shapes do not fit each other.
    """
    y = w.linear(x, x_qparams, bias) if isinstance(w, PackedWeight) else None
    if y is not None:
        return y
    _check_tensors(x, w, bias)
    if w.ndim != 2:
        raise ValueError(f"`w` must have 2 axes, got shape {tuple(w.shape)}")
    if x.ndim == 0 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"`x` must fit `w` of shape {tuple(w.shape)}, got shape {tuple(x.shape)}")
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"`bias` must have shape {tuple(w.shape[:1])}, got {tuple(bias.shape)}")
    return _apply(Layer(q_x, q_w), x, x_qparams, w, w_qparams, bias)


def batched_matmul(
    q_x: Quantizer, x: Tensor, x_qparams: QParams, q_w: Quantizer, w: Tensor, w_qparams: QParams
) -> Tensor:
    """``x @ w.T`` of each matrix of a batch, over quantized ``x`` and ``w``, as attention needs it; see the module.

    Codes are contracted where each has one scale, and values otherwise.

    Args:
        x: ``(..., rows, in)``; ``w``: ``(..., out, in)``, same dtype and same axes before the last two.
    Returns:
        ``(..., rows, out)``, dtype of ``x``.
    Raises:
        TypeError, ValueError: as `linear`.
    """
    _check_tensors(x, w, None)
    check_matrices(tuple(x.shape), tuple(w.shape))
    return _apply(Layer(q_x, q_w, matrices=True), x, x_qparams, w, w_qparams, None)


def conv(
    q_x: Quantizer,
    x: Tensor,
    x_qparams: QParams,
    q_w: Quantizer,
    w: Tensor | PackedWeight,
    w_qparams: QParams,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Margins = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation in one, two or three dimensions over quantized ``x`` and ``w``; see the module.

    Args:
        x: ``(batch, in, *lengths)``; ``w``: ``(out, in / groups, *kernel lengths)``, same dtype; ``bias``: ``(out,)``
            in the dtype of the scales.
        stride, dilation: an int, or one for each dimension.
        padding: an int, or one or (before, after) for each dimension; it adds the real number 0.
        groups: into so many parts channels are cut, each contracted with its own kernels.
    Returns:
        ``(batch, out, *lengths')``, dtype of ``x``.
    Raises:
        TypeError, ValueError: as `linear`, and `core.windows.window`.
    """
    _check_tensors(x, w, bias)
    shape = window(tuple(w.shape), stride, padding, dilation, groups)
    y = w.conv(x, x_qparams, bias, shape) if isinstance(w, PackedWeight) else None
    if y is not None:
        return y
    check_fits_window(shape, tuple(x.shape), tuple(w.shape), None if bias is None else tuple(bias.shape))
    return _apply(Layer(q_x, q_w, shape), x, x_qparams, w, w_qparams, bias)


def conv_transpose(
    q_x: Quantizer,
    x: Tensor,
    x_qparams: QParams,
    q_w: Quantizer,
    w: Tensor | PackedWeight,
    w_qparams: QParams,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """Transposed convolution in one, two or three dimensions over quantized ``x`` and ``w``; see the module.

    Every element of ``x``, times the kernel, is added to the outputs from ``stride * place - padding`` on.

    Args:
        x: ``(batch, in, *lengths)``; ``w``: ``(in, out / groups, *kernel lengths)``, same dtype; its channels are those
            of axis 1, in each group. ``bias``: ``(out,)`` in the dtype of the scales.
        stride, padding, dilation: an int, or one for each dimension; padding leaves out outputs on both sides.
        output_padding: outputs added at the end.
        groups: into so many parts channels are cut, each contracted with its own kernels.
    Returns:
        ``(batch, out, *lengths')``, dtype of ``x``.
    Raises:
        TypeError, ValueError: as `linear`, and `core.windows.transposed_window`.
    """
    _check_tensors(x, w, bias)
    shape = transposed_window(tuple(w.shape), stride, padding, output_padding, groups, dilation)
    check_fits_window(shape, tuple(x.shape), tuple(w.shape), None if bias is None else tuple(bias.shape))
    return _apply(Layer(q_x, q_w, shape), x, x_qparams, w, w_qparams, bias)


def contraction_bound(x_hat: Tensor, w_hat: Tensor, bias: Tensor | None = None) -> Tensor:
    """Largest error of a float32 ``x_hat @ w_hat.T + bias`` evaluated in any order, with or without fused operations.

    ``gamma_n * (|x_hat| @ |w_hat| + |bias|)`` with ``gamma_n = n u / (1 - n u)``, u = 2**-24 and n = in + 2: the terms,
    the bias and the rounding of the result.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.

    Args:
        x_hat: ``(..., in)``, ``w_hat``: ``(out, in)``, ``bias``: ``(out,)``.
    Returns:
        float64, ``(..., out)``.
    """
    n, u = x_hat.shape[-1] + 2, 2.0**-24
    size = x_hat.double().abs() @ w_hat.double().abs().t()
    size = size if bias is None else size + bias.double().abs()
    return n * u / (1 - n * u) * size


def _check_tensors(x: Tensor, w: Tensor | PackedWeight, bias: Tensor | None) -> None:
    """TypeError unless these are tensors of a layer whose dtypes fit each other."""
    check_tensor("x", x)
    if not isinstance(w, PackedWeight):
        check_tensor("w", w)
    if bias is not None:
        check_tensor("bias", bias)
    if x.dtype != w.dtype and not (under_autocast(x) and _wide(x) == _wide(w)):
        raise TypeError(f"`w` must have the dtype of `x`, {dtype_name(x.dtype)}, got {dtype_name(w.dtype)}")


def _wide(x: Tensor | PackedWeight) -> torch.dtype | None:
    """The dtype that ``x`` is computed in; None for what is no floating-point tensor."""
    return wide_dtype(x.dtype) if x.dtype.is_floating_point else None


def _apply(
    layer: Layer, x: Tensor, x_qparams: QParams, w: Tensor | PackedWeight, w_qparams: QParams, bias: Tensor | None
) -> Tensor:
    checks.check_no_bit_width("x_qparams", x_qparams.bit_width)
    if isinstance(w, PackedWeight):
        x_qparams = check_operands(layer.q_x, x, x_qparams)
        seed = routes.seed_of(layer.q_x, x, x_qparams)
        return _values(layer, x, x_qparams.scale, x_qparams.zero_point, w, w.scale, w.zero_point, bias, seed, None)
    checks.check_no_bit_width("w_qparams", w_qparams.bit_width)
    x_qparams, w_qparams = check_operands(layer.q_x, x, x_qparams), check_operands(layer.q_w, w, w_qparams)
    seeds = routes.seed_of(layer.q_x, x, x_qparams), routes.seed_of(layer.q_w, w, w_qparams)
    tensors = (x, x_qparams.scale, x_qparams.zero_point, w, w_qparams.scale, w_qparams.zero_point, bias, *seeds)
    if is_concrete(*tensors):
        return apply_plainly(_Contraction, layer, *tensors) if records_gradient(*tensors) else _values(layer, *tensors)
    return apply(_Contraction, layer, *tensors)


class _Contraction(torch.autograd.Function):
    """The layer, with the gradients of the contraction of dequantized values."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        layer: Layer,
        x: Tensor,
        x_scale: Tensor,
        x_zero: Tensor | None,
        w: Tensor,
        w_scale: Tensor,
        w_zero: Tensor | None,
        bias: Tensor | None,
        x_seed: Tensor | None,
        w_seed: Tensor | None,
    ) -> Tensor:
        return _values(layer, x, x_scale, x_zero, w, w_scale, w_zero, bias, x_seed, w_seed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)  # zeros times infinite slopes would be NaN
        ctx.layer, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * 10
        return None, *_gradients(ctx.layer, ctx.saved_tensors, g, ctx.needs_input_grad[1:])

    @staticmethod
    def tangent(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        return _tangent(ctx.layer, ctx.saved_tensors, tangents)


def _values(
    layer: Layer,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    w: Tensor | PackedWeight,
    w_scale: Tensor,
    w_zero: Tensor | None,
    bias: Tensor | None,
    x_seed: Tensor | None,
    w_seed: Tensor | None,
) -> Tensor:
    """The formula of the module."""
    if not layer.codes:
        x_hat = _dequantized(layer.q_x, x, x_scale, x_zero, x_seed)
        w_hat = _dequantized(layer.q_w, w, w_scale, w_zero, w_seed)
        y = layer.contract(x_hat, w_hat)
        return narrowed(y if bias is None else y + layer.added(bias), x.dtype)
    lead = x.shape[:-1]
    if layer.linear:
        x = _rows(x)
        if x_scale.ndim:
            x_scale, x_zero = x_scale.reshape(-1, 1), None if x_zero is None else x_zero.reshape(-1, 1)
    total = None
    plain = layer.linear and x_seed is None and w_seed is None
    if plain and not isinstance(w, PackedWeight) and is_concrete(x, x_scale, w, w_scale):
        total = int8.int8_product(layer.q_x, x, QParams(x_scale, x_zero), layer.q_w, w, QParams(w_scale, w_zero))
    if total is None:
        a, b = _centred(layer.q_x, x, x_scale, x_zero, x_seed), _centred(layer.q_w, w, w_scale, w_zero, w_seed)
        total = layer.exactly(a, b, w.largest_sums if isinstance(w, PackedWeight) else None)
    scale = (x_scale * layer.scales(w_scale)).clamp(min=torch.finfo(x_scale.dtype).smallest_normal)
    may_be_nan = not isinstance(w, PackedWeight) or w.has_nan
    if layer.window is not None and layer.window.meets_nothing and may_be_nan:
        scale = torch.where(layer.outputs(spoiled(layer.window, b)), torch.nan, scale)
    y = narrowed(exact.scaled(total, scale, None if bias is None else layer.outputs(bias.to(scale.dtype))), x.dtype)
    return y.reshape(*lead, w.shape[0]) if layer.linear else y


def _gradients(layer: Layer, tensors: Sequence[Any], g: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Gradients of the seven tensors, None where not wanted, and of the seeds, which have none.

    In the place of a seed, the parameter of learned rounding has one while that is soft.
    """
    x, x_scale, x_zero, w, w_scale, w_zero, bias, x_seed, w_seed = tensors
    learns_x, learns_w = (w and q.relaxed for w, q in zip(wanted[7:], (layer.q_x, layer.q_w), strict=True))
    for_x, for_w = any(wanted[:3]) or learns_x, any(wanted[3:6]) or learns_w
    wide = widened(g)
    x_hat = _dequantized(layer.q_x, x, x_scale, x_zero, x_seed) if for_w else x.to(wide.dtype)
    if layer.window is not None:
        w_hat = _dequantized(layer.q_w, w, w_scale, w_zero, w_seed) if for_x else w.to(wide.dtype)
        dx, dw = convolution_gradients(layer.window, wide, x_hat, w_hat, (for_x, for_w))
    else:
        wide, x_hat = (_rows(wide), _rows(x_hat)) if layer.linear else (wide, x_hat)
        with without_autocast(wide):
            dw = wide.transpose(-2, -1) @ x_hat if for_w else None
            del x_hat  # before there is the other: a step has less memory at its peak
            dx = wide @ _dequantized(layer.q_w, w, w_scale, w_zero, w_seed) if for_x else None
        dx = dx.reshape(x.shape) if dx is not None and layer.linear else dx
    of_x: Sequence[Tensor | None] = (None, None, None)
    of_w: Sequence[Tensor | None] = (None, None, None)
    d_x_seed = d_w_seed = None
    if dw is not None:
        of_w = routes.gradients(layer.q_w, w, w_scale, w_zero, narrowed(dw, w.dtype), wanted[3:6], w_seed)[:3]
    if learns_w and dw is not None:
        d_w_seed = routes.rounding_gradient(layer.q_w, w, w_scale, w_zero, narrowed(dw, w.dtype), w_seed)
    del dw
    if dx is not None:
        of_x = routes.gradients(layer.q_x, x, x_scale, x_zero, narrowed(dx, x.dtype), wanted[:3], x_seed)[:3]
    if learns_x and dx is not None:
        d_x_seed = routes.rounding_gradient(layer.q_x, x, x_scale, x_zero, narrowed(dx, x.dtype), x_seed)
    axes = [axis for axis in range(wide.ndim) if axis != 1]
    return *of_x, *of_w, wide.sum(axes).to(bias.dtype) if wanted[6] else None, d_x_seed, d_w_seed


def _tangent(layer: Layer, tensors: Sequence[Any], tangents: Sequence[Any]) -> Tensor:
    """The derivative along tangents of the nine tensors (None for no direction): contractions of floats, in any order.

    ``t_x_hat * w_hat + x_hat * t_w_hat + t_bias`` in the wide dtype, rounded once to that of ``x``.
    """
    x, x_scale, x_zero, w, w_scale, w_zero, _, x_seed, w_seed = tensors
    t_x, t_x_scale, t_x_zero, t_w, t_w_scale, t_w_zero, t_bias, t_x_seed, t_w_seed = tangents
    along_x, along_w = (t_x, t_x_scale, t_x_zero, None, t_x_seed), (t_w, t_w_scale, t_w_zero, None, t_w_seed)
    parts = []
    if any(t is not None for t in along_x) or all(t is None for t in along_w):
        t = widened(routes.tangent(layer.q_x, x, x_scale, x_zero, along_x, x_seed))
        parts.append(layer.contract(t, _dequantized(layer.q_w, w, w_scale, w_zero, w_seed)))
    if any(t is not None for t in along_w):
        t = widened(routes.tangent(layer.q_w, w, w_scale, w_zero, along_w, w_seed))
        parts.append(layer.contract(_dequantized(layer.q_x, x, x_scale, x_zero, x_seed), t))
    total = parts[0] if len(parts) < 2 else parts[0] + parts[1]
    if t_bias is not None:
        total = total + layer.added(t_bias)
    return narrowed(total, x.dtype)


def _rows(x: Tensor) -> Tensor:
    """All axes but the last in one; also where one of them has length 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _centred(q: Quantizer, x: Tensor | PackedWeight, scale: Tensor, zero: Tensor | None, seed: Tensor | None) -> Tensor:
    """``code - z`` in the wide dtype, NaN where ``x`` is NaN."""
    if isinstance(x, PackedWeight):
        return x.centred()
    codes = routes.codes(q, x, scale, zero, seed)
    return codes if zero is None else codes - zero.to(codes.dtype)


def _dequantized(
    q: Quantizer, x: Tensor | PackedWeight, scale: Tensor, zero: Tensor | None, seed: Tensor | None
) -> Tensor:
    """`fake_quantize` in the wide dtype."""
    if isinstance(x, PackedWeight):
        return x.dequantized().to(scale.dtype)
    return routes.forward(q, x, scale, zero, seed).to(scale.dtype)
