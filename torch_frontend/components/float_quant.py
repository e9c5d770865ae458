"""Tensor quantizers to floating-point numbers of few bits: ``tensor_quant``.

See `samebits.torch_frontend.components.tensor_quant`.
"""

from torch import nn

from ...core.formats import FloatFormat, Specials
from . import quantizing
from .clamp import TensorClamp
from .delay import DelayWrapper
from .description import check_says, described, join
from .int_quant import ROUNDINGS
from .rounding import RoundSte
from .scaling import ConstScaling


class FloatQuant(nn.Module):
    """To floating-point numbers of few bits and back.

    Args:
        exponent_bit_width, mantissa_bit_width: of the numbers, beside the sign.
        scaling_impl: what gives the scale: a scaling, or any module whose ``forward(x)`` does; None for a scale of 1.
        exponent_bias: None for the usual one.
        specials: which codes are no numbers, see `Specials`.
        saturating: whether magnitudes beyond the largest number become it.
        float_to_int_impl: how it rounds; None for `RoundSte`.
        tensor_clamp_impl: which gradients pass; None for `TensorClamp`.
        quant_delay_steps: how many tensors of training pass unquantized first.
    Raises:
        TypeError, ValueError: no format, as `FloatFormat`; TypeError: a part that is no component.
    """

    qparams, waits, quantized, forward = quantizing.qparams, quantizing.waits, quantizing.quantized, quantizing.forward
    quantizer, bit_width = property(quantizing.description), property(quantizing.learned_width)
    _apply = quantizing.apply_with_mark

    def __init__(
        self,
        exponent_bit_width: int,
        mantissa_bit_width: int,
        scaling_impl: nn.Module | None = None,
        exponent_bias: int | None = None,
        specials: Specials | str = Specials.NONE,
        saturating: bool = True,
        float_to_int_impl: nn.Module | None = None,
        tensor_clamp_impl: nn.Module | None = None,
        quant_delay_steps: int | None = 0,
    ) -> None:
        super().__init__()
        self.float_to_int_impl = float_to_int_impl or RoundSte()
        self.tensor_clamp_impl = tensor_clamp_impl or TensorClamp()
        check_says("float_to_int_impl", self.float_to_int_impl, *ROUNDINGS)
        check_says("tensor_clamp_impl", self.tensor_clamp_impl, "TensorClamp", "TensorClampSte")
        widths = (exponent_bit_width, mantissa_bit_width)
        self.format = FloatFormat(*widths, exponent_bias, Specials(specials), saturating)
        # a scale of 1 is a magnitude of the largest number over that
        self.scaling_impl = ConstScaling(self.format.hi) if scaling_impl is None else scaling_impl
        self.delay_wrapper = DelayWrapper(quant_delay_steps)
        parts = (self.float_to_int_impl, self.tensor_clamp_impl, self.delay_wrapper)
        quantizing.become(self, join(described(self.format, self.scaling_impl, *parts), self.scaling_impl))

    def extra_repr(self) -> str:
        """The numbers."""
        return str(self.format)
