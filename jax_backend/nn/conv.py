"""Convolutions over quantized operands."""

from collections.abc import Sequence
from typing import Any, Unpack

import jax
from flax import nnx
from jax import lax

from ..layers import Geometry, Options
from .layer import Quant, apply, check_options, held

Array = jax.Array
Pair = tuple[int, int]
Padding = str | int | Sequence[int | Pair]
PIXELS_FIRST = (0, 3, 1, 2)  # (batch, height, width, channels) to (batch, channels, height, width)
OUTPUTS_FIRST = (3, 2, 0, 1)  # (height, width, in, out) to (out, in, height, width)


class QuantConv(nnx.Conv):
    """Two-dimensional cross-correlation over quantized operands; see `samebits.jax_backend.conv`.

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
        **options: Unpack[Options],
    ) -> None:
        check_options(options)
        size, self.steps = _pair("kernel_size", kernel_size), _pair("strides", strides)
        self.margins = _margins(padding)
        super().__init__(in_features, out_features, size, self.steps, padding=padding, rngs=rngs, **options)
        self.weight_quant = held("weight_quant", weight_quant, (out_features, in_features, *size))
        self.input_quant = held("input_quant", input_quant)
        self.output_quant = held("output_quant", output_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """``(batch, height, width, in)`` to ``(batch, height', width', out)``, in the dtype of ``nnx.Conv``.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        geometry = Geometry(2, self.steps, self._margins_for(x))
        quantizers = self.input_quant, self.weight_quant, self.output_quant
        return apply(self, quantizers, x, use_running_average, geometry, PIXELS_FIRST, OUTPUTS_FIRST)

    def _margins_for(self, x: Array) -> tuple[Pair, Pair]:
        """Padding as (before, after) of height and width."""
        if x.ndim != 4:
            raise ValueError(f"`x` must be (batch, height, width, channels), got shape {x.shape}")
        if isinstance(self.margins, tuple):
            return self.margins
        above, beside = lax.padtype_to_pads(x.shape[1:3], self.kernel.shape[:2], self.steps, self.margins)
        return above, beside


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
