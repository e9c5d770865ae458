"""Proxies: what layers hold for declared quantizers, made again when layers change, shared, copied, refused."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samebits.core import quant, quant_floats
from samebits.core.inject import DependencyError, Injector, this, value
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import choose_qparams, components, config, fake_quantize
from samebits.torch_frontend import quant as with_components
from samebits.torch_frontend.nn import (
    ActQuantProxy,
    ActQuantProxyFromInjector,
    QuantConv2d,
    QuantConvTranspose2d,
    QuantIdentity,
    QuantLinear,
    QuantReLU,
    WeightQuantProxy,
    WeightQuantProxyFromInjector,
)
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer


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


def test_a_layer_holds_a_proxy_with_the_bits_of_the_description() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 8)
    layer = linear(quant.Int8WeightPerChannelFloat, input_quant=quant.Int8ActPerTensorFloat)
    plain = linear(quant.Int8WeightPerChannelFloat.quantizer, input_quant=quant.Int8ActPerTensorFloat.quantizer)
    made = linear(with_components.Int8WeightPerChannelFloat, input_quant=with_components.Int8ActPerTensorFloat)
    for other in (plain, made):
        other.load_state_dict(layer.state_dict(), strict=False)
    assert isinstance(layer.weight_quant, WeightQuantProxy)
    assert isinstance(layer.input_quant, ActQuantProxy)
    assert isinstance(layer.weight_quant.tensor_quant, TensorQuantizer)
    assert isinstance(made.weight_quant.tensor_quant, components.RescalingIntQuant)
    for _ in range(2):
        y = layer(x)
        assert_same_bits(y, plain(x), inputs=x)
        assert_same_bits(y, made(x), inputs=x)
    q, w = layer.weight_quant, layer.weight
    assert_same_bits(q(w), fake_quantize(quant.Int8WeightPerChannelFloat.quantizer, w.detach()))
    assert q.scale().shape == (4, 1)
    assert_same_bits(q.scale(), w.detach().abs().amax(1, keepdim=True) / 127)
    assert (float(q.zero_point()), float(q.bit_width()), q.is_signed) == (0, 8, True)
    assert set(layer.state_dict()) == {"weight", "bias", *(f"input_quant.tensor_quant.{n}" for n in ("scale", "seen"))}


def test_learned_parameters_of_components_have_their_keys() -> None:
    assert set(linear(FromMax).state_dict()) == {"weight", "bias", "weight_quant.tensor_quant.scaling_impl.value"}


@pytest.mark.parametrize("room", [quant, with_components])
def test_a_learned_scale_begins_at_the_weight_and_begins_again(room: Any) -> None:
    layer = linear(room.Int8WeightPerChannelFloatMSE, weight_bit_width=3).eval()
    q, parameter = layer.weight_quant, next(layer.weight_quant.parameters())
    first = q.scale().clone()
    assert first.isfinite().all()
    with torch.no_grad():
        layer.weight.mul_(4)
    assert_same_bits(q.scale(), first)  # an optimizer changes weights in the same way, so nothing happens by itself
    q.init_tensor_quant()
    assert_same_bits(q.scale(), first * 4)
    assert next(q.parameters()) is parameter
    assert not q.tensor_quant.training


def test_scales_are_asked_for_without_counting() -> None:
    layer = linear(quant.Int8WeightPerTensorFloat, weight_quant_delay_steps=2, input_quant=quant.Int8ActPerTensorFloat)
    layer.input_quant(torch.ones(8))
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    for q in (layer.weight_quant, layer.input_quant):
        assert q.scale() > 0
        assert float(q.zero_point()) == 0
        assert float(q.bit_width()) == 8
    for name, t in layer.state_dict().items():
        assert_same_bits(t, before[name])
    for module in (quant, with_components):
        unseen: Any = QuantReLU(module.Uint8ActPerTensorFloat, bit_width=4).eval().act_quant
        assert float(unseen.bit_width()) == 4
    dynamic: Any = QuantIdentity(quant.Int8DynamicActPerTensorFloat)
    unset: Any = QuantIdentity(quant.Int8ActPerTensorFloat)
    for layer, words in ((dynamic, "is that of each tensor"), (unset, "not set")):
        with pytest.raises(RuntimeError, match=words):
            layer.act_quant.scale()


def test_signed_has_to_be_said() -> None:
    layer = linear(Binary)
    for use in (
        lambda: layer(torch.ones(8)),
        lambda: layer.weight_quant(layer.weight),
        lambda: layer.weight_quant.scale(),
        lambda: layer.weight_quant.qparams(layer.weight),
        lambda: layer.weight_quant.is_signed,
    ):
        with pytest.raises(TypeError, match=r"`signed` is not set in Binary: .*`weight_signed=` \(QuantLinear\)"):
            use()
    assert linear(Binary, weight_signed=True).weight_quant.is_signed


def test_float_state_dicts_set_the_scale_and_optimizers_still_train_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, plain = linear(FromMax), nn.Linear(8, 4)
    parameter = layer.weight_quant.tensor_quant.scaling_impl.value
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.125)
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_quant\.tensor_quant\.scaling_impl\.value"):
        layer.load_state_dict(plain.state_dict())
    monkeypatch.setattr(config, "IGNORE_MISSING_KEYS", True)
    assert not layer.load_state_dict(plain.state_dict()).missing_keys
    assert_same_bits(layer.weight_quant.scale(), plain.weight.detach().abs().max())
    assert layer.weight_quant.tensor_quant.scaling_impl.value is parameter
    layer(torch.ones(8)).sum().backward()
    before = parameter.detach().clone()
    optimizer.step()
    assert parameter.grad is not None
    assert_same_bits(layer.weight_quant.scale(), before - 0.125 * parameter.grad)
    with pytest.raises(RuntimeError, match="Missing key"):  # of anything but a quantizer
        layer.load_state_dict({"weight": plain.weight})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        layer.load_state_dict({**plain.state_dict(), "weight_quant.tensor_quant.scale": torch.ones(())})


def test_what_a_state_dict_brings_for_the_quantizer_stays() -> None:
    layer = linear(FromMax)
    state = {name: t.clone() for name, t in linear(FromMax).state_dict().items()}
    state["weight_quant.tensor_quant.scaling_impl.value"] = torch.tensor(0.75)
    layer.load_state_dict(state)
    assert_same_bits(layer.weight_quant.scale(), torch.tensor(0.75))
    layer.load_state_dict({"bias": state["bias"] + 1}, strict=False)
    layer.load_state_dict({}, strict=False)
    held = nn.Sequential(layer)
    held.load_state_dict({f"0.{name}": t for name, t in state.items()})
    assert_same_bits(layer.weight_quant.scale(), torch.tensor(0.75))


def test_a_shared_proxy_belongs_to_all_its_layers() -> None:
    first, other = linear(FromMax), nn.Linear(8, 4)
    with torch.no_grad():
        other.weight.mul_(100)
    alone = first.weight_quant.scale().clone()
    second = linear(first.weight_quant)
    assert second.weight_quant is first.weight_quant
    assert_same_bits(first.weight_quant.scale(), torch.stack([first.weight, second.weight]).detach().abs().max())
    second.load_state_dict(other.state_dict(), strict=False)
    assert_same_bits(first.weight_quant.scale(), other.weight.detach().abs().max())
    assert not torch.equal(first.weight_quant.scale(), alone)
    both, state = nn.Sequential(first, second), nn.Sequential(linear(FromMax), linear(FromMax)).state_dict()
    for name in list(state):
        if "scaling_impl" in name:
            state[name] = torch.tensor(0.625)
    both.load_state_dict(state)
    assert_same_bits(first.weight_quant.scale(), torch.tensor(0.625))
    both.load_state_dict({n: t for n, t in state.items() if not n.startswith("1.weight_quant")}, strict=False)
    assert_same_bits(first.weight_quant.scale(), torch.tensor(0.625))  # kept under one of its names alone


@pytest.mark.parametrize(
    "declared",
    [
        quant.Int8WeightPerTensorFloat,
        quant.Int8WeightPerChannelFloat,
        quant.ShiftedUint8WeightPerChannelFloat,
        quant.Int8WeightPerChannelFloatMSE,
        with_components.Int8WeightPerTensorFloat,
        with_components.ShiftedUint8WeightPerChannelFloat,
    ],
)
def test_shared_statistics_are_those_of_all_weights(declared: Any) -> None:
    first: Any = QuantConv2d(3, 4, 2, weight_quant=declared)
    second: Any = QuantConv2d(3, 4, 2, weight_quant=first.weight_quant)
    with torch.no_grad():
        second.weight.mul_(3)
    first.weight_quant.init_tensor_quant()
    rows = torch.cat([layer.weight.detach().flatten(1) for layer in (first, second)], dim=1)
    wanted = first.weight_quant.quantizer
    parts = choose_qparams(wanted, rows)[:2]
    for layer in (first, second):
        for found, part in zip(layer.weight_quant.qparams(layer.weight), parts, strict=False):
            assert (found is None) == (part is None)
            assert part is None or torch.equal(found.flatten(), part.flatten())
    for module in (quant, with_components):
        with pytest.raises(ValueError, match="scales of one shape"):
            QuantConv2d(3, 5, 2, weight_quant=linear(module.Int8WeightPerChannelFloat).weight_quant)
        with pytest.raises(ValueError, match="channels along one axis of their weights"):
            QuantConvTranspose2d(
                4, 4, 2, weight_quant=QuantConv2d(4, 4, 2, weight_quant=module.Int8WeightPerChannelFloat).weight_quant
            )
    learned = quant.Int8WeightPerTensorFloat.quantizer.replace(statistic="mean_sigma", learned_sigma=True)
    with pytest.raises(ValueError, match="no scale whose `sigma` is learned"):
        linear(linear(quant.Int8WeightPerTensorFloat.let(quantizer=learned)).weight_quant)
    groups = linear(quant_floats.MXInt8Weight, weight_group_size=4)
    with pytest.raises(ValueError, match="per tensor or per axis, not per group of 4"):
        linear(groups.weight_quant)(torch.ones(8))


@pytest.mark.parametrize("module", [quant, with_components])
def test_shared_statistics_wait_and_draw_as_others_do(module: Any) -> None:
    x = torch.randn(3, 8)
    first = linear(module.Int8WeightPerTensorFloat, weight_quant_delay_steps=2, weight_bit_width=2)
    linear(first.weight_quant)
    assert [torch.equal(first(x), F.linear(x, first.weight, first.bias)) for _ in range(3)] == [True, True, False]
    drawn = linear(module.Int8WeightPerTensorFloat, weight_float_to_int_impl_type="stochastic_round")
    linear(drawn.weight_quant)
    assert not torch.equal(drawn(x), drawn(x))


def test_copies_look_at_their_own_layers() -> None:
    layer = linear(FromMax)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_bits(other.weight_quant.scale(), layer.weight_quant.scale())
        with torch.no_grad():
            other.weight.mul_(2)
        other.weight_quant.init_tensor_quant()
        assert_same_bits(other.weight_quant.scale(), layer.weight_quant.scale() * 2)
        other.load_state_dict({"weight": layer.weight * 4}, strict=False)
        assert_same_bits(other.weight_quant.scale(), layer.weight_quant.scale() * 4)
    pair = nn.Sequential(layer, linear(layer.weight_quant))
    again: Any = copy.deepcopy(pair)
    assert again[0].weight_quant is again[1].weight_quant is not layer.weight_quant


def test_copies_of_declarations_with_overrides_are_pickled() -> None:
    layer = linear(quant.Int8WeightPerTensorFloat, weight_bit_width=3)
    again = pickle.loads(pickle.dumps(layer))
    assert again.weight_quant.quantizer == layer.weight_quant.quantizer
    assert again.weight_quant.quantizer.format.bits == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"weight_quant": quant.Int8ActPerTensorFloat}, "`weight_quant` must be a quantizer of weights, got Int8Act"),
        ({"weight_quant": quant.Int8Bias}, "`weight_quant` must be a quantizer of weights"),
        ({"input_quant": quant.Int8WeightPerTensorFloat}, "`input_quant` must be a quantizer of activations"),
        ({"weight_quant": FromMax.let(proxy_class=ActQuantProxyFromInjector)}, "got one with a ActQuantProxy"),
        ({"weight_quant": FromMax.let(proxy_class=nn.Linear)}, "got one with a Linear"),
        (
            {"weight_quant": quant.Int8WeightPerTensorFloat, "weight_bitwidth": 4},
            "no keyword `weight_bitwidth`: nothing in Int8WeightPerTensorFloat asks for `bitwidth`; did you mean bit_w",
        ),
        ({"weight_quant": FromMax, "weight_scaling_int": 1}, "`weight_scaling_int`.*did you mean scaling_init"),
    ],
)
def test_what_is_not_meant_for_a_weight_is_refused(fields: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"QuantLinear.*{words}"):
        QuantLinear(8, 4, **fields)


def test_proxies_are_shared_by_their_kind_and_as_they_are() -> None:
    layer = linear(quant.Int8WeightPerTensorFloat, input_quant=quant.Int8ActPerTensorFloat)
    with pytest.raises(TypeError, match="`weight_quant` must be a quantizer of weights, got one with a ActQuantProxy"):
        linear(layer.input_quant)
    with pytest.raises(TypeError, match="`weight_quant` is shared"):
        linear(layer.weight_quant, weight_bit_width=4)
    other: Any = QuantIdentity(layer.input_quant)
    assert other.act_quant is layer.input_quant


def test_a_failed_resolution_changes_nothing() -> None:
    class Fails(FromMax):
        @value
        def scaling_init(module: Any, extra: Any) -> Any:
            return this.first if isinstance(module, tuple) else extra

    with pytest.raises(DependencyError, match="`extra`, asked for by scaling_init"):
        linear(Fails)
    layer = linear(Fails, weight_extra=0.5)
    held, parameter = layer.weight_quant.tensor_quant, next(layer.weight_quant.parameters())
    with pytest.raises(DependencyError, match=r"`first`, asked for by this\.first"):
        linear(layer.weight_quant)
    assert layer.weight_quant.tensor_quant is held
    assert next(layer.weight_quant.parameters()) is parameter
    layer.weight_quant.add_tracked_module(layer)
    layer.weight_quant.init_tensor_quant()  # for one layer, still
    assert_same_bits(layer.weight_quant.scale(), torch.tensor(0.5))
    assert set(Fails) == {"scaling_init", *FromMax}


def test_the_delay_counts_steps_of_training_and_is_in_the_state_dict() -> None:
    for declared in (quant.Int8ActPerTensorFloat, with_components.Int8ActPerTensorFloat):
        layer: Any = QuantIdentity(declared, quant_delay_steps=2, collect_stats_steps=1)
        x = torch.linspace(-1, 1, 7)
        layer.eval()
        with pytest.raises(RuntimeError, match="not set"):
            layer(x)
        layer.train()
        assert_same_bits(layer(x), x)
        layer.eval()
        for _ in range(3):
            assert_same_bits(layer(x), x)
        again: Any = QuantIdentity(declared, quant_delay_steps=2, collect_stats_steps=1)
        again.load_state_dict(layer.state_dict())
        for resumed in (layer, again):
            resumed.train()
            assert_same_bits(resumed(x), x)
            assert not torch.equal(resumed(x), x)


@pytest.mark.parametrize("declared", [Binary.let(signed=True), quant.SignedBinaryActPerTensorConst])
def test_a_binary_tensor_of_one_sign_is_one_and_nan_is_no_code(declared: Any) -> None:
    layer: Any = QuantIdentity(declared)
    s = layer.act_quant.scale()
    assert_same_bits(layer(torch.ones(3)), s.detach().expand(3).clone())
    assert_same_bits(layer(torch.full((3,), -0.25)), -s.detach().expand(3).clone())
    assert torch.equal(layer(torch.tensor([torch.nan, 0.0])).isnan(), torch.tensor([True, False]))


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def test_weights_that_are_parametrized_or_come_later() -> None:
    layer = linear(quant.Int8WeightPerTensorFloatMSE)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    layer.weight_quant.init_tensor_quant()
    before = layer.weight_quant.scale().clone()
    state = {"parametrizations.weight.original": layer.parametrizations.weight.original.detach() * 4}
    layer.load_state_dict(state, strict=False)
    assert_same_bits(layer.weight_quant.scale(), before * 4)
    with torch.device("meta"):
        later = linear(quant.Int8WeightPerTensorFloatMSE)
        linear(quant.Int8WeightPerTensorFloatHQO)
    later = later.to_empty(device="cpu")
    nn.init.ones_(later.weight)
    later.weight_quant.init_tensor_quant()
    assert_same_bits(later.weight_quant.scale(), torch.tensor(1.0) / 127)


def test_weights_that_are_valid_and_weights_that_are_not() -> None:
    layer = linear(FromMax)
    with torch.no_grad():
        layer.weight.abs_()
    assert layer.quant_weight().is_valid
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    assert not layer.quant_weight().is_valid


def test_errors_name_what_a_component_gives() -> None:
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.round()

    class Number(nn.Module):
        def forward(self, x: Tensor, threshold: Tensor) -> float:
            return 0.1

    layer = linear(None, input_quant=Injector.let(tensor_quant=Rounded, signed=True))
    with pytest.raises(TypeError, match=r"a Rounded, must give \(value, .*\), got a tensor of shape \(2, 8\)"):
        layer(torch.ones(2, 8))
    layer = linear(None, input_quant=with_components.Int8ActPerTensorFloat.let(scaling_impl=Number))
    with pytest.raises(TypeError, match=r"`scaling_impl`, a Number, must give a scale as a tensor, got 0\.1"):
        layer(torch.ones(2, 8))


def test_errors_name_the_layer_and_the_argument() -> None:
    with pytest.raises(ValueError, match=r"QuantLinear, `weight_quant`: `bits` must be in 1\.\.16, got 40"):
        linear(quant.Int8WeightPerTensorFloat, weight_bit_width=40)
    with pytest.raises(DependencyError, match=r"QuantIdentity, `act_quant`: Uint8Act.*`max_val`") as caught:
        QuantIdentity(quant.Uint8ActPerTensorFloatMaxInit)
    assert len(caught.value.missing) == 1
