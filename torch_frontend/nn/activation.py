"""Activations that are quantized: the function of torch, then fake quantization.

`QuantReLU`, `QuantHardTanh` and `QuantIdentity` select numbers, and so give the same bits everywhere. The others are
what torch computes, whose bits depend on its version, mode and processor: those of JAX differ, by a step where such a
difference crosses the border between two codes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import layer as shared
from .layer import Held, Quant, hold, or_same


class QuantIdentity(nn.Module):
    """Fake quantization of activations.

    Args:
        act_quant, fields: see the module.
    """

    act_quant: Held
    return_quant_tensor = False
    load_state_dict = shared.load_state_dict

    def __init__(self, act_quant: Quant = "int8_per_tensor", **fields: Any) -> None:
        super().__init__()
        hold(self, fields, act=act_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        return or_same(self.act_quant, x, self.return_quant_tensor)


class QuantReLU(nn.Module):
    """``max(x, 0)``, then fake quantization.

    Args:
        act_quant, input_quant, fields: see the module.
    """

    act_quant: Held
    return_quant_tensor = False
    input_quant: Held
    load_state_dict = shared.load_state_dict

    def __init__(self, act_quant: Quant = "uint8_per_tensor", *, input_quant: Quant = None, **fields: Any) -> None:
        super().__init__()
        hold(self, fields, act=act_quant, input=input_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        codes = self.return_quant_tensor
        return or_same(self.act_quant, F.relu(or_same(self.input_quant, x, codes)), codes)


class QuantHardTanh(nn.Module):
    """``min(max(x, min_val), max_val)``, then fake quantization.

    Args:
        act_quant, input_quant, fields: see the module.
        min_val, max_val: the range, as ``torch.nn.Hardtanh``.
    Raises:
        ValueError: a range without numbers.
    """

    act_quant: Held
    return_quant_tensor = False
    input_quant: Held
    load_state_dict = shared.load_state_dict

    def __init__(
        self,
        act_quant: Quant = "int8_per_tensor",
        min_val: float = -1.0,
        max_val: float = 1.0,
        *,
        input_quant: Quant = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        if not min_val < max_val:
            raise ValueError(f"`min_val` must be less than `max_val`, {max_val!r}, got {min_val!r}")
        self.min_val, self.max_val = min_val, max_val
        hold(self, fields, act=act_quant, input=input_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        y = F.hardtanh(or_same(self.input_quant, x), self.min_val, self.max_val)
        return or_same(self.act_quant, y, self.return_quant_tensor)


class QuantSigmoid(nn.Module):
    """``1 / (1 + exp(-x))`` as torch computes it, then fake quantization.

    Args:
        act_quant, input_quant, fields: see the module.
    """

    act_quant: Held
    return_quant_tensor = False
    input_quant: Held
    load_state_dict = shared.load_state_dict

    def __init__(self, act_quant: Quant = "uint8_per_tensor", *, input_quant: Quant = None, **fields: Any) -> None:
        super().__init__()
        hold(self, fields, act=act_quant, input=input_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        return or_same(self.act_quant, torch.sigmoid(or_same(self.input_quant, x)), self.return_quant_tensor)


class QuantTanh(nn.Module):
    """``tanh(x)`` as torch computes it, then fake quantization.

    Args:
        act_quant, input_quant, fields: see the module.
    """

    act_quant: Held
    return_quant_tensor = False
    input_quant: Held
    load_state_dict = shared.load_state_dict

    def __init__(self, act_quant: Quant = "int8_per_tensor", *, input_quant: Quant = None, **fields: Any) -> None:
        super().__init__()
        hold(self, fields, act=act_quant, input=input_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        return or_same(self.act_quant, torch.tanh(or_same(self.input_quant, x)), self.return_quant_tensor)


class QuantGELU(nn.Module):
    """The Gaussian error linear unit as torch computes it, then fake quantization.

    Args:
        act_quant, input_quant, fields: see the module.
        approximate: ``none`` or ``tanh``, as ``torch.nn.GELU``.
    Raises:
        ValueError: another approximation.
    """

    act_quant: Held
    return_quant_tensor = False
    input_quant: Held
    load_state_dict = shared.load_state_dict

    def __init__(
        self,
        act_quant: Quant = "int8_per_tensor",
        approximate: str = "none",
        *,
        input_quant: Quant = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"`approximate` must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate
        hold(self, fields, act=act_quant, input=input_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        y = F.gelu(or_same(self.input_quant, x), approximate=self.approximate)
        return or_same(self.act_quant, y, self.return_quant_tensor)


class QuantSiLU(nn.Module):
    """``x * sigmoid(x)`` as torch computes it, then fake quantization.

    Args:
        act_quant, input_quant, fields: see the module.
    """

    act_quant: Held
    return_quant_tensor = False
    input_quant: Held
    load_state_dict = shared.load_state_dict

    def __init__(self, act_quant: Quant = "int8_per_tensor", *, input_quant: Quant = None, **fields: Any) -> None:
        super().__init__()
        hold(self, fields, act=act_quant, input=input_quant)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        return or_same(self.act_quant, F.silu(or_same(self.input_quant, x)), self.return_quant_tensor)
