"""Attention over quantized operands: both products contract codes, the softmax between them is what torch computes."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerAxis, PerTensor
from .. import matmul
from . import layer as shared
from .layer import (
    Held,
    Operand,
    Quant,
    adopted,
    by_role,
    check_prescaled,
    contracted,
    hold,
    hold_each,
    operands,
    or_same,
)
from .linear import QuantLinear
from .proxies_of_given_scales import BiasQuantProxy


class QuantScaledDotProductAttention(nn.Module):
    """``softmax(scale * (query @ key.T) + mask) @ value`` over quantized operands.

    Args:
        query_quant, key_quant, value_quant: of the operands; codes are contracted where there is one scale for each.
        attention_quant: of the weights that the softmax gives, after dropout.
        softmax_quant: of what goes into it, before the mask.
        fields: see the module.
    """

    query_quant: Held
    key_quant: Held
    value_quant: Held
    attention_quant: Held
    softmax_quant: Held
    load_state_dict = shared.load_state_dict

    def __init__(
        self,
        *,
        query_quant: Quant = "int8_per_tensor",
        key_quant: Quant = "int8_per_tensor",
        value_quant: Quant = "int8_per_tensor",
        attention_quant: Quant = "uint8_per_tensor",
        softmax_quant: Quant = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        operands_of = {"query": query_quant, "key": key_quant, "value": value_quant}
        hold(self, fields, **operands_of, attention=attention_quant, softmax=softmax_quant)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Arguments and result as ``torch.nn.functional.scaled_dot_product_attention``.

        Raises:
            ValueError: a mask beside ``is_causal``.
        """
        if attn_mask is not None and is_causal:
            raise ValueError("`attn_mask` must be None where `is_causal` is True")
        if enable_gqa:
            heads = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(heads, -3), value.repeat_interleave(heads, -3)
        if is_causal:
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = _added(~attn_mask, query.dtype)
        return attend(self, query, key, value, attn_mask, dropout_p, scale)[0]


