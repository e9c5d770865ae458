"""Transposed convolutions over quantized operands."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..layers import Geometry
from .conv import Padding, Pair, Sizes, kernel_lengths, lengths, margins, outputs_first, over_images, pixels_first
from .layer import Held, Quant, apply, hold, split

Array = jax.Array


class QuantConvTranspose(nnx.ConvTranspose):
    """Transposed convolution in one to three dimensions over quantized operands; see `jax_backend.conv_transpose`.

    Args:
        in_features, out_features, kernel_size, strides, kernel_dilation, rngs: as ``nnx.ConvTranspose``.
        padding: as ``nnx.ConvTranspose``: "SAME", "VALID", an int, or an int or a pair for each dimension. Numbers are
            zeros around the spread input: torch's ``padding=p`` is ``dilation * (kernel_size - 1) - p`` here.
        transpose_kernel: as ``nnx.ConvTranspose``. True: the kernel is ``(*lengths, out, in)``, torch's
            ``(in, out, *lengths)``; False: ``(*lengths, in, out)``, which is that turned around.
        weight_quant, bias_quant, input_quant, output_quant, keywords: see the module. The weight is
            ``(in, out, *lengths)``, as torch has it; a quantizer per axis 0 becomes one per axis 1, its channels.
            Activations are ``(batch, channels, *lengths)``.
    Raises:
        ValueError: sizes that are not one for each of one to three dimensions, or another padding, "CIRCULAR" too.
    """

    weight_quant: Held
    bias_quant: Held
    input_quant: Held
    output_quant: Held

    channels_first = transposed = True  # as quantizers see activations, and the weight

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: Sizes = None,
        *,
        padding: Padding = "SAME",
        kernel_dilation: Sizes = None,
        transpose_kernel: bool = False,
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
        self.margins = margins(padding, len(size), ("SAME", "VALID"))
        options, fields = split(keywords)
        options |= {"kernel_dilation": self.spread, "transpose_kernel": transpose_kernel}
        super().__init__(in_features, out_features, size, self.steps, padding=padding, rngs=rngs, **options)
        hold(self, fields, weight=weight_quant, bias=bias_quant, input=input_quant, output=output_quant)

    @property
    def weight(self) -> Array:
        """The kernel as its quantizer sees it, ``(in, out, *lengths)``."""
        return self.turned(self.kernel[...]).transpose(outputs_first(len(self.steps)))

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """``(..., *lengths, in)`` to ``(..., *lengths', out)``, in the dtype of ``nnx.ConvTranspose``.

        Axes in front of the lengths, any number of them, are one batch to quantizers.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        n = len(self.steps)
        geometry = Geometry(n + 1, self.steps, self._margins(), self.spread, transposed=True)

        def over(images: Array) -> Array:
            axes = pixels_first(n), outputs_first(n)
            return apply(self, images, use_running_average, geometry, *axes, kernel=self.turned(self.kernel[...]))

        return over_images(over, x, n)

    def turned(self, kernel: Array) -> Array:
        """A kernel as it is kept, as ``(*lengths, out, in)``; and back."""
        return kernel if self.transpose_kernel else jnp.flip(kernel, range(len(self.steps))).swapaxes(-1, -2)

    def _margins(self) -> tuple[Pair, ...]:
        """Zeros (before, after) the spread input: ``SAME`` makes an output strides times as long as the input.

        Source: ``jax.lax.conv_transpose``.
        """
        if isinstance(self.margins, tuple):
            return self.margins
        pairs = []
        for size, step, spread in zip(self.kernel.shape, self.steps, self.spread, strict=False):
            span = spread * (size - 1) + 1
            total = span + step - 2 + (max(span - step, 0) if self.margins == "VALID" else 0)
            before = span - 1 if self.margins == "VALID" or step > span - 1 else -(-total // 2)
            pairs.append((before, total - before))
        return tuple(pairs)
