"""Convolutions over quantized operands."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerTensor
from ...core.windows import window
from .. import matmul
from ..packed import PackedWeight, unpacked
from ..quantizer import fake_quantize
from . import layer as shared
from .layer import Held, Quant, contract, hold, or_same

Mode = Literal["zeros", "reflect", "replicate", "circular"]
Weight = Tensor | PackedWeight
Single = int | tuple[int]
Pair = int | tuple[int, int]
Triple = int | tuple[int, int, int]


class QuantConv1d(nn.Conv1d):
    """One-dimensional cross-correlation over quantized operands; see `samebits.torch_frontend.conv`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            ``torch.nn.Conv1d``.
        weight_quant, bias_quant, input_quant, output_quant, fields: see the module. The weight is
            ``(out, in / groups, length)``.
    Raises:
        TypeError, ValueError: as ``torch.nn.Conv1d``, `core.windows.window` and `hold`.
    """

    weight_quant: Held
    bias_quant: Held
    input_quant: Held
    output_quant: Held
    return_quant_tensor = False
    load_state_dict, quant_weight = shared.load_state_dict, shared.quant_weight

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Single,
        stride: Single = 1,
        padding: str | Single = 0,
        dilation: Single = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Mode = "zeros",
        *,
        weight_quant: Quant = "int8_per_channel",
        bias_quant: Quant = None,
        input_quant: Quant = None,
        output_quant: Quant = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        sizes = kernel_size, stride, padding, dilation
        super().__init__(in_channels, out_channels, *sizes, groups, bias, padding_mode, device, dtype)
        check(self)
        hold(self, fields, weight=weight_quant, bias=bias_quant, input=input_quant, output=output_quant)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in, length)`` to ``(batch, out, ...)``, or both without a batch; dtype of ``x``."""
        return correlate(self, x)


class QuantConv2d(nn.Conv2d):
    """Two-dimensional cross-correlation over quantized operands; see `samebits.torch_frontend.conv`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            ``torch.nn.Conv2d``.
        weight_quant, bias_quant, input_quant, output_quant, fields: see the module. The weight is
            ``(out, in / groups, height, width)``.
    Raises:
        TypeError, ValueError: as ``torch.nn.Conv2d``, `core.windows.window` and `hold`.
    """

    weight_quant: Held
    bias_quant: Held
    input_quant: Held
    output_quant: Held
    return_quant_tensor = False
    load_state_dict, quant_weight = shared.load_state_dict, shared.quant_weight

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: str | Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Mode = "zeros",
        *,
        weight_quant: Quant = "int8_per_channel",
        bias_quant: Quant = None,
        input_quant: Quant = None,
        output_quant: Quant = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        sizes = kernel_size, stride, padding, dilation
        super().__init__(in_channels, out_channels, *sizes, groups, bias, padding_mode, device, dtype)
        check(self)
        hold(self, fields, weight=weight_quant, bias=bias_quant, input=input_quant, output=output_quant)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in, height, width)`` to ``(batch, out, ...)``, or both without a batch; dtype of ``x``."""
        return correlate(self, x)


class QuantConv3d(nn.Conv3d):
    """Three-dimensional cross-correlation over quantized operands; see `samebits.torch_frontend.conv`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            ``torch.nn.Conv3d``.
        weight_quant, bias_quant, input_quant, output_quant, fields: see the module. The weight is
            ``(out, in / groups, depth, height, width)``.
    Raises:
        TypeError, ValueError: as ``torch.nn.Conv3d``, `core.windows.window` and `hold`.
    """

    weight_quant: Held
    bias_quant: Held
    input_quant: Held
    output_quant: Held
    return_quant_tensor = False
    load_state_dict, quant_weight = shared.load_state_dict, shared.quant_weight

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        stride: Triple = 1,
        padding: str | Triple = 0,
        dilation: Triple = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Mode = "zeros",
        *,
        weight_quant: Quant = "int8_per_channel",
        bias_quant: Quant = None,
        input_quant: Quant = None,
        output_quant: Quant = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        sizes = kernel_size, stride, padding, dilation
        super().__init__(in_channels, out_channels, *sizes, groups, bias, padding_mode, device, dtype)
        check(self)
        hold(self, fields, weight=weight_quant, bias=bias_quant, input=input_quant, output=output_quant)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in, depth, height, width)`` to ``(batch, out, ...)``, or both without a batch; dtype of ``x``."""
        return correlate(self, x)


def check(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
    """TypeError, ValueError unless the sizes of a layer are what torch will want of them in a forward pass."""
    padding: Any = 0 if isinstance(layer.padding, str) else layer.padding
    window(tuple(layer.weight.shape), layer.stride, padding, layer.dilation, layer.groups)


def correlate(layer: Any, x: Tensor) -> Tensor:
    """The forward pass of a `QuantConv1d`, `QuantConv2d` or `QuantConv3d`.

    Padding with zeros is that of codes, whatever the quantizer makes of the number 0. In other modes it is elements of
    ``x`` that are repeated; scales come from ``x`` without them, and stochastic rounding draws for each of them.
    """
    n, around = len(layer.kernel_size), layer._reversed_padding_repeated_twice
    zeros = layer.padding_mode == "zeros"
    margins: Any = tuple((around[2 * i], around[2 * i + 1]) for i in reversed(range(n))) if zeros else 0

    def over_values(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = layer._conv_forward(x, weight, bias)
        return y

    def over_codes(
        q_x: Quantizer, x: Tensor, p: QParams, q_w: Quantizer, w: Weight, r: QParams, bias: Tensor | None
    ) -> Tensor:
        if not zeros:
            if not isinstance(q_x.granularity, PerTensor):
                return over_values(fake_quantize(q_x, x, p), fake_quantize(q_w, unpacked(w), r), bias)
            x = F.pad(x, around, mode=layer.padding_mode)
        return matmul.conv(q_x, x, p, q_w, w, r, bias, layer.stride, margins, layer.dilation, layer.groups)

    images = x.unsqueeze(0) if x.ndim == n + 1 else x
    y = contract(layer, images, over_values, over_codes)
    y = or_same(layer.output_quant, y, layer.return_quant_tensor)
    return y.squeeze(0) if x.ndim == n + 1 else y
