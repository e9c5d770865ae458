"""A jitted network with its batch on two devices: a process of its own, since JAX counts its devices once.

    python -m samebits.proofs.networks.sharded NETWORK SIZE COUNT OUT.npy

JAX on the CPU has as many devices as ``XLA_FLAGS=--xla_force_host_platform_device_count`` says. A batch of an odd
number of inputs has zeros added, whose logits are dropped; inputs do not see each other.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs import digits
from .networks import INTEGER_NETWORKS
from .parameters import parameters
from .runs import inputs, operations

Array = NDArray[Any]
DEVICES = 2


def logits(network: str, size: int, count: int | None = None) -> Array:
    """Logits of the first ``count`` digits (None: all), ``size`` at a time, on `DEVICES` devices.

    Raises:
        ValueError: no such network. RuntimeError: the process failed; its last line.
    """
    every = len(inputs(network))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        command = [sys.executable, "-m", __name__, network, str(size), str(every if count is None else count), str(out)]
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"{network} on {DEVICES} devices: {(done.stderr.strip() or 'no output').splitlines()[-1]}"
            )
        return np.asarray(np.load(out))


def main(network: str, size: str, count: str, out: str) -> None:
    """What the process does."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    if len(jax.devices()) != DEVICES:
        raise RuntimeError(f"JAX must have {DEVICES} devices, has {len(jax.devices())}")
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("batch"))  # type: ignore[no-untyped-call]
    program = jax.jit(_forward(network), in_shardings=split, out_shardings=split)
    x, parts = inputs(network)[: int(count)], []
    for start in range(0, len(x), int(size)):
        batch = x[start : start + int(size)]
        odd = -len(batch) % DEVICES
        padded = np.concatenate([batch, np.zeros_like(batch[:1].repeat(odd, 0))]) if odd else batch
        result = program(jax.device_put(padded, split))
        if len(result.sharding.device_set) != DEVICES:
            raise RuntimeError(f"the logits must lie on {DEVICES} devices, lie on {result.sharding.device_set}")
        parts.append(np.asarray(result)[: len(batch)])
    np.save(out, np.concatenate(parts))


def _forward(network: str) -> Any:
    if network == "cnn":
        from flax import nnx

        module = digits.module("jax jit")
        module.eval()
        graph, state = nnx.split(module)
        return lambda x: nnx.merge(graph, state)(x)
    given, ops = parameters(network), operations("jax jit")
    return lambda x: INTEGER_NETWORKS[network](ops, given.arrays, given.numbers, x)


if __name__ == "__main__":
    main(*sys.argv[1:])
