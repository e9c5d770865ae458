"""Activations that are quantized: the function of JAX, then fake quantization.

`QuantReLU`, `QuantHardTanh` and `QuantIdentity` select numbers, and so give the same bits everywhere. The others are
what `jax.nn` computes, whose bits depend on its version, on the program around it and on the processor: those of torch
differ, by a step where such a difference crosses the border between two codes.

Quantizers see the array as it lies: the channels of a `PerAxis` are its last axis, ``PerAxis(-1)``, where torch has 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ...core.checks import check_float
from ..arrays import as_array, bit_pattern, layout, magnitude
from .layer import Held, Quant, hold, or_same

Array = jax.Array


class QuantIdentity(nnx.Module):
    """Fake quantization of activations.

    Args:
        act_quant, fields: see the module.
    """

    act_quant: Held

    def __init__(self, act_quant: Quant = "int8_per_tensor", **fields: Any) -> None:
        hold(self, fields, act=act_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """Any shape; same shape and dtype.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        return or_same(self.act_quant, x, use_running_average)


class QuantReLU(nnx.Module):
    """``max(x, 0)``, then fake quantization. The gradient at 0 is 0.

    Args:
        act_quant, input_quant, fields: see the module.
    """

    act_quant: Held
    input_quant: Held

    def __init__(self, act_quant: Quant = "uint8_per_tensor", *, input_quant: Quant = None, **fields: Any) -> None:
        hold(self, fields, act=act_quant, input=input_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """As `QuantIdentity`. TypeError: what is no float, or has 64 bits without ``jax_enable_x64``."""
        x = or_same(self.input_quant, _floats(x), use_running_average)
        stopped = (bit_pattern(x) <= 0) & ~jnp.isnan(x)  # by the sign bit, since XLA compares subnormals as zeros
        return or_same(self.act_quant, jnp.where(stopped, jnp.zeros_like(x), x), use_running_average)


class QuantHardTanh(nnx.Module):
    """``min(max(x, min_val), max_val)``, then fake quantization. The gradient at the ends is 0.

    Args:
        act_quant, input_quant, fields: see the module.
        min_val, max_val: the range, as ``torch.nn.Hardtanh``.
    Raises:
        ValueError: a range without numbers.
    """

    act_quant: Held
    input_quant: Held

    def __init__(
        self,
        act_quant: Quant = "int8_per_tensor",
        min_val: float = -1.0,
        max_val: float = 1.0,
        *,
        input_quant: Quant = None,
        **fields: Any,
    ) -> None:
        if not min_val < max_val:
            raise ValueError(f"`min_val` must be less than `max_val`, {max_val!r}, got {min_val!r}")
        self.min_val, self.max_val = min_val, max_val
        hold(self, fields, act=act_quant, input=input_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """As `QuantIdentity`. TypeError: what is no float, or has 64 bits without ``jax_enable_x64``."""
        x = or_same(self.input_quant, _floats(x), use_running_average)
        lo, hi = (jnp.asarray(np.asarray(end, x.dtype)) for end in (self.min_val, self.max_val))
        place, below, above = _place(x), _place(lo), _place(hi)
        end = jnp.where(place < below, lo, jnp.where(place > above, hi, lax.stop_gradient(x)))  # zeros keep their sign
        inside = ((place > below) & (place < above)) | jnp.isnan(x)
        return or_same(self.act_quant, jnp.where(inside, x, end), use_running_average)


class QuantSigmoid(nnx.Module):
    """``1 / (1 + exp(-x))`` as JAX computes it, then fake quantization.

    Args:
        act_quant, input_quant, fields: see the module.
    """

    act_quant: Held
    input_quant: Held

    def __init__(self, act_quant: Quant = "uint8_per_tensor", *, input_quant: Quant = None, **fields: Any) -> None:
        hold(self, fields, act=act_quant, input=input_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """As `QuantIdentity`."""
        y = jax.nn.sigmoid(or_same(self.input_quant, x, use_running_average))
        return or_same(self.act_quant, y, use_running_average)


class QuantTanh(nnx.Module):
    """``tanh(x)`` as JAX computes it, then fake quantization.

    Args:
        act_quant, input_quant, fields: see the module.
    """

    act_quant: Held
    input_quant: Held

    def __init__(self, act_quant: Quant = "int8_per_tensor", *, input_quant: Quant = None, **fields: Any) -> None:
        hold(self, fields, act=act_quant, input=input_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """As `QuantIdentity`."""
        y = jnp.tanh(or_same(self.input_quant, x, use_running_average))
        return or_same(self.act_quant, y, use_running_average)


class QuantGELU(nnx.Module):
    """The Gaussian error linear unit as JAX computes it, then fake quantization.

    Args:
        act_quant, input_quant, fields: see the module.
        approximate: ``none`` or ``tanh``, as ``torch.nn.GELU``; ``jax.nn.gelu`` means ``tanh`` where nothing is said.
    Raises:
        ValueError: another approximation.
    """

    act_quant: Held
    input_quant: Held

    def __init__(
        self,
        act_quant: Quant = "int8_per_tensor",
        approximate: str = "none",
        *,
        input_quant: Quant = None,
        **fields: Any,
    ) -> None:
        if approximate not in ("none", "tanh"):
            raise ValueError(f"`approximate` must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate
        hold(self, fields, act=act_quant, input=input_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """As `QuantIdentity`."""
        y = jax.nn.gelu(or_same(self.input_quant, x, use_running_average), approximate=self.approximate == "tanh")
        return or_same(self.act_quant, y, use_running_average)


class QuantSiLU(nnx.Module):
    """``x * sigmoid(x)`` as JAX computes it, then fake quantization.

    Args:
        act_quant, input_quant, fields: see the module.
    """

    act_quant: Held
    input_quant: Held

    def __init__(self, act_quant: Quant = "int8_per_tensor", *, input_quant: Quant = None, **fields: Any) -> None:
        hold(self, fields, act=act_quant, input=input_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """As `QuantIdentity`."""
        y = jax.nn.silu(or_same(self.input_quant, x, use_running_average))
        return or_same(self.act_quant, y, use_running_average)


def _floats(x: Array) -> Array:
    """``x`` as a JAX array, whose bits are looked at here: those that NumPy has may be others than JAX would take."""
    x = as_array("x", x)
    check_float("x", x.dtype.name)
    return x


def _place(x: Array) -> Array:
    """Integers in the order of the numbers, 0 for both zeros; of NaN no meaning. XLA compares subnormals as zeros."""
    size = magnitude(x)
    return jnp.where(bit_pattern(x) < layout(x.dtype).integer(0), -size, size)
