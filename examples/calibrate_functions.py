"""Functions are calibrated too: sigmoid and softmax without data, log and elu from batches; in torch and in JAX.

    python examples/calibrate_functions.py

A small network is quantized in both frameworks by the same flow. Printed are the sites of each with their scales, which
of them streamlining took away and why, and how far the quantized outputs lie from the float ones, and from each other.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from samebits.jax_backend import ptq as in_jax
from samebits.torch_frontend import ptq as in_torch


class Network(nn.Module):
    """Two layers, attention of the result to itself, and functions of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(rows, length, 16)`` to ``(rows, length, 4)``."""
        x = F.elu(self.second(torch.sigmoid(self.first(x))))
        x = F.softmax(x @ x.transpose(-2, -1), -1) @ x
        return torch.log(F.elu(self.last(x)) + 2)


def in_words_of_jax(network: nn.Module) -> Callable[[jax.Array], jax.Array]:
    """The same network as a function of JAX, with the same weights."""
    w = {name: jnp.asarray(tensor.numpy()) for name, tensor in network.state_dict().items()}

    def layer(name: str, x: jax.Array) -> jax.Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def run(x: jax.Array) -> jax.Array:
        x = jax.nn.elu(layer("second", jax.nn.sigmoid(layer("first", x))))
        x = jax.nn.softmax(x @ x.swapaxes(-2, -1), axis=-1) @ x
        return jnp.log(jax.nn.elu(layer("last", x)) + 2)

    return run


def main() -> None:
    """Quantizes, calibrates and compares."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    network = Network().eval()
    batches = [np.random.default_rng(k).normal(size=(8, 12, 16)).astype(np.float32) for k in range(4)]
    with torch.no_grad():
        floats = network(torch.from_numpy(batches[0])).numpy()
    quantized = in_jax.quantize(in_words_of_jax(network), activations="int8_per_tensor")
    in_torch.quantize(network, activations="int8_per_tensor")

    with in_torch.Calibration() as calibration, torch.no_grad():
        for x in batches:
            network(torch.from_numpy(x))
    print(f"torch\n{calibration}\n")
    with in_jax.Calibration() as calibration_in_jax:
        for x in batches:
            quantized(jnp.asarray(x))
    print(f"JAX\n{calibration_in_jax}\n")

    with torch.no_grad():
        of_torch = network(torch.from_numpy(batches[0])).numpy()
    of_jax = np.asarray(jax.jit(quantized)(jnp.asarray(batches[0])))
    print(f"largest distance from the float network: {np.abs(of_torch - floats).max():.4f}")
    print(f"largest distance between torch and JAX:  {np.abs(of_torch - of_jax).max():.4f}")


if __name__ == "__main__":
    main()
