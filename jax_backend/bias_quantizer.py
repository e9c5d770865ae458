"""What a layer holds for a bias whose scale is that of the products that it is added to."""

import jax
import jax.numpy as jnp
from flax import nnx

from ..core.descriptions import QParams, Quantizer
from ..core.granularity import PerAxis
from .arrays import layout
from .quantizer import fake_quantize

Array = jax.Array


class BiasQuantizer(nnx.Module):
    """Quantizes a bias with ``max(fl(s_x * s_w), smallest normal number)``, by which sums of codes are scaled too.

    Args:
        quantizer: of symmetric integers, one scale for each output.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer.replace(granularity=PerAxis(0))

    def __call__(self, bias: Array, x_qparams: QParams, w_qparams: QParams, waits: Array | None) -> Array:
        """``bias``, quantized; as it is where it waits.

        Args:
            bias: ``(outputs,)`` in the dtype of the scales.
            x_qparams: of one scale. w_qparams: of one, or of one for each output.
        """
        scale = x_qparams.scale * w_qparams.scale.reshape(-1)
        scale = jnp.maximum(scale, layout(scale.dtype).smallest)
        quantized = fake_quantize(self.quantizer, bias, QParams(jnp.broadcast_to(scale, bias.shape)))
        return quantized if waits is None else jnp.where(waits, bias, quantized)
