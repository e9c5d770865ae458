"""autoquant over torch models: what is recorded, measured, chosen and swapped, by timers that go by the case."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samebits import core
from samebits.core import configs as of
from samebits.core.autoquant import CANDIDATES, Case, Plan, choices
from samebits.core.plan_files import load_plan, save_plan
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend.ptq import QuantWeight, quantize_
from samebits.torch_frontend.ptq.autoquant import autoquant

NAMES = list(CANDIDATES)


class Net(nn.Module):
    """Layers called once, twice and never; functions behind them of every kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice = nn.Linear(64, 128), nn.Linear(128, 128, bias=False)
        self.norm, self.act, self.last = nn.BatchNorm1d(128), nn.GELU(), nn.Linear(128, 8)
        self.unused = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(input=x).relu_()
        x = self.norm(self.act(self.twice(x)) + self.twice(x[:2]).sum())
        return torch.sin(self.last(x))


def inputs(rows: int = 5) -> torch.Tensor:
    return torch.linspace(-1, 1, rows * 64).reshape(rows, 64).sin()


def by_case(call: Callable[[], object], case: Case, name: str) -> float:
    """Few rows: weights in int8; many: both; the last layer: floats. It computes, too."""
    assert isinstance(call(), torch.Tensor)
    if case.weight[0] == 8:
        return float(NAMES.index(name))
    return float(name != ("int8_weight_only" if case.rows < 10 else "int8_dynamic"))


def never(call: object, case: object, name: object) -> float:
    raise AssertionError("measured")


def state(model: nn.Module) -> list[Any]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return [*map(id, model.parameters()), *hooks, *(m.training for m in model.modules()), sorted(model.__dict__)]


def kinds(model: Any) -> list[Any]:
    weights = [model.first.weight, model.twice.weight, model.last.weight, model.unused.weight]
    return [w.act_quant is not None if isinstance(w, QuantWeight) else None for w in weights]


def test_layers_are_recorded_measured_and_swapped() -> None:
    model, plan, seen = Net(), Plan(), []

    def timer(call: Callable[[], object], case: Case, name: str) -> float:
        seen.append((case, name))
        return by_case(call, case, name)

    assert autoquant(model, inputs(), plan=plan, timer=timer) is model
    f32 = "float32"
    cases = [Case(5, (128, 64), f32, True), Case(5, (128, 128), f32, False), Case(2, (128, 128), f32, False)]
    cases.append(Case(5, (8, 128), f32, True))
    assert seen == [(case, name) for case in cases for name in NAMES]
    assert {name: one.calls for name, one in plan.layers.items()} == {"first": 1, "twice": 2, "last": 1, "unused": 0}
    assert kinds(model) == [False, False, None, None]
    by_hand = Net()
    quantize_(by_hand, of.ModuleConfigs({"first": of.int8_weight_only(), "twice": of.int8_weight_only()}))
    for mine, same in zip(model.eval().parameters(), by_hand.eval().parameters(), strict=True):
        parts = [(m.codes, m.scale) if isinstance(m, QuantWeight) else (m,) for m in (mine, same)]
        assert all(torch.equal(a, b) for a, b in zip(*parts, strict=True))
    assert_same_bits(by_hand(inputs()).detach(), model(inputs()).detach())
    many = Net()
    autoquant(many, inputs(20), plan=Plan(), timer=by_case)
    assert kinds(many) == [True, True, None, None]  # `twice` sees 20 and 2 rows: equal, and the later one wins


def test_recording_changes_nothing_else() -> None:
    model = Net().train()
    model.act.eval()
    before, norm = state(model), copy.deepcopy(model.norm.state_dict())
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    autoquant(model, inputs(), timer=lambda *_: 1.0, plan=Plan({"float": None}))
    assert torch.equal(torch.rand(3), want)
    assert state(model) == before
    assert all(torch.equal(a, b) for a, b in zip(norm.values(), model.norm.state_dict().values(), strict=True))


def test_the_next_call_does_it() -> None:
    model, plan = Net().eval(), Plan()
    assert autoquant(model, plan=plan, timer=by_case) is model
    assert kinds(model) == [None] * 4
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(torch.ones(3, 63))
    y = model(inputs())
    assert kinds(model) == [False, False, None, None]
    assert plan.layers["first"].calls == 1
    assert_same_bits(model(inputs()).detach(), y.detach())
    assert not hasattr(model, "finalize_autoquant")
    assert not model._forward_pre_hooks


