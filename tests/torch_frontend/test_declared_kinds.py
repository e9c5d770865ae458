"""Declared quantizers in layers of every kind: the bits of the descriptions that they resolve to."""

from typing import Any

import pytest
import torch
from torch import nn

from samebits.core import quant
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import nn as quantized
from samebits.torch_frontend import quant as components
from samebits.torch_frontend.nn import merge_batch_norm, quantize_model

IMAGE, SEQUENCE = torch.randn(3, 4, 6), torch.randn(5, 2, 4)
STATES = ("input_quant", "hidden_quant")
HEADS = ("input_quant", "query_quant", "key_quant", "value_quant", "context_quant")
KINDS: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[str, ...], tuple[torch.Tensor, ...]]] = [
    ("QuantConv1d", (4, 6, 3), {"groups": 2}, ("input_quant",), (IMAGE,)),
    ("QuantConvTranspose1d", (4, 6, 3), {"groups": 2}, ("input_quant",), (IMAGE,)),
    ("QuantEmbedding", (5, 4), {}, (), (torch.tensor([1, 3]),)),
    ("QuantRNN", (4, 3), {"bidirectional": True}, STATES, (SEQUENCE,)),
    ("QuantLSTM", (4, 3), {}, (*STATES, "cell_quant"), (SEQUENCE,)),
    ("QuantMultiheadAttention", (4, 2), {}, HEADS, (SEQUENCE,) * 3),
]


def output(result: Any) -> torch.Tensor:
    tensor: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return tensor


@pytest.mark.parametrize(("kind", "sizes", "options", "roles", "inputs"), KINDS, ids=[kind[0] for kind in KINDS])
def test_declarations_are_what_they_resolve_to(
    kind: str, sizes: Any, options: Any, roles: tuple[str, ...], inputs: tuple[torch.Tensor, ...]
) -> None:
    """In training, two steps, of which the second meets what the first has learned."""
    layers = []
    for room in (quant, components, None):
        source: Any = room or quant
        weight, act = source.Int8WeightPerChannelFloat, source.Int8ActPerTensorFloat
        if room is None:
            weight, act = weight.quantizer, act.quantizer
        acts = dict.fromkeys(roles, act)
        layers.append(getattr(quantized, kind)(*sizes, weight_quant=weight, **acts, **options))
    weights = {name: p for name, p in layers[-1].state_dict().items() if "quant" not in name}
    for layer in layers:
        layer.load_state_dict(weights, strict=False)
    for _ in range(2):
        first, second, third = (output(layer(*inputs)) for layer in layers)
        assert_same_bits(third, first)
        assert_same_bits(third, second)


@pytest.mark.parametrize("room", [quant, components])
def test_biases_with_scales_of_their_own_and_of_the_sum(room: Any) -> None:
    weight, act = room.Int8WeightPerChannelFloat, room.Int8ActPerTensorFloat
    for bias in (room.Int8Bias, room.Int8BiasPerTensorFloatInternalScaling):
        heads = quantized.QuantMultiheadAttention(
            4, 2, weight_quant=weight, input_quant=act, context_quant=act, bias_quant=bias
        )
        assert heads(SEQUENCE, SEQUENCE, SEQUENCE)[0].shape == SEQUENCE.shape
        each: Any = heads.weight_quant
        each["in_proj_weight"].disable_quant = True
        assert heads(SEQUENCE, SEQUENCE, SEQUENCE)[0].shape == SEQUENCE.shape
        layer = quantized.QuantConvTranspose1d(4, 2, 3, weight_quant=weight, input_quant=act, bias_quant=bias)
        assert layer(IMAGE).shape == (3, 2, 8)


def test_models_are_swapped_for_declared_layers_and_norms_folded_into_them() -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    weights = model[0].weight
    quantize_model(model, {"*": {"weight_quant": quant.Int8WeightPerTensorFloat, "weight_bit_width": 4}})
    conv: Any = model[0]
    assert conv.weight is weights
    assert conv.weight_quant.bit_width() == 4
    norm: Any = model[1]
    norm(torch.randn(9, 4))
    before = conv.weight_quant.scale().clone()
    merge_batch_norm(conv, norm)
    assert conv.weight_quant.scale() != before
    assert conv.weight_quant.scale() == conv.weight.abs().max() / 7