class QuantMultiheadAttention(nn.MultiheadAttention):
    """Attention in several heads over quantized operands, with the projections of ``torch.nn.MultiheadAttention``.

    Args:
        embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as
            ``torch.nn.MultiheadAttention``.
        weight_quant, bias_quant: of the projections: ``weight_quant.in_proj_weight``, or of query, key and value by
            themselves; and those of ``out_proj``, which is a `QuantLinear`.
        input_quant: of what comes in: query, key and value, each once if they are one tensor.
        query_quant, key_quant, value_quant, attention_quant, softmax_quant: as `QuantScaledDotProductAttention`.
        context_quant: of what goes into ``out_proj``. output_quant: of what comes out.
        fields: see the module.
    """

    weight_quant: nn.ModuleDict | None
    bias_quant: Held
    input_quant: Held
    query_quant: Held
    key_quant: Held
    value_quant: Held
    attention_quant: Held
    softmax_quant: Held
    load_state_dict = shared.load_state_dict

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        weight_quant: Quant = "int8_per_channel",
        bias_quant: Quant = None,
        input_quant: Quant = None,
        query_quant: Quant = None,
        key_quant: Quant = None,
        value_quant: Quant = None,
        attention_quant: Quant = None,
        softmax_quant: Quant = None,
        context_quant: Quant = None,
        output_quant: Quant = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        options = dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first
        super().__init__(embed_dim, num_heads, *options, device, dtype)
        products = {"query": query_quant, "key": key_quant, "value": value_quant}
        products |= {"attention": attention_quant, "softmax": softmax_quant}
        outer = {"input": input_quant, "context": context_quant, "output": output_quant}
        hold_attention(self, fields, weight=weight_quant, bias=bias_quant, **outer, **products)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results as ``torch.nn.MultiheadAttention``; the weights are the quantized ones.

        Raises:
            ValueError: ``is_causal`` without the mask that it describes.
        """
        if is_causal and attn_mask is None:
            raise ValueError("`attn_mask` must be given where `is_causal` is True")
        single = query.ndim == 2
        q, k, v = _projected(self, query, key, value, single)
        mask = _mask(self, attn_mask, key_padding_mask, q, k)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([t, b.expand(len(t), 1, -1)], 1) for t, b in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (torch.cat([t, t.new_zeros(len(t), 1, t.shape[2])], 1) for t in (k, v))
        if mask is not None:
            mask = F.pad(mask, (0, k.shape[1] - mask.shape[-1]))
        heads = self.num_heads, q.shape[-1] // self.num_heads  # said, for a batch of none
        q, k, v = (t.reshape(*t.shape[:2], *heads).transpose(1, 2) for t in (q, k, v))
        y, weights = attend(self, q, k, v, mask, self.dropout if self.training else 0.0, None)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        y = y.squeeze(0) if single else y if self.batch_first else y.transpose(0, 1)
        if not need_weights:
            return y, None
        weights = weights.mean(1) if average_attn_weights else weights
        return y, weights.squeeze(0) if single else weights


def hold_attention(layer: Any, fields: Mapping[str, Any], **quant: Any) -> None:
    """`hold_each` of the projections into attention, and `hold` of that out of it, which becomes a `QuantLinear`."""
    split = by_role(layer, fields, quant)

    def keywords(**roles: str) -> dict[str, Any]:
        return {f"{to}_{name}": value for role, to in roles.items() for name, value in split[role].items()}

    out = adopted(QuantLinear, layer.out_proj)
    outer = {"weight": quant["weight"], "bias": quant["bias"]}
    names = keywords(weight="weight", bias="bias", context="input", output="output")
    hold(out, names, **outer, input=quant.pop("context"), output=quant.pop("output"))
    weights = [name for name, _ in layer.named_parameters(recurse=False) if name.endswith("proj_weight")]
    hold_each(layer, weights, keywords(**{role: role for role in quant}), **quant)
    layer.out_proj = out


def attend(
    layer: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """What attention gives, and its quantized weights; ``layer`` holds the quantizers. The mask is added."""
    q, k = operands((layer.query_quant, query), (layer.key_quant, key))
    scores = _product(q, k) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scores = or_same(layer.softmax_quant, scores)
    scores = scores if mask is None else scores + mask
    weights = scores.softmax(-1)
    if mask is not None:  # a place that sees nothing takes nothing
        weights = torch.where(scores.isneginf().all(-1, keepdim=True), 0.0, weights)
    weights = F.dropout(weights, dropout) if dropout else weights
    a, v = operands((layer.attention_quant, weights), (layer.value_quant, value))
    return _product(a, v._replace(value=v.value.transpose(-2, -1))), a.quantized()


def _product(x: Operand, w: Operand) -> Tensor:
    """``x @ w.T`` of each matrix of a batch, ``(..., rows, in)`` and ``(..., outputs, in)``."""

    def over_values(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return x @ w.transpose(-2, -1)

    def over_codes(
        q_x: Quantizer, x: Tensor, p: QParams, q_w: Quantizer, w: Tensor, r: QParams, bias: Tensor | None
    ) -> Tensor:
        return matmul.batched_matmul(q_x, x, p, q_w, w, r)

    return contracted(x, w, None, None, over_values, over_codes)


def _projected(layer: Any, query: Tensor, key: Tensor, value: Tensor, single: bool) -> list[Tensor]:
    """Query, key and value as ``(batch, length, embed_dim)``, projected."""

    def read(tensor: Tensor) -> Operand:
        rows = tensor.unsqueeze(0) if single else tensor if layer.batch_first else tensor.transpose(0, 1)
        return operands((layer.input_quant, rows))[0]

    of_query = read(query)
    of_key = of_query if key is query else read(key)
    of_value = of_key if value is key else of_query if value is query else read(value)
    n, each = layer.embed_dim, layer.weight_quant
    if layer.in_proj_weight is not None:
        (whole,) = operands((None if each is None else each["in_proj_weight"], layer.in_proj_weight))
        weights = [_rows(whole, i * n, n) for i in range(3)]
    else:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        weights = operands(*((None if each is None else each[name], getattr(layer, name)) for name in names))
    bias, q_b = layer.in_proj_bias, None if layer.in_proj_bias is None else layer.bias_quant
    if isinstance(q_b, BiasQuantProxy) and not q_b.requires_input_scale:
        bias, q_b = q_b(bias), None
    if q_b is not None:
        for one in (None,) if each is None else each.values():
            check_prescaled(layer, layer.input_quant, one)
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    parts = zip((of_query, of_key, of_value), weights, biases, strict=True)
    return [contracted(x, w, b, q_b, F.linear, matmul.linear) for x, w, b in parts]


def _rows(w: Operand, start: int, length: int) -> Operand:
    """Some rows of a weight; its scales are one, or one for each row, or go with the values."""
    if w.held is None:
        return Operand(w.value.narrow(0, start, length))
    if w.quantizer is None or w.quantizer.granularity not in (PerTensor(), PerAxis(0)):
        return Operand(w.quantized().narrow(0, start, length))
    of_rows = {
        name: a.narrow(0, start, length)
        for name, a in w.qparams._asdict().items()
        if isinstance(a, Tensor) and a.ndim and len(a) == len(w.value)
    }
    return w._replace(value=w.value.narrow(0, start, length), qparams=w.qparams._replace(**of_rows))


def _added(closed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add: -inf where it is closed."""
    return torch.zeros(closed.shape, dtype=dtype, device=closed.device).masked_fill(closed, -torch.inf)


def _mask(layer: Any, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Both masks as one to add, ``(batch, heads, rows, columns)`` or what broadcasts to it."""
    masks = []
    for mask in (attn_mask, padding):
        added = _added(mask, q.dtype) if mask is not None and mask.dtype == torch.bool else mask
        if added is not None and mask is attn_mask:
            masks.append(added.reshape(len(q), layer.num_heads, *added.shape[1:]) if added.ndim == 3 else added)
        elif added is not None:
            masks.append(added.reshape(len(q), 1, 1, k.shape[1]))
    return None if not masks else masks[0] if len(masks) == 1 else masks[0] + masks[1]
