"""`samebits check --networks`: the logits of all digits, every network in every run, one at a time and in batches.

Each is compared with the specification on all digits at once, bit for bit; of ``jax eager``, one digit at a time, the
first hundred.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs import digits
from ..inputs.compare import differences
from ..modes.execution import unavailable
from ..modes.workers import run_jobs
from . import sharded
from .runs import NETWORKS, REFERENCE, RUNS, in_batches, inputs, mode_of, run_of

Array = NDArray[Any]
BATCH_SIZES = (1, 256)
FEW = 100  # digits one at a time in ``jax eager``, where each takes tenths of a second


@dataclass(frozen=True)
class Job:
    """A network in one run, at every batch size; of the first ``count`` digits, None for all."""

    network: str
    run: str
    sizes: tuple[int, ...] = BATCH_SIZES
    count: int | None = None


@dataclass(frozen=True)
class NetworkRow:
    """Logits of a network beside those of the specification.

    Attributes:
        compared, differing: numbers of logits. ``accuracy``: in percent, of the held-out digits; None unless all ran.
        example: the first that differs, in words. ``missing``: why it could not be run.
    """

    network: str
    run: str
    batch_size: int
    compared: int
    differing: int
    accuracy: float | None = None
    example: str | None = None
    missing: str | None = None


def jobs(runs: Sequence[str] = (), networks: Sequence[str] = (), count: int | None = None) -> list[Job]:
    """A job for each network and run; all of them for none.

    Raises:
        ValueError: another network or run, which is named.
    """
    for name, given, known in (("run", runs, RUNS), ("network", networks, NETWORKS)):
        for one in given:
            if one not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(map(repr, known))}; got {one!r}")
    return [Job(network, run, count=count) for network in networks or NETWORKS for run in runs or RUNS]


def compare(wanted: Sequence[Job], *, workers: int = 0) -> Iterator[tuple[NetworkRow, ...]]:
    """The rows of each job, as they come; ``workers`` above 0 need a program that can be imported again."""
    return run_jobs(rows, wanted, workers)


def in_order(found: Sequence[NetworkRow]) -> list[NetworkRow]:
    """Rows by network, run and batch size."""
    return sorted(found, key=lambda row: (NETWORKS.index(row.network), RUNS.index(row.run), row.batch_size))


def rows(job: Job) -> tuple[NetworkRow, ...]:
    """One job, in this process; a row for each batch size."""
    if reason := unavailable(mode_of(job.run)):
        return tuple(NetworkRow(job.network, job.run, size, 0, 0, missing=reason) for size in job.sizes)
    x, expected = inputs(job.network)[: job.count], specified(job.network)[: job.count]
    run = None if job.run == "jax sharded" else run_of(job.network, job.run)
    found = []
    for size in job.sizes:
        some = slice(FEW if (job.run, size) == ("jax eager", 1) else None)
        logits = sharded.logits(job.network, size, job.count) if run is None else in_batches(run, x[some], size)
        result = differences(expected[some], logits)
        score = digits.accuracy(logits, digits.images()[1]) if logits.shape == (1797, 10) else None
        example = None
        if not result.same:
            example = f"{result.reason}, at {result.index}: expected {result.expected}, got {result.got}"
        found.append(NetworkRow(job.network, job.run, size, result.compared, result.differing, score, example))
    return tuple(found)


@cache
def specified(network: str) -> Array:
    """Logits of all digits from the specification, all at once."""
    return np.asarray(run_of(network, REFERENCE)(inputs(network)))
