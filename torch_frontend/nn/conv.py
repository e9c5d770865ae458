"""Convolutions over quantized operands."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.descriptions import QParams, Quantizer
from .. import matmul
from .layer import Held, Quant, contract, hold, or_same

Pair = int | tuple[int, int]


class QuantConv2d(nn.Conv2d):
    """Two-dimensional cross-correlation over quantized operands; see `samebits.torch_frontend.conv2d`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, bias, device, dtype: as ``torch.nn.Conv2d``; stride and
            padding are integers or pairs of them.
        weight_quant, input_quant, output_quant: see the module. The weight is ``(out, in, height, width)``.
    """

    weight_quant: Held
    input_quant: Held
    output_quant: Held

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
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        steps, margins = _pair("stride", stride), _pair("padding", padding)
        super().__init__(in_channels, out_channels, kernel_size, steps, margins, bias=bias, device=device, dtype=dtype)
        self.steps, self.margins = steps, margins
        hold(self, fields, weight=weight_quant, input=input_quant, output=output_quant)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in, height, width)`` to ``(batch, out, height', width')``, dtype of ``x``."""

        def over_values(x: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

        def over_codes(q_x: Quantizer, x: Tensor, p: QParams, q_w: Quantizer, w: Tensor, r: QParams) -> Tensor:
            return matmul.conv2d(q_x, x, p, q_w, w, r, self.bias, self.steps, self.margins)

        y = contract(self.input_quant, x, self.weight_quant, self.weight, over_values, over_codes)
        return or_same(self.output_quant, y)


def _pair(name: str, value: Pair) -> tuple[int, int]:
    """An integer twice, or a pair of integers. TypeError otherwise."""
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, tuple) or [type(n) for n in pair] != [int, int]:
        raise TypeError(f"`{name}` must be an int or a pair of ints, got {value!r}")
    return pair
