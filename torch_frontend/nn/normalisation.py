"""Scale and bias of each channel over quantized operands, and batch normalisation made into that."""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ...core.contraction import contracts_codes
from ...core.descriptions import QParams, Quantizer
from .. import matmul
from ..quantizer import fake_quantize
from ..tensor_quantizer import TensorQuantizer
from . import layer as shared
from .layer import Held, Quant, channel_axis, contract, hold, or_same
from .proxy import QuantProxy

BatchNorm = nn.modules.batchnorm._BatchNorm


class QuantScaleBias(nn.Module):
    """``x * weight + bias``, one of each for every channel: a convolution in as many groups, of kernels of one element.

    Args:
        num_features: how many channels.
        bias: whether there is one.
        weight_quant, bias_quant, input_quant, output_quant, fields: see the module. The weight is ``(num_features,)``.
        device, dtype: of weight, first ones, and bias, first zeros.
    """

    bias: nn.Parameter | None
    weight_quant: Held
    bias_quant: Held
    input_quant: Held
    output_quant: Held
    return_quant_tensor = False
    load_state_dict, quant_weight = shared.load_state_dict, shared.quant_weight

    def __init__(
        self,
        num_features: int,
        bias: bool = True,
        *,
        weight_quant: Quant = "int8_per_tensor",
        bias_quant: Quant = None,
        input_quant: Quant = None,
        output_quant: Quant = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        zeros = torch.zeros(num_features, device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)
        hold(self, fields, weight=weight_quant, bias=bias_quant, input=input_quant, output=output_quant)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, num_features, ...)``; same shape and dtype. ValueError for another shape."""
        if x.ndim < 2 or x.shape[1] != self.num_features:
            raise ValueError(f"`x` must be (batch, {self.num_features}, ...), got shape {tuple(x.shape)}")

        def of_channels(v: Tensor) -> Tensor:
            return v.reshape(-1, *(1 for _ in x.shape[2:]))

        def over_values(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            y = x * of_channels(weight)
            return y if bias is None else y + of_channels(bias)

        def over_codes(
            q_x: Quantizer, x: Tensor, p: QParams, q_w: Quantizer, w: Tensor, r: QParams, bias: Tensor | None
        ) -> Tensor:
            if not contracts_codes(q_x, q_w, per_token=False):
                return over_values(fake_quantize(q_x, x, p), fake_quantize(q_w, w, r), bias)
            rows = x.reshape(len(x), self.num_features, prod(x.shape[2:]))
            scale, zero, v = (None if a is None else a.reshape(-1, 1, 1) if a.ndim else a for a in (*r[:2], r.rounding))
            kernels = r._replace(scale=scale, zero_point=zero, rounding=v)
            y = matmul.conv(q_x, rows, p, q_w, w.reshape(-1, 1, 1), kernels, bias, groups=self.num_features)
            return y.reshape(x.shape)

        return or_same(self.output_quant, contract(self, x, over_values, over_codes), self.return_quant_tensor)

    def extra_repr(self) -> str:
        """Channels, and whether there is a bias."""
        return f"{self.num_features}, bias={self.bias is not None}"


def batch_norm_to_scale_bias(norm: BatchNorm, **quant: Any) -> QuantScaleBias:
    """What batch normalisation does in evaluation: ``x * factor + shift`` with its running statistics.

    ``factor = weight / sqrt(running_var + eps)`` and ``shift = bias - running_mean * factor``, in float64, each rounded
    once to the dtype of the statistics.

    Args:
        quant: keywords of `QuantScaleBias`.
    Raises:
        TypeError: no batch normalisation. ValueError: one without running statistics.
    """
    factor, shift = _factor_and_shift(norm)
    mean: Any = norm.running_mean
    layer = QuantScaleBias(norm.num_features, device=mean.device, dtype=mean.dtype, **quant)
    with torch.no_grad():
        layer.weight.copy_(factor)
        shift_to: Any = layer.bias
        shift_to.copy_(shift)
    return layer.train(norm.training)


def merge_batch_norm(layer: Any, norm: BatchNorm) -> None:
    """Folds batch normalisation behind a layer into its weight and bias, in place; ``norm`` is not needed any more.

    In float64, each element rounded once. Parameters stay the same objects; a bias is made where there was none. The
    quantizer of the weight, if it is declared, is made again for the new one.

    Args:
        layer: linear or a convolution of any kind, of torch or of this module.
    Raises:
        TypeError: another layer, or no batch normalisation.
        ValueError: other channels, no running statistics, or a weight quantizer whose scale is already set: it belongs
            to the weight before. Then nothing has changed.
    """
    if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
        raise TypeError(f"`layer` must be linear or a convolution, got {type(layer).__name__}")
    factor, shift = _factor_and_shift(norm)
    axis, groups = channel_axis(layer), getattr(layer, "groups", 1)
    outputs = layer.weight.shape[axis] * (groups if axis else 1)
    if len(factor) != outputs:
        raise ValueError(f"`norm` must have the {outputs} channels of `layer`, got {len(factor)}")
    quantizer = getattr(layer, "weight_quant", None)
    scale = quantizer.scale if isinstance(quantizer, TensorQuantizer) else None
    if scale is not None and scale.numel() and not bool(scale.isnan().any()):
        raise ValueError(f"{type(layer).__name__}, `weight_quant`: its scale is set already, for the weight before")
    with torch.no_grad():
        weight = layer.weight.double()
        if axis:
            parts = weight.reshape(groups, -1, *weight.shape[1:]) * factor.reshape(
                groups, 1, -1, *(1 for _ in weight.shape[2:])
            )
            layer.weight.copy_(parts.flatten(0, 1))
        else:
            layer.weight.copy_(weight * factor.reshape(-1, *(1 for _ in weight.shape[1:])))
        if layer.bias is None:
            layer.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
        else:
            layer.bias.copy_(layer.bias.double() * factor + shift)
    if isinstance(quantizer, QuantProxy):
        quantizer.init_tensor_quant()


def _factor_and_shift(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """What batch normalisation multiplies by and adds, in float64."""
    if not isinstance(norm, BatchNorm):
        raise TypeError(f"`norm` must be a batch normalisation, got {type(norm).__name__}")
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("`norm` must have running statistics: track_running_stats is False")
    with torch.no_grad():
        factor = 1 / (norm.running_var.double() + norm.eps).sqrt()
        factor = factor if norm.weight is None else factor * norm.weight.double()
        shift = -norm.running_mean.double() * factor
        return factor, shift if norm.bias is None else shift + norm.bias.double()
