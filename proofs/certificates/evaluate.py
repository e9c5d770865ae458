"""Carrying out one tile: every mode on the inputs of the tile, against what the steps of the specification say.

Three things are compared, bit for bit: the codes of `quantize`, the values of `fake_quantize`, and the gradient of x on
both sides of the steps of the mask. `cases` has the inputs and what must come out.
"""

import hashlib
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerTensor
from ..inputs.bits import is_float, raw_bits
from ..modes.execution import Implementation
from ..modes.gradient_of_x import gradients_of_x
from .cases import CASES, IN_CACHE, Case, rows_of
from .steps import steps
from .tiles import BY_ROWS, CHUNK, ITSELF, POINTS, Tile, as_run, elementwise

Array = NDArray[Any]
FEW = 64  # columns
EAGER_JAX = 1 << 20  # elements of which eager JAX is asked for gradients at a time


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
    findings: tuple[Any, ...] = ()


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

    def digest(self, results: Array) -> None:
        """Take an array into the digest, by its CRC-32: SHA-256 over every result would be a tenth of all time.

        Digests tell whether a replay gave the same results; against forgery no digest helps, only the replay itself.
        """
        self.hash.update(zlib.crc32(raw_bits(results).data).to_bytes(4, "little"))


def run_tile(q: Quantizer, tile: Tile, implementations: Sequence[Implementation]) -> TileResult:
    """All modes on one tile. Memory stays under 2 GiB, frameworks included, whatever the quantizer."""
    found = steps(q, tile.zero_point)
    account = Account(tile)
    own = as_run(q, tile)
    masks: list[MaskCase] = []
    for case in CASES[tile.kind](own, found, tile):
        _run_case(own, case, implementations, account)
        masks.append(_mask_case(case))
    for mask in _joined(tile, [m for m in masks if m.x.size]):
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
    qparams = rows_of(np.array([finding.scale], np.float32), tile.zero_point)
    function = chosen.quantize if finding.function == "quantize" else chosen.fake_quantize
    return replace(finding, alone=function(elementwise(q), x, qparams)[0, 0])


def _run_case(q: Quantizer, case: Case, implementations: Sequence[Implementation], account: Account) -> None:
    """Codes and values of every mode on one array."""
    x = case.x
    number = x if case.number is None or q.format.has_nan else case.number
    account.results += 2 * x.size
    for position, implementation in enumerate(implementations):
        start = time.perf_counter()
        asked = number if implementation.refuses else x
        codes = _in_parts(implementation, implementation.quantize, q, asked, case.qparams)
        values = _in_parts(implementation, implementation.fake_quantize, q, x, case.qparams)
        _spent(account, implementation.name, start)
        if position == 0:
            account.digest(codes)
            account.digest(np.where(np.isnan(values), np.nan, values) if case.number is not None else values)
        compare(implementation.name, "quantize", x, case.s, case.codes, codes, account)
        compare(implementation.name, "fake_quantize", x, case.s, case.values, values, account)


def _mask_case(case: Case) -> MaskCase:
    """Of rows the columns beside the steps of the mask; of a long list of inputs those, and a share of the others."""
    x = case.x if case.beside is None else np.ascontiguousarray(case.x[..., case.beside])
    g = np.full(x.shape, 1.5, x.dtype)
    return MaskCase(x, case.qparams, case.s, g, np.where(case.passes, g, np.zeros_like(g)))


def _joined(tile: Tile, masks: Sequence[MaskCase]) -> Iterator[MaskCase]:
    """Rows of few columns, or some inputs at one scale, as one array while that is small: a call costs more than it.

    Rows are repeated until there are as many as in a whole tile: each other number of them would be compiled for.
    """
    small = bool(masks) and sum(m.x.size for m in masks) <= CHUNK
    if small and tile.kind not in ITSELF and masks[0].x.shape[1] <= FEW:
        rows = max(POINTS // CHUNK * len(masks[0].x), sum(len(m.x) for m in masks))
        parts = zip(*((m.x, m.s, m.g, m.expected) for m in masks), strict=True)
        x, s, g, expected = (_filled(part, rows) for part in parts)
        zero = masks[0].qparams.zero_point
        filled = None if zero is None else _filled([m.qparams.zero_point for m in masks], rows)
        yield MaskCase(x, QParams(s, filled), s, g, expected)
    elif small and len(masks) > 1 and masks[0].s.ndim == 0:
        x, g, expected = (np.concatenate([m[i] for m in masks]) for i in (0, 3, 4))
        yield MaskCase(x, masks[0].qparams, masks[0].s, g, expected)
    else:
        yield from masks


def _filled(parts: Sequence[Array], rows: int) -> Array:
    """The parts as one array, repeated from its first row on to so many rows."""
    whole = np.concatenate(parts)
    return np.resize(whole, (rows, *whole.shape[1:]))


def _run_masks(q: Quantizer, mask: MaskCase, implementations: Sequence[Implementation], account: Account) -> None:
    """Gradients of x of every mode."""
    account.results += mask.x.size
    for position, implementation in enumerate(implementations):
        start = time.perf_counter()
        gradients = _gradients_in_parts(implementation, q, mask)
        _spent(account, implementation.name, start)
        if position == 0:
            account.digest(gradients["fake_quantize_vjp"])
        for name, got in gradients.items():
            compare(implementation.name, name, mask.x, mask.s, mask.expected, got, account)


def _gradients_in_parts(implementation: Implementation, q: Quantizer, mask: MaskCase) -> dict[str, Array]:
    """`gradients_of_x`; of eager JAX in parts, since it takes memory for operations long before their turn."""
    rows = max(1, EAGER_JAX // max(1, mask.x[:1].size))
    if implementation.name != "jax eager" or len(mask.x) <= rows or q.granularity != BY_ROWS:
        return gradients_of_x(implementation, q, mask.x, mask.qparams, mask.g)
    parts = []
    for i in range(0, len(mask.x), rows):
        here = QParams(*(None if v is None else v[i : i + rows] for v in mask.qparams[:2]))
        parts.append(gradients_of_x(implementation, q, mask.x[i : i + rows], here, mask.g[i : i + rows]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


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


@np.errstate(invalid="ignore")  # signalling NaN
def _is_monotone(x: Array, got: Array, inside: Array) -> bool:
    """Whether results never decrease over the inputs of one scale, NaN aside."""
    x, got = x[inside].astype(np.float64), got[inside].astype(np.float64)
    ordered = got[np.argsort(x, kind="stable")]
    ordered = ordered[~np.isnan(ordered)]
    return bool((ordered[1:] >= ordered[:-1]).all())
