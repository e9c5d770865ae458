"""`samebits check`: every quantizer in every mode on the tensors of a checkpoint and the knife edges of their scales.

For each quantizer and input dtype: the tensors of the checkpoint, cast to the dtype and cut into pieces (`pieces`),
with parameters that each mode chooses itself, and so the ranges at which parameters are decided (`inputs.ranges`); then
the knife edges and special values of every scale that the tensors have.
Mode "numpy", the specification, is what the others are compared with, bit for bit (`compare`): parameters, codes,
dequantized values, fake quantization, and the gradient of x; and on a part of the first piece what has constants of a
program for operands (`modes.constants`). The gradients of scale and zero point are sums, and the
order of a sum is the mode's own; they are held to `tally.sum_bound`.

Prototypes of users, named ``FILE.py:NAME``, are taken as entries are (`of_prototypes`).

With a ``dialect`` (`core.dialects`) every quantizer that it can be said of is checked as that of the other system:
what the dialect says in the place of what the catalog says. A mode whose room refuses such a quantizer is not run.

Compiling takes most of the time. So torch compiles a few quantizers in one program, and a check of the whole catalog
that is not ``thorough`` takes every entry in every mode as float32, and the first of each kind (class of format, with a
zero point or without) as bfloat16, float16 and float64 too. (`prove` takes every entry on every input of the former.)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...core import Quantizer, catalog, dialects
from ...core.catalog import Named
from ..inputs.checkpoint import CheckpointError, StoredTensor, mapped_values, stored_tensors
from ..inputs.compare import differences
from ..modes import execution
from ..modes.constants import FOLDING
from ..modes.devices import ACCELERATED
from ..modes.execution import Case
from ..modes.workers import run_jobs
from ..prototypes.users import is_named, shown
from .of_prototypes import PrototypeJob, checked_formulas, run_prototype
from .pieces import Piece, Rows, chosen_parameters, edge_rows, not_applicable, pack, range_rows, tensor_rows
from .tally import Tally, refused, tally, tally_of_constants

Array = NDArray[Any]

REFERENCE = "numpy"
DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "float32": np.dtype(np.float32),
        "bfloat16": np.dtype(ml_dtypes.bfloat16),
        "float16": np.dtype(np.float16),
        "float64": np.dtype(np.float64),
    }
)
BATCH_SIZES = (1, 256)  # of the digit classifier
TOGETHER = 4  # quantizers in one program that torch compiles
SEEN = 2**16  # scales remembered, so that their knife edges are looked at once


@dataclass(frozen=True)
class Row:
    """One quantizer in one mode, over all dtypes and tensors; ``missing`` says why it could not be run."""

    quantizer: str
    mode: str
    tally: Tally
    missing: str | None = None


@dataclass(frozen=True)
class TensorReport:
    """One tensor of the checkpoint; ``skipped`` says why it was not used."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    skipped: str | None


@dataclass(frozen=True)
class DigitsRow:
    """The logits of all digits in one mode, at one batch size, beside those of the specification."""

    mode: str
    batch_size: int
    compared: int
    differing: int
    missing: str | None = None


@dataclass(frozen=True)
class CheckResult:
    """Everything `check` found; ``dtypes`` says how many quantizers were taken as each of them.

    ``dialect``: that of the quantizers, None for their own.
    """

    checkpoint: str
    dtypes: Mapping[str, int]
    modes: tuple[str, ...]
    tensors: tuple[TensorReport, ...]
    rows: tuple[Row, ...]
    digits: tuple[DigitsRow, ...]
    dialect: str | None = None

    @property
    def same(self) -> bool:
        """Whether no mode that could be run differs anywhere."""
        return all(row.tally.same for row in self.rows) and not any(row.differing for row in self.digits)


@dataclass(frozen=True)
class QuantizersJob:
    """A few quantizers as one dtype on a whole checkpoint, in every mode asked for."""

    path: Path
    quantizers: tuple[str, ...]
    dtype: str
    modes: tuple[str, ...]
    dialect: str | None = None


@dataclass(frozen=True)
class DigitsJob:
    """The digit classifier in one mode, at one batch size."""

    mode: str
    batch_size: int


