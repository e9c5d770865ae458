"""Which quantization is the fastest for each linear layer: what was measured, and what is chosen. Nouns only.

A layer is measured as the `Case` that it computes, at a `Place`, once for each candidate, a config of
`samebits.core.configs`. A `Plan` is the cache of these times: what it has is not measured again. Of a layer that sees
several cases the cost of a candidate is ``sum(seconds * calls) / sum(calls)``; the smallest wins, of equal ones the
candidate that comes later. `samebits.core.plan_files` keeps plans as JSON.
"""

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from pathlib import Path
from statistics import median
from types import MappingProxyType

from .checks import check_float
from .choice import check_count, check_number
from .configs import (
    Config,
    ModuleConfigs,
    check_weight,
    int4_weight_only,
    int8_dynamic_activation_int8_weight,
    int8_weight_only,
    nothing_to_quantize,
)

FLOAT = "float"  # the candidate that leaves a layer as it is
CANDIDATES: Mapping[str, Config | None] = MappingProxyType(
    {
        FLOAT: None,
        "int8_weight_only": int8_weight_only(),
        "int8_dynamic": int8_dynamic_activation_int8_weight(),
        "int4_weight_only": int4_weight_only(64),
    }
)
# Functions that a compiler fuses into the product before them, as torch and JAX name them both
EPILOGUES = ("elu", "gelu", "leaky_relu", "relu", "relu6", "sigmoid", "silu", "softplus", "tanh")
MEASURE = ("missing", "never", "again")


@dataclass(frozen=True)
class Case:
    """What a linear layer computes in one call.

    Args:
        rows: of its input, all axes but the last taken together. ``weight``: ``(out, in)``.
        dtype: of all of it. ``bias``: whether it has one.
        epilogue: one of `EPILOGUES` that follows, or ``""``.
    Raises:
        TypeError, ValueError: what is none of these.
    """

    rows: int
    weight: tuple[int, int]
    dtype: str
    bias: bool
    epilogue: str = ""

    def __post_init__(self) -> None:
        check_count("rows", self.rows, 0)
        if not isinstance(self.weight, tuple) or len(self.weight) != 2:
            raise ValueError(f"`weight` must be (out, in), got {self.weight!r}")
        for size in self.weight:
            check_count("weight", size, 0)
        check_float("dtype", self.dtype)
        if not isinstance(self.bias, bool):
            raise TypeError(f"`bias` must be a bool, got {self.bias!r}")
        if self.epilogue:
            check_epilogue(self.epilogue)

    def __str__(self) -> str:
        rest = "".join(f", {part}" for part in ("bias" if self.bias else "", self.epilogue) if part)
        return f"input {self.rows} x {self.weight[1]}, weight {self.weight[0]} x {self.weight[1]}, {self.dtype}{rest}"


@dataclass(frozen=True)
class Place:
    """Where times were measured: they hold nowhere else.

    Args:
        framework, samebits: with their versions. ``device``: what computed.
        compiled: whether the layer was compiled.
    """

    framework: str
    samebits: str
    device: str
    compiled: bool

    def __str__(self) -> str:
        how = "compiled" if self.compiled else "eager"
        return f"{self.framework}, samebits {self.samebits}, {self.device}, {how}"


@dataclass(frozen=True)
class Choice:
    """What was chosen for a layer.

    Args:
        chosen: a candidate. ``calls``: how often the layer was called, 0 for one that is left alone for that.
        seconds: of one call, by candidate; infinite where one does not fit.
        errors: of its output against that of floats, by candidate; empty if no bound was asked for.
        refused: candidates whose error is beyond the bound.
    """

    chosen: str
    calls: int
    seconds: Mapping[str, float]
    errors: Mapping[str, float]
    refused: tuple[str, ...] = ()


@dataclass
class Plan:
    """A cache of times, and what was chosen of the last model that was quantized with it.

    Args:
        candidates: configs by name, None for floats. Of equal times the later one wins.
        times: seconds of one call, infinite for a candidate that does not fit.
        layers: by the name of a layer.
    Raises:
        TypeError, ValueError: candidates that are none; none at all; ``"float"`` that is not None, or another that is.
    """

    candidates: Mapping[str, Config | None] = field(default_factory=lambda: dict(CANDIDATES))
    times: dict[tuple[Place, Case, str], float] = field(default_factory=dict)
    layers: dict[str, Choice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.candidates, Mapping) or not self.candidates:
            raise TypeError(f"`candidates` must be a mapping of names to configs, got {self.candidates!r}")
        for name, config in self.candidates.items():
            if not isinstance(name, str) or not (config is None or isinstance(config, Config)):
                raise TypeError(
                    f"`candidates` must map names to WeightOnly, DynamicActivation or None, got {name!r}: {config!r}"
                )
            if (name == FLOAT) != (config is None):
                raise ValueError(
                    f"`candidates` must have None under 'float' and nowhere else, got {name!r}: {config!r}"
                )

    def configs(self) -> ModuleConfigs:
        """What was chosen, for `quantize_` of either framework: the same codes in both, without any measuring.

        Raises:
            ValueError: nothing was chosen yet.
        """
        if not self.layers:
            raise ValueError("the plan has no layers: run autoquant with it first")
        return ModuleConfigs({name: self.candidates.get(one.chosen) for name, one in self.layers.items()})

    def __str__(self) -> str:
        return table(self.candidates, self.layers)


