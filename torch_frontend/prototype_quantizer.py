"""A prototype with its parameters: what layers hold for a tensor that a formula quantizes."""

from typing import Any

import torch
from torch import Tensor, nn

from ..core.descriptions import QParams
from ..core.prototype import Prototype
from .arguments import check_tensor
from .prototypes import ROOM, updated


class PrototypeQuantizer(nn.Module):
    """A prototype with its parameters: learned ones are parameters, states and seeds buffers, under their names.

    In training every call leaves the new states, and seeds are one more; in evaluation all stay. Layers take it, or the
    prototype, as a quantizer; it has no codes, so they contract values.

    Args:
        prototype: the formula.
        like: a tensor like those to come, for parameters that begin as a formula of it.
        given: static options, and numbers or tensors where parameters begin.
    Raises:
        TypeError: a keyword that the prototype does not have; a parameter that needs ``like``; one of another type.
    """

    quantizer = None
    bit_width = None

    def __init__(self, prototype: Prototype, like: Tensor | None = None, **given: Any) -> None:
        super().__init__()
        self.prototype, (options, arrays) = prototype, prototype.split(given)
        if like is not None:
            check_tensor("like", like)
        self.options = {name: options[name] for name in options if name != "training" or name in given}
        for name, parameter in prototype.parameters.items():
            value = arrays.get(name)
            if value is None:
                prototype.check_start(name, like)
                x = torch.zeros(()) if like is None else like.detach()
                with torch.no_grad():
                    value = prototype.initial(name, ROOM, x, options)
            if parameter.kind == "learned":
                self.register_parameter(name, nn.Parameter(_tensor(value)))
            else:
                self.register_buffer(name, _tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        """The result of the formula, of the shape and dtype of ``x``."""
        options = dict(self.options)
        if "training" in self.prototype.options:
            options.setdefault("training", self.training)
        arrays = {name: getattr(self, name) for name in self.prototype.parameters}
        kept = [name for name, one in self.prototype.parameters.items() if one.kind != "learned"]
        arrays |= {name: arrays[name].clone() for name in kept}
        y, states = updated(self.prototype, x, **options, **arrays)
        if self.training:
            with torch.no_grad():
                for name in kept:
                    old = getattr(self, name)
                    if name in states:
                        old.copy_(states[name])
                    elif self.prototype.parameters[name].kind == "seed":
                        old.add_(1)
        return y

    def qparams(self, x: Tensor) -> QParams:
        """It has none."""
        return QParams(None)

    def waits(self) -> None:
        """Nothing is delayed."""

    def quantized(self, x: Tensor, qparams: QParams, waits: Tensor | None) -> Tensor:
        """`forward`."""
        return self.forward(x)

    def extra_repr(self) -> str:
        """Its name, and options."""
        return ", ".join([self.prototype.name, *(f"{name}={value!r}" for name, value in self.options.items())])


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float32)