Job = QuantizersJob | PrototypeJob | DigitsJob
JobResult = tuple[Row, ...] | tuple[DigitsRow, ...]


@dataclass(frozen=True)
class Plan:
    """What a check will do, before it is done: its jobs are independent of each other."""

    path: Path
    tensors: tuple[StoredTensor, ...]
    quantizers: tuple[str, ...]
    modes: tuple[str, ...]
    dtypes: tuple[str, ...]
    jobs: tuple[Job, ...] = field(repr=False)
    dialect: str | None = None


def plan(
    path: Path | None = None,
    quantizers: Sequence[str] = (),
    modes: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    *,
    thorough: bool = False,
    dialect: str | None = None,
    parameters: Sequence[str] = (),
    device: str = "cpu",
) -> Plan:
    """The jobs of a check. Everything that can be wrong with the request is found here.

    Args:
        path: a safetensors file; None for the digit classifier of the package, with its logits.
        quantizers: names in the catalog, and prototypes as ``FILE.py:NAME``; none for the whole catalog.
        modes: of `execution`; ``dtypes``: of `DTYPES`.
        device: of `modes.devices.DEVICES`; where no ``modes`` are named, those of this device.
        thorough: every dtype in every mode for every entry, as it also is where ``quantizers`` or ``dtypes`` are named.
        dialect: of `core.dialects`; None for the quantizers of the catalog as they are. Without names, those entries
            that have it; and without the logits of the digits, whose quantizers have none.
        parameters: ``NAME=VALUE``, of the prototypes.
    Raises:
        CheckpointError: a file that cannot be read, or one without a tensor to check.
        KeyError: an unknown name, with the nearest known ones.
        ValueError: a quantizer that cannot have the dialect, with the reason.
        ImportError, TypeError: a prototype that cannot be, or whose formula fails.
    """
    from ..inputs.digits import DATA

    on_device = execution.modes_on(device)
    chosen_modes = _known("mode", modes, (*execution.MODES, *ACCELERATED)) if modes else on_device
    prototypes = checked_formulas(quantizers, parameters, chosen_modes, dialect)
    asked = [name for name in quantizers if not is_named(name)]
    names = _known("quantizer", asked, catalog) if asked or not prototypes else ()
    if dialect is not None:
        names = tuple(name for name in names if quantizers or _has(name, dialect))
        for name in names:
            quantizer_of(name, dialect)
    chosen_dtypes = _known("dtype", dtypes, DTYPES)
    others = tuple(mode for mode in chosen_modes if mode != REFERENCE)
    source = DATA if path is None else path
    tensors = stored_tensors(source)
    if all(tensor.skipped for tensor in tensors):
        raise CheckpointError(f"{source}: holds no floating-point tensor to check ({len(tensors)} tensors)")
    like = sorted(names, key=lambda name: str(catalog[name].granularity))  # neighbours share what eager JAX compiles
    every = thorough or bool(quantizers or dtypes)
    jobs: list[Job] = []
    for dtype in chosen_dtypes if others else ():
        picked = [name for name in like if every or dtype == "float32" or _first(name)]
        groups = (tuple(picked[start : start + TOGETHER]) for start in range(0, len(picked), TOGETHER))
        jobs += [QuantizersJob(source, group, dtype, others, dialect) for group in groups]
    jobs += [
        PrototypeJob(source, name, tuple(parameters), DTYPES[dtype], others)
        for name in prototypes
        for dtype in (chosen_dtypes if others else ())
    ]
    with_digits = path is None and dialect is None and bool(names)
    network = [DigitsJob(mode, size) for size in BATCH_SIZES for mode in chosen_modes] if with_digits else []
    names += tuple(shown(name, parameters) for name in prototypes)
    return Plan(source, tensors, names, chosen_modes, chosen_dtypes, (*network, *jobs), dialect)


def quantizer_of(name: str, dialect: str | None) -> Quantizer:
    """A quantizer of the catalog, in a dialect if one is named.

    Raises:
        KeyError: an unknown name. ValueError: one that cannot have the dialect, with the reason.
    """
    if dialect is None:
        return catalog[name]
    try:
        return catalog[name].replace(**dialects[dialect])
    except ValueError as error:
        raise ValueError(f"{name} cannot have the dialect {dialect}: {error}") from error


