"""A prototype with its parameters: what layers hold for an array that a formula quantizes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..core.prototype import Prototype
from .arrays import as_array
from .layers import Axes
from .prototypes import ROOM, updated

Array = jax.Array


class PrototypeQuantizer(nnx.Module):
    """A prototype with its parameters: learned ones are ``nnx.Param``, states and seeds ``nnx.BatchStat``, by name.

    In training every call leaves the new states, and seeds are one more; in evaluation all stay. Layers take it, or the
    prototype, as a quantizer; it has no codes, so they contract values.

    Args:
        prototype: the formula.
        like: an array like those to come, for parameters that begin as a formula of it.
        use_running_average: whether states stay as they are, which ``train()`` and ``eval()`` set.
        given: static options, and numbers or arrays where parameters begin.
    Raises:
        TypeError: a keyword that the prototype does not have; a parameter that needs ``like``.
    """

    quantizer = None
    bit_width = None

    def __init__(
        self, prototype: Prototype, like: Array | None = None, *, use_running_average: bool = False, **given: Any
    ) -> None:
        options, arrays = prototype.split(given)
        self.prototype = prototype
        self.use_running_average = use_running_average
        self.options = tuple((name, options[name]) for name in options if name != "training" or name in given)
        for name, parameter in prototype.parameters.items():
            value = arrays.get(name)
            if value is None:
                prototype.check_start(name, like)
                value = prototype.initial(
                    name, ROOM, jnp.zeros(()) if like is None else as_array("like", like), options
                )
            if isinstance(value, int):
                value = jnp.asarray(value, np.uint32 if parameter.kind == "seed" else np.float32)
            kind = nnx.Param if parameter.kind == "learned" else nnx.BatchStat
            setattr(self, name, kind(jnp.asarray(value)))

    def waits(self) -> None:
        """Nothing is delayed."""

    def __call__(self, x: Array, use_running_average: bool | None = None, axes: Axes | None = None) -> Array:
        """The result of the formula, of the shape and dtype of ``x``.

        Args:
            use_running_average: whether states stay as they are; None for what the attribute says.
            axes: for an array laid out in another way: it is ``x.transpose(axes)`` that the formula is of.
        """
        frozen = self.use_running_average if use_running_average is None else use_running_average
        options = dict(self.options)
        if "training" in self.prototype.options:
            options.setdefault("training", not frozen)
        arrays = {name: getattr(self, name)[...] for name in self.prototype.parameters}
        lying = x if axes is None else x.transpose(axes)
        y, states = updated(self.prototype, lying, **options, **arrays)
        for name, parameter in self.prototype.parameters.items():
            if name in states and not frozen:
                getattr(self, name).set_value(states[name].astype(arrays[name].dtype))
            elif parameter.kind == "seed" and not frozen:
                getattr(self, name).set_value(arrays[name] + np.uint32(1))
        return y if axes is None else y.transpose(tuple(np.argsort(axes)))

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What ``nnx.view`` calls.

        Args:
            use_running_average: whether the state stays as it is; None to leave that.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
