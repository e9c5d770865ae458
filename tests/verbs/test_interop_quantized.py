"""Quantized models of torch as flax models and back: the same bits, in training too; every row of the table tested."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from samebits.core import catalog
from samebits.jax_backend import interop
from samebits.jax_backend.interop.pairs import PAIRS
from samebits.proofs import assert_same_bits
from samebits.torch_frontend import nn as torch_nn

from .test_interop_models import LAYERS, assert_same_model, channels_last, random

LEARNED = catalog["uint8_affine_per_tensor"].replace(source="statistic_then_learned", steps=2)
RUNNING = catalog["uint8_per_tensor"].replace(source="running_statistic")
STOCHASTIC = catalog["int8_per_tensor"].replace(rounding="stochastic")


def quantized(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        torch_nn.TensorQuantizer(RUNNING),
        torch_nn.QuantConv2d(2, 4, 3, stride=2, padding=1, input_quant=LEARNED, weight_quant="int4_per_channel"),
        torch_nn.QuantReLU(RUNNING),
        nn.Flatten(),
        torch_nn.QuantIdentity(STOCHASTIC),
        torch_nn.QuantLinear(36, 5, input_quant="uint8_affine_per_tensor", output_quant=RUNNING, **options),
    )


def test_quantized_networks_have_the_same_bits_there_and_back() -> None:
    """In training, where the states learn, and in evaluation; codes are contracted."""
    model, run = quantized(), nnx.jit(lambda module, x: module(x))
    flax = interop.to_flax(model)
    for seed in range(2):
        x = random(4, 2, 6, 6, seed=seed)
        with torch.no_grad():
            assert_same_bits(model(torch.from_numpy(x)), run(flax, jnp.asarray(channels_last(x))))
    for name, tensor in model.state_dict().items():
        assert_same_bits(tensor, interop.state_dict(flax)[name], call=name)
    model.eval()
    found = interop.to_flax(model)
    assert_same_bits(model(torch.from_numpy(x)).detach(), run(found, jnp.asarray(channels_last(x))))
    back = interop.to_torch(found)
    assert_same_model(model, back)
    assert_same_bits(model(torch.from_numpy(x)).detach(), back(torch.from_numpy(x)).detach())


ACTIVATIONS: list[Any] = [torch_nn.QuantSigmoid, torch_nn.QuantTanh, torch_nn.QuantSiLU, torch_nn.QuantGELU]
CODES: dict[str, Any] = {"input_quant": "int8_per_tensor"}
OVER_CODES = {
    "conv1d": (torch_nn.QuantConv1d(4, 6, 3, padding=1, groups=2, dilation=2, **CODES), (2, 4, 9)),
    "conv2d": (torch_nn.QuantConv2d(4, 6, 3, groups=2, bias_quant="int8_per_tensor", **CODES), (2, 4, 5, 5)),
    "conv3d": (torch_nn.QuantConv3d(2, 3, 2, **CODES), (2, 2, 4, 4, 4)),
    "transposed 1d": (torch_nn.QuantConvTranspose1d(4, 6, 3, stride=2, padding=1, **CODES), (2, 4, 5)),
    "transposed 2d": (torch_nn.QuantConvTranspose2d(4, 6, 3, stride=2, output_padding=1, **CODES), (2, 4, 3, 3)),
    "transposed 3d": (torch_nn.QuantConvTranspose3d(2, 3, 2, weight_quant="int8_per_tensor", **CODES), (1, 2, 3, 3, 3)),
    "linear": (torch_nn.QuantLinear(7, 3, bias_quant="int8_per_tensor", **CODES), (5, 7)),
    "hard tanh": (torch_nn.QuantHardTanh(min_val=-2.0, max_val=1.5), (5, 7)),
}


@pytest.mark.parametrize("name", OVER_CODES)
def test_quantized_layers_have_the_same_bits_there_and_back(name: str) -> None:
    layer, shape = OVER_CODES[name]
    x, images = random(*shape), len(shape) > 2
    flax = interop.to_flax(layer.eval())
    y = np.asarray(flax(jnp.asarray(channels_last(x) if images else x)))
    with torch.no_grad():
        want = layer(torch.from_numpy(x))
        assert_same_bits(want, np.moveaxis(y, -1, 1) if images else y)
        assert_same_bits(want, interop.to_torch(flax)(torch.from_numpy(x)))


def test_tables_and_activations_have_partners() -> None:
    rows = torch.tensor([[0, 3], [9, 9]])
    layer = torch_nn.QuantEmbedding(10, 6).eval()
    assert_same_bits(layer(rows).detach(), interop.to_flax(layer)(jnp.asarray(rows.numpy())))
    for kind in ACTIVATIONS:
        flax = interop.to_flax(kind())
        assert type(flax).__name__ == type(interop.to_torch(flax)).__name__ == kind.__name__
    assert interop.to_flax(torch_nn.QuantGELU(approximate="tanh")).approximate == "tanh"


def test_the_tables_quantizers_are_those_of_the_layers() -> None:
    flax = interop.to_flax(quantized())
    conv = flax.layers[1]
    assert (conv.input_quant.quantizer, conv.weight_quant.quantizer) == (LEARNED, catalog["int4_per_channel"])
    assert conv.output_quant is None
    assert interop.to_torch(flax)[1].weight_quant.quantizer == catalog["int4_per_channel"]


def test_what_is_shared_stays_shared() -> None:
    quantizer, activation = torch_nn.TensorQuantizer(RUNNING), nn.ReLU()
    first, second = (torch_nn.QuantLinear(3, 3, input_quant=quantizer) for _ in range(2))
    model = nn.Sequential(first, activation, second, activation, first)
    flax = interop.to_flax(model)
    assert flax.layers[0] is flax.layers[4]
    assert flax.layers[0].input_quant is flax.layers[2].input_quant
    x = random(4, 3)
    assert_same_bits(model(torch.from_numpy(x)).detach(), flax(jnp.asarray(x)))
    back: Any = interop.to_torch(flax)
    assert back[0] is back[4]
    assert back[0].input_quant is back[2].input_quant
    assert_same_bits(quantizer.scale, back[0].input_quant.scale)
    assert_same_model(model, interop.to_torch(interop.to_flax(model)))


def test_the_table_has_no_row_that_is_not_tested() -> None:
    tested = {type(layer) for layer, _ in LAYERS.values()} | {type(m) for m in quantized().modules()}
    tested |= {nn.Embedding, nn.MultiheadAttention, torch_nn.QuantEmbedding, *ACTIVATIONS}
    tested |= {type(layer) for layer, _ in OVER_CODES.values()}
    tested |= {torch_nn.PrototypeQuantizer}  # in test_interop_prototypes.py
    assert {pair.torch_class for pair in PAIRS} == tested - {nn.Sequential}
