"""Layers beside those of Brevitas with the same declaration, where its sums of floats are exact.

Scales are powers of two, so that products of codes and scales are exact floats and so are their sums; without a bias.
"""

from typing import Any

import brevitas.nn
import brevitas.quant
import pytest
import torch

from samebits.core import quant
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import nn as ours

CASES: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("QuantLinear", (24, 5), {}, (4, 24)),
    ("QuantConv1d", (4, 6, 3), {"groups": 2, "dilation": 2, "padding": 1}, (2, 4, 9)),
    ("QuantConv2d", (4, 8, 3), {"stride": 2, "padding": 1, "padding_mode": "reflect"}, (2, 4, 7, 8)),
    ("QuantConv2d", (4, 4, (3, 2)), {"groups": 4, "padding": "same"}, (2, 4, 7, 8)),
    ("QuantConv3d", (2, 3, 2), {"stride": (1, 2, 1)}, (1, 2, 4, 5, 4)),
    ("QuantConvTranspose1d", (4, 6, 3), {"stride": 2, "output_padding": 1}, (2, 4, 5)),
    ("QuantConvTranspose2d", (4, 6, 3), {"groups": 2, "padding": 1, "dilation": 2}, (2, 4, 5, 6)),
]


@pytest.mark.parametrize(("kind", "sizes", "options", "shape"), CASES)
def test_layers_have_the_bits_of_brevitas(
    kind: str, sizes: tuple[Any, ...], options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    weight, act = "Int8WeightPerTensorFixedPoint", "Int8ActPerTensorFixedPoint"
    theirs = getattr(brevitas.nn, kind)(
        *sizes,
        bias=False,
        weight_quant=getattr(brevitas.quant, weight),
        input_quant=getattr(brevitas.quant, act),
        **options,
    )
    layer = getattr(ours, kind)(
        *sizes, bias=False, weight_quant=getattr(quant, weight), input_quant=getattr(quant, act), **options
    )
    layer.load_state_dict({"weight": theirs.weight.detach()}, strict=False)
    x = torch.randn(shape)
    for module in (theirs, layer):
        module(x)  # a step of training sets the scale of the input, which Brevitas restricts in evaluation alone
        module.eval()
    assert_same_bits(theirs(x) + 0.0, layer(x))


def test_embeddings_have_the_bits_of_brevitas() -> None:
    name, index = "Int8WeightPerTensorFloat", torch.tensor([[0, 3], [6, 3]])
    theirs = brevitas.nn.QuantEmbedding(7, 4, weight_quant=getattr(brevitas.quant, name))
    layer = ours.QuantEmbedding(7, 4, weight_quant=getattr(quant, name))
    layer.load_state_dict({"weight": theirs.weight.detach()}, strict=False)
    assert_same_bits(theirs(index), layer(index))


@pytest.mark.parametrize("kind", ["QuantReLU", "QuantHardTanh", "QuantSigmoid", "QuantTanh"])
def test_activations_have_the_bits_of_brevitas(kind: str) -> None:
    """In training: the scale of the first tensor; of a hard tanh that of its range, which alone Brevitas clamps to."""
    options = {"min_val": -1.0, "max_val": 1.0} if kind == "QuantHardTanh" else {}
    name = "Uint8ActPerTensorFloat" if kind in ("QuantReLU", "QuantSigmoid") else "Int8ActPerTensorFloat"
    name += "MinMaxInit" if options else ""
    theirs = getattr(brevitas.nn, kind)(act_quant=getattr(brevitas.quant, name), **options)
    layer, x = getattr(ours, kind)(getattr(quant, name), **options), torch.randn(5, 40)
    assert_same_bits(theirs(x) + 0.0, layer(x))  # Brevitas keeps the sign of zero
