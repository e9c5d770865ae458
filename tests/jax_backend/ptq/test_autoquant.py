"""autoquant over nnx models and pytrees, beside torch: one plan in both, by timers that go by the case."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from samebits import core
from samebits.core import configs as of
from samebits.core.autoquant import CANDIDATES, Case, Plan, merge_plans
from samebits.core.plan_files import load_plan, save_plan
from samebits.jax_backend import interop
from samebits.jax_backend.ptq import QArray, QuantizedLinear, autoquant, quantize_
from samebits.jax_backend.ptq.modules import kernel_of
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import ptq as in_torch

from ...ptq_cases import rows

NAMES = list(CANDIDATES)
X = rows(5)


class Net(nnx.Module):
    """Layers called once, twice and never."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), nnx.relu)
        self.twice = nnx.Linear(64, 64, use_bias=False, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(64, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.last, self.unused = nnx.Linear(64, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.first(x)
        return self.last(self.drop(self.norm(self.twice(x) + self.twice(x[:2]).sum())))


def by_case(call: Callable[[], object], case: Case, name: str) -> float:
    """Few rows: weights in int8; many: both; the last layer: floats."""
    if case.weight[0] == 8:
        return float(NAMES.index(name))
    return float(name != ("int8_weight_only" if case.rows < 10 else "int8_dynamic"))


def never(call: object, case: object, name: object) -> float:
    raise AssertionError("measured")


def state(model: Any) -> list[Any]:
    """Kinds of modules, and variables as they are."""
    parts = [type(part) for _, part in nnx.iter_modules(model)]
    return [
        *parts,
        *(np.asarray(a).tobytes() for a in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model))) if not is_key(a)),
    ]


def is_key(a: Any) -> bool:
    return bool(jnp.issubdtype(a.dtype, jax.dtypes.prng_key))


def kinds(model: Any) -> list[Any]:
    layers = model.first.layers[0], model.twice, model.last, model.unused
    return [kernel_of(one).act_quant is not None if isinstance(one, QuantizedLinear) else None for one in layers]


def test_layers_are_recorded_measured_and_swapped() -> None:
    model, plan, seen = Net(), Plan(), []

    def timer(call: Callable[[], object], case: Case, name: str) -> float:
        seen.append((case, name))
        return by_case(call, case, name)

    assert autoquant(model, jnp.asarray(X), plan=plan, timer=timer, compiled=False) is model
    f32 = "float32"
    cases = [Case(5, (64, 64), f32, True), Case(5, (64, 64), f32, False), Case(2, (64, 64), f32, False)]
    cases.append(Case(5, (8, 64), f32, True))
    assert set(seen) == {(case, name) for case in cases for name in NAMES}
    assert len(seen) == 16
    calls = {name: one.calls for name, one in plan.layers.items()}
    assert calls == {"first.0": 1, "twice": 2, "last": 1, "unused": 0}
    assert kinds(model) == [False, False, None, None]
    by_hand = Net()
    quantize_(by_hand, of.ModuleConfigs({"first.0": of.int8_weight_only(), "twice": of.int8_weight_only()}))
    assert state(by_hand) == state(model)
    assert {case.epilogue for _, case, _ in plan.times} == {""}


def test_recording_changes_nothing_else() -> None:
    model, plan = Net(), Plan({"float": None})
    before, counts = state(model), int(model.drop.rngs.count[...])
    autoquant(model, jnp.asarray(X), timer=lambda *_: 1.0, plan=plan, epilogues={"last": "tanh"})
    assert (state(model), int(model.drop.rngs.count[...])) == (before, counts)
    follows = {(case.weight[0], case.bias): case.epilogue for _, case, _ in plan.times}
    assert follows == {(64, True): "relu", (64, False): "", (8, True): "tanh"}