def _has(name: str, dialect: str) -> bool:
    """Whether an entry can have a dialect."""
    try:
        quantizer_of(name, dialect)
    except ValueError:
        return False
    return True


def run_plan(wanted: Plan, *, workers: int = 2) -> Iterator[JobResult]:
    """What each job found, in the order in which they finish; `summary` puts it together."""
    return run_jobs(run_job, wanted.jobs, workers)


def check(
    path: Path | None = None,
    *,
    workers: int = 0,
    thorough: bool = False,
    dialect: str | None = None,
    device: str = "cpu",
    **wanted: Sequence[str],
) -> CheckResult:
    """`plan`, `run_plan` and `summary` in one call; ``workers`` above 0 need a program that can be imported again."""
    chosen = plan(path, thorough=thorough, dialect=dialect, device=device, **wanted)
    return summary(chosen, run_plan(chosen, workers=workers))


def summary(wanted: Plan, results: Iterator[JobResult]) -> CheckResult:
    """One row for each quantizer and mode, over all dtypes; in the order of the request."""
    found = [row for rows in results for row in rows]
    rows: dict[tuple[str, str], Row] = {}
    for row in found:
        if isinstance(row, Row):
            before = rows.get((row.quantizer, row.mode))
            rows[row.quantizer, row.mode] = row if before is None else replace(before, tally=before.tally + row.tally)
    tensors = tuple(TensorReport(t.name, t.dtype, t.shape, t.elements, t.skipped) for t in wanted.tensors)
    ordered = tuple(rows[key] for key in ((q, m) for q in wanted.quantizers for m in wanted.modes) if key in rows)
    network = (row for row in found if isinstance(row, DigitsRow))
    digits = sorted(network, key=lambda row: (wanted.modes.index(row.mode), row.batch_size))
    taken = dict.fromkeys(wanted.dtypes, 0)
    for job in wanted.jobs:
        if isinstance(job, QuantizersJob):
            taken[job.dtype] += len(job.quantizers)
        elif isinstance(job, PrototypeJob):
            taken[job.dtype.name] += 1
    return CheckResult(str(wanted.path), taken, wanted.modes, tensors, ordered, tuple(digits), wanted.dialect)


def run_job(job: Job) -> JobResult:
    """One job, in this process."""
    if isinstance(job, PrototypeJob):
        missing = {mode: execution.unavailable(mode) for mode in job.modes}
        totals = run_prototype(job, missing)
        return tuple(Row(shown(job.name, job.parameters), mode, totals[mode], why) for mode, why in missing.items())
    return _digits(job) if isinstance(job, DigitsJob) else _quantizers(job)


def _first(name: str) -> bool:
    """Whether an entry is the first of its kind in the catalog."""
    kinds = {entry: (type(q.format), q.affine) for entry, q in catalog.items()}
    return name == next(entry for entry, kind in kinds.items() if kind == kinds[name])


