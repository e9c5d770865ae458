"""Forward and backward where the scale learns, beside the same without its gradient, in one process.

    python benchmarks/learned_scale.py [--sizes 1048576 4194304] [--runs 5] [--keep-memory] [--before FOLDER]

float32, int8 symmetric with the gradient of LSQ, per tensor and per channel (rows of 4,096); some elements are clamped.
Figures are milliseconds, the median of the runs, each a median of rounds. ``--before`` names a folder in which
`samebits` is an older state: it is measured by the same script in a process of its own.

Memory is the peak of what is allocated during one eager call of torch, inputs apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from timing import Program, medians

from samebits import jax_backend, torch_frontend
from samebits.core import Gradient, QParams, Quantizer, catalog, choose_qparams
from samebits.proofs.certificates.schedule import keep_memory

Rows = dict[str, float]  # milliseconds
NAMES = ("int8_per_tensor", "int8_per_channel")
CHANNEL = 4096
CLAMPS = np.float32(0.4)  # of the scale that reaches the largest element


def inputs(name: str, elements: int) -> tuple[Quantizer, np.ndarray, np.ndarray, np.ndarray]:
    """Quantizer, data, scale and incoming gradient."""
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, elements // CHANNEL, CHANNEL), np.float32)
    q = catalog[name].replace(gradient=Gradient.LEARNED_SCALE)
    return q, x, np.asarray(choose_qparams(q, x).scale * CLAMPS), g


def torch_programs(name: str, elements: int) -> dict[str, Program]:
    """Programs of no arguments: gradients of x alone, and of x and scale."""
    q, data, given, cotangent = inputs(name, elements)
    lo, hi = int(q.format.lo), int(q.format.hi)
    x, g = torch.from_numpy(data).requires_grad_(), torch.from_numpy(cotangent)
    fixed = torch.from_numpy(given)
    scale, rows, zeros = (
        fixed.clone().requires_grad_(),
        fixed.reshape(-1).clone().requires_grad_(),
        torch.zeros(fixed.numel()),
    )

    def ours(v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch_frontend.fake_quantize(q, v, QParams(s))

    def native(v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        if fixed.ndim == 0:
            return torch._fake_quantize_learnable_per_tensor_affine(v, s, zeros, lo, hi, 1.0)
        return torch._fake_quantize_learnable_per_channel_affine(v, s, zeros, 0, lo, hi, 1.0)

    def textbook(v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        quotient = v / s
        return torch.clamp(quotient + (torch.round(quotient) - quotient).detach(), lo, hi) * s

    def program(function: Any, *wanted: torch.Tensor) -> Program:
        s = wanted[1] if len(wanted) > 1 else fixed
        return lambda: torch.autograd.grad(function(x, s), wanted, g)

    compiled, compiled_textbook = (torch.compile(f, fullgraph=True) for f in (ours, textbook))
    return {
        "samebits torch, eager: x": program(ours, x),
        "samebits torch, eager: x and scale": program(ours, x, scale),
        "torch's learnable operator, eager: x and scale": program(native, x, rows),
        "samebits torch, compiled: x": program(compiled, x),
        "samebits torch, compiled: x and scale": program(compiled, x, scale),
        "torch textbook, compiled: x": program(compiled_textbook, x),
        "torch textbook, compiled: x and scale": program(compiled_textbook, x, scale),
    }


def jax_programs(name: str, elements: int) -> dict[str, Program]:
    """The same in JAX, jitted."""
    q, data, given, cotangent = inputs(name, elements)
    x, scale, g = jnp.asarray(data), jnp.asarray(given), jnp.asarray(cotangent)

    def ours(v: jax.Array, s: jax.Array) -> jax.Array:
        return jax_backend.fake_quantize(q, v, QParams(s))

    def textbook(v: jax.Array, s: jax.Array) -> jax.Array:
        quotient = v / s
        rounded = quotient + jax.lax.stop_gradient(jnp.round(quotient) - quotient)
        return jnp.clip(rounded, q.format.lo, q.format.hi) * s

    def program(function: Any, both: bool) -> Program:
        @jax.jit
        def value_and_gradients(v: jax.Array, s: jax.Array, cotangent: jax.Array) -> Any:
            if both:
                value, pull = jax.vjp(function, v, s)
            else:
                value, pull = jax.vjp(lambda u: function(u, s), v)
            return value, pull(cotangent)

        return lambda: jax.block_until_ready(value_and_gradients(x, scale, g))  # type: ignore[no-untyped-call]

    return {
        "samebits jax, jit: x": program(ours, False),
        "samebits jax, jit: x and scale": program(ours, True),
        "jax textbook, jit: x": program(textbook, False),
        "jax textbook, jit: x and scale": program(textbook, True),
    }


def peak(program: Program) -> float:
    """MiB that one call allocates at most at a time."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        program()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def measure(name: str, elements: int, runs: int, rounds: int) -> list[Rows]:
    """Milliseconds of every program in each run, and the memory of two of them."""
    eager = torch_programs(name, elements)
    programs = eager | jax_programs(name, elements)
    memory = {f"{row}, MiB": peak(eager[row]) for row in list(eager)[:2]}
    found = (medians(programs, rounds) for _ in range(runs))
    return [{row: seconds * 1e3 for row, seconds in one.items()} | memory for one in found]


def measured_apart(folder: Path | None, arguments: list[str]) -> list[Rows]:
    """`measure` in a process of its own, by the packages of ``folder``."""
    environment = os.environ | ({} if folder is None else {"PYTHONPATH": str(folder)})
    command = [sys.executable, __file__, "--one", *arguments]
    result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    runs: list[Rows] = json.loads(result.stdout.splitlines()[-1])
    return runs


def main() -> None:
    """Measure, print the tables, and write them as markdown when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1 << 20, 1 << 22], help="elements, multiples of 4,096")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--keep-memory", action="store_true", help="give no memory back to the system")
    parser.add_argument("--before", type=Path, help="a folder in which `samebits` is an older state")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    if arguments.keep_memory:
        keep_memory()
    if arguments.one:
        name, *numbers = arguments.one
        print(json.dumps(measure(name, *map(int, numbers))))
        return
    lines = []
    for name in NAMES:
        for size in arguments.sizes:
            states = {"now": None} | ({"before": arguments.before} if arguments.before else {})
            wanted = [name, *(str(number) for number in (size, arguments.runs, arguments.rounds))]
            wanted += ["--keep-memory"] if arguments.keep_memory else []
            runs = {state: measured_apart(folder, wanted) for state, folder in states.items()}
            title = f"{name}, {size:,} elements" + (", memory kept" if arguments.keep_memory else "")
            table = Table("", *states, title=title)
            lines += [f"### {title}", "", f"| | {' | '.join(states)} |", "|---|" + "---:|" * len(states)]
            for row in runs["now"][0]:
                cells = []
                for found in runs.values():
                    values = sorted(one[row] for one in found)
                    cells.append(f"{statistics.median(values):.2f} ({values[0]:.2f}-{values[-1]:.2f})")
                table.add_row(row, *cells)
                lines.append(f"| {row} | {' | '.join(cells)} |")
            lines.append("")
            Console().print(table)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
