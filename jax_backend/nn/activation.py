"""Activations that are quantized."""

import jax
import jax.numpy as jnp
from flax import nnx

from ..arrays import bit_pattern
from .layer import Quant, held, or_same

Array = jax.Array


class QuantIdentity(nnx.Module):
    """Fake quantization of activations.

    Args:
        act_quant: see the module.
    """

    def __init__(self, act_quant: Quant = "int8_per_tensor") -> None:
        self.act_quant = held("act_quant", act_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """Any shape; same shape and dtype.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        return or_same(self.act_quant, x, use_running_average)


class QuantReLU(nnx.Module):
    """``max(x, 0)``, then fake quantization. The gradient at 0 is 0.

    Args:
        act_quant: see the module.
    """

    def __init__(self, act_quant: Quant = "uint8_per_tensor") -> None:
        self.act_quant = held("act_quant", act_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """Any shape; same shape and dtype.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        stopped = (bit_pattern(x) <= 0) & ~jnp.isnan(x)  # by the sign bit, since XLA compares subnormals as zeros
        return or_same(self.act_quant, jnp.where(stopped, jnp.zeros_like(x), x), use_running_average)
