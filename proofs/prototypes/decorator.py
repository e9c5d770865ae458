"""`prototype`: the decorator that makes a formula a quantizer in all three libraries. It imports none of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ...core import prototypes
from ...core.prototype import Prototype as Description

if TYPE_CHECKING:
    from jax import Array as JaxArray
    from torch import Tensor

    from ...jax_backend.prototype_quantizer import PrototypeQuantizer as FlaxModule
    from ...torch_frontend.prototype_quantizer import PrototypeQuantizer as TorchModule


class Prototype(Description):
    """A formula as functions of the three libraries and as their modules.

    Layers take it as ``weight_quant=``, ``input_quant=`` and so on. Keywords are static
    options, and arrays of parameters: those that are missing are where they begin.
    """

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """TypeError: the library is said, as a result would not tell whose roundings it has."""
        n = self.name
        raise TypeError(f"`{n}` is called as {n}.numpy(x), {n}.torch(x) or {n}.jax(x), and within a formula not at all")

    def numpy(self, x: NDArray[Any], **given: Any) -> NDArray[Any]:
        """The specification. Shape and dtype of ``x``; errors as `samebits.core.prototypes.apply`."""
        return prototypes.apply(self, x, **given)

    def torch(self, x: "Tensor", **given: Any) -> "Tensor":
        """The same of a tensor, differentiable."""
        from ...torch_frontend.prototypes import apply

        return apply(self, x, **given)

    def jax(self, x: "JaxArray", **given: Any) -> "JaxArray":
        """The same of a JAX array, differentiable (in reverse)."""
        from ...jax_backend.prototypes import apply

        return apply(self, x, **given)

    def torch_module(self, like: "Tensor | None" = None, **given: Any) -> "TorchModule":
        """A module that holds the parameters: `samebits.torch_frontend.prototype_quantizer.PrototypeQuantizer`."""
        from ...torch_frontend.prototype_quantizer import PrototypeQuantizer

        return PrototypeQuantizer(self, like, **given)

    def flax_module(self, like: "JaxArray | None" = None, **given: Any) -> "FlaxModule":
        """A module that holds the parameters: `samebits.jax_backend.prototype_quantizer.PrototypeQuantizer`."""
        from ...jax_backend.prototype_quantizer import PrototypeQuantizer

        return PrototypeQuantizer(self, like, **given)

    def differences(self, x: NDArray[Any], g: NDArray[Any] | None = None, **given: Any) -> dict[str, int]:
        """How many results and gradients differ from `numpy`, by mode: see `agreement.differing`."""
        from .agreement import differing

        return differing(self, x, np.ones_like(x) if g is None else g, **given)


def prototype(function: Callable[..., Any]) -> Prototype:
    """Makes a formula a quantizer; what it may contain stands in `samebits.core.formula`.

    Args:
        function: ``function(x, *, parameters)``, whose result has the shape and dtype of ``x``, or is a pair of it and
            of new states by name. Keywords have defaults: ``p.learned(...)``, ``p.state(...)``, ``p.seed(...)``,
            or static values.
    Raises:
        TypeError: other parameters.
    """
    return Prototype(function)
