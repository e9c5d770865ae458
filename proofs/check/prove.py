"""`samebits prove`: every catalog entry in every mode, on all 16-bit inputs and on the knife edges of many scales.

For each entry: as bfloat16 and as float16 all 65,536 bit patterns, under at least `SCALES` scales each; as float32 the
knife edges and special values of at least `EDGE_SCALES` scales. Scales (and zero points) are given: the ends of their
domain, powers of two, random significands (`scales_of`). Mode "numpy", the specification, is what the others are
compared with, bit for bit: codes, dequantized values, fake quantization, and the gradient of x, with all else and
alone. An entry is taken at its own granularity, as the pieces of `pieces`. How parameters are chosen, and the gradients
of scales and zero points, which are sums, are for `check` and `laws`.

What was found is kept beside the page, as JSON, so that a proof may be run in parts.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...core import PerTensor, Quantizer, catalog
from ...core.catalog import Named
from ...core.scales import SHARED_EXPONENT, Restriction
from ..inputs.numbers import zero_points
from ..modes import execution
from ..modes.environment import versions
from ..modes.source import source_digest
from ..modes.workers import run_jobs
from .pieces import BREADTH, HEIGHT, Piece, Rows, edge_rows, given_rows, not_applicable, pack
from .tally import Tally, tally

Array = NDArray[Any]

REFERENCE = "numpy"
MODES = tuple(mode for mode in execution.MODES if mode != REFERENCE)
DTYPES: Mapping[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
SCALES, EDGE_SCALES = 64, 262  # for each 16-bit dtype; for float32
LIBRARIES = ("samebits", "numpy", "ml_dtypes", "torch", "jax", "jaxlib", "Python")


@dataclass(frozen=True)
class Job:
    """One entry and dtype in the modes asked for, under so many scales; ``source``: the code's digest."""

    quantizer: str
    dtype: str
    modes: tuple[str, ...]
    scales: int
    seed: int
    source: str


@dataclass(frozen=True)
class Found:
    """What a mode gave: results compared and differing, an example in words; ``missing`` says why it did not run."""

    compared: int = 0
    differing: int = 0
    example: str | None = None
    missing: str | None = None

    @property
    def words(self) -> str:
        """What a cell of the table says."""
        return f"did not run: {self.missing}" if self.missing else f"{self.differing:,} of {self.compared:,}"

    def __add__(self, other: "Found") -> "Found":
        return Found(
            self.compared + other.compared,
            self.differing + other.differing,
            self.example or other.example,
            self.missing or other.missing,
        )


