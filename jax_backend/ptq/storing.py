"""Where quantized weights go into a model, and where they are read from it."""

import jax
from flax import nnx

from ...core.descriptions import QParams, Quantizer
from ..quantizer import dequantize
from .modules import set_kernel
from .qarray import QArray, array_of_codes


def store(module: nnx.Linear, q: Quantizer, codes: jax.Array, qparams: QParams, layout: str | None = None) -> None:
    """Makes codes ``(out, in)`` in a layout, or their values (None), the kernel ``(in, out)`` of a layer."""
    old = module.kernel[...]
    if layout is not None:
        set_kernel(module, array_of_codes(q, codes, qparams, old.dtype, None, layout).T)
        return
    module.kernel[...] = dequantize(q, codes, qparams).T.astype(old.dtype)


def dense(module: nnx.Linear) -> jax.Array:
    """The weight ``(out, in)`` of a layer as numbers, whatever holds them."""
    kernel: jax.Array | QArray = module.kernel.get_value()
    return (kernel.dequantize() if isinstance(kernel, QArray) else kernel).T
