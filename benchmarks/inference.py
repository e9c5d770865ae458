"""Inference with int8 weights, and with int8 activations, relative to float, beside the peers, in one process.

    python benchmarks/inference.py [--rounds 9] [--threads 2] [--only mlp|cnn|block] [--markdown FILE]

A multilayer perceptron of four blocks 384-1536-384 with ReLU (batch 512 and 1), a convolutional network on 32x32 images
(batch 32 and 1), and a transformer block of width 384 with 6 heads (8 sequences of 128 tokens, and 1 token). Weights
per output channel. Everything runs without gradients; ours, and Brevitas, in its inference mode. Behind each median the
ratio to the float model in eager mode, and the least and largest ratio of a round.
"""

import argparse
import copy
import os
import statistics
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import torch
import torch.ao.quantization as torch_quantization
from brevitas.export.inference import quant_inference_mode as brevitas_mode
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
from rich.console import Console
from rich.table import Table
from timing import Program, samples_of
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

from samebits.core import catalog
from samebits.torch_frontend import nn as ours

NARROW, WIDE, HEADS = 384, 1536, 6
IN_A_ROW = 0.1  # seconds of calls of one program
STATIC = catalog["int8_per_tensor"].replace(source="running_statistic")
WAYS: dict[str, dict[str, Any]] = {  # of samebits
    "weights": {},
    "weights, dynamic activations": {"input_quant": "int8_per_tensor"},
    "weights, activations per token": {"input_quant": "int8_per_token"},
    "weights, static activations": {"input_quant": STATIC},
}
BREVITAS = {"weight_quant": Int8WeightPerChannelFloat, "input_quant": Int8ActPerTensorFloat}


class Block(nn.Module):
    """A transformer block, attention without quantization, out of the given linear layer."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(NARROW), nn.LayerNorm(NARROW)
        self.mixed, self.projected = linear(NARROW, 3 * NARROW), linear(NARROW, NARROW)
        self.wider, self.narrower = linear(NARROW, WIDE), linear(WIDE, NARROW)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, NARROW)``; same shape."""
        batch, tokens, _ = x.shape
        q, k, v = self.mixed(self.first(x)).reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.projected(attended.transpose(1, 2).reshape(batch, tokens, NARROW))
        y: Tensor = x + self.narrower(nn.functional.gelu(self.wider(self.second(x))))
        return y


def mlp(linear: Any, _: Any) -> nn.Module:
    """Four blocks 384-1536-384."""
    widths = [(NARROW, WIDE), (WIDE, NARROW)] * 4
    return nn.Sequential(*(layer for pair in widths for layer in (linear(*pair), nn.ReLU())))


def cnn(linear: Any, conv: Any) -> nn.Module:
    """Five convolutions and a linear layer."""
    sizes = ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
    layers = [layer for i, o, step in sizes for layer in (conv(i, o, 3, step, 1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(128, 10))


def block(linear: Any, _: Any) -> nn.Module:
    """One transformer block."""
    return Block(linear)


MODELS: dict[str, tuple[Callable[[Any, Any], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "mlp": (mlp, ((512, NARROW), (1, NARROW))),
    "cnn": (cnn, ((32, 3, 32, 32), (1, 3, 32, 32))),
    "block": (block, ((8, 128, NARROW), (1, 1, NARROW))),
}


def quantized(
    make: Callable[[Any, Any], nn.Module], linear: Any, conv: Any, keywords: dict[str, Any], x: Tensor
) -> nn.Module:
    """A model whose layers are quantized, after a tensor of training."""
    model = make(
        lambda *sizes: linear(*sizes, bias=True, **keywords), lambda *sizes: conv(*sizes, bias=True, **keywords)
    )
    model.train()(x)
    return model.eval()


def models(make: Callable[[Any, Any], nn.Module], x: Tensor, stack: ExitStack) -> dict[str, nn.Module]:
    """Every model, those with a mode in it for as long as the stack lasts."""
    float_model = make(nn.Linear, nn.Conv2d).eval()
    found = {"float": float_model}
    for name, keywords in WAYS.items():
        if make is cnn and "token" in name:
            continue
        found[f"samebits, {name}"] = model = quantized(make, ours.QuantLinear, ours.QuantConv2d, keywords, x)
        stack.enter_context(ours.quant_inference_mode(model))
    if make is cnn:
        qconfig = torch_quantization.get_default_qconfig_mapping("x86")
        prepared = prepare_fx(copy.deepcopy(float_model), qconfig, (x,))
        prepared(x)
        found["torch.ao static"] = convert_fx(prepared)
    else:
        dynamically: Any = vars(torch_quantization)["quantize_dynamic"]  # which has no types
        found["torch.ao quantize_dynamic"] = dynamically(copy.deepcopy(float_model), {nn.Linear})
        for name, config in (("int8dq", Int8DynamicActivationInt8WeightConfig()), ("int8wo", Int8WeightOnlyConfig())):
            found[f"torchao {name}"] = model = copy.deepcopy(float_model)
            quantize_(model, config)
    found["Brevitas, static activations"] = model = quantized(make, qnn.QuantLinear, qnn.QuantConv2d, BREVITAS, x)
    stack.enter_context(brevitas_mode(model, cache_quant_weight=True))
    model(x)
    return found


def programs_of(found: dict[str, nn.Module], x: Tensor) -> dict[str, Program]:
    """Each model in eager mode, and those that are meant for it compiled."""
    programs: dict[str, Program] = {}
    for name, model in found.items():
        programs[f"{name}, eager"] = lambda model=model: model(x)  # type: ignore[misc]
        if "torch.ao" not in name and "Brevitas" not in name:
            compiled = torch.compile(model, dynamic=False)
            programs[f"{name}, compiled"] = lambda compiled=compiled: compiled(x)  # type: ignore[misc]
    return programs


def measured(name: str, rounds: int) -> list[dict[str, list[float]]]:
    """Seconds of every program on both inputs of a model."""
    make, shapes = MODELS[name]
    found = []
    for shape in shapes:
        torch._dynamo.reset()
        torch.manual_seed(0)
        with ExitStack() as stack:
            x = torch.randn(shape)
            found.append(samples_of(programs_of(models(make, x, stack), x), rounds, IN_A_ROW))
    return found


def row(samples: dict[str, list[float]], name: str) -> str:
    """The median, its ratio to float, and the spread of that over rounds."""
    base = samples["float, eager"]
    ratios = [a / b for a, b in zip(samples[name], base, strict=True)]
    median = statistics.median(samples[name])
    ratio = median / statistics.median(base)
    return f"{median * 1e3:.2f} ms ({ratio:.2f}x, {min(ratios):.2f}-{max(ratios):.2f})"


def main() -> None:
    """Measure, print a table for each model, and write them as markdown when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", choices=MODELS, help="one model")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    lines: list[str] = []
    for name in [arguments.only] if arguments.only else MODELS:
        found, shapes = measured(name, arguments.rounds), MODELS[name][1]
        heads = [" x ".join(map(str, shape)) for shape in shapes]
        table = Table("", *heads, title=name)
        lines += ["", f"| {name} | {' | '.join(heads)} |", "|---|---:|---:|"]
        for program in found[0]:
            cells = [row(samples, program) for samples in found]
            table.add_row(program, *cells)
            lines.append(f"| {' | '.join((program, *cells))} |")
        Console().print(table)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines[1:]) + "\n")


if __name__ == "__main__":
    main()