def test_calls_are_recorded_until_it_is_finished_by_hand() -> None:
    model, plan = Net().eval(), Plan()
    autoquant(model, inputs(7), plan=plan, timer=by_case, manual=True)
    want = model(inputs())
    model(inputs())
    assert kinds(model) == [None] * 4
    assert_same_bits(Net().eval()(inputs()).detach(), want.detach())
    model.finalize_autoquant()
    assert [one.calls for one in plan.layers.values()] == [3, 6, 3, 0]
    assert {case.rows for _, case, _ in plan.times} == {7, 5, 2}
    assert kinds(model) == [False, False, None, None]
    assert not hasattr(model, "finalize_autoquant")


def test_a_plan_that_is_restored_needs_no_measuring(tmp_path: Path) -> None:
    first, plan, path = Net(), Plan(), tmp_path / "plan.json"
    autoquant(first, inputs(), plan=plan, timer=by_case)
    save_plan(plan, path)
    again, restored = Net(), load_plan(path)
    autoquant(again, inputs(), plan=restored, timer=never, max_error=1.0)
    assert kinds(again) == kinds(first) == [False, False, None, None]
    by_name = Net()
    quantize_(by_name, load_plan(path).configs())
    assert kinds(by_name) == kinds(first)


def test_plans_of_another_place_or_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, path = Plan(), tmp_path / "plan.json"
    autoquant(Net(), inputs(), plan=plan, timer=by_case)
    save_plan(plan, path)
    other, model = nn.Sequential(nn.Linear(16, 16)), Net()
    before = state(other), state(model)
    with pytest.raises(ValueError, match=r"no time for float of layer '0' .*it is of another model"):
        autoquant(other, torch.ones(2, 16), plan=plan, timer=never)
    with pytest.raises(ValueError, match=r"elsewhere \(.*eager\), here is .*compiled"):
        autoquant(model, inputs(), plan=plan, timer=never, compiled=True)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(ValueError, match=r"elsewhere \(torch 2.*\), here is torch 9\.9\.9"):
        autoquant(model, inputs(), plan=plan, timer=never)
    assert (state(other), state(model)) == before
    assert plan == load_plan(path)
    autoquant(model, inputs(), plan=plan, timer=by_case, measure="missing")
    assert kinds(model) == [False, False, None, None]
    assert len(plan.times) == 2 * len(load_plan(path).times)
    autoquant(Net(), inputs(), plan=plan, timer=never)
    autoquant(other, torch.ones(2, 16), plan=plan, timer=lambda *_: 1.0, measure="missing")
    with pytest.raises(AssertionError, match="measured"):
        autoquant(Net(), inputs(), plan=plan, timer=never, measure="again")


def test_a_bound_of_the_error() -> None:
    """Beside core: what a candidate's codes stand for, in float64. One large input costs the others their codes."""
    x = inputs()
    x[:, 0] = 1000
    fastest = dict(zip(NAMES, (4.0, 3.0, 1.0, 2.0), strict=True))
    plan = Plan({**CANDIDATES, "int4_weight_only": of.int4_weight_only(16, "none")})
    model = nn.Sequential(nn.Linear(64, 8))
    with torch.no_grad():
        model[0].weight[:, 0] = 0  # a code of symmetric weights: only what is lost counts
    w, b = (p.detach().numpy() for p in model.parameters())
    want = x.numpy().astype(np.float64) @ w.T.astype(np.float64) + b
    errors = {}
    for name in NAMES[1:]:
        config: Any = plan.candidates[name]
        x_hat = x.numpy() if config.act_quant is None else core.fake_quantize(config.act_quant, x.numpy())
        y = x_hat.astype(np.float64) @ core.fake_quantize(config.weight, w).T.astype(np.float64) + b
        errors[name] = np.linalg.norm(y - want) / np.linalg.norm(want)
    assert errors["int8_weight_only"] < 0.02 < errors["int4_weight_only"] < 0.2 < errors["int8_dynamic"]
    before = state(model)
    for bound, chosen in ((0.001, None), (0.02, False), (0.2, False), (2, True)):
        one = copy.deepcopy(model)
        autoquant(one, x, plan=plan, timer=lambda call, case, name: fastest[name], max_error=bound)
        weight = one[0].weight
        assert (weight.act_quant is not None if isinstance(weight, QuantWeight) else None) == chosen
        assert plan.layers["0"].errors == pytest.approx(errors, rel=1e-3)
        assert plan.layers["0"].refused == tuple(name for name in NAMES[1:] if errors[name] > bound)
    assert plan.layers["0"].chosen == "int8_dynamic"
    assert state(model) == before


