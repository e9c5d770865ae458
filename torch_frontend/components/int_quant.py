"""Tensor quantizers to integers: ``int_quant``, and ``tensor_quant`` around it.

See `samebits.torch_frontend.components.tensor_quant`.
"""

from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from ...core.descriptions import ON_QUOTIENT, QParams, Quantizer, ZeroPoint
from ...core.formats import IntegerFormat
from ...core.granularity import PerAxis
from ..quantizer import fake_quantize, quantize
from . import quantizing
from .clamp import TensorClamp
from .delay import DelayWrapper
from .description import check_says, described, fields_of, join
from .rounding import RoundSte

AXES = 8  # that scales may lie along where only their shape says so
ROUNDINGS = ("RoundSte", "FloorSte", "CeilSte", "RoundToZeroSte", "DPURoundSte", "StochasticRoundSte")


class IntQuant(nn.Module):
    """To integers of a width that the call gives, and back.

    Args:
        narrow_range: whether the range is shortened by one.
        signed: whether there are negative integers.
        float_to_int_impl: how it rounds; None for `RoundSte`.
        tensor_clamp_impl: which gradients pass; None for `TensorClamp`.
        quant_delay_steps: how many tensors of training pass unquantized first.
    Raises:
        TypeError: a part that is no component.
    """

    def __init__(
        self,
        narrow_range: bool = False,
        signed: bool = True,
        float_to_int_impl: nn.Module | None = None,
        tensor_clamp_impl: nn.Module | None = None,
        quant_delay_steps: int | None = 0,
    ) -> None:
        super().__init__()
        self.narrow_range, self.signed = narrow_range, signed
        self.float_to_int_impl, self.tensor_clamp_impl = (
            float_to_int_impl or RoundSte(),
            tensor_clamp_impl or TensorClamp(),
        )
        check_says("float_to_int_impl", self.float_to_int_impl, *ROUNDINGS)
        check_says("tensor_clamp_impl", self.tensor_clamp_impl, "TensorClamp", "TensorClampSte")
        self.delay_wrapper = DelayWrapper(quant_delay_steps)
        self.fields = fields_of(self.float_to_int_impl, self.tensor_clamp_impl, self.delay_wrapper)
        self.described = _widest(narrow_range, signed, tuple(self.fields.items()))

    def forward(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        """Values; of the shape and dtype of ``x``. The scale is one number, or lies along one axis."""
        q, used = self._operands(scale, zero_point, bit_width)
        value: Tensor = self.delay_wrapper(x, fake_quantize(q, x, used))
        return value

    def to_int(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        """Codes of ``x``, int32."""
        q, used = self._operands(scale, zero_point, bit_width)
        return quantize(q, x, used)

    def min_int(self, bit_width: int) -> int:
        """The smallest code of so many bits."""
        return IntegerFormat(bit_width, self.signed, self.narrow_range).lo

    def max_int(self, bit_width: int) -> int:
        """The largest code of so many bits."""
        return IntegerFormat(bit_width, self.signed, self.narrow_range).hi

    def extra_repr(self) -> str:
        """Which integers."""
        return f"narrow_range={self.narrow_range}, signed={self.signed}"

    def _operands(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor) -> tuple[Quantizer, QParams]:
        """A description in the widest format, and parameters with the width that is asked for."""
        if not self.described:
            raise ValueError(f"the gradient '{self.fields['gradient']}' is for symmetric quantizers, as a whole")
        axes = [axis for axis, n in enumerate(scale.shape) if n != 1]
        described = self.described[axes[0] if len(axes) == 1 else -1 if scale.ndim == 0 else 0]
        zero = zero_point.to(scale.dtype).expand(scale.shape)
        return described, QParams(scale, zero, bit_width.to(scale.dtype), *quantizing.drawn(self, scale.dtype))


@lru_cache
def _widest(narrow_range: bool, signed: bool, fields: tuple[tuple[str, Any], ...]) -> dict[int, Quantizer]:
    """Descriptions of 16 bits: for scales along each axis, and under -1 for a single one. None for some gradients."""
    if dict(fields)["gradient"] in ON_QUOTIENT:
        return {}
    widest = Quantizer(format=IntegerFormat(16, signed, narrow_range), zero_point=ZeroPoint.MIN_MAX)
    q = widest.replace(**(dict(fields) | {"delay": 0}))
    return {axis: q if axis < 0 else q.replace(granularity=PerAxis(axis)) for axis in range(-1, AXES)}


class RescalingIntQuant(nn.Module):
    """To integers and back, by a scale that comes from the tensor, from a state or from a parameter.

    Args:
        int_quant: `IntQuant`: which integers, and how they are rounded and clamped.
        scaling_impl: what gives the scale: a scaling, or any module whose ``forward(x, threshold)`` does.
        int_scaling_impl: what magnitudes are divided by: `IntScaling` or `PowerOfTwoIntScaling`.
        zero_point_impl: where zero lies; `ZeroZeroPoint` for a symmetric quantizer.
        bit_width_impl: `BitWidthConst`, `BitWidthStatefulConst` or `BitWidthParameter`.
    Raises:
        TypeError: a part that is no component. ValueError: parts that do not go together.
    """

    qparams, waits, quantized, forward = quantizing.qparams, quantizing.waits, quantizing.quantized, quantizing.forward
    quantizer, bit_width = property(quantizing.description), property(quantizing.learned_width)
    _apply = quantizing.apply_with_mark

    def __init__(
        self,
        int_quant: nn.Module,
        scaling_impl: nn.Module,
        int_scaling_impl: nn.Module,
        zero_point_impl: nn.Module,
        bit_width_impl: nn.Module,
    ) -> None:
        super().__init__()
        if not isinstance(int_quant, IntQuant):
            raise TypeError(f"`int_quant` must be an IntQuant, got {int_quant!r}")
        check_says("int_scaling_impl", int_scaling_impl, "IntScaling", "PowerOfTwoIntScaling")
        check_says("zero_point_impl", zero_point_impl, "ZeroZeroPoint", "StatsFromParameterZeroPoint")
        check_says("bit_width_impl", bit_width_impl, "BitWidthConst", "BitWidthParameter")
        self.int_quant, self.scaling_impl, self.int_scaling_impl = int_quant, scaling_impl, int_scaling_impl
        self.zero_point_impl, self.bit_width_impl = zero_point_impl, bit_width_impl
        width = fields_of(bit_width_impl)
        format = IntegerFormat(width.pop("bits"), int_quant.signed, int_quant.narrow_range)
        q = described(format, scaling_impl, int_quant, int_scaling_impl, zero_point_impl).replace(**width)
        quantizing.become(self, join(q, scaling_impl, zero_point_impl))

    @property
    def delay_wrapper(self) -> DelayWrapper:
        """That of the integers."""
        return self.int_quant.delay_wrapper

    @property
    def float_to_int_impl(self) -> nn.Module:
        """That of the integers."""
        return self.int_quant.float_to_int_impl

    def int_threshold(self) -> Tensor:
        """What somebody else's scaling divides by."""
        threshold: Tensor = self.int_scaling_impl(self.bit_width_impl())
        return threshold
