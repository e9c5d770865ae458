"""What `samebits certify` shows: a bar with the time left, the parts, the rates, the verdict; or one JSON object."""

import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..certificates.certificate import Certificate
from ..certificates.certify import Difference, certificate_of, explain_finding, jobs_of, replay, run_some
from ..certificates.certify import Progress as Step
from ..certificates.evaluate import TileResult
from ..certificates.request import tiles_of
from ..certificates.sweeps import AnyRequest, Sweep

Item = TypeVar("Item")
LINES_EVERY = 20  # seconds
TITLES = {"part": "part", "tiles": "tiles", "scales": "scales", "results per mode": "results per mode"}


@dataclass(frozen=True)
class Run:
    """A finished run: the certificate, seconds since the command began, the rate of every mode, tiles done before."""

    request: AnyRequest
    certificate: Certificate
    seconds: float
    rates: dict[str, float]
    earlier: int = 0


def show_runs(requests: Sequence[AnyRequest], steps: Iterable[tuple[int, Step]], *, quiet: bool) -> Iterator[Run]:
    """Run all tiles behind a bar; requests as they are finished. An interruption says how to go on."""
    start = time.monotonic()
    results: list[dict[int, TileResult]] = [{} for _ in requests]
    counts, earlier = [len(tiles_of(request)) for request in requests], [0] * len(requests)
    what = requests[0].name if len(requests) == 1 else f"{len(requests)} quantizers"
    try:
        for r, step in _bar(f"certifying {what}", sum(counts), steps, quiet):
            own, request = results[r], requests[r]
            own[step.place] = step.result
            earlier[r] += step.kept
            if len(own) == counts[r]:
                spent = {mode: sum(result.seconds[mode] for result in own.values()) for mode in request.modes}
                total = sum(result.results for result in own.values())
                rates = {mode: total / spent[mode] for mode in request.modes}
                yield Run(request, certificate_of(request, own), time.monotonic() - start, rates, earlier[r])
    except KeyboardInterrupt:
        done = sum(map(len, results))
        print_error(f"interrupted; {done} of {sum(counts)} tiles are kept, the same command goes on with them")
        raise


def show_certificate(run: Run, target: Path, *, quiet: bool) -> None:
    """The parts and what they cover, the assumptions, the rates."""
    if quiet:
        shown = {k: v for k, v in run.certificate.items() if k != "tiles"}
        print(json.dumps({"file": str(target), "seconds": run.seconds, "results per second": run.rates, **shown}))
        return
    console = Console(highlight=False)
    titles = [key for key in TITLES if key in run.certificate["domain"][0]]
    table = Table(*(TITLES[key] for key in titles))
    for part in run.certificate["domain"]:
        table.add_row(*(f"{part[key]:,}" if isinstance(part[key], int) else part[key] for key in titles))
    console.print(table)
    console.print(run.certificate["statement"]["says"], style="green")
    for assumption in run.certificate["assumptions"]:
        console.print(f"  - {assumption}", style="dim")
    rates = ", ".join(f"{mode} {rate / 1e6:,.0f}" for mode, rate in run.rates.items())
    before = f", {run.earlier:,} tiles being done before" if run.earlier else ""
    console.print(f"complete in {run.seconds:.0f} s{before}; million results per second and process: {rates}")
    console.print(f"written to {target}")


def show_replay(certificate: Certificate, request: AnyRequest, count: int | None, *, quiet: bool, **how: Any) -> bool:
    """Tiles again, all of them or some drawn at random; whether every digest is that of the file."""
    digests = [digest for own in certificate["tiles"].values() for digest in own]
    places = sorted(random.sample(range(len(digests)), min(count or len(digests), len(digests))))
    outcome = dict(_bar("replaying", len(places), replay(request, digests, places, **how), quiet))
    different = sorted(place for place, same in outcome.items() if not same)
    if quiet:
        print(json.dumps({"replayed": places, "different": different}))
    else:
        text = f"{len(places) - len(different):,} of {len(places):,} tiles replayed agree with the certificate"
        Console(highlight=False).print(text, style="bold red" if different else "green")
        if different:
            Console(highlight=False).print(f"tiles with another digest: {', '.join(map(str, different))}")
    return not different


def show_sample(requests: Sequence[Sweep], count: int, *, quiet: bool, **how: Any) -> None:
    """Some tiles of each sweep, drawn at random: a quick look, of which no file is written.

    Raises:
        Difference: a mode is not what the specification says.
    """
    shown = []
    for request in requests:
        jobs = jobs_of(request)
        places = sorted(random.sample(range(len(jobs)), min(count, len(jobs))))
        start, results = time.monotonic(), 0
        for _, result in _bar(f"looking at {request.name}", len(places), run_some(request, places, **how), quiet):
            results += result.results
        shown.append((request.name, len(places), len(jobs), results, round(time.monotonic() - start, 1)))
    if quiet:
        names = "name", "tiles", "of", "results per mode", "seconds"
        print(json.dumps({"result": "the same", "sample": [dict(zip(names, row, strict=True)) for row in shown]}))
        return
    for name, some, every, results, seconds in shown:
        text = f"{name}: 0 of {results:,} results per mode differ in {some} of {every} tiles ({seconds} s); no file"
        Console(highlight=False, width=160).print(text, style="green")


def show_difference(difference: Difference, *, quiet: bool) -> None:
    """What was found instead of agreement."""
    if quiet:
        print(json.dumps({"result": "different", "findings": [explain_finding(f) for f in difference.findings]}))
        return
    console = Console(highlight=False)
    for found in difference.findings:
        console.print(Text(explain_finding(found)))
    console.print("no certificate is written", style="bold red")


def print_error(message: str) -> None:
    """A line on standard error."""
    Console(stderr=True, highlight=False).print(message)


def _bar(what: str, total: int, items: Iterable[Item], quiet: bool) -> Iterator[Item]:
    """The items as they come; a bar on standard error when that is a terminal, else a line now and then."""
    console, begun = Console(stderr=True, highlight=False), time.monotonic()
    left = TextColumn("left")
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), left, TimeRemainingColumn())
    shown = begun
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        for done, item in enumerate(items, start=1):
            yield item
            bar.advance(task)
            if not (quiet or console.is_terminal) and time.monotonic() - shown > LINES_EVERY:
                shown = time.monotonic()
                console.print(f"{what}: {done:,} of {total:,} tiles after {shown - begun:.0f} s")
