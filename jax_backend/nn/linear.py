"""Linear layers over quantized operands."""

from typing import Any

import jax
from flax import nnx

from ..layers import Geometry
from .layer import Held, Quant, apply, hold, split

Array = jax.Array
WEIGHT = (1, 0)  # (in, out) to (out, in)


class QuantLinear(nnx.Linear):
    """``x @ kernel + bias`` over quantized operands; see `samebits.jax_backend.linear`.

    Args:
        in_features, out_features, rngs: as ``nnx.Linear``. The kernel is ``(in, out)``.
        weight_quant, bias_quant, input_quant, output_quant, keywords: see the module. The weight is ``(out, in)``.
    """

    weight_quant: Held
    bias_quant: Held
    input_quant: Held
    output_quant: Held

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        weight_quant: Quant = "int8_per_channel",
        bias_quant: Quant = None,
        input_quant: Quant = None,
        output_quant: Quant = None,
        rngs: nnx.Rngs,
        **keywords: Any,
    ) -> None:
        options, fields = split(keywords)
        super().__init__(in_features, out_features, rngs=rngs, **options)
        hold(self, fields, weight=weight_quant, bias=bias_quant, input=input_quant, output=output_quant)

    @property
    def weight(self) -> Array:
        """The kernel as its quantizer sees it, ``(out, in)``."""
        return self.kernel[...].transpose(WEIGHT)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """``(..., in)`` to ``(..., out)``, in the dtype that ``nnx.Linear`` would compute in.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        return apply(self, x, use_running_average, Geometry(0), None, WEIGHT)
