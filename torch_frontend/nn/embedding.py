"""Tables of vectors that are quantized."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import layer as shared
from .layer import Held, Quant, hold, or_same


class QuantEmbedding(nn.Embedding):
    """Rows of a quantized table.

    Args:
        num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, device, dtype: as
            ``torch.nn.Embedding``; rows longer than ``max_norm`` are shortened before they are quantized.
        weight_quant, output_quant, fields: see the module. The weight is ``(num_embeddings, embedding_dim)``; a
            quantizer per axis 0 has one scale for each row.
    Raises:
        ValueError: sparse gradients of a table that is quantized: all of it is.
        TypeError, KeyError: as `hold`.
    """

    weight_quant: Held
    output_quant: Held
    return_quant_tensor = False
    load_state_dict, quant_weight = shared.load_state_dict, shared.quant_weight

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        *,
        weight_quant: Quant = "int8_per_channel",
        output_quant: Quant = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        norm = max_norm, norm_type, scale_grad_by_freq, sparse
        super().__init__(num_embeddings, embedding_dim, padding_idx, *norm, _weight, _freeze, device, dtype)
        hold(self, fields, weight=weight_quant, output=output_quant)
        check(self)

    def forward(self, x: Tensor) -> Tensor:
        """Integers of any shape to that shape and ``embedding_dim``, dtype of the table."""
        if self.max_norm is not None:
            with torch.no_grad():
                torch.embedding_renorm_(self.weight, x.contiguous(), self.max_norm, self.norm_type)
        codes = self.return_quant_tensor
        table = or_same(self.weight_quant, self.weight, codes and self.output_quant is None)
        rows = F.embedding(x, table, self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse)
        return or_same(self.output_quant, rows, codes)


def check(layer: QuantEmbedding) -> None:
    """ValueError for sparse gradients of a table that is quantized: all of it has gradients."""
    if layer.sparse and layer.weight_quant is not None:
        raise ValueError("`sparse` must be False for a table that is quantized, got True")
