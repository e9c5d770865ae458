"""Layers of flax nnx whose weight is a `QArray`."""

import jax
import jax.numpy as jnp
from flax import nnx

from ..nn.layer import become
from .qarray import QArray, linear

Array = jax.Array


class QuantizedKernel(nnx.Variable[QArray]):
    """A weight of codes. It is no ``nnx.Param``: nothing that trains parameters takes hold of it."""


class QuantizedLinear(nnx.Linear):
    """What `quantize_` makes of an ``nnx.Linear``: the kernel ``(in, out)`` is a `QArray`, everything else stays."""

    def __call__(self, inputs: Array) -> Array:  # type: ignore[override]
        """``(..., in)`` to ``(..., out)``, in the dtype that ``nnx.Linear`` would compute in.

        Raises:
            TypeError, ValueError: as `samebits.jax_backend.linear`.
        """
        kernel, bias = kernel_of(self), None if self.bias is None else self.bias[...]
        of_all = (inputs, kernel.dtype) if bias is None else (inputs, kernel.dtype, bias)
        dtype = jnp.result_type(*of_all) if self.dtype is None else self.dtype
        return linear(jnp.asarray(inputs, dtype), kernel.astype(dtype).T, bias)


def kernel_of(layer: nnx.Module) -> QArray:
    """The kernel of a quantized layer, ``(in, out)``."""
    kernel: QArray = layer.kernel.get_value()  # type: ignore[attr-defined]
    return kernel


def set_kernel(layer: nnx.Module, kernel: QArray | Array) -> None:
    """Makes a linear layer, quantized or not, one with this kernel ``(in, out)``. In place. TypeError for another."""
    if not isinstance(layer, nnx.Linear):
        raise TypeError(f"`layer` must be an nnx.Linear, got {type(layer).__name__}")
    if isinstance(kernel, QArray):
        layer.kernel = QuantizedKernel(kernel)  # type: ignore[assignment]
        become(layer, QuantizedLinear)
    else:
        layer.kernel = nnx.Param(kernel)
        become(layer, nnx.Linear)
