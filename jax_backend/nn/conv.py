"""Convolutions over quantized operands."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from ...core.choice import check_count
from ..layers import Geometry
from .layer import Held, Quant, apply, hold, split

Array = jax.Array
Pair = tuple[int, int]
Sizes = int | Sequence[int] | None
Padding = str | int | Sequence[int | Pair]
AROUND = {"CIRCULAR": "wrap", "REFLECT": "reflect"}  # what padding consists of, as `jnp.pad` calls it


def pixels_first(axes: int) -> tuple[int, ...]:
    """The transposition from (batch, *lengths, channels) to (batch, channels, *lengths)."""
    return (0, axes + 1, *range(1, axes + 1))


def outputs_first(axes: int) -> tuple[int, ...]:
    """The transposition from (*lengths, in, out) to (out, in, *lengths); of (*lengths, out, in) to (in, out, ...)."""
    return (axes + 1, axes, *range(axes))


class QuantConv(nnx.Conv):
    """Cross-correlation in one, two or three dimensions over quantized operands; see `samebits.jax_backend.conv`.

    Args:
        in_features, out_features, kernel_size, strides, kernel_dilation, feature_group_count, rngs: as ``nnx.Conv``.
            The kernel is ``(*lengths, in / groups, out)``.
        padding: as ``nnx.Conv``: "SAME", "VALID", "CAUSAL" in one dimension, an int, or an int or a pair for each
            dimension, of the number 0, whatever the quantizer makes of it; "CIRCULAR" or "REFLECT", of elements of
            ``x``, whose scale comes from ``x`` without them.
        input_dilation: 1; `QuantConvTranspose` spreads its input.
        weight_quant, bias_quant, input_quant, output_quant, keywords: see the module. The weight is
            ``(out, in / groups, *lengths)``, activations are ``(batch, channels, *lengths)``.
    Raises:
        ValueError: sizes that are not one for each of one to three dimensions, another padding, or a dilated input.
    """

    weight_quant: Held
    bias_quant: Held
    input_quant: Held
    output_quant: Held

    channels_first = True  # as quantizers see activations

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: Sizes = 1,
        *,
        padding: Padding = "SAME",
        input_dilation: Sizes = 1,
        kernel_dilation: Sizes = 1,
        feature_group_count: int = 1,
        weight_quant: Quant = "int8_per_channel",
        bias_quant: Quant = None,
        input_quant: Quant = None,
        output_quant: Quant = None,
        rngs: nnx.Rngs,
        **keywords: Any,
    ) -> None:
        size = kernel_lengths(kernel_size)
        self.steps, self.spread = (
            lengths("strides", strides, len(size)),
            lengths("kernel_dilation", kernel_dilation, len(size)),
        )
        if set(lengths("input_dilation", input_dilation, len(size))) != {1}:
            raise ValueError(
                f"`input_dilation` must be 1, got {input_dilation!r}: QuantConvTranspose spreads its input"
            )
        check_count("feature_group_count", feature_group_count, 1)
        if in_features % feature_group_count or out_features % feature_group_count:
            raise ValueError(
                f"`feature_group_count` must divide {in_features} `in_features` and {out_features} `out_features`, got "
                f"{feature_group_count}"
            )
        self.margins = margins(padding, len(size), ("SAME", "VALID", *AROUND, *(("CAUSAL",) if len(size) == 1 else ())))
        options, fields = split(keywords)
        options |= {"kernel_dilation": self.spread, "feature_group_count": feature_group_count}
        super().__init__(in_features, out_features, size, self.steps, padding=padding, rngs=rngs, **options)
        hold(self, fields, weight=weight_quant, bias=bias_quant, input=input_quant, output=output_quant)

    @property
    def weight(self) -> Array:
        """The kernel as its quantizer sees it, ``(out, in / groups, *lengths)``."""
        return self.kernel[...].transpose(outputs_first(len(self.steps)))

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """``(..., *lengths, in)`` to ``(..., *lengths', out)``, in the dtype of ``nnx.Conv``.

        Axes in front of the lengths, any number of them, are one batch to quantizers.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        n = len(self.steps)

        def over(images: Array) -> Array:
            sides, surround = self._around(images)
            geometry = Geometry(n, self.steps, sides, self.spread, self.feature_group_count)
            axes = pixels_first(n), outputs_first(n)
            return apply(self, images, use_running_average, geometry, *axes, surround=surround)

        return over_images(over, x, n)

    def _around(self, x: Array) -> tuple[tuple[Pair, ...], Callable[[Array], Array] | None]:
        """Padding as (before, after) for each axis, and what puts elements of ``x`` around it."""
        if isinstance(self.margins, tuple):
            return self.margins, None
        spans = [d * (k - 1) + 1 for d, k in zip(self.spread, self.kernel.shape, strict=False)]
        if self.margins == "CAUSAL":
            return ((spans[0] - 1, 0),), None
        if self.margins in AROUND:
            sides = ((0, 0), *(((span - 1) // 2, span // 2) for span in spans), (0, 0))
            return ((0, 0),) * len(spans), partial(jnp.pad, pad_width=sides, mode=AROUND[self.margins])
        return tuple(lax.padtype_to_pads(x.shape[1:-1], spans, self.steps, self.margins)), None


def over_images(over: Callable[[Array], Array], x: Array, axes: int) -> Array:
    """``over`` of images with one axis in front of their lengths, for any number of them."""
    if x.ndim < axes + 1:
        names = ", ".join(("length",) if axes == 1 else ("depth", "height", "width")[-axes:])
        raise ValueError(f"`x` must be (batch, {names}, channels), got shape {x.shape}")
    lead, rest = x.shape[: x.ndim - axes - 1], x.shape[x.ndim - axes - 1 :]
    y = over(x.reshape(prod(lead), *rest))
    return y.reshape(*lead, *y.shape[1:])


def kernel_lengths(kernel_size: int | Sequence[int], name: str = "kernel_size") -> tuple[int, ...]:
    """The lengths of a kernel; ValueError unless they are those of one to three dimensions."""
    size = (kernel_size,) if isinstance(kernel_size, int) else kernel_size
    if not isinstance(size, Sequence) or not 1 <= len(size) <= 3 or {type(n) for n in size} != {int} or min(size) < 1:
        raise ValueError(f"`{name}` must be one to three positive ints, got {kernel_size!r}")
    return tuple(size)


def lengths(name: str, value: Sizes, axes: int) -> tuple[int, ...]:
    """One number for each axis; None is 1."""
    sizes = (1 if value is None else value,) * axes if value is None or isinstance(value, int) else value
    if not isinstance(sizes, Sequence) or len(sizes) != axes or {type(n) for n in sizes} != {int} or min(sizes) < 1:
        raise ValueError(f"`{name}` must be a positive int, or one for each of {axes} dimensions, got {value!r}")
    return tuple(sizes)


def margins(padding: Padding, axes: int, names: Sequence[str]) -> str | tuple[Pair, ...]:
    """Padding as (before, after) for each axis, or the name of a rule."""
    sides: Any = (padding,) * axes if isinstance(padding, int) else padding
    if isinstance(sides, str) and sides in names:
        return sides
    pairs = [(side, side) if isinstance(side, int) else side for side in sides] if isinstance(sides, Sequence) else []
    fits = all(isinstance(pair, Sequence) and [type(n) for n in pair] == [int, int] for pair in pairs)
    if isinstance(sides, str) or len(pairs) != axes or not fits:
        raise ValueError(
            f"`padding` must be {', '.join(map(repr, names))}, an int, or an int or a pair for each of {axes} "
            f"dimensions, got {padding!r}"
        )
    return tuple((before, after) for before, after in pairs)
