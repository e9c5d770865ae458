"""Every way in which a network is run: functions from NumPy to NumPy.

====================  ==================================================================================
run                   computes with
====================  ==================================================================================
``numpy``             `samebits.core`, the specification
``torch eager``       `samebits.torch_frontend`, operation by operation
``torch compiled``    the same in ``torch.compile(fullgraph=True, dynamic=True)``
``torch int8``        contractions by ``torch._int_mm``, int8 into int32; of the CNN that of the linear layer, in
                      `quant_inference_mode`, since its kernels are too small to gain; else as ``torch eager``
``jax eager``         `samebits.jax_backend` under ``jax.disable_jit()``
``jax jit``           the same in one ``jax.jit`` program
``jax sharded``       that program with its batch on two devices of the CPU, in a process of its own (`sharded`)
====================  ==================================================================================
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs import digits
from ..modes.arrays import to_jax, to_numpy, to_torch
from .networks import INTEGER_NETWORKS, Operations
from .parameters import Parameters, parameters

Array = NDArray[Any]
Run = Callable[[Array], Array]

NETWORKS = (*INTEGER_NETWORKS, "cnn")
RUNS = ("numpy", "torch eager", "torch compiled", "torch int8", "jax eager", "jax jit", "jax sharded")
REFERENCE = "numpy"


def inputs(network: str) -> Array:
    """All 1,797 digits as a network takes them: codes of pixels, or pixels in [0, 1] for the CNN.

    Raises:
        ValueError: no network of that name.
    """
    _check(network)
    pixels = digits.images()[0]
    if network == "cnn":
        return pixels
    codes = (pixels[:, 0] * 16).astype(np.uint8)
    return tokens(codes) if network == "transformer" else codes


def tokens(codes: Array) -> Array:
    """Rows of an image with their place: 16 at one of 8 further positions, so that it counts as a pixel that is on."""
    places = np.broadcast_to(16 * np.eye(8, dtype=np.uint8), codes.shape)
    return np.concatenate([codes, places], 2)


def run_of(network: str, run: str) -> Run:
    """A network as a function from its inputs to its logits, ``(batch, 10)``: int32, and float32 of the CNN.

    Args:
        network: one of `NETWORKS`; ``run``: one of `RUNS` but ``jax sharded``, which `sharded.logits` runs.
    Raises:
        ValueError: another network or run.
    """
    _check(network)
    if run not in RUNS or run == "jax sharded":
        raise ValueError(f"`run` must be one of {', '.join(map(repr, RUNS[:-1]))}; got {run!r}")
    if network == "cnn":
        return _cnn(run)
    return integer_run(network, run, operations(run), parameters(network))


def integer_run(network: str, run: str, ops: Operations, given: Parameters) -> Run:
    """A network over integers with operations and parameters that may be others than its own."""
    compute, numbers = INTEGER_NETWORKS[network], given.numbers
    if run == REFERENCE:
        return lambda x: np.asarray(compute(ops, given.arrays, numbers, x))
    if run.startswith("torch"):
        import torch

        tensors = {name: to_torch(array) for name, array in given.arrays.items()}

        def in_torch(x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = compute(ops, tensors, numbers, x)
            return result

        forward = torch.compile(in_torch, fullgraph=True, dynamic=True) if run == "torch compiled" else in_torch
        return lambda x: to_numpy(forward(to_torch(x)))
    import jax

    arrays = {name: to_jax(array) for name, array in given.arrays.items()}
    program = jax.jit(lambda x: compute(ops, arrays, numbers, x))

    def in_jax(x: Array) -> Array:
        with jax.disable_jit(run == "jax eager"):
            return to_numpy(program(to_jax(x)))

    return in_jax


def operations(run: str) -> Operations:
    """The verbs that a run computes with."""
    if run == REFERENCE:
        from ... import core

        return core
    if run.startswith("jax"):
        from ... import jax_backend

        return jax_backend
    from ... import torch_frontend
    from ...torch_frontend.int8 import integer_matmul_int8

    if run != "torch int8":
        return torch_frontend
    own = {name: getattr(torch_frontend, name) for name in Operations.__annotations__}
    return SimpleNamespace(**own | {"integer_matmul": integer_matmul_int8})


def mode_of(run: str) -> str:
    """The execution mode that a run is, or needs."""
    return {"torch int8": "torch eager", "jax sharded": "jax jit"}.get(run, run)


def in_batches(run: Run, x: Array, size: int) -> Array:
    """The results of a run, so many inputs at a time."""
    return np.concatenate([run(x[start : start + size]) for start in range(0, len(x), size)])


def _cnn(run: str) -> Run:
    if run != "torch int8":
        return digits.network(run)
    from ...torch_frontend.nn import quant_inference_mode

    module = digits.module("torch eager")

    def by_int8(x: Array) -> Array:
        import torch

        with quant_inference_mode(module), torch.inference_mode():
            return to_numpy(module(to_torch(x)))

    return by_int8


def _check(network: str) -> None:
    if network not in NETWORKS:
        raise ValueError(f"`network` must be one of {', '.join(map(repr, NETWORKS))}; got {network!r}")