@dataclass(frozen=True)
class Proof:
    """One entry: how many inputs (pairs of an element and its parameters), and what each mode gave.

    ``source`` is the digest of the code that ran, ``libraries`` the versions it ran with.
    """

    quantizer: str
    inputs: int
    modes: dict[str, Found] = field(default_factory=dict)
    source: str = ""
    libraries: dict[str, str] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether every mode ran and none differs."""
        return all(not found.differing and not found.missing and found.compared for found in self.modes.values())

    @property
    def words(self) -> str:
        """One line: of how many results how many differ, in each mode."""
        return "; ".join(f"{mode} {found.words}" for mode, found in self.modes.items())


def jobs(
    names: Sequence[str] = (),
    *,
    modes: Sequence[str] = (),
    scales: int | None = None,
    seed: int = 0,
    without: Collection[str] = (),
) -> tuple[Job, ...]:
    """The jobs of a proof; none depends on another. Neighbours share what eager JAX compiles.

    Args:
        names: of catalog entries; none for all. ``modes``: none for all but the specification.
        scales: how many for each dtype, at least 8; None for `SCALES` and `EDGE_SCALES`.
        seed: of the random scales and zero points. ``without``: entries to leave out.
    Raises:
        KeyError: an unknown name, with the nearest known ones.
        ValueError: an entry whose granularity has no pieces, or too few scales.
    """
    known, known_modes = Named("quantizer", {name: name for name in catalog}), Named("mode", {m: m for m in MODES})
    chosen = tuple(dict.fromkeys(known[name] for name in names)) or tuple(catalog)
    asked = tuple(dict.fromkeys(known_modes[mode] for mode in modes)) or MODES
    if scales is not None and scales < 8:
        raise ValueError(f"`scales` must be at least 8, got {scales}")
    for name in chosen:
        if reason := not_applicable(catalog[name].granularity):
            raise ValueError(f"{name}: {reason}")
    counts = {name: scales or (EDGE_SCALES if name == "float32" else SCALES) for name in DTYPES}
    source = source_digest()
    like = sorted((name for name in chosen if name not in without), key=lambda name: str(catalog[name].granularity))
    return tuple(Job(name, dtype, asked, count, seed, source) for name in like for dtype, count in counts.items())


def run(wanted: Sequence[Job], *, workers: int = 0) -> Iterator[Proof]:
    """A part of a proof for each job, in the order in which they finish; `complete` adds parts up."""
    return run_jobs(run_job, wanted, workers)


@np.errstate(all="ignore")  # every bit pattern is met, signalling NaN among them
def run_job(job: Job) -> Proof:
    """One job, in this process."""
    q = catalog[job.quantizer]
    missing = {mode: execution.unavailable(mode) for mode in job.modes}
    totals, inputs = dict.fromkeys((mode for mode in job.modes if not missing[mode]), Tally()), 0
    for piece in pack(q, rows(q, job.dtype, job.scales, job.seed), height_of(q, job.dtype)):
        inputs += int(piece.real.sum())
        g = _cotangent(piece)
        expected = execution.run_all(REFERENCE, q, piece.x, g, piece.qparams)
        for mode in totals:
            got = execution.run_all(mode, q, piece.x, g, piece.qparams)
            totals[mode] += tally(q, piece, g, expected, got, sums=False)
    modes = {mode: _found(totals[mode]) if mode in totals else Found(missing=missing[mode]) for mode in job.modes}
    return Proof(job.quantizer, inputs, modes, job.source, _libraries())


def height_of(q: Quantizer, dtype: str) -> int:
    """Of the pieces: all values of 16 bits fill one that has one scale; others are large, which costs fewer calls."""
    if isinstance(q.granularity, PerTensor):
        return HEIGHT if dtype == "float32" else 2**16 // BREADTH
    return 8 * HEIGHT


def rows(q: Quantizer, dtype: str, count: int, seed: int = 0) -> Iterator[Rows]:
    """Everything that is compared for an entry as one dtype: one part for each scale."""
    kind, numbers = DTYPES[dtype], scales_of(q, dtype, count, seed)
    rng = np.random.default_rng(crc32(f"{q} {dtype} {seed}".encode()))
    lo, hi = int(q.format.lo), int(q.format.hi)
    for i, scale in enumerate(numbers):
        ends = (lo, hi, (lo + hi) // 2)
        code = float(ends[i % 4] if i % 4 < 3 else rng.integers(lo, hi + 1))
        if q.arithmetic.has_float_zeros and i % 2:  # between two codes, or beyond the ends
            code += float(rng.normal(0, hi - lo))
        zero = zero_points(q, np.asarray(code), np.asarray(scale))[()] if q.affine else None
        if kind.itemsize == 2:
            every = np.arange(2**16, dtype=np.uint16).view(kind)
            yield given_rows(q, every, scale, zero, f"all {dtype}", height_of(q, dtype))
        else:
            yield edge_rows(q, scale, zero, kind, f"scale {i}")


def scales_of(q: Quantizer, dtype: str, count: int, seed: int = 0) -> list[np.float32]:
    """So many scales, all different: the ends of the domain, powers of two, then random significands.

    Half of the exponents lie where numbers of the dtype are neither all clamped nor all 0 (-24 to 15), the others
    anywhere. Entries whose scales are powers of two get only those.
    """
    rng = np.random.default_rng(crc32(f"{q.format} {dtype} {seed}".encode()))
    only_powers = q.scale.restriction is Restriction.POWER_OF_TWO or q.scale.restriction in SHARED_EXPONENT
    least, one = np.float32(2.0**-126), np.float32(1)
    chosen = [least, np.float32(2.0**127), one, 2 * least, np.float32(0.5)]
    if not only_powers:
        chosen += [np.nextafter(least, one), np.finfo(np.float32).max, np.nextafter(one, np.float32(0))]
    found = dict.fromkeys(chosen)
    while len(found) < count:
        exponent = int(rng.integers(-24, 16) if rng.integers(2) else rng.integers(-126, 128))
        power = only_powers or rng.integers(8) < 2
        significand = np.float32(1) if power else np.float32(1 + rng.integers(1, 2**23) / 2**23)
        found[np.ldexp(significand, exponent)] = None
        if only_powers and len(found) == 254:
            break
    return list(found)


def complete(parts: Iterable[Proof]) -> Iterator[Proof]:
    """Parts of the same entry, one for each of `DTYPES`, added up: each entry when its last part has come."""
    found: dict[str, list[Proof]] = {}
    for part in parts:
        same = found.setdefault(part.quantizer, [])
        same.append(part)
        if len(same) == len(DTYPES):
            modes = {mode: sum((p.modes[mode] for p in same), Found()) for mode in part.modes}
            source = part.source if len({p.source for p in same}) == 1 else "of several states"
            yield replace(part, inputs=sum(p.inputs for p in same), modes=modes, source=source)


def valid(proofs: Mapping[str, Proof]) -> frozenset[str]:
    """The entries that were proved, in every mode, with the code and the libraries that are here now."""
    source, libraries = source_digest(), _libraries()
    return frozenset(n for n, p in proofs.items() if p.same and (p.source, p.libraries) == (source, libraries))


def load(path: Path) -> dict[str, Proof]:
    """The proofs of a JSON file that `save` wrote, by name; none where there is no file."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Proof(**{**proof, "modes": {mode: Found(**found) for mode, found in proof["modes"].items()}})
        for name, proof in stored.items()
    }


