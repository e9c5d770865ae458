"""Which usual mistake gives the numbers that the port gives: each is tried on the recorded steps of torch.

A mistake explains a value when every element lies within twice the error bound of what torch would have computed with
it, as for a right port. It is tried at every step that it fits, at one alone and at all of a kind.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.requirements import explaining
from ..modes.arrays import to_numpy

with explaining(__name__):
    import torch

from . import layouts, mistakes
from .bounds import TINY
from .record import Call, Recording
from .tape import Change, Tape

Array = NDArray[Any]
MOST = 3  # explanations that are given
NEARER = 8
NOISE = 2.0**-18  # of the largest number: 64 roundings


def allowed(error: Any) -> Array:
    """How far two programs may lie apart that are both within an error of exact arithmetic."""
    return np.asarray(2 * to_numpy(error).astype(np.float64) + TINY)


def distances(a: Array, b: Array) -> Array:
    """``|a - b|`` in float64; 0 between equal infinities and NaN, infinite beside any other."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        far = np.abs(x - y)
        return np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.where(np.isnan(far), np.inf, far))


def explanations(recording: Recording, target: int, sources: Collection[int], got: Array) -> tuple[str, ...]:
    """Names of mistakes that give a value which lies beyond its bound, the likeliest first."""
    tape, found = recording.tape, list[str]()
    expected = to_numpy(tape.values[target])
    if not np.issubdtype(expected.dtype, np.floating) and expected.dtype != np.bool_ and expected.shape == got.shape:
        shift = np.unique(got.astype(np.int64) - expected.astype(np.int64))
        if shift.size == 1:
            found.append(
                f"off by one: every number {shift[0]:+d}" if abs(shift[0]) == 1 else f"every number {shift[0]:+d}"
            )
    for name, changes in candidates(tape, tape.steps_between(target, sources)):
        if name not in found and _gives(tape, target, sources, changes, got):
            found.append(name)
            if len(found) == MOST:
                break
    return tuple(found)


def candidates(tape: Tape, steps: Sequence[int]) -> Iterator[tuple[str, dict[int, Change]]]:
    """Every mistake that the steps allow: one at a time, then all of a name at once, then those of several steps."""
    together: dict[str, dict[int, Change]] = defaultdict(dict)
    for rule in (*mistakes.RULES, *layouts.RULES, *mistakes.LAST):
        for number in steps:
            for name, change in rule(tape, tape.steps[number]):
                together[name].setdefault(number, change)
                yield name, {number: change}
    for several in layouts.OF_SEVERAL:
        yield from several(tape, steps)
    yield from ((name, changes) for name, changes in together.items() if len(changes) > 1)


def _gives(tape: Tape, target: int, sources: Collection[int], changes: dict[int, Change], got: Array) -> bool:
    """Whether changed steps give a value; a change that does not fit gives none."""
    try:
        with torch.no_grad():
            made = tape.again(target, sources, changes, bound=False)
            value = to_numpy(made.value)
            if value.shape != got.shape or not _near(value, got):
                return False
            made = tape.again(target, sources, changes)
    except (RuntimeError, IndexError, TypeError, ValueError):
        return False
    far = distances(value, got)
    if made.error is None:
        return not far.any()
    bound = allowed(made.error)
    says = bound <= _size(got)  # a bound as large as the numbers explains nothing
    return bool(((far == 0) | ((far <= bound) & says)).all())


def nearer(recording: Recording, target: int, sources: Collection[int], got: Array) -> tuple[str, ...]:
    """Mistakes with which a value within its bound is `NEARER` times as near, where it is off by more than noise."""
    tape, found = recording.tape, dict[str, float]()
    far = float(distances(to_numpy(tape.values[target]), got).max(initial=0))
    if got.dtype.kind != "f" or far < NOISE * _size(got):
        return ()
    for rule in mistakes.QUIET:
        for number in tape.steps_between(target, sources):
            for name, change in rule(tape, tape.steps[number]):
                with torch.no_grad():
                    value = to_numpy(tape.again(target, sources, {number: change}, bound=False).value)
                if value.shape == got.shape and (off := float(distances(value, got).max(initial=0))) * NEARER <= far:
                    found.setdefault(name, off)
    return tuple(sorted(found, key=lambda name: found[name]))[:MOST]


def _near(value: Array, got: Array) -> bool:
    """Whether bounds are worth computing: most mistakes are far from most numbers."""
    far = distances(value, got)
    return bool(np.isfinite(far).all()) and float(far.max(initial=0)) <= 0.05 * _size(got)


def _size(got: Array) -> float:
    """The largest finite number."""
    finite = got[np.isfinite(got)].astype(np.float64)
    return max(float(np.abs(finite).max(initial=0)), 1e-30)


def elsewhere(recording: Recording, parent: Call, call: Call, got: Array, order: Sequence[str]) -> tuple[str, ...]:
    """What an input of a part of a module is, if it is another value of that module; and the order of its parts."""
    found = list[str]()
    mine, kinds = [part.path for part in parent.parts], {part.path: part.kind for part in parent.parts}
    for other in mine if call.path in order else ():
        if other not in order or (mine.index(other) < mine.index(call.path)) == (
            order.index(other) < order.index(call.path)
        ):
            continue
        sooner, later = sorted((call.path, other), key=order.index)  # in JAX; the other way in torch
        norms = [path for path in (sooner, later) if "norm" in kinds[path].lower()]
        kind = ""
        if len(norms) == 1:
            words = ("pre-norm instead of post-norm", "post-norm instead of pre-norm")
            kind = f" ({words[norms[0] == later]})"
        found.append(f"layer order{kind}: {sooner} comes before {later}, in torch after it")
        break
    places = [(f"input of {parent.path or 'the model'}", i) for i in parent.inputs]
    places += [(f"output of {part.path}", i) for part in parent.parts if part is not call for i in part.outputs]
    for name, number in places:
        value = to_numpy(recording.value(number))
        if value.shape == got.shape and value.dtype == got.dtype and not distances(value, got).any():
            found.append(f"is given the {name}")
    return tuple(dict.fromkeys(found))