Timer = Callable[[Callable[[], object], Case, str], float]


def merge_plans(*plans: Plan) -> Plan:
    """The times of all plans; where several have one, that of the last. Choices belong to one model and are left out.

    Raises:
        ValueError: no plan, or a name that stands for two configs.
    """
    if not plans:
        raise ValueError("`plans` must be at least one plan, got none")
    candidates: dict[str, Config | None] = {}
    for plan in plans:
        for name, config in plan.candidates.items():
            if candidates.setdefault(name, config) != config:
                raise ValueError(f"plans must mean the same by {name!r}, got {candidates[name]!r} and {config!r}")
    return Plan(candidates, {key: seconds for plan in plans for key, seconds in plan.times.items()})


def fits(config: Config | None, case: Case) -> bool:
    """Whether a layer of this case can have the config."""
    try:
        if config is not None:
            check_weight("", config.weight, case.weight)
    except ValueError:
        return False
    return True


def to_measure(
    plan: Plan, place: Place, layers: Mapping[str, Mapping[Case, int]], measure: str | None = None
) -> list[tuple[Case, str]]:
    """The cases and candidates whose time has to be measured.

    Args:
        layers: the calls of each layer, by case.
        measure: ``"missing"``, what the plan lacks; ``"again"``, all; ``"never"``: it must lack nothing. None for
            ``"missing"`` where the plan has no times, else ``"never"``.
    Raises:
        ValueError: another ``measure``; with ``"never"``, a plan from another place, or of another model.
    """
    if measure not in (*MEASURE, None):
        raise ValueError(f"`measure` must be None or one of {', '.join(map(repr, MEASURE))}; got {measure!r}")
    owners: dict[Case, str] = {}
    for name, calls in layers.items():
        for case in calls:
            owners.setdefault(case, name)
    wanted = [(case, one) for case in owners for one in plan.candidates]
    lacking = [pair for pair in wanted if measure == "again" or (place, *pair) not in plan.times]
    if lacking and (measure == "never" or (measure is None and plan.times)):
        case, candidate = lacking[0]
        raise ValueError(_refusal(plan, place, f"{candidate} of layer '{owners[case]}' ({case})"))
    return lacking


def _refusal(plan: Plan, place: Place, what: str) -> str:
    others = sorted({str(where) for where, _, _ in plan.times})
    if not others:
        found = "has no times at all"
    elif str(place) in others:
        found = f"has no time for {what}: it is of another model"
    else:
        found = f"was measured elsewhere ({'; '.join(others)}), here is {place}"
    return f"`plan` {found}; pass measure='missing' to measure what it lacks"


def check_seconds(value: object, case: Case, candidate: str) -> float:
    """A time. TypeError for what is no number, ValueError for one below zero or NaN; both say of what."""
    name = f"timer of {candidate}, {case}"
    check_number(name, value)
    seconds = float(value)  # type: ignore[arg-type]  # checked
    if not seconds >= 0:
        raise ValueError(f"`{name}` must give seconds, got {seconds}")
    return seconds


def check_bound(max_error: float | None) -> None:
    """TypeError, ValueError unless it is None or a number that is not negative."""
    if max_error is not None:
        check_number("max_error", max_error)
        if not max_error >= 0:
            raise ValueError(f"`max_error` must not be negative, got {max_error}")


def check_epilogue(name: object) -> None:
    """ValueError unless it is one of `EPILOGUES`."""
    if name not in EPILOGUES:
        raise ValueError(f"`epilogue` must be one of {', '.join(map(repr, EPILOGUES))}; got {name!r}")


def check_epilogues(epilogues: Mapping[str, str], layers: Iterable[str]) -> None:
    """ValueError for one of another name, or of a layer that there is not."""
    check_names("epilogues", epilogues, layers)
    for name in epilogues.values():
        check_epilogue(name)


