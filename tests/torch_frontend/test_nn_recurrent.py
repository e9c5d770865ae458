"""Recurrent layers: torch's where nothing is quantized, the verbs of core step by step where all is."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samebits import core
from samebits.core import QParams, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import nn as quantized
from samebits.torch_frontend.nn import QuantLSTM, QuantRNN, quantize_model

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False, "bidirectional": True},
]
KINDS = [("RNN", {"nonlinearity": "relu"}), ("RNN", {}), ("LSTM", {})]
INPUT = catalog["uint8_affine_per_tensor"].replace(source="constant", scale_value=0.03, zero_point_value=128)
STATE = catalog["int8_per_tensor"].replace(source="constant", scale_value=1 / 127)


def flat(results: Any) -> list[torch.Tensor]:
    output, states = results
    return [output, *(states if isinstance(states, tuple) else (states,))]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_without_quantizers_layers_are_torchs(kind: str, more: dict[str, Any], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = getattr(nn, kind)(3, 4, **options, **more)
    layer = getattr(quantized, f"Quant{kind}")(3, 4, weight_quant=None, **options, **more)
    layer.load_state_dict(plain.state_dict())
    x, depth = torch.randn(5, 5, 3), options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    state = torch.randn(depth, 5, 4)
    given: Any = state if kind == "RNN" else (state, torch.randn(depth, 5, 4))
    for arguments in ((x,), (x, given), (x[:, 0],)):
        for got, want in zip(flat(layer(*arguments)), flat(plain(*arguments)), strict=True):
            assert got.shape == want.shape
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_steps_contract_codes() -> None:
    """A relu network by core's functions alone, which gives the same bits."""
    torch.manual_seed(0)
    layer = QuantRNN(3, 4, nonlinearity="relu", weight_bits=5, input_quant=INPUT, hidden_quant=STATE)
    x, first = torch.randn(6, 2, 3), torch.randn(1, 2, 4)
    names = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"
    w_ih, w_hh, b_ih, b_hh = (getattr(layer, name).detach().numpy() for name in names)
    q = catalog["int8_per_channel"].replace(bits=5)
    r_ih, r_hh = core.choose_qparams(q, w_ih), core.choose_qparams(q, w_hh)
    p_x, p_h = QParams(np.float32(0.03), np.int32(128)), QParams(np.float32(1 / 127))
    h, outputs = first[0].numpy(), []
    for row in x.numpy():
        gates = core.linear(INPUT, row, p_x, q, w_ih, r_ih, b_ih) + core.linear(STATE, h, p_h, q, w_hh, r_hh, b_hh)
        h = core.fake_quantize(STATE, np.maximum(gates, 0), p_h)
        outputs.append(h)
    output, last = layer(x, first)
    assert_same_bits(np.stack(outputs), output)
    assert_same_bits(h[None], last)


def test_states_learn_and_float_checkpoints_load() -> None:
    torch.manual_seed(0)
    plain = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    running, learned = {"source": "running_statistic"}, {"source": "learned", "gradient": "learned_scale"}
    layer = QuantLSTM(
        3,
        4,
        num_layers=2,
        batch_first=True,
        weight_quant=catalog["int8_per_channel"].replace(**learned),
        input_quant=catalog["int8_per_tensor"].replace(**running),
        hidden_quant=catalog["int8_per_tensor"].replace(**learned, scale_value=1 / 127),
        cell_quant="int16_per_tensor",
    )
    missing = layer.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert "weight_quant.weight_hh_l1.scale" in missing.missing_keys
    x = torch.randn(2, 5, 3)
    output, _ = layer(x)
    output.square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in layer.parameters())
    torch.testing.assert_close(layer(x)[0], plain(x)[0], atol=0.02, rtol=0)
    again = copy.deepcopy(layer).eval()
    fresh = QuantLSTM(
        3, 4, 2, batch_first=True, weight_source="learned", input_quant=layer.input_quant, hidden_quant=STATE
    )
    with pytest.raises(RuntimeError, match=r"Unexpected key.* \"hidden_quant.scale\""):
        fresh.load_state_dict(again.state_dict())


def test_swapped_layers_and_gradients_of_long_sequences() -> None:
    model = nn.Sequential(nn.LSTM(3, 4, 2, bidirectional=True))
    weights = dict(model.named_parameters())
    quantize_model(
        model, {"0": {"weight_bits": 4, "hidden_quant": "int8_per_tensor", "input_quant": "int8_per_tensor"}}
    )
    assert isinstance(model[0], QuantLSTM)
    assert all(weights[name] is p for name, p in model.named_parameters())
    output, _ = model(torch.randn(30, 2, 3))
    output.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert_same_bits(model(torch.ones(3, 2, 3))[0], again(torch.ones(3, 2, 3))[0])
    with pytest.raises(ValueError, match="'0': `proj_size` must be 0, got 2"):
        quantize_model(nn.Sequential(nn.LSTM(3, 4, proj_size=2)))


def test_layers_refuse() -> None:
    layer = QuantLSTM(3, 4)
    packed: Any = nn.utils.rnn.pack_sequence([torch.randn(2, 3)])
    with pytest.raises(TypeError, match="QuantLSTM: `x` must be a tensor, got PackedSequence"):
        layer(packed)
    with pytest.raises(ValueError, match=r"`x` must be sequences of 3 features, got shape \(2, 4\)"):
        layer(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"first states must have shape \(1, 2, 4\), got \(1, 3, 4\)"):
        layer(torch.randn(5, 2, 3), (torch.randn(1, 3, 4), torch.randn(1, 2, 4)))
    with pytest.raises(ValueError, match="must have a step at least"):
        layer(torch.randn(0, 2, 3))
    with pytest.raises(ValueError, match="`nonlinearity` must be 'tanh' or 'relu', got 'gelu'"):
        QuantRNN(3, 4, nonlinearity="gelu")
    with pytest.raises(ValueError, match="`hidden_size` must be at least 1, got 0"):
        QuantRNN(3, 0)
    with pytest.raises(TypeError, match=r"QuantRNN has no keyword `cell_bits`; .* `weight_`, `input_`, `hidden_`"):
        QuantRNN(3, 4, cell_bits=4)
