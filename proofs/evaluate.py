"""Carrying out one tile: every mode on the inputs of the tile, against what the steps of the specification say.

Three things are compared, bit for bit: the codes of `quantize`, the values of `fake_quantize`, and the gradient of x on
both sides of the steps of the mask. What they must be follows from the list of steps: on plateau i the code is
``codes[i]``, the value ``fl(units[i] * s)`` (rounded once more to a 16-bit dtype), the gradient the incoming one or 0.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..core.blocks import expand_blocks
from ..core.descriptions import QParams, Quantizer
from ..core.granularity import PerTensor
from .bits import is_float, raw_bits
from .execution import Implementation
from .gradient_of_x import gradients_of_x
from .knife_edges import knife_edge_array
from .steps import LARGEST, Steps, place, plateau_of, steps, thresholds
from .tiles import BY_ROWS, CHUNK, Tile, as_run, critical_scales, elementwise, rows_at_once

Array = NDArray[Any]
IN_CACHE = 1 << 16  # elements at a time in mode numpy, whose operations each read and write them anew
SHARE = 1021  # of a long list of inputs one in so many is asked for its gradient
DTYPES: Mapping[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
NAN, MINUS = 0x7F800001, 1 << 31  # bits of the first NaN and of -0.0


@dataclass(frozen=True)
class Finding:
    """One input at which a mode is not what the specification says.

    Attributes:
        mode, function: what was run.
        x, scale, zero_point, expected, got: as scalars of NumPy (None where there is none).
        differing: how many of the results compared with it differ.
        monotone: whether the mode's results, taken in the order of the inputs, never decrease.
        alone: what the mode gives for this input in an array of its own; None where that was not asked.
    """

    mode: str
    function: str
    x: Any
    scale: Any
    zero_point: Any
    expected: Any
    got: Any
    differing: int
    monotone: bool
    alone: Any = None


@dataclass(frozen=True)
class TileResult:
    """What came of a tile: the digest of the first mode's results, how many each mode gave, in which time."""

    digest: str
    results: int
    seconds: dict[str, float]
    findings: tuple[Finding, ...] = ()


class Case(NamedTuple):
    """One call: an array, its parameters, the plateau of every element (or of every column, the same in all rows), the
    scale of every element (or what broadcasts to it), and for which columns or elements the mask is asked (None: all).
    """

    x: Array
    qparams: QParams
    plateaus: Array
    s: Array
    beside: Array | None = None


class MaskCase(NamedTuple):
    """Inputs of which the gradient is asked: incoming gradients, and what must become of them."""

    x: Array
    qparams: QParams
    s: Array
    g: Array
    expected: Array


@dataclass
class Account:
    """The running result of a tile."""

    tile: Tile
    hash: Any = field(default_factory=hashlib.sha256)
    results: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def run_tile(q: Quantizer, tile: Tile, implementations: Sequence[Implementation]) -> TileResult:
    """All modes on one tile. Memory stays under 2 GiB, frameworks included, whatever the quantizer."""
    found = steps(q, tile.zero_point)
    account = Account(tile)
    own = as_run(q, tile)
    masks: list[MaskCase] = []
    for case in CASES[tile.kind](own, found, tile):
        nan = _nan(case)
        _run_case(own, found, case, nan, implementations, account)
        masks.append(_mask_case(found, case, nan))
    for mask in _joined([m for m in masks if m.x.size]):
        _run_masks(own, mask, implementations, account)
    account.findings = [_shrunk(q, tile, implementations, finding) for finding in account.findings]
    return TileResult(account.hash.hexdigest()[:32], account.results, dict(account.seconds), tuple(account.findings))


def _shrunk(q: Quantizer, tile: Tile, implementations: Sequence[Implementation], finding: Finding) -> Finding:
    """The finding with what its one input gives by itself: the same wrong answer, unless other elements play a part."""
    if tile.kind == "granularity" or finding.function not in ("quantize", "fake_quantize"):
        return finding
    chosen = next(i for i in implementations if i.name == finding.mode)
    x = np.array([[finding.x]], np.asarray(finding.x).dtype)
    if np.isnan(x).any():
        return finding
    qparams = _rows_of(np.array([finding.scale], np.float32), tile.zero_point)
    function = chosen.quantize if finding.function == "quantize" else chosen.fake_quantize
    return replace(finding, alone=function(elementwise(q), x, qparams)[0, 0])


