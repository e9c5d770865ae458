"""Carrying out a tile of the scale engine: `choose_qparams` of every mode, against the steps of the rule."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.descriptions import Quantizer
from ..core.granularity import PerGroup
from .bits import raw_bits
from .cases import IN_CACHE
from .evaluate import Account, TileResult, compare
from .execution import Implementation
from .scale_steps import INFINITY, ScaleSteps, by_elements, scale_steps
from .tiles import CHUNK, Part, Tile

Array = NDArray[Any]
TILE = 1 << 22  # magnitudes of a tile
MAGNITUDE = (1 << 31) - 1  # mask of the bits of a magnitude


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
    account = Account(tile, hash=hashlib.sha256())
    own, cases = (by_elements(q), _patterns(tile)) if tile.kind == "magnitudes" else (q, _blocks(q, found))
    for x in cases:
        magnitude = raw_bits(x).astype(np.int64) & MAGNITUDE
        largest = magnitude.reshape(*magnitude.shape[:-1], -1, _size(own)).max(axis=-1)
        expected = found.scales[np.searchsorted(found.first, largest, side="right")]
        finite = largest < INFINITY
        account.results += expected.size
        for position, implementation in enumerate(implementations):
            start = time.perf_counter()
            refused = implementation.refuses and not finite.all()
            asked = np.where(magnitude < INFINITY, x, np.float32(0)) if refused else x
            got = np.asarray(implementation.choose_qparams(own, asked).scale)
            account.seconds[implementation.name] = (
                account.seconds.get(implementation.name, 0.0) + time.perf_counter() - start
            )
            want = np.where(finite, expected, found.scales[0] if refused else np.float32(np.nan))
            if position == 0:
                account.hash.update(raw_bits(np.where(np.isnan(got), np.float32(np.nan), got)).data)
            largest_of = largest.astype(np.uint32).view(np.float32)
            compare(implementation.name, "choose_qparams", largest_of, want, want, got, account)
    return TileResult(account.hash.hexdigest()[:32], account.results, dict(account.seconds), tuple(account.findings))


def _size(q: Quantizer) -> int:
    return q.granularity.size if isinstance(q.granularity, PerGroup) else 1


def _patterns(tile: Tile) -> Iterator[Array]:
    """Consecutive bit patterns, in rows."""
    for start in range(tile.first, tile.first + tile.count, CHUNK):
        count = min(CHUNK, tile.first + tile.count - start)
        bits = np.arange(start, start + count, dtype=np.int64).astype(np.uint32)
        yield bits.view(np.float32).reshape(max(1, count // IN_CACHE), -1)


def _blocks(q: Quantizer, found: ScaleSteps) -> Iterator[Array]:
    """One block for each side of each step, place and sign; the other elements are smaller, the same in each run."""
    size = _size(q)
    bits = np.unique(np.concatenate([found.first - 1, found.first, [0, INFINITY - 1]])).astype(np.uint32)
    magnitudes = bits.view(np.float32)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (len(magnitudes), size, 2, size)).astype(np.float32) * magnitudes[:, None, None, None]
    for place in range(size):
        x[:, place, 0, place], x[:, place, 1, place] = magnitudes, -magnitudes
    yield x.reshape(-1, size)
