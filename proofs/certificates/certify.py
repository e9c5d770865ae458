"""`samebits certify`: a quantizer in every mode, for every input and every scale; what it rests on; and a file of it.

``docs/certificates.md`` has the argument. Here it is put together: the plan of an engine (`tiles`), run anywhere
(`schedule`), tile by tile (`evaluate`); finished tiles are kept in a journal beside the file until all are done.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...core.descriptions import Quantizer
from ...core.formats import IntegerFormat
from ..inputs.compare import describe
from ..modes import execution
from ..modes.execution import Implementation
from .certificate import Certificate, CertificateError, canonical, compose, conditions, sealed, write_whole
from .evaluate import Finding, TileResult, run_tile
from .evaluate_scales import run_scale_tile
from .evaluate_sweeps import SweepFinding, explain_sweep, run_sweep_tile
from .request import Request, tiles_of
from .scale_steps import check_scale_steps
from .schedule import Pools, ask_for_fresh_process, give_back_memory, resident_memory, run_anywhere
from .steps import exact_steps, same_steps, steps
from .subjects import Subject
from .sweeps import AnyRequest, Sweep
from .tiles import Tile, as_run, elementwise, zero_points

LIVE = 11 << 27  # bytes that a process may need between two quantizers: 1.375 GiB, compiled programs among it
MOST = 27 << 26  # bytes that a process may hold between two tiles: 1.69 GiB, memory that it keeps among it
_LATEST: dict[str, Quantizer | Subject] = {}  # what this process ran last


@dataclass(frozen=True)
class Job:
    """One tile for any process; ``q`` as it runs: quantizers of one elementwise function have jobs in common."""

    q: Quantizer | Subject
    modes: tuple[str, ...]
    tile: Tile


@dataclass(frozen=True)
class Progress:
    """A tile that is done: its place in the plan, and whether it was done before (in the journal, or ``known``)."""

    place: int
    result: TileResult
    kept: bool = False


class Difference(Exception):
    """A mode is not what the specification says; holds what was found."""

    def __init__(self, findings: Sequence[Finding | SweepFinding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(explain_finding(f) for f in findings))


def run_job(job: Job) -> TileResult:
    """A tile in the modes of the job, on one thread of torch: the machine's cores are shared out by process."""
    _make_room(as_run(job.q, job.tile) if isinstance(job.q, Quantizer) else job.q)
    with _one_thread() if any(mode.startswith("torch") for mode in job.modes) else nullcontext():
        return _run(job, [execution.implementation(mode) for mode in job.modes])


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _make_room(q: Quantizer | Subject) -> None:
    """Between quantizers, give back free memory; where compiled programs have become many, go on in a fresh process.

    Not between tiles of one, unless there is need: what is given back costs the next tile, in pages that the system
    makes anew. A process that cannot be replaced forgets its programs; its tiles take an eighth longer from then on.
    """
    last = _LATEST.get("quantizer")
    same = q == last
    if same and resident_memory() <= MOST:
        return
    _LATEST["quantizer"] = q
    give_back_memory()
    if same or resident_memory() > LIVE:
        if last is not None:
            ask_for_fresh_process()
        if "jax" in sys.modules:  # else nothing was compiled with it, and it may not be installed
            import jax

            jax.clear_caches()  # type: ignore[no-untyped-call]
        if "torch" in sys.modules:
            import torch

            torch._dynamo.reset()
        give_back_memory()


def _run(job: Job, implementations: Sequence[Implementation]) -> TileResult:
    if not isinstance(job.q, Quantizer):
        return run_sweep_tile(job.q, job.tile, job.modes)
    run_one = run_scale_tile if job.tile.kind in ("magnitudes", "blocks") else run_tile
    return run_one(job.q, job.tile, implementations)


def jobs_of(request: AnyRequest) -> list[Job]:
    """A job for each tile."""
    if isinstance(request, Sweep):
        return [Job(request.subject, request.modes, tile) for tile in tiles_of(request)]
    return [Job(as_run(request.q, tile), request.modes, tile) for tile in tiles_of(request)]


