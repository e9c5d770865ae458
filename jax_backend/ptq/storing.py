"""Where quantized weights go into a model, and where they are read from it."""

import jax
from flax import nnx

from ...core.configs import Config
from ...core.descriptions import QParams
from .modules import QuantizedLinear, kernel_of, set_kernel
from .qarray import array_of_codes


def store(module: nnx.Linear, config: Config, codes: jax.Array, qparams: QParams) -> None:
    """Makes codes ``(out, in)`` the kernel ``(in, out)`` of a layer, which then is a `QuantizedLinear`."""
    dtype = dense(module).dtype
    array = array_of_codes(config.weight, codes, qparams, dtype, config.act_quant, config.layout)
    set_kernel(module, array.T)


def dense(module: nnx.Linear) -> jax.Array:
    """The weight ``(out, in)`` of a layer as numbers, whatever holds them."""
    if isinstance(module, QuantizedLinear):
        return kernel_of(module).dequantize().T
    kernel: jax.Array = module.kernel[...]
    return kernel.T
