"""The digit classifier of `digits` as a torch module. Names in its ``state_dict`` are those of a checkpoint."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import Quantizer
from ...core.requirements import explaining
from ...torch_frontend.nn import QuantConv2d, QuantLinear
from ..modes.arrays import to_numpy, to_torch
from ..modes.devices import torch_place, way_of

with explaining(__name__):
    import torch

Array = NDArray[Any]


def classifier(weight_quant: Quantizer | None, input_quant: Quantizer | None) -> torch.nn.Sequential:
    """The network, ``(batch, 1, 8, 8)`` to ``(batch, 10)``, with random weights; in floating point for None."""
    quant: dict[str, Any] = {"weight_quant": weight_quant, "input_quant": input_quant}
    return torch.nn.Sequential(
        OrderedDict(
            conv1=QuantConv2d(1, 16, 3, padding=1, **quant),
            relu1=torch.nn.ReLU(),
            conv2=QuantConv2d(16, 32, 3, stride=2, padding=1, **quant),
            relu2=torch.nn.ReLU(),
            flatten=torch.nn.Flatten(),
            linear=QuantLinear(512, 10, **quant),
        )
    )


def load_tensors(network: torch.nn.Module, tensors: Mapping[str, Array]) -> None:
    """Copies tensors of a checkpoint into the network; what has no place there, or is missing, is passed over."""
    network.load_state_dict({name: to_torch(tensor) for name, tensor in tensors.items()}, strict=False)


def tensors_of(network: torch.nn.Module) -> dict[str, Array]:
    """A copy of the network's tensors, by the names of a checkpoint."""
    return {name: np.array(to_numpy(tensor)) for name, tensor in network.state_dict().items()}


def inference(network: torch.nn.Module, mode: str) -> Callable[[Array], Array]:
    """The network in evaluation mode as a function over NumPy arrays, on one thread: it is too small for more."""
    place = torch_place(mode)
    network.eval().to(place)
    forward = torch.compile(network, fullgraph=True, dynamic=True) if way_of(mode).compiled else network

    def run(x: Array) -> Array:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                return to_numpy(forward(to_torch(x, place)))
        finally:
            torch.set_num_threads(threads)

    return run
