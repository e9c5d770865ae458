"""Where quantized weights go into a model, and where they are read from it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ...core import checks
from ...core.configs import Config, quantized_already
from ...core.descriptions import QParams
from .modules import QuantizedLinear, kernel_of, set_kernel
from .qarray import array_of_codes


def store(module: nnx.Linear, config: Config, codes: jax.Array, qparams: QParams) -> None:
    """Makes codes ``(out, in)`` the kernel ``(in, out)`` of a layer, which then is a `QuantizedLinear`.

    Scales are float32, or of the dtype that the kernel had and asks for.
    """
    dtype = dense(module).dtype
    qparams = scaled_for(dtype, qparams)
    array = array_of_codes(config.weight, codes, qparams, dtype, config.act_quant, config.layout)
    set_kernel(module, array.T)


def dense(module: nnx.Linear) -> jax.Array:
    """The weight ``(out, in)`` of a layer as numbers, whatever holds them."""
    if isinstance(module, QuantizedLinear):
        return kernel_of(module).dequantize().T
    kernel: jax.Array = module.kernel[...]
    return kernel.T


def check_floats(layers: Mapping[str, nnx.Module]) -> None:
    """ValueError for a layer whose kernel is a `QArray` already, by name."""
    for name, layer in layers.items():
        if isinstance(layer, QuantizedLinear):
            raise quantized_already(name, kernel_of(layer))


def scaled_for(dtype: DTypeLike, qparams: QParams) -> QParams:
    """Parameters in the dtype in which arrays of ``dtype`` are computed with: float64 for float64. Exact."""
    wide, zero = checks.scale_dtype(jnp.dtype(dtype).name), qparams.zero_point
    zero = zero.astype(wide) if zero is not None and jnp.issubdtype(zero.dtype, jnp.floating) else zero
    return qparams._replace(scale=qparams.scale.astype(wide), zero_point=zero)
