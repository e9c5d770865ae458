"""Plans of autoquant: what is chosen by which times, what has to be measured, files, and what is refused."""

import json
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

import pytest

from samebits.core import configs as of
from samebits.core.autoquant import (
    CANDIDATES,
    Case,
    Choice,
    Place,
    Plan,
    check_seconds,
    choices,
    fits,
    median_seconds,
    merge_plans,
    processor,
    samebits_version,
    to_measure,
)
from samebits.core.plan_files import load_plan, save_plan

HERE, ELSEWHERE = Place("torch 2.13.0", "0.1.0", "cpu", False), Place("torch 2.12.0", "0.1.0", "cpu", False)
SMALL, LARGE = Case(1, (8, 64), "float32", True), Case(100, (8, 64), "bfloat16", False, "relu")
NAMES = list(CANDIDATES)


def plan(small: dict[str, float], large: dict[str, float] | None = None, place: Place = HERE) -> Plan:
    times = {(place, SMALL, name): s for name, s in small.items()}
    return Plan(times=times | {(place, LARGE, name): s for name, s in (large or {}).items()})


def chosen(found: Plan, calls: dict[Case, int], **more: Any) -> Choice:
    return choices(found, HERE, {"fc": calls}, more.pop("errors", {}), **more)["fc"]


def seconds(*values: float) -> dict[str, float]:
    return dict(zip(NAMES, values, strict=True))


def test_the_smallest_mean_over_calls_wins() -> None:
    """By hand: float (3 * 1 + 1 * 9) / 4 = 3, int8_weight_only (3 * 2 + 1 * 2) / 4 = 2, the others 5 and 6."""
    both = plan(seconds(1, 2, 5, 6), seconds(9, 2, 5, 6))
    one = chosen(both, {SMALL: 3, LARGE: 1})
    assert one == Choice("int8_weight_only", 4, seconds(3, 2, 5, 6), {})
    assert chosen(both, {SMALL: 9, LARGE: 1}).chosen == "float"  # 1.8


def test_of_equal_times_the_later_candidate_wins() -> None:
    assert chosen(plan(seconds(1, 1, 2, 2)), {SMALL: 1}).chosen == "int8_weight_only"
    assert chosen(plan(seconds(2, 1, 1, 1)), {SMALL: 1}).chosen == "int4_weight_only"


def test_what_does_not_fit_or_errs_too_much_is_not_chosen() -> None:
    times = plan(seconds(4, 3, 2, inf))
    errors = {"fc": {"int8_weight_only": 0.01, "int8_dynamic": 0.02}}
    assert chosen(times, {SMALL: 1}).chosen == "int8_dynamic"
    assert chosen(times, {SMALL: 1}, errors=errors, max_error=0.02).chosen == "int8_dynamic"
    one = chosen(times, {SMALL: 1}, errors=errors, max_error=0.019)
    assert (one.chosen, one.refused, one.errors) == ("int8_weight_only", ("int8_dynamic",), errors["fc"])
    assert chosen(times, {SMALL: 1}, errors=errors, max_error=0).chosen == "float"
    without = Plan({"int8_weight_only": CANDIDATES["int8_weight_only"]}, {(HERE, SMALL, "int8_weight_only"): 1.0})
    assert chosen(without, {SMALL: 1}, errors={"fc": {"int8_weight_only": inf}}, max_error=1.0).chosen == "float"


def test_a_layer_that_is_never_called_stays() -> None:
    found = plan(seconds(1, 2, 3, 4))
    found.layers = choices(found, HERE, {"fc": {}, "": {SMALL: 1}}, {"": {"int8_dynamic": 0.25}}, 0.1)
    assert found.layers["fc"] == Choice("float", 0, {}, {})
    lines = str(found).splitlines()
    assert lines[0].split() == ["layer", "calls", *NAMES, "chosen"]
    assert lines[1].split() == ["fc", "0", "-", "-", "-", "-", "float"]
    assert lines[2].startswith("(model)  1      1000000.0 us  2000000.0 us      3000000.0 us, error 0.25 (refused)")


def test_configs_of_a_plan() -> None:
    found = plan(seconds(1, 1, 2, 3))
    with pytest.raises(ValueError, match="the plan has no layers"):
        found.configs()
    found.layers = choices(found, HERE, {"a": {SMALL: 1}, "b": {}}, {})
    assert found.configs() == of.ModuleConfigs({"a": of.int8_weight_only(), "b": None})


