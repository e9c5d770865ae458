"""Fake quantization beside its competitors: forward, and forward with backward, in one process.

    python benchmarks/fake_quantize.py [--sizes 1048576 4194304] [--rounds 45] [--keep-memory] [--markdown FILE]

float32, int8 symmetric, one scale given, per tensor and per channel (rows of 4,096). A row is a competitor, a column a
size; figures are medians in milliseconds and, behind them, the ratio to the compiled textbook kernel of that framework.

Memory is what a process gets by default: glibc gives large arrays back and asks for them anew, page by page, or not, as
the sizes that happen to be free together decide. That costs programs with many temporaries more than anything a kernel
does; ``--keep-memory`` has the process keep what it frees, and compares kernels alone.
"""

import argparse
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import brevitas.core.quant as brevitas_quant
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchao.quantization.quant_primitives as torchao
from brevitas.core.function_wrapper import Identity, RoundSte, TensorClamp
from qwix._src.core import qarray
from rich.console import Console
from rich.table import Table
from timing import Program, medians
from tqdm import tqdm

from samebits import jax_backend, torch_frontend
from samebits.core import QParams, Quantizer, catalog, choose_qparams
from samebits.proofs.certificates.schedule import keep_memory

Forward = Callable[[Any], Any]
SIZES = (1 << 16, 1 << 20, 1 << 22, 1 << 24)
CHANNEL = 4096
BASES = {"torch": "torch textbook, compiled", "jax": "jax textbook, jit"}


def torch_programs(q: Quantizer, x: np.ndarray, backward: bool) -> dict[str, Program]:
    """Every torch competitor as a program of no arguments."""
    scale = torch.from_numpy(np.array(choose_qparams(q, x).scale))
    lo, hi, shape = q.format.lo, q.format.hi, tuple(q.granularity.block_size(x.shape))
    zero = torch.zeros(scale.shape, dtype=torch.int32)
    per_tensor = scale.ndim == 0
    brevitas = brevitas_quant.IntQuant(False, True, Identity(), RoundSte(), TensorClamp())
    bits, float_zero = torch.tensor(8.0), torch.tensor(0.0)

    def textbook(v: torch.Tensor) -> torch.Tensor:
        quotient = v / scale
        rounded = quotient + (torch.round(quotient) - quotient).detach() if backward else torch.round(quotient)
        return torch.clamp(rounded, lo, hi) * scale

    def native(v: torch.Tensor) -> torch.Tensor:
        if per_tensor:
            return torch.fake_quantize_per_tensor_affine(v, scale, zero, lo, hi)
        return torch.fake_quantize_per_channel_affine(v, scale.reshape(-1), zero.reshape(-1), 0, lo, hi)

    def ours(v: torch.Tensor) -> torch.Tensor:
        return torch_frontend.fake_quantize(q, v, QParams(scale))

    forwards: dict[str, Forward] = {
        "torch clone": torch.clone,
        "torch textbook, eager": textbook,
        BASES["torch"]: torch.compile(textbook, fullgraph=True),  # as ours: that alone costs 2 us a call
        "torch.fake_quantize": native,
        "torchao _fake_quantize_affine": lambda v: torchao._fake_quantize_affine(
            v, shape, scale, zero, torch.int8, lo, hi
        ),
        "Brevitas IntQuant, eager": lambda v: brevitas(scale, float_zero, bits, v),
        "samebits torch, eager": ours,
        "samebits torch, compiled": torch.compile(ours, fullgraph=True),
    }
    data, g = torch.from_numpy(x), torch.ones(x.shape)

    def program(forward: Forward) -> Program:
        if not backward:
            return lambda: forward(data)
        leaf = data.clone().requires_grad_()
        return lambda: torch.autograd.grad(forward(leaf), leaf, g)

    return {name: program(forward) for name, forward in forwards.items()}


