"""State dicts of layers with declared quantizers: nothing is lost, and what cannot be loaded whole is not loaded."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from samebits.core import quant
from samebits.core.inject import Injector, value
from samebits.torch_frontend import components, config
from samebits.torch_frontend import nn as nn_of_ours
from samebits.torch_frontend import quant as with_components
from samebits.torch_frontend.loading import load_state_dict, unchanged_on_error
from samebits.torch_frontend.nn import QuantIdentity, QuantLinear, QuantProxy, WeightQuantProxy

WEIGHTS: list[Any] = [
    quant.Int8WeightPerChannelFloat,
    quant.Int8WeightPerChannelFloatMSE.let(bit_width=4),
    quant.ShiftedUint8WeightPerTensorFloatMSE,
    with_components.Int8WeightPerChannelFloatMSE,
    Injector.let(
        tensor_quant=components.BinaryQuant,
        scaling_impl=components.ParameterScaling,
        scaling_init=value(lambda module: _largest(module)),
        signed=True,
    ),
    "int8_learned_per_tensor",
]
ACTS: list[Any] = [
    quant.Int8ActPerTensorFloat.let(quant_delay_steps=1),
    with_components.ShiftedUint8ActPerTensorFloat,
    "int8_learned_per_tensor",
]


def _largest(module: Any) -> Any:
    return max(layer.weight.abs().max() for layer in (module if isinstance(module, tuple) else (module,)))


def of_quantizer(name: str) -> bool:
    """Whether a quantizer holds this tensor, and no layer."""
    return "_quant." in name


def model(weight: int, act: int, shared: bool, trained: int, seed: int) -> Any:
    torch.manual_seed(seed)
    first = QuantLinear(4, 4, weight_quant=WEIGHTS[weight], input_quant=ACTS[act])
    second = QuantLinear(4, 4, weight_quant=first.weight_quant if shared else WEIGHTS[weight])
    made = nn.Sequential(first, QuantIdentity(ACTS[act]), second)
    for _ in range(trained):
        made(torch.randn(3, 4))
    return made


def image(module: nn.Module) -> dict[str, Any]:
    """Every tensor of a model by name and identity, with its bits."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: (id(t), tuple(t.shape), t.detach().clone().numpy().tobytes()) for name, t in named}


models = st.tuples(
    st.integers(0, len(WEIGHTS) - 1),
    st.integers(0, len(ACTS) - 1),
    st.booleans(),
    st.integers(0, 3),
    st.integers(0, 3),
)


@settings(max_examples=60, deadline=None)
@given(models, st.integers(0, 3), st.data(), st.booleans(), st.booleans())
def test_nothing_is_lost(spec: Any, trained: int, data: st.DataObject, strict: bool, ignore: bool) -> None:
    into, source = model(*spec), model(*spec[:3], trained, 7)
    state: dict[str, Any] = {name: t.clone() for name, t in source.state_dict().items()}
    for name in filter(of_quantizer, state):  # as training would have left them, far from where they begin
        state[name] = state[name] * 1.25 if state[name].is_floating_point() else state[name]
    load_state_dict(source, state)
    dropped = data.draw(st.sets(st.sampled_from(sorted(state)), max_size=len(state)))
    fault = data.draw(st.sampled_from(["none", "none", "shape", "name"]))
    for name in dropped:
        del state[name]
    before, old = image(into), {name: t.clone() for name, t in into.state_dict().items()}
    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    if fault == "shape" and state:
        wrong = data.draw(st.sampled_from(sorted(state)))
        state[wrong] = torch.zeros(3, 5, 7)
    elif fault == "name":
        state["0.weight_quant.tensor_quant.scal"] = torch.ones(())
    config.IGNORE_MISSING_KEYS = ignore
    try:
        load_state_dict(into, state, strict)
    except RuntimeError:
        assert image(into) == before
        return
    finally:
        config.IGNORE_MISSING_KEYS = False
    assert not strict or fault != "name"
    assert not strict or all(ignore and of_quantizer(n) and is_declared(into, n) for n in dropped if n not in state)
    found, again = into.state_dict(), copy.deepcopy(into)
    for module in again.modules():
        if isinstance(module, WeightQuantProxy):
            module.init_tensor_quant()
    anew = again.state_dict()
    for name, t in found.items():
        wanted = next((state[n] for n in (name, other(name)) if n in state and (spec[2] or n == name)), None)
        if wanted is None:
            owners = ("0", "2") if spec[2] else (name[0],)
            came = any(f"{owner}.{part}" in state for owner in owners for part in ("weight", "bias"))
            wanted = anew[name] if "weight_quant.tensor_quant" in name and came else old[name]
        assert t.dtype == wanted.dtype, name
        unset = bool(t.isnan().all()) and bool(wanted.isnan().all())  # its shape may not be known yet
        assert unset or t.numpy().tobytes() == wanted.numpy().tobytes(), name
    assert {n: image(into)[n][0] for n, _ in into.named_parameters()} == {
        n: before[n][0] for n, _ in into.named_parameters()
    }
    if not dropped and trained > 1:
        assert torch.equal(into.eval()(x), source.eval()(x))


