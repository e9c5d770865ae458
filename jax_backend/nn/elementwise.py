"""Sums and concatenations whose operands are quantized by one scale, so that their codes may be added and joined."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from ...core.granularity import PerAxis, PerTensor, PerToken
from ..coded import coded, coded_range
from ..derivatives import replaced
from ..tensor_quantizer import either
from .layer import Held, Operand, Quant, hold, operand, or_same

Array = jax.Array


class QuantEltwiseAdd(nnx.Module):
    """``x + other``, both quantized with the scale of the two together: ``code + other code``, exactly.

    Args:
        input_quant: of both, per tensor, axis or token; see the module. A scale from statistics comes from both, and
            training counts them as one tensor. None: what comes is added.
        output_quant: of the sum.
        fields: see the module.
    """

    input_quant: Held
    output_quant: Held

    def __init__(
        self, input_quant: Quant = "int8_per_tensor", output_quant: Quant = "int8_per_tensor", **fields: Any
    ) -> None:
        hold(self, fields, input=input_quant, output=output_quant)

    def __call__(self, x: Array, other: Array, use_running_average: bool | None = None) -> Array:
        """Shapes that broadcast, one dtype; that shape and dtype.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        Raises:
            ValueError: an ``input_quant`` of another granularity.
        """
        x, other = jnp.broadcast_arrays(x, other)
        if self.input_quant is None:
            return or_same(self.output_quant, x + other, use_running_average)
        axis = _joining_axis(self.input_quant.quantizer, x.ndim)
        join = jnp.stack([x, other]) if axis is None else jnp.concatenate([x, other], axis)
        both = operand(self.input_quant, join, use_running_average)

        def halves(joined: Array) -> tuple[Array, Array]:
            if axis is None:
                return joined[0], joined[1]
            n = joined.shape[axis] // 2
            return lax.slice_in_dim(joined, 0, n, axis=axis), lax.slice_in_dim(joined, n, None, axis=axis)

        def values() -> Array:
            a, b = halves(both.quantized())
            return a + b

        def codes() -> Array:
            whole = coded(both.held.quantizer, both.value, both.qparams)
            a, b = halves(whole.codes)
            total = whole._replace(codes=a + b).values(join.dtype)
            return replaced(values(), lax.stop_gradient(total))

        return or_same(self.output_quant, _by_codes(both, codes, values), use_running_average)


class QuantCat(nnx.Module):
    """``jnp.concatenate``, quantized with one scale for all.

    Args:
        input_quant: of all arrays together; None: what comes is joined.
        output_quant: of the result.
        fields: see the module.
    """

    input_quant: Held
    output_quant: Held

    def __init__(
        self, input_quant: Quant = "int8_per_tensor", output_quant: Quant = "int8_per_tensor", **fields: Any
    ) -> None:
        hold(self, fields, input=input_quant, output=output_quant)

    def __call__(self, arrays: Sequence[Array], axis: int = -1, use_running_average: bool | None = None) -> Array:
        """Arrays that ``jnp.concatenate`` accepts; what it gives. Channels are the last axis, in torch axis 1.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        joined = or_same(self.input_quant, jnp.concatenate(list(arrays), axis), use_running_average)
        return or_same(self.output_quant, joined, use_running_average)


def _by_codes(both: Operand, codes: Any, values: Any) -> Array:
    """The sum of codes, where there are any, and of values during a delay."""
    if both.held is None or coded_range(both.held.quantizer) is None:
        y: Array = values()
        return y
    y = codes() if both.waits is None else either(both.waits, values, codes)
    return y


def _joining_axis(q: Any, axes: int) -> int | None:
    """The axis along which two arrays are one to a quantizer, that scales do not tell apart; None for a new one."""
    granularity = PerTensor() if q is None else q.granularity
    match granularity:
        case PerTensor():
            return 0 if axes else None
        case PerToken() if axes:
            return axes - 1
        case PerAxis(k) if axes > 1:
            return 1 if k % axes == 0 else 0
        case _:
            raise ValueError(f"`input_quant` must be per tensor, axis or token of more axes, got {granularity}, {axes}")