def test_the_next_call_does_it() -> None:
    model, plan = Net(), Plan()
    model.eval()
    assert autoquant(model, plan=plan, timer=by_case, compiled=False) is model
    with pytest.raises(RuntimeError, match=r"call the model itself first, not within jax\.jit"):
        nnx.jit(lambda m, x: m(x))(model, X)
    with pytest.raises(TypeError, match="dot_general"):
        model(jnp.ones((3, 63)))
    assert kinds(model) == [None] * 4
    y = model(jnp.asarray(X))
    assert kinds(model) == [False, False, None, None]
    assert [one.calls for one in plan.layers.values()].count(1) == 2
    assert type(model) is Net
    assert_same_bits(model(jnp.asarray(X)), y)


def test_calls_are_recorded_until_it_is_finished_by_hand() -> None:
    model, plan, plain = Net(), Plan(), Net()
    model.eval()
    plain.eval()
    waiting: Any = autoquant(model, plan=plan, timer=by_case, manual=True, compiled=False)
    with pytest.raises(RuntimeError, match="none of the layers was called: "):
        waiting.finalize_autoquant()
    waiting(jnp.asarray(rows(7)))
    assert_same_bits(plain(X), waiting(X))
    assert kinds(model) == [None] * 4
    waiting.finalize_autoquant()
    assert {name: one.calls for name, one in plan.layers.items()} == {"first.0": 2, "twice": 4, "last": 2, "unused": 0}
    assert {case.rows for _, case, _ in plan.times} == {7, 5, 2}
    assert kinds(model) == [False, False, None, None]
    assert type(model) is Net


def test_what_is_measured_is_the_layer_with_what_follows() -> None:
    """Values of core, whose codes are contracted exactly; and of a layer within jit, whose inputs have no values."""
    found = {}

    def timer(call: Callable[[], Any], case: Case, name: str) -> float:
        found[name] = call()
        return 1.0

    model: Any = Net()
    inner = Plan({"int8_dynamic": CANDIDATES["int8_dynamic"]})
    layer = copy.deepcopy(model.first.layers[0])
    autoquant(nnx.Sequential(layer, nnx.relu), X, plan=inner, timer=timer, max_error=1.0)
    assert isinstance(layer, QuantizedLinear)
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    w, b = np.asarray(model.first.layers[0].kernel[...]).T, np.asarray(model.first.layers[0].bias[...])
    q = of.int8_dynamic_activation_int8_weight()
    of_x, of_w = core.choose_qparams(q.activation, x), core.choose_qparams(q.weight, w)
    want = core.linear(q.activation, x, of_x, q.weight, w, of_w, b)
    assert_same_bits(np.maximum(want, 0) + 0.0, np.asarray(found["int8_dynamic"]) + 0.0)

    class Inside(nnx.Module):
        def __init__(self) -> None:
            self.layer = copy.deepcopy(model.first.layers[0])

        def __call__(self, x: Any) -> Any:
            return nnx.jit(lambda layer, x: layer(x))(self.layer, x)

    within, plan = Inside(), Plan()
    autoquant(within, X, plan=plan, timer=lambda *_: 1.0, max_error=0.02)
    assert 0 < plan.layers["layer"].errors["int8_dynamic"] < 0.02 < plan.layers["layer"].errors["int4_weight_only"]
    assert plan.layers["layer"].chosen == "int8_dynamic"


