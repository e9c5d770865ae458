"""The digit classifier of `digits` as a flax nnx module, channels last."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import Quantizer
from ...core.requirements import explaining
from ...jax_backend.interop import load_state_dict, state_dict
from ...jax_backend.nn import QuantConv, QuantLinear
from ..modes.arrays import to_jax, to_numpy
from ..modes.devices import in_jax, way_of

with explaining(__name__):
    import jax
    from flax import nnx

Array = NDArray[Any]


class Classifier(nnx.Module):
    """The network with random weights; in floating point for None."""

    def __init__(self, weight_quant: Quantizer | None, input_quant: Quantizer | None) -> None:
        quant: dict[str, Any] = {"weight_quant": weight_quant, "input_quant": input_quant, "rngs": nnx.Rngs(0)}
        self.conv1 = QuantConv(1, 16, (3, 3), padding=1, **quant)
        self.conv2 = QuantConv(16, 32, (3, 3), strides=2, padding=1, **quant)
        self.linear = QuantLinear(512, 10, **quant)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(batch, 1, 8, 8)`` to ``(batch, 10)``."""
        x = nnx.relu(self.conv1(x.transpose(0, 2, 3, 1)))
        x = nnx.relu(self.conv2(x))
        return self.linear(x.transpose(0, 3, 1, 2).reshape(len(x), -1))  # flattened as in torch: channel by channel


def classifier(weight_quant: Quantizer | None, input_quant: Quantizer | None) -> Classifier:
    """The network with random weights; in floating point for None."""
    return Classifier(weight_quant, input_quant)


def load_tensors(network: nnx.Module, tensors: Mapping[str, Array]) -> None:
    """Copies tensors of a checkpoint into the network; what has no place there, or is missing, is passed over."""
    own = state_dict(network)
    load_state_dict(network, own | {name: tensor for name, tensor in tensors.items() if name in own})


def tensors_of(network: nnx.Module) -> dict[str, Array]:
    """A copy of the network's tensors, by the names of a checkpoint."""
    return {name: np.array(tensor) for name, tensor in state_dict(network).items()}


def inference(network: nnx.Module, mode: str) -> Callable[[Array], Array]:
    """The network in evaluation mode as a function over NumPy arrays; op by op unless compiled."""
    compiled = way_of(mode).compiled
    network.eval()  # type: ignore[no-untyped-call]
    forward = nnx.jit(network) if compiled else network

    def run(x: Array) -> Array:
        with in_jax(mode), jax.disable_jit(not compiled):
            return to_numpy(forward(to_jax(x)))

    return run
