"""Where quantized weights go into a model, and where they are read from it."""

from torch import Tensor, nn

from ...core.descriptions import QParams, Quantizer
from ..quantizer import dequantize


def store(module: nn.Module, q: Quantizer, codes: Tensor, qparams: QParams) -> None:
    """Makes the values of codes the weight of a layer, in the dtype of its weight and the shape of it."""
    old = module.weight
    assert isinstance(old, Tensor)
    value = dequantize(q, codes, qparams).reshape(old.shape).to(old.dtype)
    module.weight = nn.Parameter(value, requires_grad=old.requires_grad)


def dense(module: nn.Module) -> Tensor:
    """The weight of a layer as numbers, whatever holds them."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()
