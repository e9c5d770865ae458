"""Dynamic quantization: against torch.ao's parameters, core's contraction, and JAX."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from samebits.core import choose_qparams
from samebits.core import matmul as core_matmul
from samebits.core.observing import Observer, QConfig, default_dynamic_qconfig, default_qconfig
from samebits.jax_backend import interop
from samebits.jax_backend.ptq.dynamic import quantize_dynamic as in_jax
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy
from samebits.torch_frontend.ptq.dynamic import quantize_dynamic


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5)).eval()


@pytest.mark.filterwarnings("ignore")  # torch announces the end of these
def test_parameters_and_results_of_torch() -> None:
    """Codes and scales of weights are theirs, bit for bit; results differ in the order of a few roundings."""
    model, x = mlp(), torch.randn(30, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    own: Any = quantize_dynamic(model)
    weight = theirs[0].weight()
    assert_same_bits(own[0].weight, weight.int_repr())
    assert own[0].weight_quant.scale.item() == np.float32(weight.q_scale())
    scale, zero = torch._choose_qparams_per_tensor(x, True)
    qparams = own[0].input_quant.qparams(x)
    assert (qparams.scale.item(), qparams.zero_point.item()) == (np.float32(scale), zero)
    with torch.no_grad():
        torch.testing.assert_close(own(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_a_layer_is_what_core_says() -> None:
    model, x = mlp(), torch.randn(9, 12)
    q_x, q_w = default_dynamic_qconfig.activation.quantizer, default_dynamic_qconfig.weight.quantizer
    floats, data = model[0].weight.detach().numpy(), x.numpy()
    wanted = core_matmul.linear(
        q_x, data, choose_qparams(q_x, data), q_w, floats, choose_qparams(q_w, floats), model[0].bias.detach().numpy()
    )
    with torch.no_grad():
        assert_same_bits(wanted, quantize_dynamic(model)[0](x))


def test_jax_has_the_same_bits() -> None:
    model, x = mlp(), torch.randn(30, 12)
    rngs = nnx.Rngs(0)
    other = nnx.Sequential(nnx.Linear(12, 20, rngs=rngs), nnx.relu, nnx.Linear(20, 5, rngs=rngs))
    interop.load_state_dict(other, {name: to_numpy(v) for name, v in model.state_dict().items()})
    own, theirs = quantize_dynamic(model), in_jax(other)
    for name, value in interop.state_dict(theirs).items():
        assert_same_bits(own.state_dict()[name], value, call=name)
    with torch.no_grad():
        assert_same_bits(own(x), nnx.jit(theirs)(to_jax(x.numpy())))


def test_recurrent_layers() -> None:
    """The fake-quantized layer, which quantizes its float weights at each call, bit for bit."""
    torch.manual_seed(0)
    for kind in (nn.LSTM, nn.RNN):
        layer = kind(6, 8, 2, batch_first=True).eval()
        own: Any = quantize_dynamic(nn.ModuleList([layer]))[0]
        x = torch.randn(3, 5, 6)
        with torch.no_grad():
            y = own(x)[0]
            torch.testing.assert_close(y, layer(x)[0], rtol=0.1, atol=0.05)
            from samebits.torch_frontend.nn import quantize_model

            q = default_dynamic_qconfig
            rules = {"weight_quant": q.weight.quantizer, "input_quant": q.activation.quantizer}
            rules["hidden_quant"] = q.activation.quantizer
            assert_same_bits(quantize_model(copy.deepcopy(layer), {"*": rules})(x)[0], y)
        assert own.weight_hh_l1.dtype == torch.int8


def test_float16_weights() -> None:
    model, x = mlp(), torch.randn(3, 12)
    with torch.no_grad():
        model[0].weight[0, 0] = 1e6
        own = quantize_dynamic(model, dtype=torch.float16)
        assert own[0].weight.dtype == torch.float16
        assert own[0].weight[0, 0] == 65504
        halves = copy.deepcopy(model)
        halves[0].weight.copy_(own[0].weight)
        halves[2].weight.copy_(own[2].weight)
        assert_same_bits(own(x), halves(x))


def test_which_layers() -> None:
    one: Any = quantize_dynamic(mlp(), {"2"})
    assert [type(m).__name__ for m in one] == ["Linear", "ReLU", "QuantLinear"]
    other: Any = quantize_dynamic(mlp(), {nn.Linear: default_dynamic_qconfig, "2": None})
    assert [type(m).__name__ for m in other] == ["QuantLinear", "ReLU", "Linear"]
    per_token = QConfig(Observer("placeholder", "int8_affine_per_token"), default_qconfig.weight)
    third: Any = quantize_dynamic(mlp(), {nn.Linear: per_token})
    assert third[0].input_quant.quantizer == per_token.activation.quantizer
    model = mlp()
    assert quantize_dynamic(model, inplace=True) is model


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "`dtype` must be torch.qint8 or torch.float16, got torch.quint8", (None, torch.quint8)),
        (ValueError, "nothing quantizes GRU; kinds are Linear, LSTM, RNN", ({nn.GRU},)),
        (ValueError, "there are none of LSTM", ({nn.LSTM},)),
        (TypeError, "must hold kinds of layers and names, got 3", ({3},)),
        (ValueError, "'9' fits no layer", ({"9"},)),
        (ValueError, "must be a 'placeholder', got 'min_max'", ({nn.Linear: default_qconfig},)),
    ],
)
def test_refusals(error: type[Exception], match: str, arguments: tuple[Any, ...]) -> None:
    model = mlp()
    before = list(model.modules())
    with pytest.raises(error, match=match):
        quantize_dynamic(model, *arguments, inplace=True)
    assert list(model.modules()) == before
