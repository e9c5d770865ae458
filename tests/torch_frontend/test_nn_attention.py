"""Attention: torch's where nothing is quantized, exact products of codes where all is."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from samebits import core, torch_frontend
from samebits.core import QParams, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend.nn import (
    QuantLinear,
    QuantMultiheadAttention,
    QuantScaledDotProductAttention,
    quant_inference_mode,
    quantize_model,
)

NOTHING: dict[str, Any] = dict.fromkeys(("query_quant", "key_quant", "value_quant", "attention_quant"))


def qkv(*lead: int, length: int = 5, seen: int = 7, width: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*lead, n, width) for n in (length, seen, seen)]


# --- scaled dot products ----------------------------------------------------------------------------------------------

MASK = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) > 0.4
MASK[2] = False
OPTIONS: list[dict[str, Any]] = [
    {},
    {"is_causal": True},
    {"attn_mask": MASK},
    {"attn_mask": torch.randn(2, 1, 5, 7)},
    {"scale": 0.3},
    {"enable_gqa": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: str(list(options)))
def test_without_quantizers_products_are_torchs(options: dict[str, Any]) -> None:
    q, k, v = qkv(2, 3)
    if options.get("enable_gqa"):
        k, v = k[:, :1], v[:, :1]
    layer = QuantScaledDotProductAttention(**NOTHING)
    torch.testing.assert_close(layer(q, k, v, **options), F.scaled_dot_product_attention(q, k, v, **options))


def test_products_contract_codes() -> None:
    """The scores by core's linear layers, one matrix after the other; the weights by torch's softmax of these."""
    q, k, v = qkv(2, 3)
    quantizers = {
        "query": catalog["int8_per_tensor"].replace(source="constant", scale_value=0.02),
        "key": catalog["uint8_affine_per_tensor"].replace(source="constant", scale_value=0.03, zero_point_value=120),
        "value": catalog["int8_per_tensor"].replace(source="constant", scale_value=0.04),
        "attention": catalog["uint8_per_tensor"].replace(source="constant", scale_value=1 / 255),
    }
    layer = QuantScaledDotProductAttention(**{f"{role}_quant": q for role, q in quantizers.items()})
    p = {
        role: QParams(np.float32(q.scale.scale_value or 0), np.int32(120) if q.affine else None)
        for role, q in quantizers.items()
    }

    def product(of_x: str, x: torch.Tensor, of_w: str, w: torch.Tensor) -> torch.Tensor:
        pairs = zip(x.flatten(0, 1), w.flatten(0, 1), strict=True)
        q_x, q_w = quantizers[of_x], quantizers[of_w].replace(granularity=core.PerTensor())
        rows = [core.linear(q_x, a.numpy(), p[of_x], q_w, b.contiguous().numpy(), p[of_w]) for a, b in pairs]
        return torch.from_numpy(np.stack(rows)).reshape(*x.shape[:-1], w.shape[-2])

    weights = (product("query", q, "key", k) * 0.5).softmax(-1)
    assert_same_bits(product("attention", weights, "value", v.transpose(-2, -1)), layer(q, k, v))
    assert layer(q[:0], k[:0], v[:0]).shape == (0, 3, 5, 4)
    per_token = QuantScaledDotProductAttention(query_quant="int8_affine_per_token")
    torch.testing.assert_close(per_token(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=0.05, rtol=0)


def test_gradients_flow_and_arguments_are_checked() -> None:
    parts = [t.requires_grad_() for t in qkv(2, 3)]
    layer = QuantScaledDotProductAttention(query_source="learned", attention_bits=4)
    layer(*parts).square().sum().backward()
    assert all(t.grad is not None and bool((t.grad != 0).any()) for t in (*parts, *layer.parameters()))
    assert [name for name, _ in layer.named_parameters()] == ["query_quant.scale"]
    with pytest.raises(ValueError, match="`attn_mask` must be None where `is_causal` is True"):
        layer(*parts, attn_mask=MASK, is_causal=True)
    with pytest.raises(TypeError, match="has no keyword `weight_bits`"):
        QuantScaledDotProductAttention(weight_bits=4)


# --- several heads ----------------------------------------------------------------------------------------------------

HEADS: list[dict[str, Any]] = [
    {},
    {"batch_first": True, "bias": False},
    {"kdim": 6, "vdim": 10},
    {"add_bias_kv": True, "add_zero_attn": True},
]


@pytest.mark.parametrize("options", HEADS, ids=lambda options: str(list(options)))
def test_without_quantizers_heads_are_torchs(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, **options)
    layer = QuantMultiheadAttention(8, 2, weight_quant=None, **options)
    layer.load_state_dict(plain.state_dict())
    assert list(layer.state_dict()) == list(plain.state_dict())
    q, k, v = (
        torch.randn(n, 3, width) for n, width in ((5, 8), (7, options.get("kdim", 8)), (7, options.get("vdim", 8)))
    )
    if options.get("batch_first"):
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 4:] = True
    calls: list[dict[str, Any]] = [
        {},
        {"key_padding_mask": padding, "average_attn_weights": False},
        {"attn_mask": ~MASK.roll(1, 0) & MASK, "need_weights": False},
        {"attn_mask": torch.randn(6, 5, 7), "key_padding_mask": padding.float()},
    ]
    for keywords in calls:
        for got, want in zip(layer(q, k, v, **keywords), plain(q, k, v, **keywords), strict=True):
            torch.testing.assert_close(got, want)
    alone = [t[0] if options.get("batch_first") else t[:, 0] for t in (q, k, v)]
    for got, want in zip(layer(*alone), plain(*alone), strict=True):
        torch.testing.assert_close(got, want)
    with pytest.raises(ValueError, match="`attn_mask` must be given where `is_causal` is True"):
        layer(q, k, v, is_causal=True)


def test_projections_contract_codes_and_share_what_comes_in() -> None:
    torch.manual_seed(0)
    seen: list[torch.Tensor] = []
    layer = QuantMultiheadAttention(8, 2, input_quant="int8_per_tensor", context_quant="int8_per_tensor", weight_bits=6)
    assert isinstance(layer.out_proj, QuantLinear)
    q_out: Any = layer.out_proj.weight_quant
    assert q_out.quantizer.format.bits == 6
    assert layer.input_quant is not None
    inner = layer.input_quant.qparams
    layer.input_quant.qparams = lambda x: seen.append(x) or inner(x)  # type: ignore
    x, other = torch.randn(5, 3, 8), torch.randn(5, 3, 8)
    for arguments, steps in (((x, x, x), 1), ((x, other, other), 2), ((x, other, x.clone()), 3)):
        seen.clear()
        layer(*arguments)
        assert len(seen) == steps
    q, r = catalog["int8_per_channel"].replace(bits=6), catalog["int8_per_tensor"]
    whole = torch_frontend.choose_qparams(q, layer.in_proj_weight)
    assert layer.in_proj_bias is not None
    parts = r, x, torch_frontend.choose_qparams(r, x), q, layer.in_proj_weight, whole, layer.in_proj_bias
    query, key, value = torch_frontend.linear(*parts).chunk(3, 2)
    heads = [t.reshape(5, 3, 2, 4).permute(1, 2, 0, 3) for t in (query, key, value)]
    y = QuantScaledDotProductAttention(**NOTHING)(*heads)
    assert_same_bits(layer.out_proj(y.transpose(1, 2).flatten(2)).transpose(0, 1), layer(x, x, x)[0])


def test_fully_quantized_heads_learn_with_quantized_biases() -> None:
    torch.manual_seed(0)
    layer = QuantMultiheadAttention(
        8,
        2,
        weight_source="learned",
        bias_quant="int16_per_tensor",
        input_quant="int8_per_tensor",
        query_quant="int8_per_tensor",
        key_quant="int8_per_tensor",
        value_quant="int8_per_tensor",
        attention_quant="uint8_per_tensor",
        context_quant="int8_per_tensor",
        output_quant="int8_per_tensor",
    )
    names = [name for name in layer.state_dict() if "quant" in name]
    assert sorted(names) == ["out_proj.weight_quant.scale", "weight_quant.in_proj_weight.scale"]
    plain = nn.MultiheadAttention(8, 2)
    layer.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(5, 3, 8)
    y, weights = layer(x, x, x)
    want, want_weights = plain(x, x, x)
    torch.testing.assert_close(y, want, atol=0.03, rtol=0)
    torch.testing.assert_close(weights, want_weights, atol=0.03, rtol=0)
    y.square().sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None, name
        assert bool((p.grad != 0).any()), name
    refused = QuantMultiheadAttention(8, 2, bias_quant="int8_per_tensor")
    with pytest.raises(ValueError, match="QuantMultiheadAttention, `bias_quant`: has no scale, since `input_quant`"):
        refused(x, x, x)


def test_scales_of_single_elements_go_with_the_rows() -> None:
    """Blocks of several rows have scales that cannot be cut; values are cut then."""
    layer, x = QuantMultiheadAttention(32, 2, weight_quant="int8_per_tensor"), torch.randn(5, 3, 32)
    blocks = QuantMultiheadAttention(32, 2, weight_quant="int4_per_group32")
    blocks.load_state_dict(layer.state_dict())
    assert (blocks(x, x, x)[0] - layer(x, x, x)[0]).abs().max() < 0.1


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8)])
def test_attention_of_nothing(shape: tuple[int, ...]) -> None:
    layer, x = QuantMultiheadAttention(8, 2, batch_first=True, input_quant="int8_per_tensor"), torch.ones(shape)
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    assert [t.shape for t in layer(x, x, x)] == [t.shape for t in plain(x, x, x)]


def test_encoders_use_quantized_heads() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x, parameters = torch.randn(2, 3, 8), dict(encoder.named_parameters())
    want = encoder(x)
    quantize_model(encoder, {"*": {"input_quant": "int8_per_tensor", "context_quant": "int8_per_tensor"}})
    assert all(parameters[name] is p for name, p in encoder.named_parameters())
    assert type(encoder.layers[0].self_attn) is QuantMultiheadAttention
    torch.testing.assert_close(encoder(x), want, atol=0.1, rtol=0)
    with torch.no_grad():
        alone = encoder(x)
    assert_same_bits(encoder(x), alone)


@pytest.mark.parametrize("rules", [None, {"layers.1": {"weight_bits": 8}}])
def test_encoders_take_padded_sequences_where_there_are_no_gradients(rules: Any) -> None:
    """Where torch makes nested tensors of them otherwise."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    quantize_model(encoder, rules, exclude=["layers.0"] if rules else [])
    x, padded = torch.randn(2, 3, 8), torch.tensor([[False, False, True], [False, True, True]])
    with torch.no_grad():
        want = encoder(x, src_key_padding_mask=padded)
    with quant_inference_mode(encoder):
        assert_same_bits(encoder(x, src_key_padding_mask=padded), want)
