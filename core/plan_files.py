"""Plans of `samebits.core.autoquant` as files: JSON to be read, kept, and compared. Nouns only.

    {"samebits_autoquant": 1,
     "candidates": {"float": null, "int8_weight_only": {"weight": ..., "act_quant": null, "layout": "plain"}},
     "times": [{"framework": "torch 2.13.0", "samebits": "0.1.0", "device": ..., "compiled": false,
                "rows": 32, "weight": [512, 256], "dtype": "float32", "bias": true, "epilogue": "",
                "seconds": {"float": 0.0001, "int4_weight_only": null}}],
     "layers": {"fc1": {"chosen": "float", "calls": 1, "seconds": ..., "errors": {}, "refused": []}}}

Quantizers are as in `described`; ``null`` in place of seconds is a candidate that does not fit. A file that was written
in torch is read in JAX, and the other way: times say where they were measured.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import inf
from os import PathLike
from pathlib import Path as File
from typing import Any

from .autoquant import Case, Choice, Place, Plan, check_seconds
from .configs import Config, DynamicActivation, WeightOnly
from .described import quantizer_of_text, text_of
from .descriptions import Quantizer

Path = str | PathLike[str]
VERSION = 1


def save_plan(plan: Plan, path: Path) -> None:
    """Writes a plan; the same plan gives the same file."""
    entries: dict[tuple[Place, Case], dict[str, float]] = {}
    for (place, case, name), seconds in plan.times.items():
        entries.setdefault((place, case), {})[name] = seconds
    times = [{**asdict(place), **asdict(case), "seconds": _null(of)} for (place, case), of in entries.items()]
    parts = {
        "candidates": _lines({name: _described(config) for name, config in plan.candidates.items()}),
        "times": _lines(times),
        "layers": _lines({name: _choice_as_json(one) for name, one in plan.layers.items()}),
    }
    text = "".join(f',\n "{name}": {part}' for name, part in parts.items())
    File(path).write_text(f'{{"samebits_autoquant": {VERSION}{text}}}\n', encoding="utf-8")


def load_plan(path: Path) -> Plan:
    """The plan that a file holds.

    Raises:
        FileNotFoundError: no such file. ValueError: a file of something else, of another version, or damaged.
    """
    wanted = f"`path` must be a file that save_plan wrote, got {path}"
    try:
        found = json.loads(File(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from error
    if not isinstance(found, dict) or "samebits_autoquant" not in found:
        raise ValueError(f"{wanted}: it says nothing of autoquant")
    if found["samebits_autoquant"] != VERSION:
        raise ValueError(f"`path` must have version {VERSION} of plans, got {found['samebits_autoquant']!r} in {path}")
    try:
        candidates = {name: _config(one) for name, one in found["candidates"].items()}
        plan = Plan(candidates)
        for entry in found["times"]:
            plan.times |= _times(candidates, dict(entry))
        plan.layers = {name: _choice(candidates, one) for name, one in found["layers"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{wanted}: {type(error).__name__}: {error}") from error
    return plan


def _lines(items: Any) -> str:
    """JSON of a list or a mapping, one line for each of its items."""
    if isinstance(items, list):
        lines, (begin, end) = [json.dumps(one, allow_nan=False) for one in items], "[]"
    else:
        lines, (begin, end) = [f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in items.items()], "{}"
    return begin + ",".join(f"\n  {line}" for line in lines) + end


def _null(seconds: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if value == inf else float(value) for name, value in seconds.items()}


def _infinite(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {name: inf if value is None else value for name, value in numbers.items()}


def _described(config: Config | None) -> Any:
    if config is None:
        return None
    act = None if config.act_quant is None else json.loads(text_of(config.act_quant))
    return {"weight": json.loads(text_of(config.weight)), "act_quant": act, "layout": config.layout}


def _config(described: Any) -> Config | None:
    if described is None:
        return None
    weight, act, layout = _quantizer(described["weight"]), described["act_quant"], described["layout"]
    return WeightOnly(weight, layout) if act is None else DynamicActivation(_quantizer(act), weight, layout)


def _quantizer(described: Any) -> Quantizer:
    return quantizer_of_text(json.dumps(described))


def _times(candidates: Mapping[str, Any], entry: dict[str, Any]) -> dict[tuple[Place, Case, str], float]:
    seconds = _infinite(entry.pop("seconds"))
    place = Place(*(entry.pop(name) for name in ("framework", "samebits", "device", "compiled")))
    case = Case(**entry | {"weight": tuple(entry["weight"])})
    _known(candidates, seconds)
    return {(place, case, name): check_seconds(value, case, name) for name, value in seconds.items()}


def _choice_as_json(one: Choice) -> dict[str, Any]:
    return {
        "chosen": one.chosen,
        "calls": one.calls,
        "seconds": _null(one.seconds),
        "errors": _null(one.errors),
        "refused": list(one.refused),
    }


def _choice(candidates: Mapping[str, Any], entry: dict[str, Any]) -> Choice:
    fields = {**entry, "refused": tuple(entry["refused"])}
    fields |= {name: _infinite(entry[name]) for name in ("seconds", "errors")}
    made = Choice(**fields)
    _known(candidates, made.seconds)
    if made.chosen != "float":
        _known(candidates, {made.chosen: 0})
    return made


def _known(candidates: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    for name in names:
        if name not in candidates:
            raise ValueError(f"'{name}' is none of its candidates")
