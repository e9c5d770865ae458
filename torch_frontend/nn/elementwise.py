"""Sums and concatenations whose operands are quantized by one scale, so that their codes may be added and joined."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.granularity import PerAxis, PerTensor, PerToken
from . import layer as shared
from .layer import Held, Quant, hold, or_same


class QuantEltwiseAdd(nn.Module):
    """``input + other``, both quantized with the scale of the two together: ``code + other code``, exactly.

    Args:
        input_quant: of both, per tensor, axis or token; see the module. A scale from statistics comes from both, and
            training counts them as one tensor. None: what comes is added, `QuantTensor` of one scale by codes.
        output_quant: of the sum.
        return_quant_tensor: whether the result is a `QuantTensor`, where it has codes.
    """

    input_quant: Held
    output_quant: Held
    return_quant_tensor = False
    load_state_dict = shared.load_state_dict

    def __init__(
        self, input_quant: Quant = "int8_per_tensor", output_quant: Quant = "int8_per_tensor", **fields: Any
    ) -> None:
        super().__init__()
        hold(self, fields, input=input_quant, output=output_quant)

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        """Shapes that broadcast, one dtype; that shape and dtype."""
        if self.input_quant is not None:
            input, other = _quantized_together(self.input_quant, input, other)
        return or_same(self.output_quant, input + other, self.return_quant_tensor)


class QuantCat(nn.Module):
    """``torch.cat``, quantized with one scale for all.

    Args:
        input_quant: of all tensors together; None: `QuantTensor` of one scale are joined by codes.
        output_quant: of the result.
        return_quant_tensor: whether the result is a `QuantTensor`, where it has codes.
    """

    input_quant: Held
    output_quant: Held
    return_quant_tensor = False
    load_state_dict = shared.load_state_dict

    def __init__(
        self, input_quant: Quant = "int8_per_tensor", output_quant: Quant = "int8_per_tensor", **fields: Any
    ) -> None:
        super().__init__()
        hold(self, fields, input=input_quant, output=output_quant)

    def forward(self, tensors: Sequence[Tensor], dim: int = 1) -> Tensor:
        """Tensors that ``torch.cat`` accepts; what it gives."""
        if self.input_quant is None:
            joined = torch.cat(list(tensors), dim)
        else:
            plain = [or_same(None, t) for t in tensors]
            joined = or_same(self.input_quant, torch.cat(plain, dim), as_codes=True)
        return or_same(self.output_quant, joined, self.return_quant_tensor)


def _quantized_together(quantizer: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both by the parameters that they have as one tensor, joined along an axis that the scales do not tell apart."""
    a, b = torch.broadcast_tensors(or_same(None, a), or_same(None, b))  # type: ignore[no-untyped-call]
    granularity = PerTensor() if quantizer.quantizer is None else quantizer.quantizer.granularity
    match granularity:
        case PerTensor() if a.ndim == 0:
            both = or_same(quantizer, torch.stack([a, b]), as_codes=True)
            return both[0], both[1]
        case PerTensor():
            axis = 0
        case PerToken() if a.ndim:
            axis = a.ndim - 1
        case PerAxis(k) if a.ndim > 1:
            axis = 1 if k % a.ndim == 0 else 0
        case _:
            raise ValueError(
                f"`input_quant` must be per tensor, axis or token of more axes, got {granularity}, {a.ndim}"
            )
    both = or_same(quantizer, torch.cat([a, b], axis), as_codes=True)
    n = a.shape[axis]
    return both.narrow(axis, 0, n), both.narrow(axis, n, n)
