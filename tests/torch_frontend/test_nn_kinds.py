"""Activations, embeddings, scale and bias, and batch normalisation folded into layers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samebits import core, torch_frontend
from samebits.core import PerAxis, QParams, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import nn as quantized
from samebits.torch_frontend.nn import QuantEmbedding, QuantScaleBias, batch_norm_to_scale_bias, merge_batch_norm

SPECIAL = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 1.0, -1.0, 3.5, -3.5, 1e30, -1e30])

# --- activations ------------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, tuple[nn.Module, dict[str, Any], str]] = {
    "QuantIdentity": (nn.Identity(), {}, "int8_per_tensor"),
    "QuantReLU": (nn.ReLU(), {}, "uint8_per_tensor"),
    "QuantHardTanh": (nn.Hardtanh(-2, 0.5), {"min_val": -2.0, "max_val": 0.5}, "int8_per_tensor"),
    "QuantSigmoid": (nn.Sigmoid(), {}, "uint8_per_tensor"),
    "QuantTanh": (nn.Tanh(), {}, "int8_per_tensor"),
    "QuantGELU": (nn.GELU("tanh"), {"approximate": "tanh"}, "int8_per_tensor"),
    "QuantSiLU": (nn.SiLU(), {}, "int8_per_tensor"),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_are_torchs_then_quantized(kind: str) -> None:
    plain, options, usual = ACTIVATIONS[kind]
    layer = getattr(quantized, kind)
    for x in (SPECIAL, torch.randn(3, 4), torch.empty(0, 4), torch.randn(4, 3).t(), torch.randn(5).bfloat16()):
        assert_same_bits(plain(x), layer(None, **options)(x))
        if x.numel():
            assert_same_bits(torch_frontend.fake_quantize(catalog[usual], plain(x)), layer(**options)(x))
    q = catalog["int8_per_tensor"].replace(bits=3)
    assert_same_bits(
        torch_frontend.fake_quantize(q, plain(SPECIAL)), layer("int8_per_tensor", bits=3, **options)(SPECIAL)
    )
    with_nan = layer(catalog["int8_per_tensor"].replace(source="constant", scale_value=0.1), **options)
    assert bool(with_nan(torch.tensor([torch.nan, 1.0])).isnan()[0])
    if kind != "QuantIdentity":
        both = layer(None, input_quant="int8_per_tensor", input_bits=4, **options)
        x_hat = torch_frontend.fake_quantize(catalog["int8_per_tensor"].replace(bits=4), SPECIAL)
        assert_same_bits(plain(x_hat), both(SPECIAL))


def test_activations_refuse_what_torch_would_not_know() -> None:
    with pytest.raises(ValueError, match="`min_val` must be less than `max_val`, 0, got 1"):
        quantized.QuantHardTanh(min_val=1, max_val=0)
    with pytest.raises(ValueError, match="`approximate` must be 'none' or 'tanh', got 'erf'"):
        quantized.QuantGELU(approximate="erf")


# --- embeddings -------------------------------------------------------------------------------------------------------


def test_embeddings_are_rows_of_a_quantized_table() -> None:
    index = torch.tensor([[0, 3], [3, 6]])
    for keywords in ({}, {"padding_idx": 3}, {"scale_grad_by_freq": True}):
        plain, ours = nn.Embedding(7, 8, **keywords), QuantEmbedding(7, 8, **keywords)
        ours.load_state_dict(plain.state_dict())
        table = torch_frontend.fake_quantize(catalog["int8_per_channel"], plain.weight)
        assert_same_bits(table[index], ours(index))
        for layer in (plain, ours):
            layer(index).sum().backward()
        assert ours.weight.grad is not None
        if not keywords.get("padding_idx"):
            assert bool((ours.weight.grad[3] != 0).any())
        else:
            assert not bool((ours.weight.grad[3] != 0).any())
    plain, ours = nn.Embedding(7, 8, max_norm=0.5), QuantEmbedding(7, 8, max_norm=0.5, weight_quant=None)
    ours.load_state_dict(plain.state_dict())
    assert_same_bits(plain(index), ours(index))
    assert_same_bits(plain.weight, ours.weight)
    assert ours(torch.empty(0, dtype=torch.long)).shape == (0, 8)


def test_pretrained_tables() -> None:
    table = torch.randn(5, 4)
    layer = QuantEmbedding.from_pretrained(table, padding_idx=1)
    assert_same_bits(table, layer.weight)
    assert not layer.weight.requires_grad
    assert layer.padding_idx == 1
    with pytest.raises(ValueError, match="`sparse` must be False"):
        QuantEmbedding(5, 4, sparse=True)


# --- scale and bias ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", ["int8_per_tensor", "uint8_affine_per_channel"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 2, 2), (0, 3, 4)])
def test_scale_and_bias_contract_codes(shape: tuple[int, ...], weight: str) -> None:
    """As core's convolution in as many groups as channels."""
    torch.manual_seed(0)
    q_x = catalog["uint8_affine_per_tensor"].replace(source="constant", scale_value=0.03, zero_point_value=100)
    layer, x = QuantScaleBias(3, weight_quant=weight, input_quant=q_x), torch.randn(shape)
    nn.init.normal_(layer.weight)
    assert layer.bias is not None
    nn.init.normal_(layer.bias)
    w, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    r = core.choose_qparams(catalog[weight], w)
    r = QParams(*(None if v is None else v.reshape(-1, 1, 1) if v.ndim else v for v in r[:2]))
    p, rows = QParams(np.float32(0.03), np.int32(100)), x.numpy().reshape(shape[0], 3, -1 if x.numel() else 4)
    want = core.conv(q_x, rows, p, catalog[weight], w.reshape(3, 1, 1), r, b, groups=3)
    assert_same_bits(want.reshape(shape), layer(x))
    plain = QuantScaleBias(3, weight_quant=None)
    plain.load_state_dict(layer.state_dict())
    rest = [1] * (len(shape) - 2)
    assert_same_bits(x * layer.weight.reshape(-1, *rest) + layer.bias.reshape(-1, *rest), plain(x))
    per_channel = QuantScaleBias(3, input_quant=catalog["int8_per_tensor"].replace(granularity=PerAxis(1)))
    if x.numel():
        assert per_channel(x).shape == shape
    with pytest.raises(ValueError, match=r"`x` must be \(batch, 3, ...\), got shape \(3,\)"):
        layer(torch.randn(3))


