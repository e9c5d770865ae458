"""Quantized flax models beside Qwix and AQT on the same network: a training step, inference, and how long it compiles.

    python benchmarks/flax_models.py [--rounds N] [--markdown FILE]

The network of `qat_step.py`, 4 x (384-1536-384), batch 512, jitted, 2 threads. Weights have 8 bits per channel,
activations 8 bits per tensor with a scale from the batch at hand (Qwix, AQT and ours per token where inference says
so). Compiling is that of a training step of 12 layers of 256 features, from a traced function to an executable.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table
from timing import Program, samples_of

from samebits.core.configs import int8_dynamic_activation_int8_weight
from samebits.jax_backend import nn as jax_nn
from samebits.jax_backend.ptq import quantize_

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import qwix
    from aqt.jax.v2 import config as aqt_config

NARROW, WIDE, BLOCKS, BATCH, RATE = 384, 1536, 4, 512, 1e-3
DEPTH, FEATURES = 12, 256
Linear = Callable[..., Any]
INT8 = qwix.QuantizationRule(module_path=".*", weight_qtype=jnp.int8, act_qtype=jnp.int8)


def network(linear: Linear) -> Any:
    """Linear layers with ReLUs between them."""
    rngs = nnx.Rngs(0)
    widths = [(NARROW, WIDE), (WIDE, NARROW)] * BLOCKS
    return nnx.Sequential(*(part for pair in widths for part in (linear(*pair, rngs=rngs), nnx.relu)))


def deep(linear: Linear) -> Any:
    """Of `DEPTH` layers."""
    rngs = nnx.Rngs(0)
    layers = (linear(FEATURES, FEATURES, rngs=rngs) for _ in range(DEPTH))
    return nnx.Sequential(*(part for layer in layers for part in (layer, nnx.relu)))


def of_samebits(*widths: int, rngs: nnx.Rngs) -> Any:
    """Ours."""
    return jax_nn.QuantLinear(*widths, weight_quant="int8_per_channel", input_quant="int8_per_tensor", rngs=rngs)


def of_aqt(*widths: int, rngs: nnx.Rngs) -> Any:
    """AQT's contraction in flax's layer: 8 bits forward, floats backward."""
    contraction: Any = aqt_config.config_v4(fwd_bits=8, dlhs_bits=None, drhs_bits=None)

    def dot_general(lhs: Any, rhs: Any, dimensions: Any, **options: Any) -> Any:
        return contraction(lhs, rhs, dimensions, precision=options["precision"])  # it knows no others

    return nnx.Linear(*widths, dot_general=dot_general, rngs=rngs)


def batch(features: int, key: int) -> jax.Array:
    """Normally distributed."""
    return jax.random.normal(jax.random.key(key), (BATCH, features))


def training(make: Callable[[Linear], Any], features: int) -> dict[str, Any]:
    """A jitted step and its arguments for each library."""
    x = batch(features, 1)
    models = {
        "float32": make(nnx.Linear),
        "samebits": make(of_samebits),
        "Qwix": qwix.quantize_model(make(nnx.Linear), qwix.QtProvider([INT8]), x),
        "AQT": make(of_aqt),
    }
    return {name: step_of(model, x, batch(features, 2)) for name, model in models.items()}


def step_of(model: Any, x: jax.Array, y: jax.Array) -> tuple[Any, tuple[Any, ...]]:
    """A step of SGD over the state of a model, as a function of arrays, and these."""
    model.train()
    optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)
    graph, state = nnx.split((model, optimizer))

    def step(state: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        model, optimizer = nnx.merge(graph, state)
        loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
        optimizer.update(model, gradients)
        return loss, nnx.state((model, optimizer))

    return step, (state, x, y)


def inference() -> dict[str, Program]:
    """Jitted forward passes, weights as codes where a library stores them."""
    x = batch(NARROW, 1)
    ours = quantize_(network(nnx.Linear), int8_dynamic_activation_int8_weight())
    models = {
        "float32": network(nnx.Linear),
        "samebits, int8 per token": ours,
        "Qwix PTQ": qwix.quantize_model(network(nnx.Linear), qwix.PtqProvider([INT8]), x),
        "AQT": network(of_aqt),
    }
    return {name: forward_of(model, x) for name, model in models.items()}


def forward_of(model: Any, x: jax.Array) -> Program:
    """A jitted forward pass."""
    model.eval()
    graph, state = nnx.split(model)
    forward = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    return lambda: jax.block_until_ready(forward(state, x))  # type: ignore[no-untyped-call]


def running(step: Any, arguments: tuple[Any, ...]) -> Program:
    """The step, jitted."""
    jitted = jax.jit(step)
    return lambda: jax.block_until_ready(jitted(*arguments))  # type: ignore[no-untyped-call]


def compiling(rounds: int) -> dict[str, list[float]]:
    """Seconds from a function to an executable: tracing, lowering, compiling; nothing of it kept from before."""
    programs = training(deep, FEATURES)
    samples: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (step, arguments) in programs.items():
            jax.clear_caches()  # type: ignore[no-untyped-call]
            start = time.perf_counter()
            jax.jit(step).lower(*arguments).compile()
            samples[name].append(time.perf_counter() - start)
    return samples


def lines_of(title: str, samples: dict[str, list[float]], console: Console) -> list[str]:
    """A table, printed and as markdown."""
    base = samples["float32"]
    table = Table("", "median ms", "over float32", "spread", title=title)
    lines = [f"| {title} | median ms | over float32 | spread |", "|---|---:|---:|---:|"]
    for name, seconds in samples.items():
        ratios = [s / b for s, b in zip(seconds, base, strict=True)]
        cells = (f"{statistics.median(seconds) * 1e3:.1f}", f"{statistics.median(ratios):.2f}")
        row = (name, *cells, f"{min(ratios):.2f}-{max(ratios):.2f}")
        table.add_row(*row)
        lines.append(f"| {' | '.join(row)} |")
    console.print(table)
    return [*lines, ""]


def main() -> None:
    """Measure, print the tables, and write them as markdown when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    console, lines = Console(), []
    steps = {name: running(*program) for name, program in training(network, NARROW).items()}
    lines += lines_of("training step", samples_of(steps, arguments.rounds, 0.5), console)
    lines += lines_of("inference", samples_of(inference(), arguments.rounds, 0.5), console)
    lines += lines_of(f"compiling a step of {DEPTH} layers", compiling(arguments.rounds), console)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
