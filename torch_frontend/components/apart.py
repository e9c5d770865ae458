"""Quantizers whose parameters come with the call, or whose codes and values have two scales.

See `samebits.torch_frontend.components.tensor_quant`; these are no single description, so layers contract values.
"""

import torch
from torch import Tensor, nn

from .. import devices
from ..arrays import narrowed, widened
from ..straight_through import round_ste
from .clamp import TensorClamp
from .delay import DelayWrapper
from .description import check_says
from .int_quant import ROUNDINGS, IntQuant
from .int_scaling import limits, power_of_two
from .quantizing import Outputs
from .rounding import RoundSte


class DecoupledIntQuant(nn.Module):
    """Codes by one scale, ``clamp(round(x / pre_scale + pre_zero_point))``, values by another, ``(code - z) * s``.

    Gradients are those of the formula: through all five operands, rounding straight through.

    Args:
        narrow_range, signed, float_to_int_impl, tensor_clamp_impl, quant_delay_steps: see `IntQuant`.
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
        self.float_to_int_impl = float_to_int_impl or RoundSte()
        self.tensor_clamp_impl = tensor_clamp_impl or TensorClamp()
        check_says("float_to_int_impl", self.float_to_int_impl, *ROUNDINGS)
        check_says("tensor_clamp_impl", self.tensor_clamp_impl, "TensorClamp", "TensorClampSte")
        self.delay_wrapper = DelayWrapper(quant_delay_steps)

    def to_int(self, pre_scale: Tensor, pre_zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        """Codes of ``x``, in the wide dtype of ``x``."""
        quotient = devices.quotient(widened(x), pre_scale) + pre_zero_point
        lo, hi = limits(self.narrow_range, self.signed, bit_width.to(quotient.dtype))
        codes: Tensor = self.tensor_clamp_impl(self.float_to_int_impl(quotient), lo, hi)
        return codes

    def forward(
        self,
        pre_scale: Tensor,
        pre_zero_point: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bit_width: Tensor,
        x: Tensor,
    ) -> Tensor:
        """Values, of the shape and dtype of ``x``."""
        codes = self.to_int(pre_scale, pre_zero_point, bit_width, x)
        value: Tensor = self.delay_wrapper(x, narrowed((codes - zero_point) * scale, x.dtype))
        return value


class DecoupledRescalingIntQuant(nn.Module):
    """`DecoupledIntQuant` with a scale for codes and another for values.

    Args:
        decoupled_int_quant: `DecoupledIntQuant`.
        pre_scaling_impl, scaling_impl: what gives them: scalings, or modules whose ``forward(x, threshold)`` does.
        int_scaling_impl: what magnitudes are divided by.
        pre_zero_point_impl, zero_point_impl: modules whose ``forward(x, scale, bit_width)`` gives the zero points.
        bit_width_impl: `BitWidthConst`, `BitWidthStatefulConst` or `BitWidthParameter`.
    """

    def __init__(
        self,
        decoupled_int_quant: nn.Module,
        pre_scaling_impl: nn.Module,
        scaling_impl: nn.Module,
        int_scaling_impl: nn.Module,
        pre_zero_point_impl: nn.Module,
        zero_point_impl: nn.Module,
        bit_width_impl: nn.Module,
    ) -> None:
        super().__init__()
        self.decoupled_int_quant, self.int_scaling_impl = decoupled_int_quant, int_scaling_impl
        self.pre_scaling_impl, self.scaling_impl = pre_scaling_impl, scaling_impl
        self.pre_zero_point_impl, self.zero_point_impl = pre_zero_point_impl, zero_point_impl
        self.bit_width_impl = bit_width_impl

    def forward(self, x: Tensor) -> Outputs:
        """Value, scale, zero point and bit width."""
        width = self.bit_width_impl()
        threshold = self.int_scaling_impl(width)
        pre_scale, scale = self.pre_scaling_impl(x, threshold), self.scaling_impl(x, threshold)
        pre_zero, zero = self.pre_zero_point_impl(x, pre_scale, width), self.zero_point_impl(x, scale, width)
        return self.decoupled_int_quant(pre_scale, pre_zero, scale, zero, width, x), scale, zero, width


class PrescaledRestrictIntQuant(nn.Module):
    """To integers and back by a scale that the call gives, as that of a bias: input scale times weight scale.

    Args:
        int_quant: `IntQuant`.
        bit_width_impl: gives the width.
    Raises:
        TypeError: ``int_quant`` is no `IntQuant`.
    """

    def __init__(self, int_quant: nn.Module, bit_width_impl: nn.Module) -> None:
        super().__init__()
        if not isinstance(int_quant, IntQuant):
            raise TypeError(f"`int_quant` must be an IntQuant, got {int_quant!r}")
        self.int_quant, self.bit_width_impl = int_quant, bit_width_impl

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Outputs:
        """Value, scale, zero point 0 and bit width.

        Raises:
            ValueError: no scale.
        """
        given = _checked_scale(scale)
        width, zero = self.bit_width_impl(), torch.zeros((), dtype=given.dtype, device=given.device)
        return self.int_quant(given, zero, width, x), given, zero, width


class PrescaledRestrictIntQuantWithInputBitWidth(nn.Module):
    """The same, with a width that comes from that of the input.

    Args:
        int_quant: `IntQuant`.
        bit_width_impl: gives the width for one of the input: `MsbClampBitWidth`.
    Raises:
        TypeError: ``int_quant`` is no `IntQuant`.
    """

    def __init__(self, int_quant: nn.Module, bit_width_impl: nn.Module) -> None:
        super().__init__()
        if not isinstance(int_quant, IntQuant):
            raise TypeError(f"`int_quant` must be an IntQuant, got {int_quant!r}")
        self.int_quant, self.bit_width_impl = int_quant, bit_width_impl

    def forward(self, x: Tensor, scale: Tensor | None = None, input_bit_width: Tensor | None = None) -> Outputs:
        """Value, scale, zero point 0 and bit width.

        Raises:
            ValueError: no scale, or no width.
        """
        given = _checked_scale(scale)
        if input_bit_width is None:
            raise ValueError("`input_bit_width` must be given: that of the codes that the width comes from, got None")
        width = round_ste(self.bit_width_impl(input_bit_width))
        zero = torch.zeros((), dtype=given.dtype, device=given.device)
        return self.int_quant(given, zero, width, x), given, zero, width


class TruncMsbScaling(nn.Module):
    """Keeps the highest bits: ``2**(input_bit_width - output_bit_width)``."""

    def forward(self, scaling_input: Tensor, input_bit_width: Tensor, output_bit_width: Tensor, signed: bool) -> Tensor:
        """0-d, float32."""
        return power_of_two(input_bit_width - output_bit_width)


class TruncIntQuant(nn.Module):
    """Codes of one width as codes of another: ``clamp(round(code / t))``, which stand for ``(code - z / t) * (s * t)``.

    Args:
        bit_width_impl: gives the width of the result.
        float_to_int_impl: how ``code / t`` is rounded; None for `RoundSte`.
        trunc_scaling_impl: gives t; None for `TruncMsbScaling`.
        narrow_range: whether the range of the result is shortened by one.
        tensor_clamp_impl: which gradients pass; None for `TensorClamp`.
        quant_delay_steps: how many tensors of training pass as they are first.
    Raises:
        TypeError: a part that is no component.
    """

    def __init__(
        self,
        bit_width_impl: nn.Module,
        float_to_int_impl: nn.Module | None = None,
        trunc_scaling_impl: nn.Module | None = None,
        narrow_range: bool = False,
        tensor_clamp_impl: nn.Module | None = None,
        quant_delay_steps: int | None = 0,
    ) -> None:
        super().__init__()
        self.bit_width_impl, self.narrow_range = bit_width_impl, narrow_range
        self.float_to_int_impl = float_to_int_impl or RoundSte()
        self.trunc_scaling_impl = trunc_scaling_impl or TruncMsbScaling()
        self.tensor_clamp_impl = tensor_clamp_impl or TensorClamp()
        check_says("float_to_int_impl", self.float_to_int_impl, *ROUNDINGS)
        check_says("tensor_clamp_impl", self.tensor_clamp_impl, "TensorClamp", "TensorClampSte")
        self.delay_wrapper = DelayWrapper(quant_delay_steps)

    def forward(
        self, x: Tensor, scale: Tensor, zero_point: Tensor, input_bit_width: Tensor, signed: bool | Tensor
    ) -> Outputs:
        """Value, scale, zero point and bit width of the result.

        Args:
            x: values of codes, that is, numbers ``(code - zero_point) * scale``.
        """
        width, is_signed = self.bit_width_impl(), bool(signed)
        codes = round_ste(devices.quotient(widened(x), scale) + zero_point)
        step = self.trunc_scaling_impl(codes, input_bit_width, width, is_signed)
        lo, hi = limits(self.narrow_range, is_signed, width)
        cut = self.tensor_clamp_impl(self.float_to_int_impl(devices.quotient(codes, step)), lo, hi)
        out_scale, out_zero = scale * step, devices.quotient(zero_point, step)
        value = narrowed((cut - out_zero) * out_scale, x.dtype)
        return self.delay_wrapper(x, value), out_scale, out_zero, width


def _checked_scale(scale: Tensor | None) -> Tensor:
    if scale is None:
        raise ValueError(
            "`scale` must be given, that of the input times that of the weight, got None: the input of the layer is "
            "not quantized, or its scale is not known"
        )
    return scale
