"""GPTQ of linear layers of a small sentence encoder, beside Qwix and a plain loop over columns with the same result.

    python benchmarks/gptq.py [--rounds 5] [--threads 2] [--markdown FILE]

int4 weights in groups of 128 columns, statistics given. The plain loop is the original program's without its blocks:
every column, contiguous, updates all later ones in float64, in torch; its values must be those of `gptq`. Qwix computes
in float32. Every program runs once to compile, then once a round. Times are medians in seconds and, behind them, the
ratio to torch_frontend.
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
import numpy as np
import torch
from torch import Tensor

from samebits import jax_backend, torch_frontend
from samebits.core import IntegerFormat, PerAxis, PerGroup, QParams, Quantizer
from samebits.jax_backend.ptq import gptq as in_jax
from samebits.torch_frontend.ptq import gptq as in_torch
from samebits.torch_frontend.ptq import hessian_update
from samebits.torch_frontend.ptq.gptq import inverse_factor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from qwix._src.core import qarray
    from qwix.contrib import gptq_core

Program = Callable[[], object]
SHAPES = ((384, 384), (1536, 384), (384, 1536))  # (out, in)
GROUP = 128
Q = Quantizer(format=IntegerFormat(4), granularity=PerGroup(GROUP))
BASE = "samebits, torch"


def layer(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A weight, and the statistics of inputs that are correlated."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(columns) + 0.02 * torch.randn(columns, columns, generator=generator)
    x = torch.randn(4 * columns, columns, generator=generator) @ mixing
    hessian, _ = hessian_update(torch.zeros(columns, columns, dtype=torch.float64), 0, x)
    return torch.randn(rows, columns, generator=generator), hessian


def plain(w: Tensor, hessian: Tensor) -> Tensor:
    """Values of the codes, column by column; groups begin where blocks do, so that blocks do not matter."""
    factor, rest = inverse_factor(hessian), w.t().double().contiguous()
    w_hat = torch.empty(rest.shape)
    per_row = Q.replace(granularity=PerAxis(0))
    for j in range(w.shape[1]):
        if j % GROUP == 0:
            qparams = torch_frontend.choose_qparams(Q, rest[j : j + GROUP].t().float())
        w_hat[j] = torch_frontend.fake_quantize(per_row, rest[j].float(), QParams(qparams.scale[:, 0]))
        error = (rest[j] - w_hat[j]) / factor[j, j]
        rest[j + 1 :].addr_(factor[j, j + 1 :], error, alpha=-1)
    return w_hat.t()


def of_qwix(w: jax.Array, hessian: jax.Array) -> Any:
    """Qwix's array of codes."""
    how = qarray.HowToQuantize(qtype=jnp.int4, channelwise_axes=(0,), tiled_axes={1: GROUP})
    return jax.block_until_ready(gptq_core.quantize_weight(w, hessian, how)[0].qvalue)  # type: ignore[no-untyped-call]


def programs(rows: int, columns: int) -> dict[str, Program]:
    """The competitors for a layer of this shape. AssertionError where results that must be the same are not."""
    w, hessian = layer(rows, columns)
    j_w, j_hessian, narrow = jnp.asarray(w.numpy()), hessian.numpy(), jnp.asarray(hessian.numpy(), np.float32)
    codes, qparams, w_hat, _ = in_torch(Q, w, hessian)
    other = np.asarray(jax_backend.dequantize(Q, *in_jax(Q, j_w, j_hessian)[:2]))
    assert torch.equal(plain(w, hessian), w_hat), "the plain loop"
    assert np.array_equal(other, w_hat.numpy()), "JAX"
    assert torch.equal(torch_frontend.dequantize(Q, codes, qparams), w_hat)
    ready: Callable[[Any], Any] = jax.block_until_ready
    return {
        BASE: lambda: in_torch(Q, w, hessian),
        "samebits, JAX": lambda: ready(in_jax(Q, j_w, j_hessian)[0]),
        "plain loop, torch": lambda: plain(w, hessian),
        "qwix.contrib": lambda: of_qwix(j_w, narrow),
    }


def timed(competitors: dict[str, Program], rounds: int) -> dict[str, float]:
    """Median seconds of each, one run of each a round, in an order that changes."""
    samples: dict[str, list[float]] = {name: [] for name in competitors}
    for program in competitors.values():
        program()
    for i in range(rounds):
        names = list(competitors)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            competitors[name]()
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in samples.items()}


def main() -> None:
    """Prints a table in Markdown, and writes it where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines: list[str] = []
    for rows, columns in SHAPES:
        found = timed(programs(rows, columns), options.rounds)
        if not lines:
            lines = [f"| (out, in) | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
        cells = [f"{seconds:.2f} ({seconds / found[BASE]:.1f})" for seconds in found.values()]
        lines.append(f"| ({rows}, {columns}) | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