# --- batch normalisation ----------------------------------------------------------------------------------------------


def trained_norm(kind: type[Any], channels: int, **keywords: Any) -> Any:
    norm = kind(channels, **keywords)
    for tensor in (*norm.parameters(), norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm.eval()


def test_batch_normalisation_is_a_scale_and_a_bias() -> None:
    for keywords in ({}, {"affine": False}):
        norm, x = trained_norm(nn.BatchNorm2d, 3, **keywords), torch.randn(2, 3, 4, 4)
        layer = batch_norm_to_scale_bias(norm, weight_quant=None)
        torch.testing.assert_close(layer(x), norm(x))
        assert not layer.training
    assert batch_norm_to_scale_bias(norm, weight_bits=4, input_quant="int8_per_tensor")(x).shape == x.shape


LAYERS: list[tuple[Any, tuple[int, ...], type[Any]]] = [
    (quantized.QuantLinear(4, 6, weight_quant=None), (5, 4), nn.BatchNorm1d),
    (nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 5, 5), nn.BatchNorm2d),
    (quantized.QuantConvTranspose1d(4, 6, 3, groups=2, weight_quant=None), (2, 4, 5), nn.BatchNorm1d),
    (nn.ConvTranspose3d(4, 6, 2, bias=False), (1, 4, 2, 2, 2), nn.BatchNorm3d),
]


@pytest.mark.parametrize(("layer", "shape", "kind"), LAYERS, ids=lambda v: type(v).__name__)
def test_batch_normalisation_is_folded_into_the_layer_before(layer: Any, shape: tuple[int, ...], kind: Any) -> None:
    torch.manual_seed(0)
    norm, x, weight = trained_norm(kind, 6), torch.randn(shape), layer.weight
    want = norm(layer(x))
    merge_batch_norm(layer, norm)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)
    assert layer.weight is weight
    assert isinstance(layer.bias, nn.Parameter)


def test_folding_refuses_before_anything_changes() -> None:
    layer = quantized.QuantConv2d(3, 4, 1, weight_source="learned")
    norm = trained_norm(nn.BatchNorm2d, 4)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for other, error, message in (
        (nn.LayerNorm(4), TypeError, "`norm` must be a batch normalisation, got LayerNorm"),
        (trained_norm(nn.BatchNorm2d, 3), ValueError, "`norm` must have the 4 channels of `layer`, got 3"),
        (nn.BatchNorm2d(4, track_running_stats=False), ValueError, "must have running statistics"),
    ):
        with pytest.raises(error, match=message):
            merge_batch_norm(layer, other)
    with pytest.raises(TypeError, match="`layer` must be linear or a convolution, got Embedding"):
        merge_batch_norm(nn.Embedding(3, 4), norm)
    layer(torch.randn(1, 3, 2, 2))
    with pytest.raises(ValueError, match="QuantConv2d, `weight_quant`: its scale is set already"):
        merge_batch_norm(layer, norm)
    assert_same_bits(before["weight"], layer.weight)