def _known(kind: str, asked: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """The names asked for, each once, or all that are known."""
    names = Named(kind, {name: name for name in known})
    return tuple(dict.fromkeys(names[name] for name in asked)) or tuple(names)


def _quantizers(job: QuantizersJob) -> tuple[Row, ...]:
    """Each quantizer in every mode: first on tensors, then on the knife edges of the scales they have."""
    dtype = DTYPES[job.dtype]
    own = {name: quantizer_of(name, job.dialect) for name in job.quantizers}
    reasons = {name: not_applicable(q.granularity) for name, q in own.items()}
    missing = {(name, mode): reasons[name] or execution.unavailable(mode) for name in own for mode in job.modes}
    modes = [mode for mode in job.modes if not execution.unavailable(mode)]
    totals = {key: Tally() for key in missing}
    folded = set[tuple[str, str]]()  # the first piece of each is tried as constants of a program too
    runs = [name for name in own if not all(missing[name, mode] for mode in job.modes)]
    streams = {name: _pieces(job.path, own[name], dtype) for name in runs}
    for pieces, ended in _in_step(streams):
        cases = {
            name: Case(own[name], piece.x, _cotangent(piece.x.shape, dtype.name), piece.qparams)
            for name, piece in pieces.items()
        }
        expected = {name: execution.run_all(REFERENCE, *case) for name, case in cases.items() if name not in ended}
        for mode in modes:
            asked = list(cases if execution.together(mode) else expected)  # that program takes all, always
            asked = [name for name in asked if not missing[name, mode]]
            if not asked:
                continue
            for names in [asked] if execution.together(mode) else [[name] for name in asked]:
                found = _answers(mode, {name: cases[name] for name in names})
                for name in expected.keys() & found.keys():
                    totals[name, mode] += _compared(cases[name], pieces[name], expected[name], found[name])
                    if (name, mode) not in folded and mode in FOLDING and pieces[name].qparams is None:
                        totals[name, mode] += tally_of_constants(mode, cases[name].q, pieces[name], cases[name].g)
                        folded.add((name, mode))
    return tuple(Row(name, mode, totals[name, mode], why) for (name, mode), why in missing.items())


def _answers(mode: str, cases: Mapping[str, Case]) -> dict[str, execution.Results | ValueError]:
    """What a mode gives for each case, or why it refuses them all, which the specification did not."""
    try:
        return dict(zip(cases, execution.run_together(mode, list(cases.values())), strict=True))
    except ValueError as refusal:
        return dict.fromkeys(cases, refusal)


def _compared(case: Case, piece: Piece, expected: execution.Results, got: execution.Results | ValueError) -> Tally:
    return refused(piece, got) if isinstance(got, ValueError) else tally(case.q, piece, case.g, expected, got)


def _in_step(streams: Mapping[str, Iterator[Piece]]) -> Iterator[tuple[dict[str, Piece], set[str]]]:
    """The next piece of each stream while one has more, the last again of those that have ended; and which have."""
    last = {name: piece for name, stream in streams.items() if (piece := next(stream, None)) is not None}
    ended = set[str]()
    while len(ended) < len(last):
        yield dict(last), set(ended)
        for name in last.keys() - ended:
            piece = next(streams[name], None)
            if piece is None:
                ended.add(name)
            else:
                last[name] = piece


def _pieces(path: Path, q: Quantizer, dtype: np.dtype[Any]) -> Iterator[Piece]:
    """Everything to compare on: tensors whose parameters each mode chooses, then all that has parameters given."""
    yield from pack(q, chain((rows for rows in _rows(path, q, dtype) if rows.scale is None), [range_rows(q, dtype)]))
    yield from pack(q, _given(path, q, dtype))


def _rows(path: Path, q: Quantizer, dtype: np.dtype[Any]) -> Iterator[Rows]:
    for tensor in stored_tensors(path):
        if not tensor.skipped:
            yield from tensor_rows(q, mapped_values(path, tensor), dtype, tensor.name)


def _given(path: Path, q: Quantizer, dtype: np.dtype[Any]) -> Iterator[Rows]:
    """Blocks that are not all finite, and the knife edges of every scale, once for each scale."""
    seen: set[tuple[Any, Any]] = set()
    for rows in _rows(path, q, dtype):
        if rows.scale is not None:
            yield rows
        scales, zeros = chosen_parameters(q, rows)
        for pair in zip(scales.tolist(), [None] * len(scales) if zeros is None else zeros.tolist(), strict=True):
            if pair not in seen:
                seen.add(pair)
                yield edge_rows(q, *pair, dtype, rows.source)
        if len(seen) > SEEN:
            seen.clear()


def _digits(job: DigitsJob) -> tuple[DigitsRow, ...]:
    """The logits of the digit classifier against those of the specification."""
    from ..inputs import digits

    if reason := execution.unavailable(job.mode):
        return (DigitsRow(job.mode, job.batch_size, 0, 0, reason),)
    expected = digits.logits(REFERENCE, BATCH_SIZES[-1])
    found = differences(expected, digits.logits(job.mode, job.batch_size))
    return (DigitsRow(job.mode, job.batch_size, found.compared, found.differing),)


@cache
def _cotangent(shape: tuple[int, ...], dtype: str) -> Array:
    """The incoming gradient: normal numbers, the same for every piece."""
    return np.random.default_rng(0).standard_normal(shape).astype(DTYPES[dtype])
