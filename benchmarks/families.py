"""Every family of formats beside int8 in the same mode, and beside libraries that have the family.

    python benchmarks/families.py [--elements 4194304] [--rounds 9] [--markdown FILE]

float32 input, fake quantization, the scale given (the peers' MX functions choose theirs: so do our rows marked "with
scales"). Figures are medians in milliseconds and, behind them, the ratio to int8 per tensor in the same mode.
"""

import argparse
import os
import re
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brevitas.nn
import brevitas.quant.experimental.float_quant_ocp as brevitas_float
import jax
import jax.numpy as jnp
import numpy as np
import torch
from qwix._src.core import qarray
from rich.console import Console
from rich.table import Table
from timing import Program, medians
from torchao.prototype.mx_formats.mx_tensor import MXTensor, ScaleCalculationMode
from torchao.quantization.quant_primitives import _dequantize_affine_float8, _quantize_affine_float8
from tqdm import tqdm

from samebits import jax_backend, torch_frontend
from samebits.core import QParams, catalog, choose_qparams

BASE = "int8_per_tensor"
FAMILIES = (
    BASE,
    "int8_per_channel",
    "int4_per_group32",
    "binary_per_tensor",
    "ternary_per_tensor",
    "float8_e4m3fn_per_tensor",
    "float8_e5m2_per_tensor",
    "float6_e3m2_per_tensor",
    "float4_e2m1_per_tensor",
    "mxfp8_e4m3",
    "mxfp4_e2m1",
    "mxint8",
    "nvfp4",
    "nf4_per_group64",
)
WITH_SCALES = ("mxfp8_e4m3", "mxfp4_e2m1")
MODES = ("torch eager", "torch compiled", "jax jit")
Table_ = dict[str, dict[str, float]]  # row, mode: seconds


def ready(program: Callable[[], Any]) -> Program:
    """The program, with its result waited for."""
    return lambda: jax.block_until_ready(program())  # type: ignore[no-untyped-call]


def compiled_alone(function: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
    """Compiled under a code object of its own: dynamo takes numbers that differ between uses of one for variables."""
    code = function.__code__.replace(co_name=re.sub(r"\W", "_", name))
    own = types.FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)
    return torch.compile(own, fullgraph=True)


def ours(name: str, x: np.ndarray) -> dict[str, Program]:
    """A catalog entry in each mode."""
    q, scale = catalog[name], np.asarray(choose_qparams(catalog[name], x).scale)
    data, s = torch.from_numpy(x), torch.from_numpy(np.array(scale))
    compiled = compiled_alone(lambda v: torch_frontend.fake_quantize(q, v, QParams(s)), name)
    jitted = jax.jit(lambda v, s: jax_backend.fake_quantize(q, v, QParams(s)))
    array, jax_scale = jnp.asarray(x), jnp.asarray(scale)
    return {
        "torch eager": lambda: torch_frontend.fake_quantize(q, data, QParams(s)),
        "torch compiled": lambda: compiled(data),
        "jax jit": ready(lambda: jitted(array, jax_scale)),
    }


def ours_with_scales(name: str, x: np.ndarray) -> dict[str, Program]:
    """The same, choosing the scales."""
    q, data, array = catalog[name], torch.from_numpy(x), jnp.asarray(x)
    compiled = compiled_alone(lambda v: torch_frontend.fake_quantize(q, v), f"{name} with scales")
    jitted = jax.jit(lambda v: jax_backend.fake_quantize(q, v))
    return {
        "torch eager": lambda: torch_frontend.fake_quantize(q, data),
        "torch compiled": lambda: compiled(data),
        "jax jit": ready(lambda: jitted(array)),
    }


def peers(x: np.ndarray) -> dict[str, dict[str, Program]]:
    """Libraries by row, each in the modes that it has."""
    data, array = torch.from_numpy(x), jnp.asarray(x)
    scale = torch.tensor([[float(np.abs(x).max() / 448)]])
    jax_scale = jnp.asarray(scale.numpy())
    brevitas_quant = brevitas.nn.QuantIdentity(brevitas_float.Fp8e4m3OCPActPerTensorFloat).eval()

    def float8(v: torch.Tensor) -> torch.Tensor:
        codes = _quantize_affine_float8(v, scale, torch.float8_e4m3fn)
        value: torch.Tensor = _dequantize_affine_float8(codes, scale, torch.float32)
        return value

    def mx(element: Any) -> Program:  # inductor has no C++ for its type of scales
        return lambda: MXTensor.to_mx(data, element, 32, ScaleCalculationMode.FLOOR).dequantize(torch.float32)

    def both(function: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Program]:
        compiled = torch.compile(function)
        return {"torch eager": lambda: function(data), "torch compiled": lambda: compiled(data)}

    @jax.jit
    def qwix(v: jax.Array, s: jax.Array) -> jax.Array:
        value: jax.Array = qarray.dequantize(qarray.quantize_with_scale_zero_point(v, jnp.float8_e4m3fn, s, None))
        return value

    return {
        "torchao float8 e4m3": both(float8),
        "torchao mxfp8 e4m3, with scales": {"torch eager": mx(torch.float8_e4m3fn)},
        "torchao mxfp4 e2m1, with scales": {"torch eager": mx(torch.float4_e2m1fn_x2)},
        "Brevitas float8 e4m3": {"torch eager": lambda: brevitas_quant(data)},
        "Qwix float8 e4m3": {"jax jit": ready(lambda: qwix(array, jax_scale))},
    }


def measure(elements: int, rounds: int) -> Table_:
    """Median seconds by row and mode. Modes are measured one after the other, all rows of a mode in turn."""
    x = np.random.default_rng(0).standard_normal((elements // 4096, 4096), np.float32)
    programs = {name: ours(name, x) for name in FAMILIES}
    programs |= {f"{name}, with scales": ours_with_scales(name, x) for name in WITH_SCALES}
    programs |= peers(x)
    found: Table_ = {row: {} for row in programs}
    for mode in tqdm(MODES, disable=None):
        for row, seconds in medians({row: p[mode] for row, p in programs.items() if mode in p}, rounds).items():
            found[row][mode] = seconds
    return found


def main() -> None:
    """Measure, print the table, and write it as markdown when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 22, help="a multiple of 4,096")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the peers
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    with torch.no_grad():
        found = measure(arguments.elements, arguments.rounds)
    table = Table("", *MODES, title=f"{arguments.elements:,} elements")
    lines = [f"| | {' | '.join(MODES)} |", "|---|" + "---:|" * len(MODES)]
    for row, times in found.items():
        cells = [f"{times[m] * 1e3:.2f} ms ({times[m] / found[BASE][m]:.2f}x)" if m in times else "" for m in MODES]
        table.add_row(row, *cells)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    Console().print(table)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