def _scale_cases(q: Quantizer, found: Steps, tile: Tile) -> Iterator[Case]:
    """Rows of one scale each: the inputs on both sides of every step; behind them the special ones."""
    part = found if tile.steps is None else _sliced(found, *tile.steps)
    start = tile.steps[0] if tile.steps else 0
    count = len(part.last)
    special = [-np.inf, -LARGEST, -0.0, 0.0, LARGEST, np.inf] if tile.steps is None else []
    row = np.concatenate([np.arange(count) + start, np.arange(count) + start + 1])
    ends = [0, 0, *found.zeros, len(found.last), len(found.last)] if special else []
    row = np.concatenate([row, np.array(ends, row.dtype)])
    changes = np.flatnonzero(found.passes[1:] != found.passes[:-1])
    beside = np.flatnonzero(np.isin(row, [*changes, *(changes + 1)]) | (np.arange(len(row)) >= 2 * count))
    scales = _scales_of(found, tile)
    if tile.kind == "critical":  # filled up to a whole array, lest it be compiled for
        scales = np.resize(scales, -(-len(scales) // rows_at_once(len(row))) * rows_at_once(len(row)))
    rows = rows_at_once(len(row))
    for i in range(0, len(scales), rows):
        s = scales[i : i + rows]
        before, after = thresholds(part, s)
        x = np.empty((len(s), len(row)), np.float32)
        x[:, :count], x[:, count : 2 * count], x[:, 2 * count :] = before, after, np.array(special, np.float32)
        apart = (before[:, 1:] > before[:, :-1]).all(axis=1) & (np.abs(before).max(axis=1, initial=0) < LARGEST)
        plateaus = row if apart.all() else np.where(apart[:, None], row, _plateaus_of_rows(found, s, x, ~apart))
        yield Case(x, _rows_of(s, tile.zero_point), plateaus, s[:, None], beside)


def _plateaus_of_rows(found: Steps, s: Array, x: Array, wanted: Array) -> Array:
    """The plateaus of rows in which steps share their inputs, each different scale once; 0 in rows not wanted."""
    plateaus = np.zeros(x.shape, np.intp)
    for scale in np.unique(s[wanted]):
        rows = s == scale
        plateaus[rows] = plateau_of(found, scale, x[np.flatnonzero(rows)[0]])
    return plateaus


def _dtype_cases(q: Quantizer, found: Steps, tile: Tile) -> Iterator[Case]:
    """Rows of one scale each: every number of a 16-bit dtype."""
    x = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[tile.dtype])
    s = _scales_of(found, tile)
    with np.errstate(invalid="ignore"):  # signalling NaN
        plateaus = np.stack([plateau_of(found, a, x.astype(np.float32)) for a in s])
    yield Case(np.tile(x, (len(s), 1)), _rows_of(s, tile.zero_point), plateaus, s[:, None])


def _input_cases(q: Quantizer, found: Steps, tile: Tile) -> Iterator[Case]:
    """Inputs whose bits are an arithmetic progression, at one scale; per tensor or in rows."""
    scale = np.uint32(tile.scale).view(np.float32)
    before = place(thresholds(found, scale.reshape(1))[0][0])
    for start in range(0, tile.count, CHUNK):
        count = min(CHUNK, tile.count - start)
        bits = tile.first + tile.stride * np.arange(start, start + count, dtype=np.int64)
        x = bits.astype(np.uint32).view(np.float32)
        plateaus = _plateaus_of(bits, before)
        beside = _filled(np.concatenate([np.arange(0, count, SHARE), *_near_changes(found, plateaus)]), count)
        if isinstance(q.granularity, PerTensor):
            zero = None if tile.zero_point is None else np.asarray(tile.zero_point, np.int32)
            yield Case(x, QParams(np.asarray(scale), zero), plateaus, np.asarray(scale), beside)
        else:
            s = np.full(max(1, count // IN_CACHE), scale)
            shape = (len(s), count // len(s))
            columns = _filled(beside % shape[1], shape[1])
            yield Case(x.reshape(shape), _rows_of(s, tile.zero_point), plateaus.reshape(shape), s[:, None], columns)


def _plateaus_of(bits: Array, before: Array) -> Array:
    """On which plateau each float32 of ascending bits lies, from the places of the thresholds; 0 for NaN.

    Bits of positive numbers are their places; those of negative ones descend with theirs.
    """
    plateaus, count = np.zeros(len(bits), np.intp), len(before)
    start, end, minus, last = (int(i) for i in np.searchsorted(bits, [0, NAN, MINUS, MINUS + NAN]))
    cuts = np.clip(np.searchsorted(bits, before, side="right"), start, end)
    plateaus[start:end] = np.repeat(np.arange(count + 1), np.diff(cuts, prepend=start, append=end))
    cuts = np.clip(np.searchsorted(bits, MINUS - 1 - before), minus, last)[::-1]
    plateaus[minus:last] = np.repeat(np.arange(count, -1, -1), np.diff(cuts, prepend=minus, append=last))
    return plateaus


def _filled(indices: Array, most: int) -> Array:
    """Indices, each once, and the first again until there are a power of two (or ``most``): few shapes are compiled."""
    once = np.unique(indices)
    count = min(most, 1 << max(0, len(once) - 1).bit_length())
    return np.concatenate([once, np.full(count - len(once), once[0])])


def _near_changes(found: Steps, plateaus: Array) -> Iterator[Array]:
    """Where in a list of inputs the mask changes, with a few neighbours."""
    passes = found.passes[plateaus]
    for at in np.flatnonzero(passes[1:] != passes[:-1]):
        yield np.arange(max(0, int(at) - 3), min(len(passes), int(at) + 5))


def _own_cases(q: Quantizer, found: Steps, tile: Tile) -> Iterator[Case]:
    """Knife edges and special values of every scale, laid out as the granularity of the quantizer wants them."""
    scales = _scales_of(found, tile)
    groups = scales[:, None] if isinstance(q.granularity, PerTensor) else [scales]
    for s in groups:
        zeros = None if tile.zero_point is None else np.full(len(s), tile.zero_point, np.int32)
        x, qparams = knife_edge_array(q, QParams(s, zeros), np.float32)
        each = expand_blocks(qparams.scale, q.granularity, x.shape)
        plateaus = np.empty(x.shape, np.intp)
        for scale in s:
            plateaus[each == scale] = plateau_of(found, scale, x[each == scale])
        yield Case(x, qparams, plateaus, each)


CASES: Mapping[str, Callable[[Quantizer, Steps, Tile], Iterator[Case]]] = {
    "scales": _scale_cases,
    "critical": _scale_cases,
    "inputs": _input_cases,
    "whole": _input_cases,
    "dtype": _dtype_cases,
    "granularity": _own_cases,
}


def _scales_of(found: Steps, tile: Tile) -> Array:
    if tile.kind == "critical":
        return np.array(critical_scales(found), np.uint32).view(np.float32)
    return (tile.first + tile.stride * np.arange(tile.count, dtype=np.int64)).astype(np.uint32).view(np.float32)


def _rows_of(s: Array, zero_point: int | None) -> QParams:
    return QParams(s[:, None], None if zero_point is None else np.full((len(s), 1), zero_point, np.int32))


def _sliced(found: Steps, first: int, end: int) -> Steps:
    return found._replace(
        last=found.last[first:end], middles=found.middles[first:end], tie_stays=found.tie_stays[first:end]
    )


def _nan(case: Case) -> Array | None:
    """Where an input is NaN; None where none is."""
    if case.plateaus.ndim < case.x.ndim:  # rows of steps
        return None
    with np.errstate(invalid="ignore"):  # signalling NaN
        nan = np.isnan(case.x)
    return nan if nan.any() else None


def _run_case(
    q: Quantizer,
    found: Steps,
    case: Case,
    nan: Array | None,
    implementations: Sequence[Implementation],
    account: Account,
) -> None:
    """Codes and values of every mode on one array."""
    x = case.x
    codes, number = found.codes[case.plateaus], x
    with np.errstate(over="ignore"):
        values = np.broadcast_to(found.units[case.plateaus] * case.s, x.shape).astype(x.dtype, copy=False)
    if nan is not None:
        codes = np.where(nan, found.nan_code, codes)
        values = np.where(nan, np.asarray(np.nan, x.dtype), values)
        number = np.where(nan, np.zeros_like(x), x)
    account.results += 2 * x.size
    for position, implementation in enumerate(implementations):
        start = time.perf_counter()
        asked = number if implementation.refuses and not q.format.has_nan else x
        got_codes = _in_parts(implementation, implementation.quantize, q, asked, case.qparams)
        got_values = _in_parts(implementation, implementation.fake_quantize, q, x, case.qparams)
        _spent(account, implementation.name, start)
        if position == 0:
            account.hash.update(raw_bits(got_codes).data)
            account.hash.update(
                raw_bits(np.where(np.isnan(got_values), np.nan, got_values) if nan is not None else got_values).data
            )
        compare(implementation.name, "quantize", x, case.s, codes, got_codes, account)
        compare(implementation.name, "fake_quantize", x, case.s, values, got_values, account)


def _mask_case(found: Steps, case: Case, nan: Array | None) -> MaskCase:
    """Of rows the columns beside the steps of the mask; of a long list of inputs those, and a share of the others."""
    x, qparams, plateaus, s = case[:4]
    passes = np.broadcast_to(found.passes[plateaus], x.shape)
    passes = passes if nan is None else passes | nan
    if case.beside is not None:
        x, passes = np.ascontiguousarray(x[..., case.beside]), passes[..., case.beside]
    g = np.full(x.shape, 1.5, x.dtype)
    return MaskCase(x, qparams, s, g, np.where(passes, g, np.zeros_like(g)))


def _joined(masks: Sequence[MaskCase]) -> Iterator[MaskCase]:
    """Arrays of few columns as one, since a call costs more than their elements."""
    if len(masks) < 2 or masks[0].x.ndim < 2 or masks[0].x.shape[1] > 64:
        yield from masks
        return
    x, s, g, expected = (np.concatenate([m[i] for m in masks]) for i in (0, 2, 3, 4))
    zeros = None if masks[0].qparams.zero_point is None else np.concatenate([m.qparams.zero_point for m in masks])
    yield MaskCase(x, QParams(s, zeros), s, g, expected)


def _run_masks(q: Quantizer, mask: MaskCase, implementations: Sequence[Implementation], account: Account) -> None:
    """Gradients of x of every mode."""
    account.results += mask.x.size
    for position, implementation in enumerate(implementations):
        start = time.perf_counter()
        gradients = gradients_of_x(implementation, q, mask.x, mask.qparams, mask.g)
        _spent(account, implementation.name, start)
        if position == 0:
            account.hash.update(raw_bits(gradients["fake_quantize_vjp"]).data)
        for name, got in gradients.items():
            compare(implementation.name, name, mask.x, mask.s, mask.expected, got, account)


def _in_parts(
    implementation: Implementation, function: Callable[..., Any], q: Quantizer, x: Array, p: QParams
) -> Array:
    """The function on all of ``x``; the specification takes long arrays in parts that stay in cache."""
    rows = max(1, IN_CACHE // max(1, x[:1].size))
    if implementation.name != "numpy" or len(x) <= rows or q.granularity not in (BY_ROWS, PerTensor()):
        return np.asarray(function(q, x, p))
    parts = []
    for i in range(0, len(x), rows):
        here = p if p.scale.ndim == 0 else QParams(*(None if v is None else v[i : i + rows] for v in p[:2]))
        parts.append(function(q, x[i : i + rows], here))
    return np.concatenate(parts)


def _spent(account: Account, mode: str, start: float) -> None:
    account.seconds[mode] = account.seconds.get(mode, 0.0) + time.perf_counter() - start


def compare(mode: str, function: str, x: Array, s: Array, expected: Array, got: Array, account: Account) -> None:
    """A finding unless every element is as expected, any NaN being as good as any other.

    Raises:
        TypeError: a result of another dtype or shape: nothing in it can be compared.
    """
    if got.dtype != expected.dtype or got.shape != x.shape:
        raise TypeError(
            f"{mode}: {function} must give {expected.dtype} of shape {x.shape}, got {got.dtype} of shape {got.shape}"
        )
    wrong = raw_bits(got) != raw_bits(expected)
    if not wrong.any():
        return
    expected = np.broadcast_to(expected, x.shape)
    if is_float(got.dtype):
        with np.errstate(invalid="ignore"):  # signalling NaN
            wrong &= ~(np.isnan(got) & np.isnan(expected))
        if not wrong.any():
            return
    where = np.flatnonzero(wrong)
    with np.errstate(invalid="ignore"):
        size = np.abs(x.reshape(-1)[where].astype(np.float64))
    at = np.unravel_index(where[np.argmin(np.where(np.isnan(size), np.inf, size))], x.shape)
    scale = np.broadcast_to(s, x.shape)[at]
    monotone = function != "fake_quantize" or _is_monotone(x, got, np.broadcast_to(s, x.shape) == scale)
    zero = account.tile.zero_point
    account.findings.append(Finding(mode, function, x[at], scale, zero, expected[at], got[at], len(where), monotone))


def _is_monotone(x: Array, got: Array, inside: Array) -> bool:
    """Whether results never decrease over the inputs of one scale, NaN aside."""
    x, got = x[inside].astype(np.float64), got[inside].astype(np.float64)
    ordered = got[np.argsort(x, kind="stable")]
    ordered = ordered[~np.isnan(ordered)]
    return bool((ordered[1:] >= ordered[:-1]).all())
