"""What a layer holds for a tensor whose parameters are known for good: of its input, or of a weight kept as codes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from ...core.descriptions import QParams, Quantizer
from ..layers import Axes, laid_out, laid_out_qparams
from ..quantizer import dequantize, fake_quantize
from ..variables import Given

Array = jax.Array


class GivenQuantizer(nnx.Module):
    """Quantizes with parameters that stay as they are, in training too. It has what layers ask of a `TensorQuantizer`.

    Args:
        quantizer: what is computed with them; where its scales come from does not matter.
        qparams: scale, and zero point where the quantizer is affine, as `QParams` says.
    """

    def __init__(self, quantizer: Quantizer, qparams: QParams) -> None:
        self.quantizer = quantizer
        self.scale = Given(jnp.asarray(qparams.scale))
        self.zero_point = None if qparams.zero_point is None else Given(jnp.asarray(qparams.zero_point))

    def qparams(self, x: Array, use_running_average: bool | None = None, axes: Axes | None = None) -> QParams:
        """The parameters, whatever the arguments are; scales in the dtype that ``x`` asks for."""
        scale = self.scale[...]
        scale = scale.astype(x.dtype) if x.dtype == np.float64 else scale
        return QParams(scale, None if self.zero_point is None else self.zero_point[...])

    def waits(self) -> None:
        """Nothing is delayed."""

    def quantized(self, x: Array, qparams: QParams, waits: Any, axes: Axes | None = None) -> Array:
        """`fake_quantize` of ``x``; it keeps its layout, ``axes`` as `TensorQuantizer` has them."""
        return quantized_as_laid_out(self.quantizer, x, qparams, axes)

    def __call__(self, x: Array, use_running_average: bool | None = None, axes: Axes | None = None) -> Array:
        """`fake_quantize` of ``x``."""
        return self.quantized(x, self.qparams(x), None, axes)


class CodedWeight(GivenQuantizer):
    """Of a weight that a layer keeps as integer codes, under the name of the weight.

    Args:
        quantizer, qparams: as `GivenQuantizer`.
        dtype: of the weight before.
    """

    def __init__(self, quantizer: Quantizer, qparams: QParams, dtype: DTypeLike = np.float32) -> None:
        super().__init__(quantizer, qparams)
        self.dtype = np.dtype(dtype)

    def values(self, codes: Array, axes: Axes) -> Array:
        """The values of codes, in their layout; ``codes.transpose(axes)`` are those of the quantizer."""
        lying, qparams = laid_out(self.quantizer, axes), self.qparams(codes)
        if lying is None:
            return dequantize(self.quantizer, codes.transpose(axes), qparams, self.dtype).transpose(np.argsort(axes))
        return dequantize(lying, codes, laid_out_qparams(qparams, axes), self.dtype)


def quantized_as_laid_out(q: Quantizer, x: Array, qparams: QParams, axes: Axes | None) -> Array:
    """`fake_quantize` of ``x`` by a quantizer that is meant for ``x.transpose(axes)``; ``x`` keeps its layout."""
    if axes is None:
        return fake_quantize(q, x, qparams)
    lying = laid_out(q, axes)
    if lying is None:
        return fake_quantize(q, x.transpose(axes), qparams).transpose(np.argsort(axes))
    return fake_quantize(lying, x, laid_out_qparams(qparams, axes))