def save(proofs: Mapping[str, Proof], page: Path) -> None:
    """Write the page, and beside it the JSON file, entries in the order of the catalog."""
    ordered = {name: proofs[name] for name in catalog if name in proofs}
    text = json.dumps({name: asdict(proof) for name, proof in ordered.items()}, indent=1)
    page.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    page.write_text(page_of(ordered), encoding="utf-8")


def page_of(proofs: Mapping[str, Proof]) -> str:
    """The table in Markdown: entry x mode, differences of results compared; only what ran is in it."""
    groups: dict[tuple[str, ...], list[Proof]] = {}
    for proof in proofs.values():
        state = (proof.source, *(f"{name} {version}" for name, version in proof.libraries.items()))
        groups.setdefault(state, []).append(proof)
    lines = [*_HEAD.format(done=len(proofs), of=len(catalog), scales=SCALES, edges=EDGE_SCALES).splitlines(), ""]
    for (source, *libraries), members in groups.items():
        lines += [f"{len(members)} with the source {source[:16]} and {', '.join(libraries)}:", ""]
        lines += [f"| entry | inputs | {' | '.join(MODES)} |", "|---|--:|" + "--:|" * len(MODES)]
        lines += [_line(proof) for proof in members]
        lines += [""]
    examples = [
        f"- {proof.quantizer}, {mode}: {found.example}"
        for proof in proofs.values()
        for mode, found in proof.modes.items()
        if found.example
    ]
    return "\n".join([*lines, *(["## Differences", "", *examples, ""] if examples else [])])


_HEAD = """# Proofs

Every entry of the catalog, in every execution mode, against the specification (mode `numpy`), bit for bit. Written by
`make proofs`, which runs `samebits prove`; the figures are in `proofs.json`. {done} of {of} entries ran.

For each entry: all 65,536 values of bfloat16 and of float16 under {scales} scales each, and the float32 knife edges and
special values of {edges} scales. Scales are 2^-126 and the number above it, the largest float32, 1 - 2^-24, powers of
two and random significands (powers of two alone, at most all 254 of them, where an entry has no other scales); zero
points are the ends and the middle of the range, and random ones. An input is one element with its scale and zero point.
Compared are codes, dequantized values, fake quantization and the gradient of x; in all modes but `torch compiled` also
the gradient of x where nothing else is differentiated. A cell says how many results differ, of how many. The source is
named by a digest of its syntax trees, which comments and docstrings do not change."""


def _line(proof: Proof) -> str:
    cells = (proof.modes.get(mode, Found(missing="not asked for")).words for mode in MODES)
    return f"| `{proof.quantizer}` | {proof.inputs:,} | {' | '.join(cells)} |"


def _libraries() -> dict[str, str]:
    return {name: version for name, version in versions().items() if name in LIBRARIES}


def _found(total: Tally) -> Found:
    e = total.example
    words = None
    if e:
        zero = f", zero point {e.zero_point}" if e.zero_point else ""
        words = f"{e.function} of {e.dtype} {e.x}, scale {e.scale}{zero}: expected {e.expected}, got {e.got} {e.tensor}"
    return Found(total.compared, total.differing, words)


def _cotangent(piece: Piece) -> Array:
    """The incoming gradient: normal numbers, the same for every piece."""
    key = (piece.x.shape, piece.x.dtype.name)
    if key not in _cotangents:
        _cotangents[key] = np.random.default_rng(0).standard_normal(piece.x.shape).astype(piece.x.dtype)
    return _cotangents[key]


_cotangents: dict[tuple[tuple[int, ...], str], Array] = {}
