"""Quantized layers as flax nnx modules.

A layer quantizes what it contracts: `QuantLinear` and `QuantConv` with both quantizers contract integer codes where
`samebits.core.contraction` allows it, exactly, and so give the same bits everywhere; with ``weight_quant`` alone they
contract floats. For gradients, codes are computed anew rather than kept. Activations between layers are floating-point
arrays. Arguments ``*_quant`` take a catalog name, a `Quantizer`, a `TensorQuantizer` (then shared), or None for no
quantization. Scales are kept as `TensorQuantizer` says.

Kernels and images are laid out as in flax, channels last. They are quantized as `samebits.core` lays them out, output
channels of a weight and channels of an image first, so a quantizer means the same as in torch.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from ..core.contraction import contracts_codes
from ..core.descriptions import Quantizer
from .arrays import bit_pattern
from .layers import Axes, Geometry, Layer, contract, laid_out, laid_out_qparams, over_codes
from .tensor_quantizer import TensorQuantizer, either, quantizer_of

Array = jax.Array
Quant = str | Quantizer | TensorQuantizer | None
Pair = tuple[int, int]
Padding = str | int | Sequence[int | Pair]
WEIGHT = (1, 0)  # (in, out) to (out, in)
PIXELS_FIRST = (0, 3, 1, 2)  # (batch, height, width, channels) to (batch, channels, height, width)
OUTPUTS_FIRST = (3, 2, 0, 1)  # (height, width, in, out) to (out, in, height, width)


class QuantIdentity(nnx.Module):
    """Fake quantization of activations.

    Args:
        act_quant: see the module.
    """

    def __init__(self, act_quant: Quant = "int8_per_tensor") -> None:
        self.act_quant = _held("act_quant", act_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """Any shape; same shape and dtype.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        return _or_same(self.act_quant, x, use_running_average)


