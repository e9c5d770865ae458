"""One quantization-aware training step relative to the float step, beside the peers, in one process.

    python benchmarks/qat_step.py [--rounds 15] [--markdown FILE]

A multilayer perceptron of four blocks 384-1536-384 with ReLU, batch 512, float32: int8 weights per output channel, int8
activations per tensor. A step is forward, mean squared error, backward and plain gradient descent.
"""

import argparse
import copy
import os
import warnings
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import jax
import jax.numpy as jnp
import optax
import torch
import torch.ao.quantization as torch_quantization
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
from flax import nnx
from rich.console import Console
from rich.table import Table
from timing import Program, medians
from torch import nn
from torchao.quantization import quantize_
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

from samebits.core import catalog
from samebits.jax_backend import nn as jax_nn
from samebits.torch_frontend import nn as torch_nn

BLOCKS, NARROW, WIDE, BATCH, RATE = 4, 384, 1536, 512, 1e-3
IN_A_ROW = 0.5  # seconds of steps of one kind: in training a step finds in cache what the one before it left
ACTIVATION = catalog["int8_per_tensor"].replace(source="running_statistic")
WEIGHT = "int8_per_channel"


def torch_mlp(linear: Any) -> nn.Sequential:
    """Four blocks 384-1536-384 out of the given linear layer."""
    widths = [(NARROW, WIDE), (WIDE, NARROW)] * BLOCKS
    return nn.Sequential(*(layer for pair in widths for layer in (linear(*pair), nn.ReLU())))


def torch_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Program:
    """A training step of a torch model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step() -> object:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def torch_models() -> dict[str, nn.Module]:
    """The float model and every way to make it quantization-aware."""

    def ours(inputs: int, outputs: int) -> nn.Module:
        return torch_nn.QuantLinear(inputs, outputs, weight_quant=WEIGHT, input_quant=ACTIVATION)

    def brevitas(inputs: int, outputs: int) -> nn.Module:
        quantizers = {"weight_quant": Int8WeightPerChannelFloat, "input_quant": Int8ActPerTensorFloat}
        return qnn.QuantLinear(inputs, outputs, bias=True, **quantizers)

    prepared = torch_mlp(nn.Linear).train()
    prepared.qconfig = torch_quantization.get_default_qat_qconfig("x86")
    prepared = torch_quantization.prepare_qat(prepared)
    torchao = torch_mlp(nn.Linear)
    activation = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    weight = IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True)
    quantize_(torchao, QATConfig(activation_config=activation, weight_config=weight, step="prepare"))
    return {
        "torch float": torch_mlp(nn.Linear),
        "samebits torch, eager": torch_mlp(ours),
        "torchao QATConfig (activations affine per token)": torchao,
        "torch.ao prepare_qat": prepared,
        "Brevitas QuantLinear": torch_mlp(brevitas),
    }


def jax_step(linear: Any) -> Program:
    """A jitted training step of a flax model out of the given linear layer."""
    rngs = nnx.Rngs(0)
    widths = [(NARROW, WIDE), (WIDE, NARROW)] * BLOCKS
    model = nnx.Sequential(*(layer for pair in widths for layer in (linear(*pair, rngs=rngs), nnx.relu)))
    model.train()
    optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)
    x, y = (jax.random.normal(jax.random.key(k), (BATCH, NARROW)) for k in (1, 2))

    def loss_of(model: nnx.Module) -> jax.Array:
        return jnp.mean((model(x) - y) ** 2)

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer[nnx.Module]) -> jax.Array:
        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    cached = nnx.cached_partial(step, model, optimizer)
    return lambda: jax.block_until_ready(cached())


def jax_programs() -> dict[str, Program]:
    """The float step and ours."""

    def ours(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return jax_nn.QuantLinear(inputs, outputs, weight_quant=WEIGHT, input_quant=ACTIVATION, rngs=rngs)

    return {"jax float, jit": jax_step(nnx.Linear), "samebits jax, jit": jax_step(ours)}


def main() -> None:
    """Measure, print the table, and write it as markdown when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, NARROW), torch.randn(BATCH, NARROW)
    programs = {name: torch_step(copy.deepcopy(model).train(), x, y) for name, model in torch_models().items()}
    seconds = medians(programs, arguments.rounds, IN_A_ROW) | medians(jax_programs(), arguments.rounds, IN_A_ROW)
    table = Table("", "ms a step", "relative to float", title="QAT step, 4 x (384-1536-384), batch 512")
    lines = ["| | ms a step | relative to float |", "|---|---:|---:|"]
    for name, value in seconds.items():
        base = seconds["jax float, jit" if "jax" in name else "torch float"]
        row = (name, f"{value * 1e3:.1f}", f"{value / base:.2f}")
        table.add_row(*row)
        lines.append(f"| {' | '.join(row)} |")
    Console().print(table)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
