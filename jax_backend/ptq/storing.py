"""Where quantized weights go into a model, and where they are read from it."""

import jax
from flax import nnx

from ...core.descriptions import QParams, Quantizer
from ..quantizer import dequantize


def store(module: nnx.Linear, q: Quantizer, codes: jax.Array, qparams: QParams) -> None:
    """Makes the values of codes ``(out, in)`` the kernel ``(in, out)`` of a layer, in the dtype of its kernel."""
    old = module.kernel[...]
    module.kernel[...] = dequantize(q, codes, qparams).T.astype(old.dtype)


def dense(module: nnx.Linear) -> jax.Array:
    """The weight ``(out, in)`` of a layer as numbers, whatever holds them."""
    kernel: jax.Array = module.kernel[...]
    return kernel.T
