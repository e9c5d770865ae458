"""Prototypes beside the textbook code under the same compiler, and beside the catalog, in one process.

    python benchmarks/prototypes.py [--size 4194304] [--rounds 25] [--keep-memory] [--markdown FILE]

float32; forward, and forward with the gradient of x. int8 with one scale given, int8 of a tanh, and int8 with a scale
for each 32 elements. A figure is the median of the ratios of single rounds, in brackets their quartiles.
"""

import argparse
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from timing import Program, samples_of

from samebits import jax_backend, torch_frontend
from samebits.core import QParams, catalog
from samebits.core import formula as p
from samebits.proofs import prototype
from samebits.proofs.certificates.schedule import keep_memory

CHANNEL, BLOCK = 4096, 32
Formula = Callable[..., Any]
Programs = dict[str, Program]
MODES = ("torch eager", "torch compiled", "jax jit")


@prototype
def int8(x, *, s=p.learned(0.1)):  # type: ignore[no-untyped-def]
    """One scale, which is given."""
    steps = x / s
    return p.clamp(p.straight_through(p.round(steps), steps), -128, 127) * s


@prototype
def int8_of_tanh(x, *, s=p.learned(0.01)):  # type: ignore[no-untyped-def]
    """An elementary function before it."""
    steps = p.tanh(x) / s
    return p.clamp(p.straight_through(p.round(steps), steps), -128, 127) * s


@prototype
def int8_blocks(x):  # type: ignore[no-untyped-def]
    """The largest magnitude of each block makes its scale."""
    blocks = x.reshape(-1, BLOCK)
    s = p.stop_gradient(p.maximum(p.absmax(blocks, -1, True) / 127, 1e-12))
    steps = blocks / s
    return (p.clamp(p.straight_through(p.round(steps), steps), -128, 127) * s).reshape(x.shape)


def textbook(library: Any, held: Callable[[Any], Any]) -> dict[str, Formula]:
    """What one would write in a library, by the name of the prototype.

    Args:
        held: what has no gradient.
    """
    clip = torch.clamp if library is torch else jnp.clip

    def quantized(v: Any, s: Any) -> Any:
        steps = v / s
        return clip(steps + held(library.round(steps) - steps), -128, 127) * s

    def blocks(v: Any, s: Any) -> Any:
        rows = v.reshape(-1, BLOCK)
        largest = library.abs(rows).amax(-1, True) if library is torch else library.abs(rows).max(-1, keepdims=True)
        return quantized(rows, held(clip(largest / 127, 1e-12, None))).reshape(v.shape)

    return {
        "int8": quantized,
        "int8_of_tanh": lambda v, s: quantized(library.tanh(v), s),
        "int8_blocks": blocks,
    }


PROTOTYPES = {one.name: one for one in (int8, int8_of_tanh, int8_blocks)}


def of_torch(name: str, x: np.ndarray, s: np.ndarray, backward: bool) -> Programs:
    """The prototype, the textbook code, and for int8 the entry of the catalog, eager and compiled."""
    data, scale, g = torch.from_numpy(x), torch.from_numpy(s), torch.ones(x.shape)
    given = {"s": scale} if PROTOTYPES[name].parameters else {}
    ours = {
        "prototype": lambda v: PROTOTYPES[name].torch(v, **given),
        "textbook": lambda v: textbook(torch, torch.Tensor.detach)[name](v, scale),
    }
    if name == "int8":
        ours["catalog"] = lambda v: torch_frontend.fake_quantize(catalog["int8_per_tensor"], v, QParams(scale))
    leaf = data.clone().requires_grad_() if backward else data

    def program(function: Formula) -> Program:
        if not backward:
            return lambda: function(leaf)
        return lambda: torch.autograd.grad(function(leaf), leaf, g)

    eager = {f"torch eager, {row}": program(f) for row, f in ours.items()}
    compiled = {f"torch compiled, {row}": program(torch.compile(f, fullgraph=True)) for row, f in ours.items()}
    return eager | compiled


def of_jax(name: str, x: np.ndarray, s: np.ndarray, backward: bool) -> Programs:
    """The same in JAX, jitted."""
    data, scale, g = jnp.asarray(x), jnp.asarray(s), jnp.ones(x.shape, np.float32)

    def prototyped(v: jax.Array, s: jax.Array) -> jax.Array:
        given = {"s": s} if PROTOTYPES[name].parameters else {}
        return PROTOTYPES[name].jax(v, **given)

    ours: dict[str, Formula] = {"prototype": prototyped, "textbook": textbook(jnp, jax.lax.stop_gradient)[name]}
    if name == "int8":
        ours["catalog"] = lambda v, s: jax_backend.fake_quantize(catalog["int8_per_tensor"], v, QParams(s))

    def program(function: Formula) -> Program:
        def both(v: jax.Array, s: jax.Array, cotangent: jax.Array) -> Any:
            y, pull = jax.vjp(lambda u: function(u, s), v)
            return y, pull(cotangent)[0]

        compiled = jax.jit(both if backward else function)
        inputs = (data, scale, g) if backward else (data, scale)
        return lambda: jax.block_until_ready(compiled(*inputs))  # type: ignore[no-untyped-call]

    return {f"jax jit, {row}": program(f) for row, f in ours.items()}


def ratio(samples: dict[str, list[float]], mode: str, to: str) -> str:
    """Of the prototype to another row of a mode."""
    others, own = samples.get(f"{mode}, {to}"), samples[f"{mode}, prototype"]
    if others is None:
        return ""
    each = sorted(a / b for a, b in zip(own, others, strict=True))
    return f"{median(each):.2f} ({each[len(each) // 4]:.2f}-{each[3 * len(each) // 4]:.2f})"


def main() -> None:
    """Measure, print the table, and write it as markdown when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1 << 22, help="elements, a multiple of 4,096")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--only", choices=list(PROTOTYPES), nargs="+", default=list(PROTOTYPES))
    parser.add_argument("--keep-memory", action="store_true", help="give no memory back to the system")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    if arguments.keep_memory:
        keep_memory()
    x = np.random.default_rng(0).standard_normal((arguments.size // CHANNEL, CHANNEL), np.float32)
    heads = ["prototype", "pass", "mode", "ms", "to textbook", "to catalog"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---:|---:|---:|"]
    table = Table(*heads, title=f"{arguments.size:,} elements, Python {platform.python_version()}")
    for name in arguments.only:
        scale = np.asarray(np.float32(0.01 if name == "int8_of_tanh" else 0.03))
        for backward in (False, True):
            programs = of_torch(name, x, scale, backward) | of_jax(name, x, scale, backward)
            samples = samples_of(programs, arguments.rounds)
            for mode in MODES:
                own = f"{median(samples[f'{mode}, prototype']) * 1e3:.2f}"
                row = [name, "forward, backward" if backward else "forward", mode, own]
                row += [ratio(samples, mode, to) for to in ("textbook", "catalog")]
                table.add_row(*row)
                print(*row, sep=", ", flush=True)
                lines.append(f"| {' | '.join(row)} |")
            torch._dynamo.reset()
            jax.clear_caches()  # type: ignore[no-untyped-call]
    print(", ".join(f"{library} {version(library)}" for library in ("torch", "jax")))
    Console().print(table)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
