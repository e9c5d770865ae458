"""What layers do with proxies: biases, several weights, compiled programs, what is off, codes that become shorter."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from samebits.core import QParams, quant
from samebits.core.inject import Injector, value
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import components, fake_quantize
from samebits.torch_frontend import quant as with_components
from samebits.torch_frontend.nn import (
    ActQuantProxy,
    BiasQuantProxy,
    ClampQuantProxy,
    QuantHardTanh,
    QuantIdentity,
    QuantLinear,
    QuantLSTM,
    TruncQuantProxy,
    WeightQuantProxyFromInjector,
)


class Binary(Injector):
    """The quantizer of the tutorial, of which the layer is not known yet."""

    tensor_quant = components.BinaryQuant
    scaling_impl = components.ParameterScaling
    scaling_init = 0.1


class FromMax(Binary):
    """Of a weight: begins with its largest magnitude."""

    proxy_class = WeightQuantProxyFromInjector
    signed = True

    @value
    def scaling_init(module: Any) -> Any:
        layers = module if isinstance(module, tuple) else (module,)
        return torch.cat([layer.weight.reshape(-1) for layer in layers]).abs().max()


def linear(weight_quant: Any, **fields: Any) -> Any:
    return QuantLinear(8, 4, weight_quant=weight_quant, **fields)


def test_nothing_is_quantized_while_it_is_off() -> None:
    layer, x = linear(quant.Int8WeightPerTensorFloat, input_quant="int8_per_tensor"), torch.randn(3, 8)
    on = layer(x)
    layer.weight_quant.disable_quant = True
    off = layer(x)
    assert_same_bits(off, nn.functional.linear(layer.input_quant(x), layer.weight, layer.bias))
    layer.weight_quant.disable_quant = False
    assert_same_bits(layer(x), on)
    assert not torch.equal(on, off)


def test_components_without_a_description_give_values() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x / 2, torch.full((), 0.5), torch.zeros(()), torch.full((), 7.0)

    layer = linear(Injector.let(tensor_quant=Half, signed=True), input_quant="int8_per_tensor")
    x = torch.randn(3, 8)
    assert layer.weight_quant.quantizer is None
    assert_same_bits(layer(x), nn.functional.linear(layer.input_quant(x), layer.weight / 2, layer.bias))
    assert (float(layer.weight_quant.scale()), float(layer.weight_quant.bit_width())) == (0.5, 7)
    with pytest.raises(TypeError, match="must be a module or a Quantizer, got 3"):
        linear(Injector.let(tensor_quant=3))


@pytest.mark.parametrize("room", [quant, with_components])
def test_a_bias_has_the_scale_of_input_times_weight(room: Any) -> None:
    bias, holder = torch.tensor([0.3, -0.7, 200.0]), nn.Linear(2, 3)
    proxy = BiasQuantProxy(holder, room.Int16Bias)
    x_scale, w_scale = torch.tensor(0.5), torch.tensor([[0.25], [0.5], [0.003]])
    q = quant.Int16Bias.quantizer
    for given in (w_scale, w_scale[0, 0]):
        scale = (x_scale * given).reshape(-1)
        wanted = torch.stack([fake_quantize(q, b, QParams(s)) for b, s in zip(bias, scale.expand(3), strict=True)])
        assert_same_bits(proxy(bias, x_scale, given), wanted)
    with pytest.raises(RuntimeError, match="Int16Bias takes the scale of input and weight"):
        proxy(bias)
    own = BiasQuantProxy(holder, room.Int8BiasPerTensorFloatInternalScaling)
    assert_same_bits(own(bias), fake_quantize(quant.Int8BiasPerTensorFloatInternalScaling.quantizer, bias))
    proxy.disable_quant = True
    assert_same_bits(proxy(bias), bias)


def test_codes_become_shorter_and_are_clamped() -> None:
    s, z = torch.tensor(0.25), torch.tensor(0.0)
    codes = torch.tensor([-2048.0, -9.0, -8.0, 0.0, 7.0, 24.0, 2047.0])
    for declared, rounding in ((quant.TruncTo8bit, torch.floor), (quant.RoundTo8bit, torch.round)):
        y, scale, zero, bits = TruncQuantProxy(nn.Identity(), declared)(codes * s, s, z, torch.tensor(12.0), True)
        assert (float(scale), float(zero), float(bits)) == (4.0, 0, 8)
        assert torch.equal(y, rounding(codes / 16).clamp(-128, 127) * 4)
    clamp = ClampQuantProxy(nn.Identity(), Injector.let(bit_width=8, signed=True, narrow_range=False))
    y, scale, zero, bits = clamp(codes * s, s)
    assert torch.equal(y, codes.clamp(-128, 127) * s)
    assert (float(scale), float(zero), float(bits)) == (0.25, 0, 8)


def test_layers_with_several_weights_hold_a_proxy_of_each() -> None:
    lstm: Any = QuantLSTM(3, 4, weight_quant=FromMax, hidden_quant=quant.Int8ActPerTensorFloat)
    plain = nn.LSTM(3, 4)
    for layer in (lstm, copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        layer.load_state_dict(plain.state_dict(), strict=False)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            assert_same_bits(layer.weight_quant[name].scale(), getattr(plain, name).detach().abs().max())
        assert isinstance(layer.hidden_quant, ActQuantProxy)
        assert layer(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)
    with pytest.raises(TypeError, match="QuantLSTM: `hidden_quant` must be a quantizer of activations"):
        QuantLSTM(3, 4, hidden_quant=quant.Int8WeightPerTensorFloat)


def test_a_range_of_the_layer_is_that_of_its_quantizer() -> None:
    layer: Any = QuantHardTanh(quant.Int8ActPerTensorFloatMinMaxInit, min_val=-0.5, max_val=0.5)
    assert_same_bits(layer.act_quant.scale(), torch.tensor(0.5 / 128))


def test_a_layer_quantizes_its_bias() -> None:
    x, scales = torch.randn(5, 8), {"weight_quant": "int8_per_channel", "input_quant": "int8_per_tensor"}
    torch.manual_seed(0)
    plain: Any = QuantLinear(8, 4, bias_quant=quant.Int16Bias.quantizer, **scales)
    for declared in (quant.Int16Bias, with_components.Int16Bias):
        layer: Any = QuantLinear(8, 4, bias_quant=declared, **scales)
        layer.load_state_dict(plain.state_dict())
        assert_same_bits(layer(x), plain(x), inputs=x)
        layer.bias_quant.disable_quant = True
        assert not torch.equal(layer(x), plain(x))
    own: Any = QuantLinear(8, 4, bias_quant=quant.Int8BiasPerTensorFloatInternalScaling, **scales)
    without = copy.deepcopy(own)
    without.bias_quant.disable_quant = True
    with torch.no_grad():
        without.bias.copy_(own.bias_quant(own.bias))
    assert_same_bits(own(x), without(x))
    fields: Any = {"input_quant": quant.Int8ActPerTensorFloat, "input_quant_delay_steps": 1}
    waiting: Any = QuantLinear(8, 4, weight_quant=None, **fields)
    late: Any = QuantLinear(8, 4, weight_quant="int8_per_channel", bias_quant=quant.Int16Bias, **fields)
    late.load_state_dict(waiting.state_dict())
    assert_same_bits(late(x), nn.functional.linear(x, late.weight_quant(late.weight), waiting.bias))
    weightless: Any = QuantLinear(8, 4, bias_quant=quant.Int16Bias, weight_quant=quant.Int8WeightPerTensorFloat)
    with pytest.raises(ValueError, match="has no scale, since `input_quant` is None"):
        weightless(x)


def test_proxies_compile_as_one_program_that_training_does_not_recompile() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        linear(quant.Int8WeightPerChannelFloat, input_quant=quant.Int8ActPerTensorFloat, bias_quant=quant.Int16Bias),
        QuantIdentity(quant.Uint8ActPerTensorFloat.let(quant_delay_steps=1)),
        QuantLinear(4, 4, weight_quant=FromMax, input_quant=with_components.Int8ActPerTensorFloat),
    )
    model(torch.randn(3, 8))
    other = copy.deepcopy(model)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled: Any = torch.compile(other, backend=counter, fullgraph=True)
    for _ in range(3):
        x = torch.randn(3, 8)
        y, z = model(x), compiled(x)
        assert_same_bits(y, z, inputs=x)
        for result in (y, z):
            result.sum().backward()
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None)
            assert a.grad is None or torch.equal(a.grad, b.grad)
    assert counter.frame_count == 1
    for a, b in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)
