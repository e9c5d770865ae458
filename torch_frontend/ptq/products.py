"""Products of float tensors with stored codes: the left side is quantized at every call, and codes are contracted.

The bits are those of `samebits.core.linear` over both operands; see `samebits.torch_frontend.matmul`. Gradients are
those of the contraction of the dequantized values.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.contraction import contracts_codes
from ...core.descriptions import QParams, Quantizer
from ...core.formats import IntegerFormat
from ...core.granularity import PerAxis, PerTensor, PerToken
from .. import exact, int8, routes
from .. import operators as operators
from ..arguments import check_tensor
from ..arrays import (
    apply,
    apply_plainly,
    dtype_name,
    is_concrete,
    narrowed,
    records_gradient,
    under_autocast,
    wide_dtype,
    without_autocast,
)
from ..convolution import Layer
from ..grid import decode
from ..packed import follows_tensor
from ..quantizer import choose_qparams, fake_quantize

FEW = 16  # rows up to which torch's kernel over codes is faster than values
WHOLE = 32  # inputs of which it takes multiples only: with others it is wrong, and says nothing


def dynamic_linear(
    q_x: Quantizer,
    x: Tensor,
    q_w: Quantizer,
    codes: Tensor,
    w_qparams: QParams,
    dtype: torch.dtype,
    bias: Tensor | None,
) -> Tensor:
    """``x @ w.T + bias`` with ``x`` quantized by ``q_x`` and the weight of these codes.

    Args:
        x: ``(..., in)``; ``codes``: ``(out, in)`` in the storage of ``q_w``; ``dtype``: that of the weight, which ``x``
            must have too (under autocast, one as wide); ``bias``: ``(out,)``.
    Returns:
        ``(..., out)``, dtype of ``x``.
    Raises:
        TypeError, ValueError: as `choose_qparams` of ``x``; another dtype or shape.
    """
    check_tensor("x", x)
    if x.dtype != dtype and not (under_autocast(x) and wide_dtype(x.dtype) == wide_dtype(dtype)):
        raise TypeError(f"`x` must have the dtype of the weight, {dtype_name(dtype)}, got {dtype_name(x.dtype)}")
    if x.ndim == 0 or x.shape[-1] != codes.shape[1]:
        raise ValueError(f"`x` must fit a weight of shape {tuple(codes.shape)}, got shape {tuple(x.shape)}")
    x_qparams = choose_qparams(q_x, x)
    if not contracts_codes(q_x, q_w, per_token=True):
        return _values(q_x, x, x_qparams, q_w, codes, w_qparams, bias)
    with torch.no_grad():
        y = _contracted(q_x, x.detach(), x_qparams, q_w, codes, w_qparams, bias)
    if not records_gradient(x, bias):
        return y
    if x.requires_grad:
        like = _values(q_x, x, x_qparams, q_w, codes, w_qparams, bias)
    else:
        like = bias.to(y.dtype).expand(y.shape) if bias is not None else y
    if is_concrete(x, like):
        return apply_plainly(_WithGradientOf, y, like)
    return apply(_WithGradientOf, y, like)


def few_rows(x: Tensor, q_w: Quantizer, codes: Tensor, w_qparams: QParams, bias: Tensor | None) -> Tensor | None:
    """``x @ w.T + bias`` of bfloat16 rows by torch's kernel over int8 codes, which reads half of what values are.

    ``fl(fl(sum x * code) * s + bias)``: the sum in float32 in any order, rounded to bfloat16; then in float32, and
    rounded again. Within ``2**-8 * sum |x * code * s|`` of the exact product, as with values of bfloat16, while the sum
    of ``x * code`` stays in the range of float32: it overflows at ``|x|`` of 2**120 and more, before values do.

    Args:
        x: ``(..., in)``; ``codes``: ``(out, in)``; ``bias``: ``(out,)``.
    Returns:
        ``(..., out)``, bfloat16. None where the kernel does not fit, has more than `FEW` rows, or gradients are wanted.
    """
    whole = isinstance(q_w.format, IntegerFormat) and not q_w.affine and q_w.usual
    by_row = q_w.granularity in (PerTensor(), PerAxis(0), PerToken())
    if not (whole and by_row and x.dtype == torch.bfloat16 and codes.dtype == torch.int8 and codes.ndim == 2):
        return None
    if x.ndim == 0 or x.shape[-1] != codes.shape[1] or codes.shape[1] % WHOLE or not codes.is_contiguous():
        return None
    if not (x.is_cpu and 0 < math.prod(x.shape[:-1]) <= FEW) or records_gradient(x, bias) or under_autocast(x):
        return None
    if torch.compiler.is_exporting():  # a program is to run where samebits is not
        return None
    total = torch.ops.samebits.int8_rows(x.detach().reshape(-1, x.shape[-1]), codes)
    y = total.float() * (w_qparams.scale.reshape(1, -1) if w_qparams.scale.ndim else w_qparams.scale)
    y = y if bias is None else y + bias.detach().float()
    return narrowed(y, x.dtype).reshape(*x.shape[:-1], codes.shape[0])


class _WithGradientOf(torch.autograd.Function):
    """The first tensor, with the derivatives of the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, like: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, g

    @staticmethod
    def tangent(ctx: Any, _: Tensor | None, t: Tensor | None) -> Tensor | None:
        return t


