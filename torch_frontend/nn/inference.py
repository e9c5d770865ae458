"""A mode for models whose training is over: weights are quantized once, and what the state determines is kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...core.descriptions import Quantizer
from .kept import Kept


@contextmanager
def quant_inference_mode(model: nn.Module, compile: bool = False) -> Iterator[None]:
    """Within it, layers of ``model`` in evaluation quantize their weights once. The same bits as without it.

    Scales and zero points that do not depend on the tensor at hand are kept as well. Gradients are off
    (``torch.no_grad``); modules in training, and code within ``torch.enable_grad``, compute as without the mode.
    Leaving it, also by an exception, forgets all this. Nothing of it is in a ``state_dict``, a copy or a pickle.

    Eager code sees that a weight or a state has been written to, by whatever means, and quantizes it again. Compiled
    and exported programs hold what was kept when they ran: leaving the mode then warns of weights written to.

    Args:
        model: layers of samebits anywhere in it.
        compile: compile what its quantizers compute, as their `compile_quant` does.
    Raises:
        RuntimeError: ``model``, or a part of it, is in the mode.
    """
    quantizers = [m for m in model.modules() if isinstance(getattr(m, "quantizer", None), Quantizer)]
    if any(isinstance(m, Kept) for m in quantizers):
        raise RuntimeError("`model` is in quant_inference_mode, or a part of it is: leave that first")
    for m in quantizers:
        m.kept = Kept(m)
    try:
        with torch.no_grad():
            _pack(model)
            yield
    finally:
        for m in quantizers:
            del m.kept


def _pack(model: nn.Module) -> None:
    """Quantizes the weights, for code that is compiled before it runs. Errors come when the layers run."""
    for layer in model.modules():
        kept, weight = getattr(getattr(layer, "weight_quant", None), "kept", None), getattr(layer, "weight", None)
        ...