def jax_programs(q: Quantizer, x: np.ndarray, backward: bool) -> dict[str, Program]:
    """Every JAX competitor as a program of no arguments."""
    scale = jnp.asarray(choose_qparams(q, x).scale)
    lo, hi = q.format.lo, q.format.hi

    def textbook(v: jax.Array, s: jax.Array) -> jax.Array:
        quotient = v / s
        rounded = quotient + jax.lax.stop_gradient(jnp.round(quotient) - quotient) if backward else jnp.round(quotient)
        return jnp.clip(rounded, lo, hi) * s

    def qwix(v: jax.Array, s: jax.Array) -> jax.Array:
        codes = qarray.quantize_with_scale_zero_point(v, jnp.int8, s.reshape((1, 1)) if s.ndim == 0 else s, None)
        return qarray.dequantize(codes)

    def ours(v: jax.Array, s: jax.Array) -> jax.Array:
        return jax_backend.fake_quantize(q, v, QParams(s))

    forwards: dict[str, Forward] = {BASES["jax"]: textbook, "samebits jax, jit": ours}
    if not backward:  # Qwix differentiates its matrix products, not this function
        forwards["Qwix quantize, dequantize, jit"] = qwix
    data, g = jnp.asarray(x), jnp.ones(x.shape, jnp.float32)

    def program(forward: Forward) -> Program:
        if not backward:
            compiled = jax.jit(forward)
            return lambda: jax.block_until_ready(compiled(data, scale))

        def both(v: jax.Array, s: jax.Array, cotangent: jax.Array) -> Any:
            y, pull = jax.vjp(lambda u: forward(u, s), v)
            return y, pull(cotangent)[0]

        compiled_both = jax.jit(both)
        return lambda: jax.block_until_ready(compiled_both(data, scale, g))

    return {name: program(forward) for name, forward in forwards.items()}


def measure(name: str, backward: bool, sizes: list[int], rounds: int) -> dict[str, list[float]]:
    """Median milliseconds of every competitor (rows) at every size (columns)."""
    rows: dict[str, list[float]] = {}
    for size in tqdm(sizes, desc=f"{name}, {'forward+backward' if backward else 'forward'}", disable=None):
        x = np.random.default_rng(0).standard_normal((max(size // CHANNEL, 1), CHANNEL), np.float32)
        programs = torch_programs(catalog[name], x, backward) | jax_programs(catalog[name], x, backward)
        for row, seconds in medians(programs, rounds).items():
            rows.setdefault(row, []).append(seconds * 1e3)
        torch._dynamo.reset()
        jax.clear_caches()
    return rows


def ratio(rows: dict[str, list[float]], row: str, column: int) -> float:
    """Time of a row relative to the compiled textbook kernel of its framework."""
    framework = "jax" if "jax" in row or "jit" in row else "torch"
    return rows[row][column] / rows[BASES[framework]][column]


def cells(rows: dict[str, list[float]], row: str) -> list[str]:
    """A row's figures as text."""
    return [f"{ms:.3f} ms ({ratio(rows, row, column):.2f}x)" for column, ms in enumerate(rows[row])]


def main() -> None:
    """Measure, print the tables, and write them as markdown when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="elements, multiples of 4,096")
    parser.add_argument("--rounds", type=int, default=45)
    parser.add_argument("--keep-memory", action="store_true", help="give no memory back to the system")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    if arguments.keep_memory:
        keep_memory()
    libraries = ", ".join(f"{p} {version(p)}" for p in ("torch", "jax", "torchao", "brevitas", "qwix"))
    lines = [f"{libraries}; Python {platform.python_version()}; {torch.get_num_threads()} threads.", ""]
    for name in ("int8_per_tensor", "int8_per_channel"):
        for backward in (False, True):
            rows = measure(name, backward, arguments.sizes, arguments.rounds)
            title = f"{name}, {'forward and backward' if backward else 'forward'}"
            title += ", memory kept" if arguments.keep_memory else ""
            heads = [f"{size:,}" for size in arguments.sizes]
            table = Table("", *heads, title=title)
            lines += [f"### {title}", "", f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
            for row in rows:
                table.add_row(row, *cells(rows, row))
                lines.append(f"| {row} | {' | '.join(cells(rows, row))} |")
            lines.append("")
            Console().print(table)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
