"""Linear layers over quantized operands."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import matmul
from . import layer as shared
from .layer import Held, Quant, contract, hold, or_same


class QuantLinear(nn.Linear):
    """``x @ weight.T + bias`` over quantized operands; see `samebits.torch_frontend.linear`.

    Args:
        in_features, out_features, bias, device, dtype: as ``torch.nn.Linear``.
        weight_quant, bias_quant, input_quant, output_quant, fields: see the module. The weight is ``(out, in)``.
    """

    weight_quant: Held
    bias_quant: Held
    input_quant: Held
    output_quant: Held
    return_quant_tensor = False
    load_state_dict, quant_weight = shared.load_state_dict, shared.quant_weight

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_quant: Quant = "int8_per_channel",
        bias_quant: Quant = None,
        input_quant: Quant = None,
        output_quant: Quant = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        hold(self, fields, weight=weight_quant, bias=bias_quant, input=input_quant, output=output_quant)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``, dtype of ``x``."""
        y = contract(self, x, F.linear, matmul.linear)
        return or_same(self.output_quant, y, self.return_quant_tensor)