def test_a_bound_of_the_error() -> None:
    """Beside core: what a candidate's codes stand for, in float64. One large input costs the others their codes."""
    x = rows(5)
    x[:, 0] = 1000
    plan = Plan({**CANDIDATES, "int4_weight_only": of.int4_weight_only(16, "none")})
    model: Any = nnx.Sequential(nnx.Linear(64, 8, rngs=nnx.Rngs(0)))
    kernel = model.layers[0].kernel
    kernel[...] = kernel[...].at[0].set(0)
    w = np.asarray(kernel[...]).T
    want, errors = x.astype(np.float64) @ w.T.astype(np.float64), {}
    for name in NAMES[1:]:
        config: Any = plan.candidates[name]
        x_hat = x if config.act_quant is None else core.fake_quantize(config.act_quant, x)
        y = x_hat.astype(np.float64) @ core.fake_quantize(config.weight, w).T.astype(np.float64)
        errors[name] = np.linalg.norm(y - want) / np.linalg.norm(want)
    assert errors["int8_weight_only"] < 0.02 < errors["int4_weight_only"] < 0.2 < errors["int8_dynamic"]
    fastest = dict(zip(NAMES, (4.0, 3.0, 1.0, 2.0), strict=True))
    for bound, chosen in ((0.001, "float"), (0.02, "int8_weight_only"), (2, "int8_dynamic")):
        one = nnx.clone(model)
        autoquant(one, jnp.asarray(x), plan=plan, timer=lambda call, case, name: fastest[name], max_error=bound)
        assert plan.layers["0"].errors == pytest.approx(errors, rel=1e-3)
        assert (plan.layers["0"].chosen, isinstance(one.layers[0], QuantizedLinear)) == (chosen, chosen != "float")


def test_one_plan_in_torch_and_jax(tmp_path: Path) -> None:
    """What was measured in torch is chosen in JAX by name, with the same codes; times of both lie in one file."""
    path, plan = tmp_path / "plan.json", Plan()
    torch.manual_seed(0)
    float_model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8))
    weights = {name: t.numpy() for name, t in float_model.state_dict().items()}

    def model() -> Any:
        made = nnx.Sequential(nnx.Linear(64, 128, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(128, 8, rngs=nnx.Rngs(0)))
        interop.load_state_dict(made, weights)
        return made

    def timer(call: object, case: Case, name: str) -> float:
        return float(name != ("int8_dynamic" if case.weight[0] == 128 else "int4_weight_only"))

    quantized: Any = in_torch.autoquant(copy.deepcopy(float_model), torch.from_numpy(X), plan=plan, timer=timer)
    save_plan(plan, path)
    in_jax = quantize_(model(), load_plan(path).configs())
    for k in (0, 2):
        stored, weight = kernel_of(in_jax.layers[k]), quantized[k].weight
        assert_same_bits(weight.codes, stored.codes)
        assert_same_bits(weight.scale, stored.scale)
        assert weight.quantizer == stored.quantizer
    with pytest.raises(ValueError, match=r"elsewhere \(torch .*\), here is jax "):
        autoquant(model(), jnp.asarray(X), plan=load_plan(path), timer=never)
    of_jax = Plan()
    autoquant(model(), jnp.asarray(X), plan=of_jax, timer=timer)
    save_plan(merge_plans(load_plan(path), of_jax), path)
    again, restored = autoquant(model(), jnp.asarray(X), plan=load_plan(path), timer=never), load_plan(path)
    assert state(again) == state(in_jax)
    in_torch.autoquant(float_model, torch.from_numpy(X), plan=restored, timer=never)
    assert_same_bits(quantized(torch.from_numpy(X)).detach(), float_model(torch.from_numpy(X)).detach())
    assert {place.framework.split()[0] for place, _, _ in restored.times} == {"torch", "jax"}


def test_pytrees() -> None:
    w = jnp.asarray(rows(8))
    tree = {"a": {"kernel": w.T, "bias": jnp.zeros(8)}, "b": {"weight": w}, "c": {"w": w.T}}
    plan, outputs = Plan({name: CANDIDATES[name] for name in ("float", "int8_dynamic")}), {}

    def timer(call: Callable[[], Any], case: Case, name: str) -> float:
        outputs[case.rows, name] = call()
        return float(name != ("int8_dynamic" if case.rows > 1 else "float"))

    shapes = {"a.kernel": [(2, 3, 64)], "b.weight": [(4, 64)], "c.w": [(64,)]}
    new = autoquant(tree, shapes=shapes, plan=plan, timer=timer, max_error=0.1, epilogues={"c.w": "relu"})
    assert [type(new[k][n]) is QArray for k, n in (("a", "kernel"), ("b", "weight"), ("c", "w"))] == [True, True, False]
    assert new["a"]["kernel"].act_quant is not None
    assert isinstance(tree["a"]["kernel"], jax.Array)
    assert new["c"]["w"] is tree["c"]["w"]
    assert {case.rows: case.epilogue for _, case, _ in plan.times} == {6: "", 4: "", 1: "relu"}
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    for n in (1, 4, 6):
        of_n = np.random.default_rng(0).standard_normal((n, 64)).astype(np.float32) @ np.asarray(w).T
        assert np.allclose(outputs[n, "float"], np.maximum(of_n, 0) if n == 1 else of_n, atol=1e-4)
    assert_same_bits(x @ new["b"]["weight"].T, outputs[4, "int8_dynamic"])
    with pytest.raises(ValueError, match="`shapes` must be given for a dict, which cannot be called"):
        autoquant(tree)
    with pytest.raises(ValueError, match="no layer to quantize"):
        autoquant({"table": w}, shapes={})


def broken() -> Any:
    model = Net()
    model.twice.kernel[...] = model.twice.kernel[...].at[3, 3].set(jnp.nan)
    return model


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (lambda: nnx.Sequential(nnx.relu), {}, ValueError, "no layer to quantize"),
    (Net, {"filter_fn": lambda name, m: name == "norm"}, ValueError, "layer 'norm' .BatchNorm. must be a linear layer"),
    (broken, {}, ValueError, "layer 'twice': "),
    (Net, {"filter_fn": lambda name, m: name == "unused"}, RuntimeError, "none of the layers was called: 'unused'"),
    (Net, {"max_error": -1}, ValueError, "`max_error` must not be negative, got -1"),
    (Net, {"epilogues": {"firs": "relu"}}, ValueError, "`epilogues` has 'firs', which is no layer; layers are "),
    (Net, {"epilogues": {"last": "cube"}}, ValueError, "`epilogue` must be one of"),
    (Net, {"shapes": {"last": [(1, 64)]}}, ValueError, "`shapes` must not be given with `example`"),
    (Net, {"measure": "often"}, ValueError, "`measure` must be None or one of"),
    (Net, {"timer": lambda *_: float("nan")}, ValueError, "timer of float, input 5 x .* must give seconds, got nan"),
]


