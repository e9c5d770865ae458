"""What the arithmetics of other systems cost beside the default one: compiled fake quantization, 1 Mi float32.

Every dialect of `samebits.core.dialects` in one program of torch, int8 per tensor (affine where a dialect says so),
forward, the scale given; and the same quantizer in the default arithmetic. Processor time of one thread, arrays that
stay in cache, medians over rounds, in turn: what the operations cost, without memory to hide it.

    python -m benchmarks.dialects [--rounds 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from samebits.core import QParams, Quantizer, catalog, dialects
from samebits.core.arithmetic import ZeroPointDomain
from samebits.torch_frontend import fake_quantize

ELEMENTS = 1 << 20
CALLS = 20  # of each program in a round


def program(q: Quantizer) -> Callable[[], Any]:
    """Compiled fake quantization by a scale that is given."""
    x, scale = torch.randn(ELEMENTS), torch.tensor(0.05)
    zero = None
    if q.affine:
        integers = q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER
        zero = torch.tensor(7, dtype=torch.int32) if integers else torch.tensor(0.35)
    options: dict[str, Any] = {"fullgraph": True, "isolate_recompiles": True}
    compiled = torch.compile(lambda x, scale, zero: fake_quantize(q, x, QParams(scale, zero)), **options)

    def run() -> None:
        for _ in range(CALLS):
            compiled(x, scale, zero)

    return run


def quantizers() -> dict[str, Quantizer]:
    """The default arithmetic and every dialect, with and without a zero point."""
    found = {}
    for name in ("int8_per_tensor", "uint8_affine_per_tensor"):
        found[f"default, {name}"] = catalog[name]
        for dialect, changes in dialects.items():
            if "zero_point" in changes and not catalog[name].affine:
                continue  # it makes an affine quantizer of any
            narrow = {"narrow": True} if dialect == "aqt" else {}
            found[f"{dialect}, {name}"] = catalog[name].replace(**changes, **narrow)
    return found


def main() -> None:
    """Prints a table: milliseconds, and the ratio to the default arithmetic of the same catalog entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the names to measure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = ("default", *options.only)
    wanted = {name: q for name, q in quantizers().items() if any(part in name for part in parts)}
    programs = {}
    for name, q in wanted.items():
        programs[name] = program(q)
        programs[name]()
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(options.rounds):
        for name, run in programs.items():
            start = time.process_time()
            run()
            times[name].append((time.process_time() - start) / CALLS * 1e3)
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        base = medians[f"default, {name.split(', ')[1]}"]
        print(f"{name:55} {median:7.3f} ms  {median / base:5.2f}")


if __name__ == "__main__":
    main()
