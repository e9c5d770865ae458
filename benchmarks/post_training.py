"""Post-training quantization beside the peers: times relative to float32, and peak memory of quantizing.

    python benchmarks/post_training.py [--rounds 5] [--threads 2] [--batch 512 1] [--markdown FILE]

A multilayer perceptron of four blocks 1024-4096-1024 with ReLU: float32 and bfloat16, int8 weights alone, int8 weights
with activations quantized at every call, int4 weights in groups of 32; of samebits, torch.ao, torchao and quanto, eager
and compiled, without gradients. Behind each median the ratio to the float32 model in eager mode, and the least and
largest ratio of a round. Peak memory is that of the process while the model is quantized, over what it had before, in
multiples of the model's bytes.
"""

import argparse
import copy
import os
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization as torch_quantization
from optimum.quanto import freeze, qint8, quantize
from rich.console import Console
from rich.table import Table
from timing import Program, samples_of
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from torchao.quantization import quantize_ as torchao_quantize_

from samebits.core.configs import (
    Config,
    int4_weight_only,
    int8_dynamic_activation_int8_weight,
    int8_weight_only,
)
from samebits.torch_frontend import ptq

NARROW, WIDE, BLOCKS = 1024, 4096, 4
IN_A_ROW = 0.1  # seconds of calls of one program
OURS: dict[str, Config] = {
    "int8 weights": int8_weight_only(),
    "int8 weights and activations": int8_dynamic_activation_int8_weight(),
    "int4 weights": int4_weight_only(group_size=32),
}


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Four blocks 1024-4096-1024."""
    torch.manual_seed(0)
    widths = [(NARROW, WIDE), (WIDE, NARROW)] * BLOCKS
    return nn.Sequential(*(layer for pair in widths for layer in (nn.Linear(*pair), nn.ReLU()))).to(dtype).eval()


def of_samebits(model: nn.Module, config: Config) -> nn.Module:
    """The model with weights of codes."""
    ptq.quantize_(model, config)
    return model


def of_torchao(model: nn.Module, config: Any) -> nn.Module:
    """The same by torchao; its config is not to change settings of the compiler for everybody."""
    torchao_quantize_(model, config)
    return model


def of_quanto(model: nn.Module, activations: Any) -> nn.Module:
    """The same by quanto; activations with the scale that they had before, so weights alone."""
    quantize(model, weights=qint8, activations=activations)
    freeze(model)
    return model


def models(dtype: torch.dtype) -> dict[str, nn.Module]:
    """Every model of a dtype, by name."""
    plain, name = mlp(dtype), str(dtype).removeprefix("torch.")
    found = {name: plain}
    for method, config in OURS.items():
        found[f"samebits, {method}, {name}"] = of_samebits(copy.deepcopy(plain), config)
    for method, theirs in (("int8wo", Int8WeightOnlyConfig), ("int8dq", Int8DynamicActivationInt8WeightConfig)):
        found[f"torchao, {method}, {name}"] = of_torchao(copy.deepcopy(plain), theirs(set_inductor_config=False))
    found[f"quanto, int8 weights, {name}"] = of_quanto(copy.deepcopy(plain), None)
    if dtype == torch.float32:
        dynamically: Any = vars(torch_quantization)["quantize_dynamic"]  # which has no types
        found["torch.ao, quantize_dynamic"] = dynamically(copy.deepcopy(plain), {nn.Linear})
    return found


def programs_of(batch: int) -> dict[str, Program]:
    """Each model in eager mode, and compiled, on a batch."""
    programs: dict[str, Program] = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(batch, NARROW).to(dtype)
        for name, model in models(dtype).items():
            programs[f"{name}, eager"] = _call(model, x)
            if not name.startswith(("torch.ao", "quanto")):
                programs[f"{name}, compiled"] = _call(torch.compile(copy.deepcopy(model), dynamic=False), x)
    return programs


def _call(model: Any, x: Tensor) -> Program:
    return lambda: model(x)


def row(samples: dict[str, list[float]], name: str) -> str:
    """The median, its ratio to float32, and the spread of that over rounds."""
    base = samples["float32, eager"]
    ratios = [a / b for a, b in zip(samples[name], base, strict=True)]
    median = statistics.median(samples[name])
    ratio = median / statistics.median(base)
    return f"{median * 1e3:.2f} ms ({ratio:.2f}x, {min(ratios):.2f}-{max(ratios):.2f})"


def memory() -> list[str]:
    """Lines about peak memory; on Linux alone, which lets a process forget its peak."""
    ratios = []
    for name in ("int8 weights", "int4 weights"):
        model = mlp()
        size = ptq.model_size(model)
        Path("/proc/self/clear_refs").write_text("5")
        before = _kilobytes("VmRSS")
        ptq.quantize_(model, OURS[name])
        ratios.append(f"{name} {1 + 1024 * (_kilobytes('VmHWM') - before) / size:.2f}x")
    return [
        f"Peak memory of quantizing, in multiples of the float model ({size / 2**20:.0f} MiB): {', '.join(ratios)}."
    ]


def _kilobytes(name: str) -> int:
    """A line of what Linux says of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def main() -> None:
    """Measure, print a table, and write it as markdown when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--batch", type=int, nargs="+", default=[512, 1])
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    words = memory()  # first: memory that was freed before is used again
    found = []
    for batch in arguments.batch:
        torch._dynamo.reset()
        found.append(samples_of(programs_of(batch), arguments.rounds, IN_A_ROW))
    heads = [f"batch {batch}" for batch in arguments.batch]
    table, lines = Table("", *heads), [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for program in found[0]:
        cells = [row(samples, program) for samples in found]
        table.add_row(program, *cells)
        lines.append(f"| {' | '.join((program, *cells))} |")
    Console().print(table, *words)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join([*lines, "", *words]) + "\n")


if __name__ == "__main__":
    main()