@pytest.mark.parametrize(("make", "options", "kind", "message"), REFUSED)
def test_what_is_refused_changes_nothing(make: Any, options: dict[str, Any], kind: Any, message: str) -> None:
    model = make()
    before = state(model)
    with pytest.raises(kind, match=message):
        autoquant(model, jnp.asarray(X), **{"timer": lambda *_: 1.0, **options})
    assert state(model) == before


def test_a_plan_of_another_model_changes_nothing() -> None:
    plan, model = Plan(), Net()
    autoquant(nnx.Sequential(nnx.Linear(16, 8, rngs=nnx.Rngs(0))), jnp.ones((1, 16)), plan=plan, timer=lambda *_: 1.0)
    before, kept = state(model), dict(plan.layers)
    with pytest.raises(ValueError, match=r"no time for float of layer '.*it is of another model"):
        autoquant(model, jnp.asarray(X), plan=plan, timer=never)
    assert (state(model), plan.layers) == (before, kept)


def test_the_default_timer_measures() -> None:
    plan, lists = Plan({"float": None}), []
    model = nnx.Sequential(nnx.Linear(16, 16, rngs=nnx.Rngs(0)))
    autoquant(model, jnp.ones((1, 16)), plan=plan, progress=lambda items: lists.append(len(list(items))) or items)  # type: ignore[func-returns-value]
    assert lists == [1]
    ((place, case, name), seconds) = next(iter(plan.times.items()))
    assert (place.framework, place.compiled, case, name) == (
        f"jax {jax.__version__}",
        True,
        Case(1, (16, 16), "float32", True),
        "float",
    )
    assert 0 < seconds < 10
