"""Pooling of quantized arrays: the largest code, and averages as exact sums of codes that are cut to fewer bits.

Without ``input_quant``, and by a quantizer that gives no codes or scales that differ inside a window, values are pooled
as by flax.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ...core.choice import check_count, choice
from ...core.directions import DETERMINISTIC, Rounding
from ...core.granularity import PerAxis, PerTensor
from ...core.inject import Declaration
from ...core.integer_range import IntegerRange
from ...core.quant_fields import ROUNDINGS
from ..arrays import divide, layout
from ..clamp import clamp
from ..coded import Coded, coded, coded_range
from ..derivatives import replaced
from ..rounding import round_to_integer
from ..tensor_quantizer import either
from .conv import Padding, Pair, Sizes, kernel_lengths, lengths, margins
from .layer import Held, Operand, Quant, hold, operand, or_same

Array = jax.Array


class QuantMaxPool(nnx.Module):
    """The largest quantized value of each window.

    Args:
        window_shape, strides, padding: as ``nnx.max_pool``: strides of 1, and no padding, where none are given.
        input_quant, fields: see the module. None: what comes is pooled.
    """

    input_quant: Held

    def __init__(
        self,
        window_shape: int | Sequence[int],
        strides: Sizes = None,
        padding: Padding = "VALID",
        *,
        input_quant: Quant = None,
        **fields: Any,
    ) -> None:
        self.window = kernel_lengths(window_shape, "window_shape")
        self.steps = lengths("strides", strides, len(self.window))
        self.margins = margins(padding, len(self.window), ("SAME", "VALID"))
        hold(self, fields, input=input_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """``(batch, *lengths, channels)`` to ``(batch, *lengths', channels)``; same dtype.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        if x.ndim < len(self.window) + 1:
            raise ValueError(f"`x` must have {len(self.window)} lengths and channels, got shape {x.shape}")
        quantized = or_same(self.input_quant, x, use_running_average)
        y: Array = nnx.max_pool(quantized, self.window, self.steps, self.margins)  # type: ignore[no-untyped-call]
        return y


class QuantAvgPool(nnx.Module):
    """The sum of the codes of each window, exact, cut to ``trunc_bits``.

    ``clamp(round(sum of (code - z) / 2**n))``, n bits dropped, none where the sum has no more. The scale is
    ``s / terms``, times ``2**n``.

    Args:
        window_shape, strides, padding: as ``nnx.avg_pool``: strides of 1, and no padding, where none are given. Padding
            counts as zeros.
        input_quant, fields: see the module. None: what comes is pooled as ``nnx.avg_pool`` does it, and not cut.
        trunc_quant: a declaration of both that follow, as `core.quant.RoundTo8bit`; None for these themselves.
        trunc_bits, trunc_rounding: width of the result, and direction.
    Raises:
        TypeError: another declaration, or a width that is no int. ValueError: sizes that are not one for each
            dimension, or a direction that looks at more than the number.
    """

    input_quant: Held

    def __init__(
        self,
        window_shape: int | Sequence[int],
        strides: Sizes = None,
        padding: Padding = "VALID",
        *,
        input_quant: Quant = None,
        trunc_quant: Declaration | None = None,
        trunc_bits: int = 8,
        trunc_rounding: Rounding | str = Rounding.TIES_TO_EVEN,
        **fields: Any,
    ) -> None:
        self.window = kernel_lengths(window_shape, "window_shape")
        self.steps = lengths("strides", strides, len(self.window))
        self.margins = margins(padding, len(self.window), ("SAME", "VALID"))
        self.trunc_bits, self.trunc_rounding = _truncation(trunc_quant, trunc_bits, trunc_rounding)
        hold(self, fields, input=input_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """``(batch, *lengths, channels)`` to ``(batch, *lengths', channels)``; same dtype.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        Raises:
            ValueError: a window whose sum may round.
        """
        sides = self.margins
        if isinstance(sides, str):
            sides = tuple(lax.padtype_to_pads(x.shape[1:-1], self.window, self.steps, sides))
        return _averaged(self, x, self.window, self.steps, sides, use_running_average)


class QuantAdaptiveAvgPool(nnx.Module):
    """`QuantAvgPool` with windows that give ``output_size``; lengths must be multiples of it.

    Args:
        output_size: one for each dimension.
        input_quant, trunc_quant, trunc_bits, trunc_rounding, fields: as `QuantAvgPool`.
    """

    input_quant: Held

    def __init__(
        self,
        output_size: int | Sequence[int],
        *,
        input_quant: Quant = None,
        trunc_quant: Declaration | None = None,
        trunc_bits: int = 8,
        trunc_rounding: Rounding | str = Rounding.TIES_TO_EVEN,
        **fields: Any,
    ) -> None:
        self.output_size = kernel_lengths(output_size, "output_size")
        self.trunc_bits, self.trunc_rounding = _truncation(trunc_quant, trunc_bits, trunc_rounding)
        hold(self, fields, input=input_quant)

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """``(batch, *lengths, channels)`` to ``(batch, *output_size, channels)``; same dtype.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        Raises:
            ValueError: lengths that are no multiples, or a window whose sum may round.
        """
        found, wanted = x.shape[1:-1], self.output_size
        if len(found) != len(wanted) or any(n % m or n < m for n, m in zip(found, wanted, strict=False)):
            raise ValueError(f"`x` must have lengths that are multiples of `output_size` {wanted}, got shape {x.shape}")
        window = tuple(n // m for n, m in zip(found, wanted, strict=True))
        return _averaged(self, x, window, window, ((0, 0),) * len(window), use_running_average)


def _averaged(
    layer: Any, x: Array, window: tuple[int, ...], steps: tuple[int, ...], sides: tuple[Pair, ...], frozen: bool | None
) -> Array:
    if x.ndim != len(window) + 2:
        raise ValueError(f"`x` must have a batch, {len(window)} lengths and channels, got shape {x.shape}")
    one = operand(layer.input_quant, x, frozen)

    places, strides, around = (1, *window, 1), (1, *steps, 1), ((0, 0), *sides, (0, 0))
    terms = prod(window)

    def sums(a: Array) -> Array:
        total: Array = lax.reduce_window(a, np.zeros((), a.dtype), lax.add, places, strides, around)
        return total

    def values() -> Array:
        return sums(one.quantized()) / np.asarray(terms, x.dtype)

    def codes() -> Array:
        given = coded(one.held.quantizer, x, one.qparams)
        scale = divide(given.scale, jnp.full_like(given.scale, terms), subnormals=False)
        scale = jnp.maximum(scale, layout(scale.dtype).smallest)
        total = Coded(sums(given.codes), scale, given.range.summed(terms))
        cut = _cut(total, layer.trunc_bits, layer.trunc_rounding)
        return replaced(values(), lax.stop_gradient(cut.values(x.dtype)))

    if not _has_sums(one, x.ndim, terms):
        return values()
    return codes() if one.waits is None else either(one.waits, values, codes)


def _has_sums(one: Operand, axes: int, terms: int) -> bool:
    """Whether there are codes of one scale in each window. ValueError where their sum may round."""
    integers = None if one.held is None else coded_range(one.held.quantizer)
    if integers is None:
        return False
    granularity = one.held.quantizer.granularity
    apart = isinstance(granularity, PerAxis) and granularity.axis % axes in (0, axes - 1)
    if not (isinstance(granularity, PerTensor) or apart):
        return False
    if integers.summed(terms).carrier != "float32" and one.value.dtype != np.float64:
        raise ValueError(f"a window must have exact sums in float32, got {terms} codes of {integers}; use fewer bits")
    return True


def _cut(total: Coded, bits: int, rounding: Rounding) -> Coded:
    """In fewer bits, by dropping the lower ones; every step is exact."""
    if total.range.bits <= bits:
        return total
    step = 2.0 ** (total.range.bits - bits)
    signed = total.range.signed
    half = 1 << (bits - 1)
    lo, hi = (-half, half - 1) if signed else (0, 2 * half - 1)
    codes = clamp(round_to_integer(total.codes * np.float32(1 / step).astype(total.codes.dtype), rounding), lo, hi)
    return Coded(codes, total.scale * np.float32(step).astype(total.scale.dtype), IntegerRange(lo, hi, bits, signed))


def _truncation(declaration: Any, bits: int, rounding: Rounding | str) -> tuple[int, Rounding]:
    """Width and direction, of the declaration if there is one. TypeError for what is none of a truncation."""
    if declaration is not None:
        role = declaration.role if isinstance(declaration, Declaration) and "role" in declaration else None
        if role != "trunc" or "tensor_quant" in declaration:
            raise TypeError(
                f"`trunc_quant` must inherit from TruncTo8bit or RoundTo8bit of core.quant, got {declaration!r}"
            )
        bits, rounding = declaration.bit_width, ROUNDINGS[declaration.float_to_int_impl_type]
    check_count("trunc_bits", bits, 1)
    direction = choice("trunc_rounding", rounding, Rounding)
    if direction not in DETERMINISTIC:
        raise ValueError(f"`trunc_rounding` must look at nothing but the number, got '{direction}'")
    return bits, direction