def _values(
    q_x: Quantizer,
    x: Tensor,
    x_qparams: QParams,
    q_w: Quantizer,
    codes: Tensor,
    w_qparams: QParams,
    bias: Tensor | None,
) -> Tensor:
    """The product of values, in any order."""
    x_hat = fake_quantize(q_x, x, x_qparams)
    w_hat = routes.values(q_w, codes, *w_qparams[:2], w_qparams.scale.dtype)
    with without_autocast(x):
        return F.linear(x_hat, narrowed(w_hat, x.dtype), None if bias is None else bias.to(x.dtype))


def _contracted(
    q_x: Quantizer,
    x: Tensor,
    x_qparams: QParams,
    q_w: Quantizer,
    codes: Tensor,
    w_qparams: QParams,
    bias: Tensor | None,
) -> Tensor:
    """The contraction of codes, and the scales once."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    scale, zero = (p if p is None or not p.ndim else p.reshape(-1, 1) for p in x_qparams[:2])
    row_scale = w_qparams.scale.reshape(1, -1) if w_qparams.scale.ndim else w_qparams.scale
    qparams = QParams(scale, zero)
    total = _int8_sums(q_x, rows, qparams, q_w, codes, w_qparams) if rows.numel() else None
    if total is None:
        a = routes.codes(q_x, rows, scale, zero)
        a = a if zero is None else a - zero.to(a.dtype)
        b = decode(q_w, codes, scale.dtype)
        if w_qparams.zero_point is not None:
            b = b - w_qparams.zero_point.to(b.dtype)
        total = Layer(q_x, q_w).exactly(a, b)
    elif not follows_tensor(q_x):  # NaN in x, which became any code, goes to the outputs of its row by the scale
        largest = rows.amax(1, keepdim=True).to(scale.dtype)
        scale = torch.where(largest != largest, largest, scale)
    least = torch.finfo(scale.dtype).smallest_normal
    bias = None if bias is None else bias.detach().to(scale.dtype).reshape(1, -1)
    if total.dtype == torch.int32 and is_concrete(total, scale):  # few passes over large results
        smallest = scale.amin() * row_scale.amin()  # of the products, rounded as they are
        scale = scale * row_scale
        y = total.to(scale.dtype).mul_(scale.clamp_(min=least) if smallest < least else scale)
        y = y if bias is None else y.add_(bias)
    else:
        y = exact.scaled(total, (scale * row_scale).clamp(min=least), bias)
    return narrowed(y, x.dtype).reshape(*x.shape[:-1], codes.shape[0])


def _int8_sums(
    q_x: Quantizer, rows: Tensor, qparams: QParams, q_w: Quantizer, codes: Tensor, w_qparams: QParams
) -> Tensor | None:
    """`int8.int8_sum` of codes; None where it does not fit, or is not exact on this machine."""
    if not (codes.is_cpu and int8.fits_shape(q_x, q_w, codes) and _saturates_nowhere()):
        return None
    a = int8.shifted(q_x, rows, qparams, watched=False)
    if a is None:
        return None
    b = codes if codes.dtype == torch.int8 else (codes ^ 128).view(torch.int8)
    return int8.int8_sum(a, int8.shift(q_x, qparams), b, int8.shift(q_w, w_qparams))


def _saturates_nowhere() -> bool:
    return int8.saturates_nowhere()


# Dynamo runs it for real while it traces; so it does `torch_frontend.arrays.loses_gradients`.
_saturates_nowhere._dynamo_marked_constant = True  # type: ignore[attr-defined]
