"""Linear layers over quantized operands."""

from typing import Unpack

import jax
from flax import nnx

from ..layers import Geometry, Options
from .layer import Quant, apply, check_options, held

Array = jax.Array
WEIGHT = (1, 0)  # (in, out) to (out, in)


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
        **options: Unpack[Options],
    ) -> None:
        check_options(options)
        super().__init__(in_features, out_features, rngs=rngs, **options)
        self.weight_quant = held("weight_quant", weight_quant, (out_features, in_features))
        self.input_quant = held("input_quant", input_quant)
        self.output_quant = held("output_quant", output_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """``(..., in)`` to ``(..., out)``, in the dtype that ``nnx.Linear`` would compute in.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        quantizers = self.input_quant, self.weight_quant, self.output_quant
        return apply(self, quantizers, x, use_running_average, Geometry(0), None, WEIGHT)
