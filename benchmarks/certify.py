"""What certificates cost: results per second of every mode on tiles of the boundary engine, and the sum of a plan.

    python benchmarks/certify.py [NAME ...] [--tiles 3] [--markdown FILE]

Each tile runs in this process on one thread of torch (XLA uses what it is given: pin the process with ``taskset -c 0``
for figures per core). The cost of a plan is that of its median tile of each part, times their number; programs are
compiled before anything is timed.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from samebits.core import catalog
from samebits.proofs.certify import Job, run_job
from samebits.proofs.execution import MODES
from samebits.proofs.tiles import Part, boundary_plan

NAMES = ("int8_per_tensor", "uint8_affine_per_tensor", "int4_per_channel", "int2_per_channel", "int16_per_tensor")


def cost(name: str, part: Part, tiles: int) -> tuple[float, dict[str, float]]:
    """Core-seconds of a part, and results per second of each mode on its tiles."""
    every = max(1, len(part.tiles) // tiles)
    chosen = part.tiles[::every][:tiles]
    run_job(Job(catalog[name], MODES, chosen[0]))
    seconds, results, spent = [], 0, dict.fromkeys(MODES, 0.0)
    for tile in chosen:
        start = time.process_time()
        result = run_job(Job(catalog[name], MODES, tile))
        seconds.append(time.process_time() - start)
        results += result.results
        for mode in MODES:
            spent[mode] += result.seconds[mode]
    return statistics.median(seconds) * len(part.tiles), {mode: results / spent[mode] for mode in MODES}


def lines_of(names: Sequence[str], tiles: int) -> list[str]:
    """A table in markdown."""
    lines = [
        "| quantizer | tiles | core-hours | " + " | ".join(f"{mode}, M/s" for mode in MODES) + " |",
        "|---|---:|---:|" + "---:|" * len(MODES),
    ]
    for name in names:
        plan, total, rates = boundary_plan(catalog[name]), 0.0, dict[str, float]()
        for part in plan:
            seconds, own = cost(name, part, tiles)
            total += seconds
            rates = rates or own  # of the first part, nearly all of the work
        cells = " | ".join(f"{rates[mode] / 1e6:,.0f}" for mode in MODES)
        lines.append(f"| {name} | {sum(len(p.tiles) for p in plan):,} | {total / 3600:,.2f} | {cells} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure, print, and write the table when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NAMES), metavar="NAME")
    parser.add_argument("--tiles", type=int, default=3, help="timed in each part")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    lines = lines_of(arguments.names, arguments.tiles)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