def check_layers(layers: Iterable[str], wrong: Sequence[str]) -> None:
    """ValueError if there is no layer, or some are no linear layers of floats; these are given as text."""
    if not list(layers):
        raise nothing_to_quantize()
    if wrong:
        raise ValueError(f"layer {wrong[0]} must be a linear layer that is not quantized yet")


def check_names(argument: str, given: Iterable[str], layers: Iterable[str]) -> None:
    """ValueError for a name that no layer has."""
    known = list(layers)
    for name in given:
        if name not in known:
            raise ValueError(f"`{argument}` has '{name}', which is no layer; layers are {', '.join(known)}")


def check_shape(name: str, shape: object, inputs: int) -> None:
    """ValueError unless it is the shape of an input ``(..., inputs)`` of a layer."""
    sizes = shape if isinstance(shape, tuple | list) else ()
    if not sizes or not all(isinstance(size, int) for size in sizes) or sizes[-1] != inputs or min(sizes) < 0:
        raise ValueError(f"`shapes` of layer '{name}' must be shapes (..., {inputs}), got {shape!r}")


def choices(
    plan: Plan,
    place: Place,
    layers: Mapping[str, Mapping[Case, int]],
    errors: Mapping[str, Mapping[str, float]],
    max_error: float | None = None,
) -> dict[str, Choice]:
    """What is chosen for each layer, by the times of a plan.

    Args:
        layers: the calls of each layer, by case; none: it stays as it is.
        errors: by layer and candidate, relative. ``max_error``: how large one may be, or None.
    """
    made = {}
    for name, calls in layers.items():
        own, total = errors.get(name, {}), sum(calls.values())
        cost = {
            one: sum(plan.times[place, case, one] * n for case, n in calls.items()) / total
            for one in (plan.candidates if total else ())
        }
        refused = tuple(one for one, e in own.items() if max_error is not None and not e <= max_error)
        left = {one: seconds for one, seconds in cost.items() if one not in refused and seconds < inf}
        least = min(left.values(), default=inf)
        chosen = [one for one, seconds in left.items() if seconds == least]
        made[name] = Choice(chosen[-1] if chosen else FLOAT, total, cost, dict(own), refused)
    return made


def table(candidates: Iterable[str], layers: Mapping[str, Choice]) -> str:
    """Choices as text, one line for each layer: microseconds of one call, errors behind them, what was chosen."""
    names = list(candidates)
    rows = [("layer", "calls", *names, "chosen")]
    for name, one in layers.items():
        rows.append((name or "(model)", str(one.calls), *(_cell(one, candidate) for candidate in names), one.chosen))
    widths = [max(len(row[k]) for row in rows) for k in range(len(names) + 2)]
    padded = ([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]] for row in rows)
    return "\n".join("  ".join(row) for row in padded)


def _cell(one: Choice, candidate: str) -> str:
    seconds = one.seconds.get(candidate)
    if seconds is None or seconds == inf:
        return "-" if seconds is None else "does not fit"
    error = f", error {one.errors[candidate]:.2g}" if candidate in one.errors else ""
    return f"{seconds * 1e6:.1f} us{error}{' (refused)' if candidate in one.refused else ''}"


def median_seconds(
    call: Callable[[], object],
    case: Case | None = None,
    candidate: str = "",
    *,
    warmup: int = 3,
    least: float = 0.0005,
    laps: int = 21,
    enough: float = 0.5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one call, after ``warmup`` calls: the median of laps, which others that run meanwhile seldom move.

    Args:
        call: computes, and returns when it is done. ``case``, ``candidate``: for timers that go by them; not used.
        least: seconds of a lap, so that it is long beside the clock's steps: calls in it are doubled until it is.
        laps: how many; fewer, but at least 5, when they take more than ``enough`` seconds.
    """

    def lap(times: int) -> float:
        begin = clock()
        for _ in range(times):
            call()
        return clock() - begin

    lap(warmup)
    times = 1
    while lap(times) < least and times < 2**16:
        times *= 2
    found: list[float] = []
    while len(found) < min(laps, 5) or (len(found) < laps and sum(found) < enough):
        found.append(lap(times))
    return median(found) / times


@lru_cache
def samebits_version() -> str:
    """The version that is installed."""
    from importlib.metadata import PackageNotFoundError, version  # they cost milliseconds that core alone needs not

    try:
        return version("samebits")
    except PackageNotFoundError:
        return "unknown"


@lru_cache
def processor() -> str:
    """The name of the processor of this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, (*found, platform.processor(), platform.machine())), "unknown")