def test_what_has_to_be_measured() -> None:
    calls = {"a": {SMALL: 1}, "b": {LARGE: 1, SMALL: 2}}
    every = [(case, name) for case in (SMALL, LARGE) for name in NAMES]
    assert to_measure(Plan(), HERE, calls) == every
    part = plan(seconds(1, 1, 1, inf))
    part.times[HERE, LARGE, "float"] = 1.0
    lacking = [(LARGE, name) for name in NAMES[1:]]
    assert to_measure(part, HERE, calls, "missing") == lacking
    assert to_measure(part, HERE, calls, "again") == every
    assert to_measure(part, HERE, {"a": {SMALL: 5}}) == []
    assert to_measure(part, ELSEWHERE, calls, "missing") == every
    with pytest.raises(
        ValueError, match=r"no time for int8_weight_only of layer 'b' \(input 100 x 64, .*another model"
    ):
        to_measure(part, HERE, calls)
    with pytest.raises(ValueError, match=r"elsewhere \(torch 2\.13\.0, .*eager\), here is torch 2\.12\.0.*'missing'"):
        to_measure(part, ELSEWHERE, calls)
    with pytest.raises(ValueError, match="has no times at all"):
        to_measure(Plan(), HERE, calls, "never")
    with pytest.raises(ValueError, match="`measure` must be None or one of 'missing', 'never', 'again'; got 'always'"):
        to_measure(part, HERE, calls, "always")


def test_plans_are_merged() -> None:
    first, second = plan(seconds(1, 2, 3, 4)), plan(seconds(5, 6, 7, 8), seconds(1, 1, 1, 1), ELSEWHERE)
    third = plan({"float": 9.0})
    first.layers = {"fc": Choice("float", 1, {}, {})}
    merged = merge_plans(first, second, third)
    assert merged == Plan(times={**first.times, **second.times, (HERE, SMALL, "float"): 9.0})
    assert first.times[HERE, SMALL, "float"] == 1
    with pytest.raises(ValueError, match="mean the same by 'int4_weight_only', got"):
        merge_plans(first, Plan({"int4_weight_only": of.int4_weight_only(32)}))
    with pytest.raises(ValueError, match="at least one plan"):
        merge_plans()


def full_plan() -> Plan:
    found = plan(seconds(1e-5, 0.1 + 0.2, 3, inf), seconds(4, 5, 6, 7), ELSEWHERE)
    found.times |= plan(seconds(1, 2, 3, 4)).times
    found.layers = choices(found, HERE, {"fc": {SMALL: 2}, "b": {}}, {"fc": {"int8_dynamic": inf}}, 0.5)
    return found


def test_plans_are_kept_in_files(tmp_path: Path) -> None:
    found, path = full_plan(), tmp_path / "plan.json"
    save_plan(found, path)
    assert load_plan(path) == found
    save_plan(load_plan(path), tmp_path / "again.json")
    assert path.read_bytes() == (tmp_path / "again.json").read_bytes()
    entries = json.loads(path.read_text())["times"]
    assert entries[0]["seconds"]["int4_weight_only"] is None
    assert len(entries) == 3
    save_plan(Plan(), path)
    assert load_plan(path) == Plan()


def test_a_file_that_is_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("""{
        "samebits_autoquant": 1,
        "candidates": {"float": null, "int8": {"act_quant": null, "layout": "plain", "weight":
            {"format": {"kind": "IntegerFormat", "bits": 8}, "granularity": {"kind": "PerAxis", "axis": 0}}}},
        "times": [{"framework": "torch 2.13.0", "samebits": "0.1.0", "device": "cpu", "compiled": false,
            "rows": 1, "weight": [8, 64], "dtype": "float32", "bias": true, "epilogue": "",
            "seconds": {"float": 0.5, "int8": null}}],
        "layers": {}
    }""")
    times = {(HERE, SMALL, "float"): 0.5, (HERE, SMALL, "int8"): inf}
    assert load_plan(path) == Plan({"float": None, "int8": of.int8_weight_only()}, times)


