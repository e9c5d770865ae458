"""Prototypes in `samebits check`: every mode on the tensors of a checkpoint, special values, and edges that were found.

Tensors are cut into pieces of one shape, as for one scale per token. Result, new states and all gradients are compared,
bit for bit: those of parameters are sums in a stated order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import catalog, prototypes
from ...core.prototype import Prototype
from ..inputs.checkpoint import mapped_values, stored_tensors
from ..inputs.compare import describe, differences
from ..inputs.knife_edges import special_values
from ..modes.execution import MODES
from ..prototypes.agreement import results
from ..prototypes.edges import found_inputs
from ..prototypes.users import arrays_of, is_named, parameters_of, prototype_of
from .pieces import BREADTH, HEIGHT, Piece, Rows, pack, tensor_rows
from .tally import Example, Tally

Array = NDArray[Any]
LIKE = catalog["int8_per_token"]  # whose pieces those of a prototype are
WORDS: Mapping[str, str] = {"y": "result", "d": "gradient of"}


@dataclass(frozen=True)
class PrototypeJob:
    """A user's prototype, ``FILE.py:NAME``, with parameters ``NAME=VALUE``, as one dtype in every mode asked for."""

    path: Path
    name: str
    parameters: tuple[str, ...]
    dtype: np.dtype[Any]
    modes: tuple[str, ...]


def checked_formulas(
    names: Sequence[str], parameters: Sequence[str], modes: Sequence[str], dialect: str | None
) -> tuple[str, ...]:
    """Those among names that are prototypes, each run once on a piece: what is wrong is told before anything is done.

    Raises:
        ImportError, KeyError: no such prototype. TypeError, ValueError: what the formula raises; other parameters; a
            dialect, or a mode that is not of the CPU.
    """
    found = tuple(dict.fromkeys(name for name in names if is_named(name)))
    if found and dialect is not None:
        raise ValueError(f"`dialect` is of quantizers of the catalog, not of {found[0]}")
    if found and (others := [mode for mode in modes if mode not in MODES]):
        raise ValueError(f"{found[0]} cannot run in {others[0]}: prototypes have the modes {', '.join(MODES)}")
    for name in found:
        prototype = prototype_of(name)
        x = np.ones((HEIGHT, BREADTH), np.float32)
        prototypes.apply(prototype, x, **arrays_of(prototype, parameters_of(prototype, parameters), x.dtype))
    return found


def run_prototype(job: PrototypeJob, missing: Mapping[str, str | None]) -> dict[str, Tally]:
    """What came of each mode that is not missing."""
    prototype = prototype_of(job.name)
    given = arrays_of(prototype, parameters_of(prototype, job.parameters), job.dtype)
    totals = {mode: Tally() for mode in missing}
    random = np.random.default_rng(0)
    for x, sources in _arrays(job, prototype, given):
        g = random.standard_normal(x.shape).astype(job.dtype)
        with np.errstate(all="ignore"):
            expected = results("numpy", prototype, x, g, **given)
            for mode in (mode for mode, why in missing.items() if not why):
                try:
                    got = results(mode, prototype, x, g, **given)
                except ValueError as refusal:
                    totals[mode] += _refused(expected, sources[0], job.dtype.name, refusal)
                else:
                    totals[mode] += _tally(x, sources, expected, got)
    return totals


def _arrays(job: PrototypeJob, prototype: Prototype, given: Mapping[str, Any]) -> Iterator[tuple[Array, Sequence[str]]]:
    """Pieces of all tensors; then edges and special values in the first and the last one. With sources, row by row."""
    ends: list[Piece] = []
    for piece in pack(LIKE, _rows(job, finite=True)):
        ends = [*ends[:1], piece]
        yield piece.x, piece.sources
    for piece in pack(LIKE, _rows(job, finite=False)):  # apart, since one NaN is enough for many a statistic
        yield piece.x, piece.sources
    for piece in ends:
        for x in found_inputs(prototype, piece.x, **given):
            yield x, [f"edges found in {source}" for source in piece.sources]
    for piece in ends[:1]:
        yield _with_special(piece.x), [f"special values in {source}" for source in piece.sources]


def _rows(job: PrototypeJob, *, finite: bool) -> Iterator[Rows]:
    """Rows of all tensors: those that are finite, which `tensor_rows` leaves without a scale, or the others."""
    for tensor in stored_tensors(job.path):
        if not tensor.skipped:
            for rows in tensor_rows(LIKE, mapped_values(job.path, tensor), job.dtype, tensor.name):
                if (rows.scale is None) == finite:
                    yield replace(rows, scale=None, zero_point=None)


def _with_special(x: Array) -> Array:
    """One special value in every other row, all of them in the last."""
    out, values = x.copy(), special_values(x.dtype)
    rows = np.arange(0, len(out), 2)
    out[rows, rows * 7 % out.shape[1]] = np.resize(values, len(rows))
    out[-1, : len(values)] = values
    return out


def _tally(x: Array, sources: Sequence[str], expected: Mapping[str, Array], got: Mapping[str, Array]) -> Tally:
    total = Tally()
    for name, value in expected.items():
        found = differences(value, got[name], inputs=x)
        total += Tally(compared=found.compared)
        if not found.same:
            here = found.index if found.index is not None and value.shape == x.shape else None
            size = float(np.abs(np.float64(x[here]))) if here is not None else np.inf
            example = Example(
                function=_words(name),
                tensor=sources[here[0]] if here else sources[0],
                dtype=x.dtype.name,
                x=describe(x[here]) if here is not None else None,
                scale="",
                zero_point=None,
                expected=found.reason if found.index is None else describe(found.expected),
                got="" if found.index is None else describe(found.got),
                size=np.inf if np.isnan(size) else size,
            )
            parts = ((_words(name), found.differing),)
            total += Tally(differing=found.differing, parts=parts, example=example)
    return total


def _refused(expected: Mapping[str, Array], source: str, dtype: str, refusal: ValueError) -> Tally:
    """A mode that raises where the specification does not."""
    count = sum(value.size for value in expected.values())
    example = Example("result", source, dtype, None, "", None, "a result", f"ValueError: {refusal}", np.inf)
    return Tally(compared=count, differing=count, parts=(("result", count),), example=example)


def _words(name: str) -> str:
    kind, _, parameter = name.partition(" ")
    if kind in WORDS and (parameter or name == "y"):
        return f"{WORDS[kind]} {parameter}".strip()
    return f"new {name}"
