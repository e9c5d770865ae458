"""Carrying out a tile of the scale engine: `choose_qparams` of every mode, against the steps of the rule."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import Quantizer
from ...core.granularity import PerGroup
from ..modes.execution import Implementation
from .cases import IN_CACHE
from .evaluate import Account, TileResult, compare
from .scale_steps import INFINITY, ScaleSteps, by_elements, scale_steps
from .tiles import CHUNK, Part, Tile

Array = NDArray[Any]
TILE = 1 << 23  # magnitudes of a tile
BY_ROW = ("numpy", "torch eager")
MINUS = 1 << 31  # bits of -0.0
MAGNITUDE = MINUS - 1  # mask of the bits of a magnitude


class Blocks(NamedTuple):
    """Rows of blocks; of every block its largest magnitude, its scale, and whether that magnitude is finite."""

    x: Array
    largest: Array
    scales: Array
    finite: Array


def scales_plan(q: Quantizer) -> tuple[Part, ...]:
    """All 2**32 bit patterns as blocks of one element; and blocks of the quantizer's own size at every step.

    Raises:
        ValueError: a rule that is none of `RULES`, or other granularities than groups along the last axis.
    """
    scale_steps(q)
    return (
        Part(
            "magnitudes",
            "the scale of every float32 bit pattern as a block of one element; NaN for those that are no numbers",
            tuple(Tile("magnitudes", first, TILE) for first in range(0, 1 << 32, TILE)),
        ),
        Part(
            "blocks",
            "the quantizer itself: blocks of its own size, the magnitudes on both sides of every step at each place, "
            "with either sign, among smaller numbers",
            (Tile("blocks", 0, 0),),
        ),
    )


def run_scale_tile(q: Quantizer, tile: Tile, implementations: Sequence[Implementation]) -> TileResult:
    """All modes on one tile. Modes that refuse data that is not finite are given zeros in its place."""
    found = scale_steps(q)
    account = Account(tile)
    own, cases = (by_elements(q), _patterns(found, tile)) if tile.kind == "magnitudes" else (q, _blocks(q, found))
    for x, largest, expected, finite in cases:
        account.results += expected.size
        whole = bool(finite.all())
        for position, implementation in enumerate(implementations):
            start = time.perf_counter()
            refused = implementation.refuses and not whole
            asked = np.where(np.isfinite(x), x, np.float32(0)) if refused else x
            got = _scales(implementation, own, asked)
            spent = time.perf_counter() - start
            account.seconds[implementation.name] = account.seconds.get(implementation.name, 0.0) + spent
            want = expected
            if not whole:
                want = np.where(finite, expected, found.scales[0] if refused else np.float32(np.nan))
            if position == 0:
                account.digest(got if whole else np.where(np.isnan(got), np.float32(np.nan), got))
            compare(implementation.name, "choose_qparams", largest, want, want, got, account)
    return TileResult(account.hash.hexdigest()[:32], account.results, dict(account.seconds), tuple(account.findings))


def _scales(implementation: Implementation, q: Quantizer, x: Array) -> Array:
    """Scales of all rows; modes that go operation by operation over arrays in memory take them row by row."""
    if implementation.name not in BY_ROW or len(x) * _size(q) <= 1 or x.shape[1] < IN_CACHE:
        return np.asarray(implementation.choose_qparams(q, x).scale)
    return np.concatenate([implementation.choose_qparams(q, x[i : i + 1]).scale for i in range(len(x))])


def _size(q: Quantizer) -> int:
    return q.granularity.size if isinstance(q.granularity, PerGroup) else 1


def _patterns(found: ScaleSteps, tile: Tile) -> Iterator[Blocks]:
    """Consecutive bit patterns, in rows; what must come out is written run by run."""
    for start in range(tile.first, tile.first + tile.count, CHUNK):
        count = min(CHUNK, tile.first + tile.count - start)
        bits = np.arange(start, start + count)
        shape = max(1, count // IN_CACHE), min(count, IN_CACHE)
        x = bits.astype(np.uint32).view(np.float32).reshape(shape)
        ends = np.append(found.first, INFINITY)
        edges = np.concatenate([ends, [MINUS], ends + MINUS])
        cuts = np.clip(edges - start, 0, count)
        begins, lengths = np.append(0, cuts), np.diff(np.concatenate([[0], cuts, [count]]))
        magnitude = (begins + start) & MAGNITUDE
        scales = found.scales[np.searchsorted(found.first, magnitude, side="right")]
        runs = (np.repeat(v, lengths).reshape(shape) for v in (scales, magnitude < INFINITY))
        yield Blocks(x, np.abs(x), *runs)


def _blocks(q: Quantizer, found: ScaleSteps) -> Iterator[Blocks]:
    """One block for each side of each step, place and sign; the other elements are smaller, the same in each run."""
    size = _size(q)
    bits = np.unique(np.concatenate([found.first - 1, found.first, [0, INFINITY - 1]])).astype(np.uint32)
    magnitudes = bits.view(np.float32)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (len(magnitudes), size, 2, size)).astype(np.float32) * magnitudes[:, None, None, None]
    for place in range(size):
        x[:, place, 0, place], x[:, place, 1, place] = magnitudes, -magnitudes
    largest = np.repeat(bits.astype(np.int64), 2 * size)[:, None]
    scales = found.scales[np.searchsorted(found.first, largest, side="right")]
    yield Blocks(x.reshape(-1, size), largest.astype(np.uint32).view(np.float32), scales, largest < INFINITY)
