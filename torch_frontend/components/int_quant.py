"""Tensor quantizers to integers: ``int_quant``, and ``tensor_quant`` around it.

See `samebits.torch_frontend.components.tensor_quant`.
"""

from torch import Tensor, nn

from ...core.descriptions import QParams, Quantizer, ZeroPoint
from ...core.formats import IntegerFormat
from ..quantizer import fake_quantize, quantize
from . import quantizing
from .clamp import TensorClamp
from .delay import DelayWrapper
from .description import check_says, described, fields_of, granularity_of, join
from .rounding import RoundSte

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
        self.float_to_int_impl, self.tensor_clamp_impl = float_to_int_impl or RoundSte(), tensor_clamp_impl or TensorClamp()
        check_says("float_to_int_impl", self.float_to_int_impl, *ROUNDINGS)
        check_says("tensor_clamp_impl", self.tensor_clamp_impl, "TensorClamp", "TensorClampSte")
        self.delay_wrapper = DelayWrapper(quant_delay_steps)
        self.fields = fields_of(self.float_to_int_impl, self.tensor_clamp_impl, self.delay_wrapper)

    def forward(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        """Values; of the shape and dtype of ``x``. The scale has the shape that `granularity_of` knows."""
        q, used = self._operands(scale, zero_point, bit_width)
        return self.delay_wrapper(x, fake_quantize(q, x, used))

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
        widest = IntegerFormat(16, self.signed, self.narrow_range)
        fields = {name: self.fields[name] for name in self.fields if name != "delay"}
        affine = {"zero_point": ZeroPoint.MIN_MAX, "granularity": granularity_of(tuple(scale.shape))}
        zero = zero_point.to(scale.dtype).expand(scale.shape)
        used = QParams(scale, zero, bit_width.to(scale.dtype), *quantizing.drawn(self))
        return Quantizer(format=widest).replace(**affine, **fields), used


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