def other(name: str) -> str:
    """The other name of what two layers share."""
    return {"0": "2", "2": "0"}.get(name[0], name[0]) + name[1:] if ".weight_quant." in name else name


def is_declared(module: nn.Module, name: str) -> bool:
    """Whether a proxy holds this tensor: what a `TensorQuantizer` alone holds is not forgiven."""
    return isinstance(module.get_submodule(".".join(name.split(".")[:2])), QuantProxy)


@pytest.mark.parametrize("assign", [False, True])
def test_a_load_that_raises_changes_nothing(assign: bool) -> None:
    """Torch's own loads what fits first: the last key is what is wrong."""
    into, state = model(4, 0, False, 1, 0), model(4, 0, False, 1, 7).state_dict()
    state["2.bias"] = torch.zeros(9)
    before, held = image(into), dict(into.named_modules())
    with pytest.raises(RuntimeError, match=r"size mismatch for 2\.bias"):
        load_state_dict(into, state, assign=assign)
    assert image(into) == before
    assert dict(into.named_modules()) == held
    torn = model(4, 0, False, 1, 0)
    with pytest.raises(RuntimeError, match=r"size mismatch for 2\.bias"):
        torn.load_state_dict(state, assign=assign)
    assert torch.equal(torn[0].weight, state["0.weight"])


@pytest.mark.parametrize("weight", [1, 3])
def test_what_is_no_tensor_is_named(weight: int) -> None:
    into = model(weight, 1, False, 1, 0)
    for name in filter(of_quantizer, into.state_dict()):
        with pytest.raises(RuntimeError, match=f'parameter named "{name}", expected torch.Tensor'):
            load_state_dict(into, into.state_dict() | {name: "text"})


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("weight", [1, 2, 3])
def test_a_model_of_the_device_meta_takes_what_is_assigned(weight: int, shared: bool, strict: bool) -> None:
    """What the state dict lacks begins from the weight, as it does in a model that lay elsewhere."""
    state = {name: t.clone() for name, t in model(weight, 0, shared, 2, 7).state_dict().items()}
    for name in [name for name in state if of_quantizer(name) and not strict]:
        del state[name]
    elsewhere, into = model(weight, 0, shared, 0, 0), None
    with torch.device("meta"):
        into = model(weight, 0, shared, 0, 0)
    for one in (elsewhere, into):
        one.load_state_dict({name: t.clone() for name, t in state.items()}, strict=strict, assign=True)
    for layer in ("0", "2"):
        one, other = into.get_submodule(layer), elsewhere.get_submodule(layer)
        assert torch.equal(one.quant_weight().dequantize(), other.quant_weight().dequantize())
        assert not any(t.is_meta for t in one.weight_quant.state_dict().values())


def test_whatever_fails_inside_is_undone() -> None:
    layer = model(1, 0, False, 2, 0)
    before = image(layer)

    def fails() -> None:
        layer[0].weight_quant.init_tensor_quant()
        layer.extra, layer[0].extra = nn.Linear(1, 1), 3
        layer[2].weight.data.zero_()
        layer[1].act_quant.tensor_quant.scale.data = torch.ones(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), unchanged_on_error(layer):
        fails()
    assert image(layer) == before
    assert not hasattr(layer, "extra")
    assert not hasattr(layer[0], "extra")


def test_every_layer_loads_whole_or_not_at_all() -> None:
    layers = [kind for kind in vars(nn_of_ours).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    layers = [kind for kind in layers if any(name.endswith("_quant") for name in vars(kind).get("__annotations__", {}))]
    layers = [kind for kind in layers if not issubclass(kind, QuantProxy)]
    assert len(layers) > 15
    assert [kind.__name__ for kind in layers if kind.load_state_dict is not load_state_dict] == []


def test_switches_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAMEBITS_TRIED", raising=False)
    assert not config.flag("SAMEBITS_TRIED")
    for text, on in (("1", True), ("True", True), ("0", False), ("false", False), ("", False)):
        monkeypatch.setenv("SAMEBITS_TRIED", text)
        assert config.flag("SAMEBITS_TRIED") is on
    monkeypatch.setenv("SAMEBITS_TRIED", "yes")
    with pytest.raises(ValueError, match="SAMEBITS_TRIED must be 0, 1, false or true, got 'yes'"):
        config.flag("SAMEBITS_TRIED")