class QuantReLU(nnx.Module):
    """``max(x, 0)``, then fake quantization. The gradient at 0 is 0.

    Args:
        act_quant: see the module.
    """

    def __init__(self, act_quant: Quant = "uint8_per_tensor") -> None:
        self.act_quant = _held("act_quant", act_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """Any shape; same shape and dtype.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        stopped = (bit_pattern(x) <= 0) & ~jnp.isnan(x)  # by the sign bit, since XLA compares subnormals as zeros
        return _or_same(self.act_quant, jnp.where(stopped, jnp.zeros_like(x), x), use_running_average)


class QuantLinear(nnx.Linear):
    """``x @ kernel + bias`` over quantized operands; see `samebits.jax_backend.linear`.

    Args:
        in_features, out_features, use_bias, dtype, param_dtype, kernel_init, bias_init, rngs: as ``nnx.Linear``. The
            kernel is ``(in, out)``.
        weight_quant, input_quant, output_quant: see the module. The weight they see is ``(out, in)``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        weight_quant: Quant = "int8_per_channel",
        input_quant: Quant = None,
        output_quant: Quant = None,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        _check_options(options)
        super().__init__(in_features, out_features, rngs=rngs, **options)
        self.weight_quant = _held("weight_quant", weight_quant, (out_features, in_features))
        self.input_quant = _held("input_quant", input_quant)
        self.output_quant = _held("output_quant", output_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """``(..., in)`` to ``(..., out)``, in the dtype that ``nnx.Linear`` would compute in.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        return _apply(self, x, use_running_average, Geometry(0), None, WEIGHT)


class QuantConv(nnx.Conv):
    """Two-dimensional cross-correlation over quantized operands; see `samebits.jax_backend.conv2d`.

    Args:
        in_features, out_features, kernel_size, strides, padding, use_bias, dtype, param_dtype, kernel_init, bias_init,
            rngs: as ``nnx.Conv``, with ``kernel_size`` a pair, ``strides`` an int or a pair, ``padding`` "SAME",
            "VALID", an int, or an int or a pair for each of the two axes. The kernel is ``(height, width, in, out)``.
        weight_quant, input_quant, output_quant: see the module. The weight they see is ``(out, in, height, width)``,
            the activations ``(batch, channels, height, width)``.
    Raises:
        ValueError: a kernel size, stride or padding that is not one of these.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Pair,
        strides: int | Pair = 1,
        *,
        padding: Padding = "SAME",
        weight_quant: Quant = "int8_per_channel",
        input_quant: Quant = None,
        output_quant: Quant = None,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        _check_options(options)
        size, self.steps = _pair("kernel_size", kernel_size), _pair("strides", strides)
        self.margins = _margins(padding)
        super().__init__(in_features, out_features, size, self.steps, padding=padding, rngs=rngs, **options)
        self.weight_quant = _held("weight_quant", weight_quant, (out_features, in_features, *size))
        self.input_quant = _held("input_quant", input_quant)
        self.output_quant = _held("output_quant", output_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """``(batch, height, width, in)`` to ``(batch, height', width', out)``, in the dtype of ``nnx.Conv``.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        geometry = Geometry(2, self.steps, self._margins_for(x))
        return _apply(self, x, use_running_average, geometry, PIXELS_FIRST, OUTPUTS_FIRST)

    def _margins_for(self, x: Array) -> tuple[Pair, Pair]:
        """Padding as (before, after) of height and width."""
        if x.ndim != 4:
            raise ValueError(f"`x` must be (batch, height, width, channels), got shape {x.shape}")
        if isinstance(self.margins, tuple):
            return self.margins
        above, beside = lax.padtype_to_pads(x.shape[1:3], self.kernel.shape[:2], self.steps, self.margins)
        return above, beside


def _held(name: str, value: Quant, weight_shape: tuple[int, ...] | None = None) -> TensorQuantizer | None:
    """What a layer keeps for an argument, beside the weight if it quantizes that."""
    if value is None or isinstance(value, TensorQuantizer):
        return value
    return TensorQuantizer(quantizer_of(name, value), weight_shape)


def _or_same(quantizer: TensorQuantizer | None, x: Array, use_running_average: bool | None) -> Array:
    return x if quantizer is None else quantizer(x, use_running_average)


def _apply(
    layer: "QuantLinear | QuantConv",
    x: Array,
    frozen: bool | None,
    geometry: Geometry,
    x_axes: Axes | None,
    w_axes: Axes,
) -> Array:
    """The output of a layer; ``axes`` are the transpositions to the layouts that quantizers are meant for."""
    x, kernel = layer.promote_dtype((x, layer.kernel[...]), dtype=layer.dtype)
    if x.ndim == 0 or x.shape[-1] != layer.in_features:
        raise ValueError(f"`x` must have {layer.in_features} features on its last axis, got shape {x.shape}")
    bias = None if layer.bias is None else layer.bias[...]
    q_x, q_w, q_y = layer.input_quant, layer.weight_quant, layer.output_quant
    if q_x and q_w and contracts_codes(q_x.quantizer, q_w.quantizer, per_token=x_axes is None):
        waits = q_x.waits(), q_w.waits()
        x_qparams, w_qparams = q_x.qparams(x, frozen, x_axes), q_w.qparams(kernel, frozen, w_axes)
        parts = Layer(q_x.quantizer, laid_out(q_w.quantizer, w_axes) or q_w.quantizer, geometry)

        def codes() -> Array:
            return over_codes(parts, x, x_qparams, kernel, laid_out_qparams(w_qparams, w_axes), bias, x_axes, w_axes)

        def values() -> Array:
            operands = q_x.quantized(x, x_qparams, waits[0], x_axes), q_w.quantized(kernel, w_qparams, waits[1], w_axes)
            return contract(geometry, *operands, bias)

        waiting = [w for w in waits if w is not None]
        y = either(jnp.any(jnp.stack(waiting)), values, codes) if waiting else codes()
    else:
        x = x if q_x is None else q_x(x, frozen, x_axes)
        y = contract(geometry, x, kernel if q_w is None else q_w(kernel, frozen, w_axes), bias)
    return y if q_y is None else q_y(y, frozen, x_axes)


def _margins(padding: Padding) -> str | tuple[Pair, Pair]:
    """Padding as (before, after) for each axis, or the name of a rule."""
    if padding in ("SAME", "VALID"):
        return str(padding)
    axes = (padding, padding) if isinstance(padding, int) else padding
    if isinstance(axes, str) or len(axes) != 2:
        raise ValueError(f"`padding` must be 'SAME', 'VALID', an int, or two ints or pairs, got {padding!r}")
    first, second = (_pair("padding", axis) for axis in axes)
    return first, second


def _pair(name: str, value: Any) -> Pair:
    """A pair of integers; an integer twice, but not for a kernel size, where flax means one dimension by it."""
    pair = (value, value) if isinstance(value, int) and name != "kernel_size" else value
    if not isinstance(pair, Sequence) or [type(n) for n in pair] != [int, int]:
        raise ValueError(f"`{name}` must be a pair of ints, got {value!r}")
    return pair[0], pair[1]


def _check_options(options: dict[str, Any]) -> None:
    unknown = sorted(set(options) - {"use_bias", "dtype", "param_dtype", "kernel_init", "bias_init"})
    if unknown:
        raise TypeError(f"unknown arguments {', '.join(unknown)} of a quantized layer")
