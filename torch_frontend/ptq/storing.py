"""Where quantized weights go into a model, and where they are read from it."""

from torch import Tensor, nn

from ...core.configs import Config
from ...core.descriptions import QParams
from .quant_weight import QuantWeight, values_of, weight_of_codes


def store(module: nn.Module, config: Config, codes: Tensor, qparams: QParams) -> None:
    """Makes codes the weight of a layer: a `QuantWeight` that stands for numbers of the dtype that it had."""
    old = module.weight
    assert isinstance(old, Tensor)
    weight = weight_of_codes(config.weight, codes, qparams, old.dtype, config.act_quant, config.layout)
    module.weight = nn.Parameter(weight, requires_grad=False)


def dense(module: nn.Module) -> Tensor:
    """The weight of a layer as numbers, whatever holds them."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return values_of(weight) if isinstance(weight, QuantWeight) else weight.detach()