def test_inputs_that_a_model_changes_later() -> None:
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            x.zero_()
            return y

    plan = Plan()
    autoquant(Changes(), inputs(), plan=plan, timer=lambda *_: 1.0, max_error=1.0)
    assert plan.layers["layer"].errors["int8_weight_only"] > 0


def test_errors_on_shapes_are_those_of_random_numbers() -> None:
    plan, model = Plan(), Net()
    shapes = {"first": [(3, 64), (2, 4, 64)], "last": [(128,), (0, 128)]}
    autoquant(model, shapes=shapes, plan=plan, timer=lambda *_: 1.0, max_error=0.02)
    assert {case.rows for _, case, _ in plan.times} == {3, 8, 1}
    assert [one.calls for one in plan.layers.values()] == [2, 0, 1, 0]
    errors = plan.layers["first"].errors
    assert 0 < errors["int8_weight_only"] < errors["int8_dynamic"] < 0.02 < errors["int4_weight_only"] < 0.2
    assert kinds(model) == [True, None, True, None]


def test_functions_that_follow_are_recorded_for_compiled_layers() -> None:
    follows: dict[str, set[str]] = {}
    times = Plan({"float": None})
    autoquant(Net(), inputs(), plan=times, timer=lambda *_: 1.0, compiled=True)
    for _, case, _ in times.times:
        follows.setdefault(str(case.weight), set()).add(case.epilogue)
    assert follows == {"(128, 64)": {"relu"}, "(128, 128)": {"gelu", ""}, "(8, 128)": {""}}
    given = Plan({"float": None})
    autoquant(Net(), inputs(), plan=given, timer=lambda *_: 1.0, compiled=True, epilogues={"twice": "silu"})
    assert {case.epilogue for _, case, _ in given.times if case.weight == (128, 128)} == {"silu"}
    eager = Plan({"float": None})
    autoquant(Net(), inputs(), plan=eager, timer=lambda *_: 1.0, epilogues={"twice": "silu"})
    assert {case.epilogue for _, case, _ in eager.times} == {""}


def test_what_is_measured_is_the_layer_with_what_follows() -> None:
    """Compiled as a whole: with a graph break it raises. Values of core, whose codes are contracted exactly."""
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU()).eval()
    found = {}

    def timer(call: Callable[[], object], case: Case, name: str) -> float:
        found[name] = call()
        return 1.0

    candidates = {"int8_dynamic": CANDIDATES["int8_dynamic"]}
    outer: Any = torch.compile(model, backend="eager")
    autoquant(outer, plan=Plan(candidates), timer=timer)
    w, b = (p.detach().numpy() for p in model.parameters())
    outer(inputs())
    assert isinstance(model[0].weight, QuantWeight)
    assert not hasattr(outer, "finalize_autoquant")
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).numpy()
    q = of.int8_dynamic_activation_int8_weight()
    parts = (core.choose_qparams(one, array) for one, array in ((q.activation, x), (q.weight, w)))
    want = core.linear(q.activation, x, next(parts), q.weight, w, next(parts), b)
    assert_same_bits(np.maximum(want, 0) + 0.0, found["int8_dynamic"] + 0.0)


@pytest.mark.thorough
def test_many_cases_are_compiled_each() -> None:
    """Dynamo compiles one function only so often, then no more."""
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        shapes = {"0": [(n, 16) for n in range(1, 12)]}
        plan, model = Plan({"float": None}), nn.Sequential(nn.Linear(16, 16))
        autoquant(
            model, shapes=shapes, plan=plan, compiled=True, timer=lambda call, case, name: bool(call() is None) * 1.0
        )
    assert len(plan.times) == 11


def test_a_model_that_is_compiled_before_its_first_call() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU()).eval()
    outer: Any = torch.compile(
        autoquant(model, timer=lambda call, case, name: float(name != "int8_dynamic")), backend="eager"
    )
    y = outer(inputs())
    assert isinstance(model[0].weight, QuantWeight)
    assert_same_bits(model(inputs()).detach(), y.detach())