def check_steps(q: Quantizer) -> None:
    """The steps found by bisection of the specification are those of the definition, at every zero point.

    And its quotients and numbers are among those of the least and the largest zero point.

    Raises:
        AssertionError: they are not; nothing can be certified then.
    """
    own, points = elementwise(q), zero_points(q)
    for z in (points[0], points[-1]):
        if not same_steps(steps(q, z), steps(own, z)):
            raise AssertionError(f"the steps of {q}, zero point {z}, are not those of its elementwise function")
    _check_steps(own)


@lru_cache  # quantizers share elementwise functions, and 256 zero points take seconds
def _check_steps(q: Quantizer) -> None:
    points = zero_points(q)
    ends = [steps(q, points[0]), steps(q, points[-1])]
    last, units = np.concatenate([e.last for e in ends]), np.concatenate([e.units for e in ends])
    for z in points if isinstance(q.format, IntegerFormat) else ():
        found = steps(q, z)
        if not same_steps(found, exact_steps(q, z)):
            raise AssertionError(f"the specification's steps of {q}, zero point {z}, are not those of the definition")
        if not (np.isin(found.last, last).all() and np.isin(found.units, units).all()):
            raise AssertionError(f"the steps of {q}, zero point {z}, are not among those of the ends of the range")


def run(request: AnyRequest, journal: Path | None = None, **how: Any) -> Generator[Progress, None, None]:
    """`run_together` of one request."""
    yield from (progress for _, progress in run_together([request], [journal], **how))


def run_together(
    requests: Sequence[AnyRequest],
    journals: Sequence[Path | None],
    *,
    workers: int | Pools = 0,
    scheduler: str | None = None,
    known: dict[Job, TileResult] | None = None,
    implementations: Sequence[Implementation] = (),
) -> Generator[tuple[int, Progress], None, None]:
    """Every tile of every request as it is done, with the place of the request, those done before first.

    What requests have in common runs once. A finished tile is in the journals before it is yielded.

    Args:
        journals: files that are begun or gone on with; None to keep nothing.
        known: results of this process, of other requests too; those that come are added.
        implementations: what to run instead of the modes of the requests; in this process only.
    Raises:
        Difference: at the first tile with one.
        CertificateError: a journal of something else; the source changed meanwhile, told before a request's last tile.
    """
    for request in requests:
        if isinstance(request, Request):
            (check_scale_steps if request.engine == "scales" else check_steps)(request.q)
    before = [conditions(request) for request in requests]
    jobs, known = [jobs_of(request) for request in requests], {} if known is None else known
    kept = [_read_journal(path, r) if path else {} for path, r in zip(journals, requests, strict=True)]
    for own, results in zip(jobs, kept, strict=True):
        known |= {own[place]: result for place, result in results.items()}
    missing: dict[Job, list[tuple[int, int]]] = {}
    for r, own in enumerate(jobs):
        for place, job in enumerate(own):
            if job not in known:
                missing.setdefault(job, []).append((r, place))
                continue
            if place not in kept[r]:
                _write_journal(journals[r], place, known[job])
            yield r, Progress(place, known[job], kept=True)
    left = Counter(r for places in missing.values() for r, _ in places)
    todo = list(missing)
    if implementations:
        results_of: Iterator[tuple[int, TileResult]] = ((i, _run(job, implementations)) for i, job in enumerate(todo))
    else:
        results_of = run_anywhere(run_job, todo, workers=workers, scheduler=scheduler)
    for i, result in results_of:
        if result.findings:
            raise Difference(result.findings)
        known[todo[i]] = result
        for r, place in missing[todo[i]]:
            _write_journal(journals[r], place, result)
            left[r] -= 1
            if not left[r] and conditions(requests[r]) != before[r]:
                raise CertificateError(
                    "the source or the environment changed while tiles ran; remove the journal, begin anew"
                )
            yield r, Progress(place, result)


