"""Fake quantization under `jax.jit` beside the textbook kernel, wherever JAX is installed: to compare its releases.

    python benchmarks/jax_releases.py [--sizes 1048576 4194304] [--runs 5] [--rounds 25] [--keep-memory]

float32, the scale given, rows of 4,096. The textbook kernel is ``clip(round(x / s), -128, 127) * s``, whose division
XLA makes a product: per channel for int8_per_channel, else per tensor. A run measures all programs in turn. Figures are
medians over runs: times in milliseconds, and the ratio with the least and the largest behind it.
"""

import argparse
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from timing import Program, medians

from samebits import jax_backend
from samebits.core import QParams, catalog, choose_qparams
from samebits.proofs.certificates.schedule import keep_memory

NAMES = ("int8_per_tensor", "int8_per_channel", "float8_e4m3fn_per_tensor", "mxfp8_e4m3", "mxfp4_e2m1")
BASES = {"int8_per_channel": "int8_per_channel"}  # what a row's textbook kernel quantizes; else int8_per_tensor
CHANNEL = 4096
Forward = Callable[[jax.Array, jax.Array], jax.Array]


def textbook(backward: bool) -> Forward:
    """The kernel whose bits nobody promises, with a straight-through gradient where one is asked for."""

    def forward(v: jax.Array, s: jax.Array) -> jax.Array:
        quotient = v / s
        rounded = quotient + jax.lax.stop_gradient(jnp.round(quotient) - quotient) if backward else jnp.round(quotient)
        return jnp.clip(rounded, -128, 127) * s

    return forward


def program(forward: Forward, name: str, x: np.ndarray, backward: bool) -> Program:
    """A function of an array and the scales of a catalog entry as a program of no arguments."""
    data, scale = jnp.asarray(x), jnp.asarray(choose_qparams(catalog[name], x).scale)
    cotangent = jnp.ones(x.shape, jnp.float32)

    def both(v: jax.Array, s: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(lambda u: forward(u, s), v)
        return y, pull(g)[0]

    if not backward:
        compiled = jax.jit(forward)
        return lambda: jax.block_until_ready(compiled(data, scale))  # type: ignore[no-untyped-call]
    compiled_both = jax.jit(both)
    return lambda: jax.block_until_ready(compiled_both(data, scale, cotangent))  # type: ignore[no-untyped-call]


def ours(name: str) -> Forward:
    """A catalog entry."""
    return lambda v, s: jax_backend.fake_quantize(catalog[name], v, QParams(s))


def measure(size: int, backward: bool, runs: int, rounds: int) -> dict[str, str]:
    """A row of a table for each quantizer."""
    x = np.random.default_rng(0).standard_normal((max(size // CHANNEL, 1), CHANNEL), np.float32)
    programs = {f"textbook {name}": program(textbook(backward), name, x, backward) for name in NAMES[:2]}
    programs |= {name: program(ours(name), name, x, backward) for name in NAMES}
    found = [medians(programs, rounds, seconds=0.01) for _ in range(runs)]
    rows = {}
    for name in NAMES:
        base = f"textbook {BASES.get(name, NAMES[0])}"
        ratios = [run[name] / run[base] for run in found]
        times = [statistics.median(run[row] for run in found) * 1e3 for row in (base, name)]
        cells = (
            f"{times[0]:.3f} | {times[1]:.3f} | {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        )
        rows[name] = f"| {name}, {size:,}{', with backward' if backward else ''} | {cells} |"
    return rows


def main() -> None:
    """Measure, print the table, and write it as markdown when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1 << 20, 1 << 22], help="elements, multiples of 4,096")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--keep-memory", action="store_true", help="give no memory back to the system")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    if arguments.keep_memory:
        keep_memory()
    lines = [f"jax {jax.__version__}; Python {platform.python_version()}.", ""]
    lines += ["| | textbook, ms | samebits, ms | ratio |", "|---|---:|---:|---:|"]
    for backward in (False, True):
        for size in arguments.sizes:
            lines += measure(size, backward, arguments.runs, arguments.rounds).values()
    Console(width=120).print("\n".join(lines))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