def test_progress_and_other_candidates() -> None:
    lists = []

    def progress(items: Any) -> Any:
        lists.append(list(items))
        return iter(lists[-1])

    plan = Plan({"int8": of.int8_weight_only(), "by 48": of.int4_weight_only(48)})
    model = Net()
    autoquant(model, inputs(), plan=plan, timer=lambda *_: 1.0, progress=progress)
    assert [len(one) for one in lists] == [8]
    assert kinds(model) == [False, False, False, None]  # groups of 48 fit nowhere, so nobody timed them
    assert {s for (_, _, name), s in plan.times.items() if name == "by 48"} == {float("inf")}


def broken() -> Any:
    model = Net()
    with torch.no_grad():
        model.twice.weight[3, 3] = float("nan")
    return model


def half() -> Any:
    model = Net()
    quantize_(model, of.ModuleConfigs({"first": of.int8_weight_only()}))
    return model


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (lambda: nn.Sequential(nn.ReLU()), {}, ValueError, "no layer to quantize"),
    (Net, {"filter_fn": lambda m, name: False}, ValueError, "no layer to quantize"),
    (
        Net,
        {"filter_fn": lambda m, name: name == "norm"},
        ValueError,
        "layer 'norm' .BatchNorm1d. must be a linear layer",
    ),
    (
        half,
        {"filter_fn": lambda m, name: name == "first"},
        ValueError,
        "layer 'first' .Linear. must be a linear layer that is not",
    ),
    (broken, {}, ValueError, "layer 'twice': "),
    (Net, {"filter_fn": lambda m, name: name == "unused"}, RuntimeError, "none of the layers was called: 'unused'"),
    (Net, {"max_error": -1}, ValueError, "`max_error` must not be negative, got -1"),
    (Net, {"max_error": "1"}, TypeError, "`max_error` must be a number, got '1'"),
    (
        Net,
        {"epilogues": {"firs": "relu"}},
        ValueError,
        "`epilogues` has 'firs', which is no layer; layers are first, tw",
    ),
    (Net, {"epilogues": {"first": "cube"}}, ValueError, "`epilogue` must be one of"),
    (Net, {"shapes": {"first": [(1, 64)]}}, ValueError, "`shapes` must not be given with `example`"),
    (Net, {"measure": "often"}, ValueError, "`measure` must be None or one of"),
    (Net, {"timer": lambda *_: -1.0}, ValueError, "timer of float, input 5 x 64, .* must give seconds, got -1"),
]


@pytest.mark.parametrize(("make", "options", "kind", "message"), REFUSED)
def test_what_is_refused_changes_nothing(make: Any, options: dict[str, Any], kind: Any, message: str) -> None:
    model = make()
    before = state(model)
    with pytest.raises(kind, match=message):
        autoquant(model, inputs(), **{"timer": lambda *_: 1.0, **options})
    assert state(model) == before


@pytest.mark.parametrize("shapes", [{"first": [(1, 63)]}, {"first": [()]}, {"first": [64]}, {"first": [(-1, 64)]}])
def test_shapes_that_are_none(shapes: Any) -> None:
    with pytest.raises(ValueError, match=r"`shapes` of layer 'first' must be shapes \(\.\.\., 64\), got"):
        autoquant(Net(), shapes=shapes)
    with pytest.raises(ValueError, match="`shapes` has 'fist', which is no layer"):
        autoquant(Net(), shapes={"fist": [(1, 64)]})


def test_what_was_never_called_is_not_finished() -> None:
    model = Net()
    autoquant(model, manual=True)
    with pytest.raises(RuntimeError, match="none of the layers was called: 'first', 'twice', 'last', 'unused'"):
        model.finalize_autoquant()
    assert kinds(model) == [None] * 4


def test_autocast() -> None:
    model = Net()
    before = state(model)
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match="autoquant measures without autocast"):
        autoquant(model, inputs(), timer=never)
    assert state(model) == before


def test_the_default_timer_measures() -> None:
    plan, model = Plan({"float": None, "int8": of.int8_weight_only()}), nn.Linear(16, 16)
    autoquant(model, torch.ones(1, 16), plan=plan)
    assert all(0 < seconds < 10 for seconds in plan.times.values())
    place = next(iter(plan.times))[0]
    assert place.framework == f"torch {torch.__version__}"
    assert place.device.startswith("cpu: ")
    assert plan.layers == choices(plan, place, {"": {next(iter(plan.times))[1]: 1}}, {})
