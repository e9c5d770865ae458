"""Activations that are quantized."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .layer import Held, Quant, hold


class QuantIdentity(nn.Module):
    """Fake quantization of activations.

    Args:
        act_quant: see the module.
    """

    act_quant: Held

    def __init__(self, act_quant: Quant = "int8_per_tensor", **fields: Any) -> None:
        super().__init__()
        hold(self, fields, act=act_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        return x if self.act_quant is None else self.act_quant(x)


class QuantReLU(nn.Module):
    """``max(x, 0)``, then fake quantization.

    Args:
        act_quant: see the module.
    """

    act_quant: Held

    def __init__(self, act_quant: Quant = "uint8_per_tensor", **fields: Any) -> None:
        super().__init__()
        hold(self, fields, act=act_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        x = F.relu(x)
        return x if self.act_quant is None else self.act_quant(x)
