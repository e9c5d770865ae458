"""Activations that are quantized."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .layer import Held, Quant, hold, or_same


class QuantIdentity(nn.Module):
    """Fake quantization of activations.

    Args:
        act_quant: see the module.
    """

    act_quant: Held
    return_quant_tensor: bool

    def __init__(self, act_quant: Quant = "int8_per_tensor", **fields: Any) -> None:
        super().__init__()
        hold(self, fields, act=act_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        return or_same(self.act_quant, x, self.return_quant_tensor)


class QuantReLU(nn.Module):
    """``max(x, 0)``, then fake quantization.

    Args:
        act_quant: see the module.
    """

    act_quant: Held
    return_quant_tensor: bool

    def __init__(self, act_quant: Quant = "uint8_per_tensor", **fields: Any) -> None:
        super().__init__()
        hold(self, fields, act=act_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        return or_same(self.act_quant, F.relu(x), self.return_quant_tensor)
