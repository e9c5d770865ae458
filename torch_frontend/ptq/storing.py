"""Where quantized weights go into a model, and where they are read from it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...core.configs import Config, quantized_already
from ...core.descriptions import QParams
from ..arrays import wide_dtype
from .quant_weight import QuantWeight, values_of, weight_of_codes


def store(module: nn.Module, config: Config, codes: Tensor, qparams: QParams) -> None:
    """Makes codes the weight of a layer: a `QuantWeight` that stands for numbers of the dtype that it had.

    Scales are float32, or of the dtype that this asks for.
    """
    old = module.weight
    assert isinstance(old, Tensor)
    qparams = scaled_for(old.dtype, qparams)
    weight = weight_of_codes(config.weight, codes, qparams, old.dtype, config.act_quant, config.layout)
    module.weight = nn.Parameter(weight, requires_grad=False)


def dense(module: nn.Module) -> Tensor:
    """The weight of a layer as numbers, whatever holds them."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return values_of(weight) if isinstance(weight, QuantWeight) else weight.detach()


def check_floats(layers: Mapping[str, nn.Module]) -> None:
    """ValueError for a layer with a parameter that is a `QuantWeight` already, by name."""
    for name, layer in layers.items():
        for parameter in layer.parameters(recurse=False):
            if isinstance(parameter, QuantWeight):
                raise quantized_already(name, parameter)


def scaled_for(dtype: torch.dtype, qparams: QParams) -> QParams:
    """Parameters in the dtype in which tensors of ``dtype`` are computed with: float64 for float64. Exact."""
    scale, zero = qparams.scale, qparams.zero_point
    wide = wide_dtype(dtype)
    zero = zero.to(wide) if zero is not None and zero.is_floating_point() else zero
    return qparams._replace(scale=scale.to(wide), zero_point=zero)