DAMAGE: list[tuple[Any, str]] = [
    (lambda d: d.pop("samebits_autoquant"), "it says nothing of autoquant"),
    (lambda d: d.update(samebits_autoquant=2), "must have version 1 of plans, got 2"),
    (lambda d: d.pop("times"), "save_plan wrote.*KeyError: 'times'"),
    (lambda d: d.update(candidates={}), "`candidates` must be a mapping"),
    (lambda d: d["candidates"].pop("int8_dynamic"), "'int8_dynamic' is none of its candidates"),
    (lambda d: d["candidates"]["int8_dynamic"].update(layout="dense"), "`layout` must be one of"),
    (lambda d: d["times"][0].update(rows=-1), "`rows` must be at least 0, got -1"),
    (lambda d: d["times"][0].update(rows="1"), "`rows` must be an int"),
    (lambda d: d["times"][0].update(weight=[1]), r"`weight` must be \(out, in\)"),
    (lambda d: d["times"][0].update(dtype="int8"), "`dtype` must"),
    (lambda d: d["times"][0].update(bias=1), "`bias` must be a bool"),
    (lambda d: d["times"][0].update(epilogue="cube"), "`epilogue` must be one of"),
    (lambda d: d["times"][0].update(other=1), "unexpected keyword"),
    (lambda d: d["times"][0]["seconds"].update(float=-1), "must give seconds, got -1"),
    (lambda d: d["times"][0]["seconds"].update(float="1"), "must be a number"),
    (lambda d: d["layers"]["fc"].update(chosen="int2"), "'int2' is none of its candidates"),
    (lambda d: d["layers"]["fc"].pop("calls"), "calls"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damaged_files(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "plan.json"
    save_plan(full_plan(), path)
    described = json.loads(path.read_text())
    damage(described)
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=message):
        load_plan(path)


@pytest.mark.parametrize("text", ["", "[]", "no JSON", '{"times": []}'])
def test_files_of_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"`path` must be a file that save_plan wrote, got .*plan\.json"):
        load_plan(path)
    with pytest.raises(FileNotFoundError):
        load_plan(tmp_path / "none.json")


def test_candidates_that_are_none() -> None:
    for candidates, message in [
        ({"float": of.int8_weight_only()}, "must have None under 'float'"),
        ({"nothing": None}, "must have None under 'float'"),
        ({"float": None, "a": "int8"}, "must map names to"),
        ([], "must be a mapping"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            Plan(candidates)


def test_configs_that_fit() -> None:
    assert [fits(config, SMALL) for config in CANDIDATES.values()] == [True] * 4
    assert [fits(config, Case(1, (8, 96), "float32", True)) for config in CANDIDATES.values()] == [True] * 3 + [False]


@pytest.mark.parametrize("value", [-1.0, float("nan"), "1", None])
def test_times_that_are_none(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"timer of float, input 1 x 64, weight 8 x 64, float32, bias"):
        check_seconds(value, SMALL, "float")


def test_the_median_of_laps_after_warming_up() -> None:
    """A clock that moves by what each call costs: 3 slow ones first, then 1 ms each, but for a disturbed lap."""
    now, calls = [0.0], count()

    def call() -> None:
        n = next(calls)
        now[0] += 9.0 if n < 3 or n in (5, 6) else 0.001

    assert median_seconds(call, laps=7, enough=99, clock=lambda: now[0]) == pytest.approx(0.001, rel=1e-9)
    assert next(calls) == 3 + 1 + 7


def test_short_calls_are_measured_together_and_long_ones_less_often() -> None:
    now, calls = [0.0], count()

    def taking(seconds: float) -> None:
        next(calls)
        now[0] += seconds

    found = median_seconds(lambda: taking(0.0001), warmup=0, least=0.0005, laps=5, clock=lambda: now[0])
    assert found == pytest.approx(0.0001, rel=1e-9)
    assert next(calls) == 1 + 2 + 4 + 8 + 5 * 8
    calls = count()
    assert median_seconds(lambda: taking(1.0), warmup=0, clock=lambda: now[0]) == pytest.approx(1.0)
    assert next(calls) == 1 + 5


def test_what_times_hold_for_has_a_name() -> None:
    assert processor()
    assert samebits_version()
    assert str(HERE) == "torch 2.13.0, samebits 0.1.0, cpu, eager"
    assert str(LARGE) == "input 100 x 64, weight 8 x 64, bfloat16, relu"
