"""Where quantized weights go into a model, and where they are read from it."""

from torch import Tensor, nn

from ...core.descriptions import QParams, Quantizer
from ..quantizer import dequantize
from . import weight_operators as weight_operators
from .quant_weight import QuantWeight, weight_of_codes


def store(module: nn.Module, q: Quantizer, codes: Tensor, qparams: QParams, layout: str | None = None) -> None:
    """Makes codes in a layout, or their values (None), the weight of a layer, in its dtype and shape."""
    old = module.weight
    assert isinstance(old, Tensor)
    if layout is not None:
        weight = weight_of_codes(q, codes, qparams, old.dtype, None, layout)
        module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        return
    value = dequantize(q, codes, qparams).reshape(old.shape).to(old.dtype)
    module.weight = nn.Parameter(value, requires_grad=old.requires_grad)


def dense(module: nn.Module) -> Tensor:
    """The weight of a layer as numbers, whatever holds them."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.dequantize() if isinstance(weight, QuantWeight) else weight.detach()
