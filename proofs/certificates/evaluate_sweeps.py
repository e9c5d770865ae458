"""Carrying out one tile of a sweep: every mode on its inputs, against the specification and exact arithmetic."""

import hashlib
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.bits import raw_bits
from ..inputs.compare import describe, differences
from ..inputs.found_edges import TooManyEdges, found_edges
from ..inputs.knife_edges import special_values
from .cases import IN_CACHE
from .evaluate import TileResult
from .nearest import BESIDE, not_nearest
from .subjects import Formula, Function, Primitive, Results, Subject, canonical, dtype_of, function_of, reference
from .sweeps import special
from .tiles import CHUNK, Tile

Array = NDArray[Any]
FEW = 2**12  # edges of one function, from which on it seems to be no step function
REFERENCE = "numpy"


@dataclass(frozen=True)
class SweepFinding:
    """Operands at which a mode is not what the specification says, or this not the nearest number."""

    mode: str
    function: str
    operands: tuple[Any, ...]
    expected: Any
    got: Any
    differing: int
    compared: int


def run_sweep_tile(subject: Subject, tile: Tile, modes: Sequence[str]) -> TileResult:
    """All modes on one tile; mode "numpy" is always run, and judged by exact arithmetic where there is any."""
    functions = {mode: function_of(subject, mode, tile.dtype) for mode in dict.fromkeys([REFERENCE, *modes])}
    digest, seconds = hashlib.sha256(), dict.fromkeys(functions, 0.0)
    findings: dict[tuple[str, str], SweepFinding] = {}
    count = 0
    for operands in operands_of(subject, tile):
        expected = _timed(functions[REFERENCE], operands, REFERENCE, seconds)
        count += sum(value.size for value in expected.values())
        for value in expected.values():
            digest.update(zlib.crc32(raw_bits(canonical(value)).data).to_bytes(4, "little"))
        _keep(findings, _judged(subject, operands, expected))
        for mode, function in functions.items():
            if mode != REFERENCE:
                got = _timed(function, operands, mode, seconds)
                _keep(findings, _compared(mode, operands, expected, got))
    return TileResult(digest.hexdigest()[:32], count, seconds, tuple(findings.values()))


def explain_sweep(found: SweepFinding) -> str:
    """Operands in decimal, hexadecimal and bits, and both results."""
    what = "is not the nearest number" if found.mode == REFERENCE else "differs from the specification"
    lines = [f"{found.mode}: {found.function} {what} at {found.differing:,} of {found.compared:,} inputs looked at"]
    lines += [f"  {f'operand {i}':<11}{describe(value)}" for i, value in enumerate(found.operands)]
    if found.mode != REFERENCE:
        lines.append(f"  {'expected':<11}{describe(found.expected)}")
    return "\n".join([*lines, f"  {'got':<11}{describe(found.got)}"])


def operands_of(subject: Subject, tile: Tile) -> Iterator[tuple[Array, ...]]:
    """The arrays of a tile, about `CHUNK` elements at a time, all of one length but for the last."""
    dtype = dtype_of(tile.dtype)
    bits = np.dtype(f"u{dtype.itemsize}")
    if tile.kind == "edges":
        assert isinstance(subject, Formula)
        yield (edges_of(subject, tile.dtype),)
    elif tile.kind == "numbers":
        for start in range(0, tile.count, CHUNK):
            steps = np.arange(start, min(start + CHUNK, tile.count), dtype=np.uint64)
            yield ((np.uint64(tile.first) + steps * np.uint64(tile.stride)).astype(bits).view(dtype),)
    else:
        every, rows = np.arange(1 << 16).astype(bits).view(dtype), CHUNK >> 16
        for start in range(tile.first, tile.first + tile.count, rows):
            places = np.arange(start, min(start + rows, tile.first + tile.count))
            yield tuple(np.ascontiguousarray(v).reshape(-1) for v in _crossed(tile, places, every))


def _crossed(tile: Tile, places: Array, every: Array) -> tuple[Array, ...]:
    """Operands of shape (places, all numbers)."""
    shape = len(places), len(every)
    if tile.kind == "pairs":
        return np.broadcast_to(every[places][:, None], shape), np.broadcast_to(every, shape)
    some = special(tile.dtype)
    fixed = [some[places // len(some)], some[places % len(some)]]
    crossed = [np.broadcast_to(one[:, None], shape) for one in fixed]
    crossed.insert("abc".index(tile.kind[-1]), np.broadcast_to(every, shape))
    return tuple(crossed)


def edges_of(subject: Formula, dtype: str) -> Array:
    """Where the result of a prototype or its gradient of x changes, with neighbours, and special values: 1-d."""
    asked = reference(subject, dtype)
    parts = [special_values(dtype_of(dtype))]
    for place in (0, 1):

        def one(x: Array, place: int = place) -> Array:
            return asked(x)[place]

        try:
            parts.append(found_edges(one, dtype_of(dtype), most=FEW).knife_edges())
        except TooManyEdges as stopped:  # no step function: the grid of powers of two, and what was found there
            parts.append(stopped.edges.knife_edges())
    whole = np.concatenate(parts)
    _, first = np.unique(raw_bits(whole), return_index=True)
    return whole[np.sort(first)]


def _timed(function: Function, operands: tuple[Array, ...], mode: str, seconds: dict[str, float]) -> Results:
    start = time.perf_counter()
    with np.errstate(all="ignore"):
        found = function(*operands)
    seconds[mode] += time.perf_counter() - start
    return found


def _judged(subject: Subject, operands: tuple[Array, ...], expected: Results) -> Iterator[SweepFinding]:
    if not isinstance(subject, Primitive) or subject.verb not in BESIDE:
        return
    (y,) = expected.values()
    parts = range(0, len(y), IN_CACHE)
    cut = [(tuple(one[i : i + IN_CACHE] for one in operands), y[i : i + IN_CACHE]) for i in parts]
    wrong = np.concatenate([not_nearest(subject.verb, *part) for part in cut])
    if wrong.any():
        at = int(np.argmax(wrong))
        given = tuple(one[at] for one in operands)
        yield SweepFinding(REFERENCE, subject.name, given, None, y[at], int(wrong.sum()), y.size)


def _compared(mode: str, operands: tuple[Array, ...], expected: Results, got: Results) -> Iterator[SweepFinding]:
    for name, value in expected.items():
        found = differences(value, got[name], inputs=operands[0])
        if found.same:
            continue
        if found.index is None:
            raise TypeError(f"{mode}: {name}: {found.reason}")
        given = tuple(one[found.index] for one in operands) if value.shape == operands[0].shape else ()
        yield SweepFinding(mode, name, given, found.expected, found.got, found.differing, found.compared)


def _keep(findings: dict[tuple[str, str], SweepFinding], new: Iterator[SweepFinding]) -> None:
    """The first of each mode and function, with the counts of all."""
    for one in new:
        before = findings.get((one.mode, one.function))
        findings[one.mode, one.function] = one if before is None else _added(before, one)


def _added(before: SweepFinding, one: SweepFinding) -> SweepFinding:
    counts = before.differing + one.differing, before.compared + one.compared
    return SweepFinding(before.mode, before.function, before.operands, before.expected, before.got, *counts)
