"""Quantized layers as torch modules.

A layer quantizes what it contracts: `QuantLinear` and `QuantConv2d` with both quantizers contract integer codes where
`samebits.core.contraction` allows it, exactly, and so give the same bits everywhere; with ``weight_quant`` alone they
contract floats. Activations between layers are floating-point tensors. Arguments ``*_quant`` take a catalog name, a
`Quantizer`, a `TensorQuantizer` (then shared), or None for no quantization. Scales are kept as `TensorQuantizer` says,
under names like ``input_quant.scale`` in a ``state_dict``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.descriptions import QParams, Quantizer
from . import matmul
from .arrays import is_concrete
from .tensor_quantizer import TensorQuantizer, quantizer_of

Quant = str | Quantizer | TensorQuantizer | None
Pair = int | tuple[int, int]


class QuantIdentity(nn.Module):
    """Fake quantization of activations.

    Args:
        act_quant: see the module.
    """

    def __init__(self, act_quant: Quant = "int8_per_tensor") -> None:
        super().__init__()
        self.act_quant = _held("act_quant", act_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        return x if self.act_quant is None else self.act_quant(x)


class QuantReLU(nn.Module):
    """``max(x, 0)``, then fake quantization.

    Args:
        act_quant: see the module.
    """

    def __init__(self, act_quant: Quant = "uint8_per_tensor") -> None:
        super().__init__()
        self.act_quant = _held("act_quant", act_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        x = F.relu(x)
        return x if self.act_quant is None else self.act_quant(x)


class QuantLinear(nn.Linear):
    """``x @ weight.T + bias`` over quantized operands; see `samebits.torch_frontend.linear`.

    Args:
        in_features, out_features, bias, device, dtype: as ``torch.nn.Linear``.
        weight_quant, input_quant, output_quant: see the module. The weight is ``(out, in)``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_quant: Quant = "int8_per_channel",
        input_quant: Quant = None,
        output_quant: Quant = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.weight_quant = _held("weight_quant", weight_quant, self.weight)
        self.input_quant = _held("input_quant", input_quant)
        self.output_quant = _held("output_quant", output_quant)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``, dtype of ``x``."""

        def over_values(x: Tensor, weight: Tensor) -> Tensor:
            return F.linear(x, weight, self.bias)

        def over_codes(q_x: Quantizer, x: Tensor, p: QParams, q_w: Quantizer, w: Tensor, r: QParams) -> Tensor:
            return matmul.linear(q_x, x, p, q_w, w, r, self.bias)

        return _or_same(self.output_quant, _contract(self, x, over_values, over_codes))


class QuantConv2d(nn.Conv2d):
    """Two-dimensional cross-correlation over quantized operands; see `samebits.torch_frontend.conv2d`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, bias, device, dtype: as ``torch.nn.Conv2d``; stride and
            padding are integers or pairs of them.
        weight_quant, input_quant, output_quant: see the module. The weight is ``(out, in, height, width)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        bias: bool = True,
        *,
        weight_quant: Quant = "int8_per_channel",
        input_quant: Quant = None,
        output_quant: Quant = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        steps, margins = _pair("stride", stride), _pair("padding", padding)
        super().__init__(in_channels, out_channels, kernel_size, steps, margins, bias=bias, device=device, dtype=dtype)
        self.steps, self.margins = steps, margins
        self.weight_quant = _held("weight_quant", weight_quant, self.weight)
        self.input_quant = _held("input_quant", input_quant)
        self.output_quant = _held("output_quant", output_quant)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in, height, width)`` to ``(batch, out, height', width')``, dtype of ``x``."""

        def over_values(x: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

        def over_codes(q_x: Quantizer, x: Tensor, p: QParams, q_w: Quantizer, w: Tensor, r: QParams) -> Tensor:
            return matmul.conv2d(q_x, x, p, q_w, w, r, self.bias, self.steps, self.margins)

        return _or_same(self.output_quant, _contract(self, x, over_values, over_codes))


def _held(name: str, value: Quant, weight: Tensor | None = None) -> TensorQuantizer | None:
    """What a layer keeps for an argument, beside the weight if it quantizes that."""
    if value is None or isinstance(value, TensorQuantizer):
        return value
    q = quantizer_of(name, value)
    return TensorQuantizer(q) if weight is None else TensorQuantizer(q, tuple(weight.shape)).to(weight.device)


def _contract(
    layer: QuantLinear | QuantConv2d, x: Tensor, over_values: Callable[..., Tensor], over_codes: Callable[..., Tensor]
) -> Tensor:
    """The layer over what its quantizers make of its operands; over values where one of these is not quantized."""
    q_x, q_w, weight = layer.input_quant, layer.weight_quant, layer.weight
    learned = any(q is not None and q.bit_width is not None for q in (q_x, q_w))
    if q_x is None or q_w is None or learned:
        return over_values(_or_same(q_x, x), _or_same(q_w, weight))
    x_waits, w_waits = q_x.waits(), q_w.waits()
    x_qparams, w_qparams = q_x.qparams(x), q_w.qparams(weight)
    if x_waits is None and w_waits is None:
        return over_codes(q_x.quantizer, x, x_qparams, q_w.quantizer, weight, w_qparams)
    y = over_values(q_x.quantized(x, x_qparams, x_waits), q_w.quantized(weight, w_qparams, w_waits))
    waits = x_waits if w_waits is None else w_waits if x_waits is None else x_waits | w_waits
    if waits is None or is_concrete(waits):
        return y
    return torch.where(waits, y, over_codes(q_x.quantizer, x, x_qparams, q_w.quantizer, weight, w_qparams))


def _or_same(quantizer: TensorQuantizer | None, x: Tensor) -> Tensor:
    return x if quantizer is None else quantizer(x)


def _pair(name: str, value: Pair) -> tuple[int, int]:
    """An integer twice, or a pair of integers. TypeError otherwise."""
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, tuple) or [type(n) for n in pair] != [int, int]:
        raise TypeError(f"`{name}` must be an int or a pair of ints, got {value!r}")
    return pair