def certify(
    request: AnyRequest, *, on_progress: Callable[[Progress], None] = lambda _: None, **how: Any
) -> Certificate:
    """The certificate of a request that holds in full; ``how`` is passed to `run`.

    Raises:
        Difference: it does not hold.
    """
    results: dict[int, TileResult] = {}
    for progress in run(request, **how):
        results[progress.place] = progress.result
        on_progress(progress)
    return certificate_of(request, results)


def certificate_of(request: AnyRequest, results: dict[int, TileResult]) -> Certificate:
    """The file of finished tiles; all of them must be there (KeyError)."""
    place, parts = 0, []
    for part in request.plan():
        own = [results[place + i] for i in range(len(part.tiles))]
        parts.append((part, own))
        place += len(own)
    return sealed(compose(request, parts))


def replay(
    request: AnyRequest,
    digests: Sequence[str],
    places: Sequence[int],
    *,
    workers: int = 0,
    scheduler: str | None = None,
) -> Iterator[tuple[int, bool]]:
    """Some tiles of a certificate again: place, and whether the digest is that of the file.

    Raises:
        Difference: a mode is no longer what the specification says.
    """
    for place, result in run_some(request, places, workers=workers, scheduler=scheduler):
        yield place, result.digest == digests[place]


def run_some(
    request: AnyRequest, places: Sequence[int], *, workers: int = 0, scheduler: str | None = None
) -> Iterator[tuple[int, TileResult]]:
    """Some tiles of a request, by their places in the plan, as they are done.

    Raises:
        Difference: at the first tile with one.
    """
    jobs = jobs_of(request)
    for i, result in run_anywhere(run_job, [jobs[place] for place in places], workers=workers, scheduler=scheduler):
        if result.findings:
            raise Difference(result.findings)
        yield places[i], result


def explain_finding(found: Finding | SweepFinding) -> str:
    """The input in full, as decimal, hexadecimal float and bits, with both results."""
    if isinstance(found, SweepFinding):
        return explain_sweep(found)
    lines = [f"{found.mode}: {found.function} differs from the specification at {found.differing:,} inputs of a tile"]
    if not found.monotone:
        lines.append("  the results do not ascend with the inputs: the argument from steps does not apply")
    shown = ("input", found.x), ("scale", found.scale), ("expected", found.expected), ("got", found.got)
    lines += [f"  {label:<11}{describe(value)}" for label, value in shown]
    if found.alone is not None:
        lines.append(f"  by itself  {describe(found.alone)}")
    if found.zero_point is not None:
        lines.append(f"  zero point {found.zero_point}")
    return "\n".join(lines)


def _identity(request: AnyRequest) -> str:
    """What a journal belongs to: the request and everything a result depends on."""
    return canonical([repr(request), conditions(request)])


def _read_journal(path: Path, request: AnyRequest) -> dict[int, TileResult]:
    """The finished tiles; a last line that was cut short is left out and overwritten."""
    if not path.exists():
        write_whole(path, json.dumps({"of": _identity(request)}) + "\n")
        return {}
    head, *lines = path.read_text(encoding="utf-8").split("\n")
    try:
        same = json.loads(head)["of"] == _identity(request)
    except (json.JSONDecodeError, KeyError, TypeError):
        same = False
    if not same:
        raise CertificateError(f"{path}: holds tiles of another request or environment; remove it to begin anew")
    found, good = {}, [head]
    for line in lines[:-1]:
        try:
            entry = json.loads(line)
            found[int(entry["tile"])] = TileResult(entry["digest"], entry["results"], entry["seconds"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            break
        good.append(line)
    write_whole(path, "\n".join(good) + "\n")
    return found


def _write_journal(path: Path | None, place: int, result: TileResult) -> None:
    if path is None:
        return
    entry = {"tile": place, "digest": result.digest, "results": result.results, "seconds": result.seconds}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
