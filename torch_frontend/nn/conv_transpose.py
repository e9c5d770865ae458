"""Transposed convolutions over quantized operands."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.descriptions import QParams, Quantizer
from ...core.windows import transposed_window
from .. import matmul
from . import layer as shared
from .layer import Held, Quant, contract, hold, or_same

Mode = Literal["zeros", "reflect", "replicate", "circular"]
Single = int | tuple[int]
Pair = int | tuple[int, int]
Triple = int | tuple[int, int, int]


class QuantConvTranspose1d(nn.ConvTranspose1d):
    """One-dimensional transposed convolution over quantized operands; see `samebits.torch_frontend.conv_transpose`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode,
            device, dtype: as ``torch.nn.ConvTranspose1d``.
        weight_quant, bias_quant, input_quant, output_quant, fields: see the module. The weight is
            ``(in, out / groups, length)``; a quantizer per axis 0 becomes one per axis 1, its channels.
    Raises:
        TypeError, ValueError: as ``torch.nn.ConvTranspose1d``, `core.windows.transposed_window` and `hold`.
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
        padding: Single = 0,
        output_padding: Single = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Single = 1,
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
        sizes = kernel_size, stride, padding, output_padding
        super().__init__(in_channels, out_channels, *sizes, groups, bias, dilation, padding_mode, device, dtype)
        check(self)
        hold(self, fields, weight=weight_quant, bias=bias_quant, input=input_quant, output=output_quant)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """``(batch, in, length)`` to ``(batch, out, ...)``, or both without a batch; dtype of ``x``.

        Args:
            output_size: lengths of the output, where several are possible, with or without batch and channels.
        """
        return scatter(self, x, output_size)


class QuantConvTranspose2d(nn.ConvTranspose2d):
    """Two-dimensional transposed convolution over quantized operands; see `samebits.torch_frontend.conv_transpose`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode,
            device, dtype: as ``torch.nn.ConvTranspose2d``.
        weight_quant, bias_quant, input_quant, output_quant, fields: see the module. The weight is
            ``(in, out / groups, height, width)``; a quantizer per axis 0 becomes one per axis 1, its channels.
    Raises:
        TypeError, ValueError: as ``torch.nn.ConvTranspose2d``, `core.windows.transposed_window` and `hold`.
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
        padding: Pair = 0,
        output_padding: Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Pair = 1,
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
        sizes = kernel_size, stride, padding, output_padding
        super().__init__(in_channels, out_channels, *sizes, groups, bias, dilation, padding_mode, device, dtype)
        check(self)
        hold(self, fields, weight=weight_quant, bias=bias_quant, input=input_quant, output=output_quant)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """``(batch, in, height, width)`` to ``(batch, out, ...)``, or both without a batch; dtype of ``x``.

        Args:
            output_size: lengths of the output, where several are possible, with or without batch and channels.
        """
        return scatter(self, x, output_size)


class QuantConvTranspose3d(nn.ConvTranspose3d):
    """Three-dimensional transposed convolution over quantized operands; see `samebits.torch_frontend.conv_transpose`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode,
            device, dtype: as ``torch.nn.ConvTranspose3d``.
        weight_quant, bias_quant, input_quant, output_quant, fields: see the module. The weight is
            ``(in, out / groups, depth, height, width)``; a quantizer per axis 0 becomes one per axis 1, its channels.
    Raises:
        TypeError, ValueError: as ``torch.nn.ConvTranspose3d``, `core.windows.transposed_window` and `hold`.
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
        padding: Triple = 0,
        output_padding: Triple = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Triple = 1,
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
        sizes = kernel_size, stride, padding, output_padding
        super().__init__(in_channels, out_channels, *sizes, groups, bias, dilation, padding_mode, device, dtype)
        check(self)
        hold(self, fields, weight=weight_quant, bias=bias_quant, input=input_quant, output=output_quant)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """``(batch, in, depth, height, width)`` to ``(batch, out, ...)``, or both without a batch; dtype of ``x``.

        Args:
            output_size: lengths of the output, where several are possible, with or without batch and channels.
        """
        return scatter(self, x, output_size)


def check(layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> None:
    """TypeError, ValueError unless the sizes of a layer are what torch will want of them in a forward pass."""
    padding: Any = layer.padding
    sizes = layer.stride, padding, layer.output_padding
    transposed_window(tuple(layer.weight.shape), *sizes, layer.groups, layer.dilation)


def scatter(layer: Any, x: Tensor, output_size: Sequence[int] | None) -> Tensor:
    """The forward pass of a `QuantConvTranspose1d`, `QuantConvTranspose2d` or `QuantConvTranspose3d`."""
    n = len(layer.kernel_size)
    wanted = None if output_size is None else list(output_size)
    sizes = layer.stride, layer.padding, layer.kernel_size
    extra = tuple(layer._output_padding(x, wanted, *sizes, n, layer.dilation))
    geometry = layer.stride, layer.padding, extra, layer.groups, layer.dilation

    def over_values(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        native = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[n - 1]
        y: Tensor = native(x, weight, bias, *geometry)
        return y

    def over_codes(
        q_x: Quantizer, x: Tensor, p: QParams, q_w: Quantizer, w: Tensor, r: QParams, bias: Tensor | None
    ) -> Tensor:
        return matmul.conv_transpose(q_x, x, p, q_w, w, r, bias, *geometry)

    images = x.unsqueeze(0) if x.ndim == n + 1 else x
    y = contract(layer, images, over_values, over_codes)
    y = or_same(layer.output_quant, y, layer.return_quant_tensor)
    return y.squeeze(0) if x.ndim == n + 1 else y
