"""What certificates cost: results per second of every mode on tiles of each engine, and what whole plans come to.

    python benchmarks/certify.py [NAME ...] [--tiles 3] [--markdown FILE]

Each tile runs in this process on one thread of torch (XLA uses what it is given: pin the process with ``taskset -c 0``
for figures per core), after one that compiles. A result is a code, a value, a gradient or a scale. Boundary plans are
measured by their significands, nearly all of the work; sweeps by all of float32 at one scale.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from samebits.core import catalog
from samebits.core.scales import SHARED_EXPONENT
from samebits.proofs.certificates.certify import Job, jobs_of, run_job
from samebits.proofs.certificates.request import Request
from samebits.proofs.certificates.schedule import keep_memory
from samebits.proofs.modes.execution import MODES

NAMES = ("int8_per_tensor", "int4_per_channel", "int2_per_channel", "mxfp4_e2m1")


class Cost(NamedTuple):
    """Of a plan: its tiles, core-seconds of all of them, core-seconds of each mode, results per second of each mode."""

    tiles: int
    seconds: float
    by_mode: dict[str, float]
    rates: dict[str, float]


def requests(name: str) -> Iterator[tuple[str, Request]]:
    """What is measured for an entry."""
    q = catalog[name]
    yield f"{name}, all scales", Request(name, q)
    if name == "int8_per_tensor":
        yield f"{name}, all inputs at one scale", Request(name, q, engine="exhaustive", scales=(0.10000000149011612,))
    if q.scale.restriction in SHARED_EXPONENT:
        yield f"{name}, all magnitudes of a block", Request(name, q, engine="scales")


def cost(request: Request, tiles: int) -> Cost:
    """From some tiles of the first part of the plan, spread over it."""
    jobs = jobs_of(request)
    first = jobs[: len(request.plan()[0].tiles)]
    chosen = first[:: max(1, len(first) // tiles)][:tiles]
    run_job(chosen[0])
    seconds, results, spent = [], 0, dict.fromkeys(MODES, 0.0)
    for job in chosen:
        start = time.process_time()
        results += run_job(job).results
        seconds.append(time.process_time() - start)
        for mode in MODES:
            start = time.process_time()
            run_job(Job(job.q, (mode,), job.tile))
            spent[mode] += time.process_time() - start
    by_mode = {mode: spent[mode] / len(chosen) * len(jobs) for mode in MODES}
    rates = {mode: results / spent[mode] for mode in MODES}
    return Cost(len(jobs), sum(seconds) / len(chosen) * len(jobs), by_mode, rates)


def lines_of(names: Sequence[str], tiles: int) -> list[str]:
    """Two tables in markdown: millions of results per second and core, and core-seconds of whole plans."""
    keep_memory()
    head = " | ".join(MODES)
    rates = [f"| million results a second | {head} |", "|---|" + "---:|" * len(MODES)]
    plans = [f"| core-seconds | tiles | all modes at once | {head} alone |", "|---|" + "---:|" * (len(MODES) + 2)]
    for name in names:
        for label, request in requests(name):
            found = cost(request, tiles)
            rates.append(f"| {label} | {' | '.join(f'{found.rates[m] / 1e6:,.0f}' for m in MODES)} |")
            alone = " | ".join(f"{found.by_mode[m]:,.0f}" for m in MODES)
            plans.append(f"| {label} | {found.tiles:,} | {found.seconds:,.0f} | {alone} |")
            print(rates[-1], plans[-1], sep="\n", flush=True)
    return [*rates, "", *plans]


def main() -> None:
    """Measure, print, and write the tables when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NAMES), metavar="NAME")
    parser.add_argument("--tiles", type=int, default=2, help="timed in each plan")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    start = time.monotonic()
    lines = lines_of(arguments.names, arguments.tiles)
    print("\n".join(["", *lines, "", f"{time.monotonic() - start:.0f} s"]))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
