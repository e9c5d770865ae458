"""Biases as integer codes of the scale that sums have: that of the input times that of the weight."""

from typing import Any

import numpy as np
import pytest
import torch

from samebits import core
from samebits.core import QParams, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend.nn import QuantConv2d, QuantConvTranspose1d, QuantLinear

CONSTANT = catalog["uint8_affine_per_tensor"].replace(source="constant", scale_value=0.03, zero_point_value=7)
WEIGHTS = {"int8_per_channel": (5,), "int8_per_tensor": ()}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("bias", ["int8_per_tensor", "int16_per_tensor"])
def test_the_bias_is_codes_of_the_scale_of_the_sum(weight: str, bias: str) -> None:
    """By core's functions alone: a bias quantized per output with the product of scales, some of it clamped."""
    torch.manual_seed(0)
    layer = QuantLinear(9, 5, weight_quant=weight, bias_quant=bias, input_quant=CONSTANT)
    x = torch.randn(3, 9)
    w, b = (p.detach().numpy() for p in (layer.weight, layer.bias))
    x_qparams, w_qparams = QParams(np.float32(0.03), np.int32(7)), core.choose_qparams(catalog[weight], w)
    scale = np.broadcast_to(np.float32(0.03) * np.asarray(w_qparams.scale).reshape(WEIGHTS[weight]), 5)
    q_b = catalog[bias].replace(granularity=core.PerAxis(0))
    b_hat = core.fake_quantize(q_b, b, QParams(scale))
    assert (np.abs(b / scale) > 127).any()
    want = core.linear(CONSTANT, x.numpy(), x_qparams, catalog[weight], w, w_qparams, b_hat)
    assert_same_bits(want, layer(x))
    codes = b_hat / scale
    assert np.abs(codes - np.round(codes)).max() < 1e-2


def test_transposed_convolutions_in_groups_and_gradients() -> None:
    torch.manual_seed(0)
    layer = QuantConvTranspose1d(4, 6, 3, groups=2, bias_quant="int16_per_tensor", input_quant=CONSTANT)
    x = torch.randn(2, 4, 5, requires_grad=True)
    plain = QuantConvTranspose1d(4, 6, 3, groups=2, input_quant=CONSTANT)
    plain.load_state_dict(layer.state_dict())
    assert plain.weight_quant is not None
    scale = (0.03 * plain.weight_quant.qparams(plain.weight).scale).reshape(-1).repeat(2)
    assert plain.bias is not None
    with torch.no_grad():
        plain.bias.copy_((plain.bias / scale).round() * scale)
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-6)
    layer(x).square().sum().backward()
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert bool((layer.bias.grad != 0).all())


def test_without_a_bias_there_is_nothing_to_quantize() -> None:
    layer = QuantConv2d(2, 3, 2, bias=False, bias_quant="int8_per_tensor")
    layer(torch.randn(1, 2, 4, 4))


def test_a_bias_waits_as_long_as_input_and_weight_do() -> None:
    q = CONSTANT.replace(delay=1)
    layer, x = QuantLinear(3, 2, bias_quant="int8_per_tensor", input_quant=q), torch.zeros(1, 3)
    assert_same_bits(layer.bias[None], layer(x))
    assert not torch.equal(layer(x), layer.bias[None])


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"bias_quant": "uint8_affine_per_tensor"}, ValueError, "`bias_quant`: must be of symmetric integers"),
        ({"bias_quant": "float8_e4m3fn_per_tensor"}, ValueError, "`bias_quant`: must be of symmetric integers"),
        ({"bias_quant": "int8_per_tensor", "bias_source": "learned"}, ValueError, "scale=learned"),
        ({"bias_bits": 4}, TypeError, "QuantLinear cannot use `bias_bits`: `bias_quant` is None"),
    ],
)
def test_construction_refuses(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QuantLinear(3, 2, **keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "QuantLinear, `bias_quant`: has no scale, since `input_quant` is None"),
        ({"input_quant": CONSTANT, "weight_quant": None}, "has no scale, since `weight_quant` is None"),
        ({"input_quant": "int8_affine_per_token"}, "`input_quant` must be per tensor, got per token"),
        ({"input_quant": CONSTANT, "weight_quant": "int4_per_group32"}, "`weight_quant` must be per axis 0, got"),
    ],
)
def test_a_bias_without_its_scale_is_refused(keywords: dict[str, Any], message: str) -> None:
    layer = QuantLinear(64, 2, bias_quant="int8_per_tensor", **keywords)
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(4, 64))
