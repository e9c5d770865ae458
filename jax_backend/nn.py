"""Quantized layers as flax nnx modules.

A layer quantizes what it contracts: `QuantLinear` and `QuantConv` with both quantizers contract integer codes where
`samebits.core.contraction` allows it, exactly, and so give the same bits everywhere; with ``weight_quant`` alone they
contract floats. Activations between layers are floating-point arrays. Arguments ``*_quant`` take a catalog name, a
`Quantizer`, a `TensorQuantizer` (then shared), or None for no quantization. Scales are kept as `TensorQuantizer` says.

Kernels and images are laid out as in flax, channels last. They are quantized as `samebits.core` lays them out, output
channels of a weight and channels of an image first, so a quantizer means the same as in torch.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from ..core.descriptions import Quantizer
from . import matmul
from .arrays import bit_pattern
from .tensor_quantizer import TensorQuantizer, quantizer_of

Array = jax.Array
Quant = str | Quantizer | TensorQuantizer | None
Pair = tuple[int, int]
Padding = str | int | Sequence[int | Pair]
PIXELS_FIRST = (0, 3, 1, 2)  # channels last to channels first
PIXELS_LAST = (0, 2, 3, 1)
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
        x, kernel = self.promote_dtype((x, self.kernel[...]), dtype=self.dtype)
        bias, weight = _bias(self), kernel.T
        if self.input_quant is None or self.weight_quant is None:
            x = _or_same(self.input_quant, x, use_running_average)
            weight = _or_same(self.weight_quant, weight, use_running_average)
            y = x @ weight.T
            y = y if bias is None else y + bias.astype(y.dtype)
        else:
            q_x, q_w = self.input_quant, self.weight_quant
            x_qparams, w_qparams = q_x.qparams(x, use_running_average), q_w.qparams(weight, use_running_average)
            y = matmul.linear(q_x.quantizer, x, x_qparams, q_w.quantizer, weight, w_qparams, bias)
        return _or_same(self.output_quant, y, use_running_average)


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
        x, kernel = self.promote_dtype((x, self.kernel[...]), dtype=self.dtype)
        bias, weight, images = _bias(self), kernel.transpose(OUTPUTS_FIRST), x.transpose(PIXELS_FIRST)
        margins = self._margins_for(x)
        if self.input_quant is None or self.weight_quant is None:
            images = _or_same(self.input_quant, images, use_running_average)
            weight = _or_same(self.weight_quant, weight, use_running_average)
            y = _convolve(images, weight, self.steps, margins)
            y = y if bias is None else y + bias.astype(y.dtype)[:, None, None]
        else:
            q_x, q_w = self.input_quant, self.weight_quant
            x_qparams, w_qparams = q_x.qparams(images, use_running_average), q_w.qparams(weight, use_running_average)
            images, padding = _padded(images, margins)
            operands = (q_x.quantizer, images, x_qparams, q_w.quantizer, weight, w_qparams)
            y = matmul.conv2d(*operands, bias, self.steps, padding)
        return _or_same(self.output_quant, y, use_running_average).transpose(PIXELS_LAST)

    def _margins_for(self, x: Array) -> Sequence[Pair]:
        """Padding as (before, after) of height and width."""
        if isinstance(self.margins, str):
            return lax.padtype_to_pads(x.shape[1:3], self.kernel.shape[:2], self.steps, self.margins)
        return self.margins


def _held(name: str, value: Quant, weight_shape: tuple[int, ...] | None = None) -> TensorQuantizer | None:
    """What a layer keeps for an argument, beside the weight if it quantizes that."""
    if value is None or isinstance(value, TensorQuantizer):
        return value
    return TensorQuantizer(quantizer_of(name, value), weight_shape)


def _or_same(quantizer: TensorQuantizer | None, x: Array, use_running_average: bool | None) -> Array:
    return x if quantizer is None else quantizer(x, use_running_average)


def _bias(layer: nnx.Linear | nnx.Conv) -> Array | None:
    return None if layer.bias is None else layer.bias[...]


def _convolve(images: Array, weight: Array, steps: Pair, margins: Sequence[Pair]) -> Array:
    """Channels first in arguments and result, last on the way, which XLA on CPU computes faster."""
    images, kernel = images.transpose(PIXELS_LAST), weight.transpose(2, 3, 1, 0)
    layouts = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, steps, margins, dimension_numbers=layouts).transpose(PIXELS_FIRST)


def _padded(images: Array, margins: Sequence[Pair]) -> tuple[Array, Pair]:
    """Images and the padding, equal on both sides, that `matmul.conv2d` takes; zeros are added here if it is not."""
    (top, bottom), (left, right) = margins
    if (top, left) == (bottom, right):
        return images, (top, left)
    return jnp.pad(images, ((0, 0), (0, 0), (top, bottom), (left, right))), (0, 0)


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
