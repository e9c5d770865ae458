"""Tensor quantizers of one and two bits: ``tensor_quant``.

Each gives value, scale, zero point and bit width of a tensor, and is a description beside it, ``quantizer``, of which
it has the bits: `samebits.torch_frontend.fake_quantize`.
"""

from torch import nn

from ...core.formats import BinaryFormat, TernaryFormat
from . import quantizing
from .clamp import TensorClamp, TensorClampSte
from .delay import DelayWrapper
from .description import check_says, described, join


class BinaryQuant(nn.Module):
    """The sign, times a scale; gradients pass everywhere.

    Args:
        scaling_impl: what gives the scale: a scaling, or any module whose ``forward(x)`` does.
        signed: True.
        quant_delay_steps: how many tensors of training pass unquantized first.
    Raises:
        ValueError: ``signed`` is not True.
    """

    qparams, waits, quantized, forward = quantizing.qparams, quantizing.waits, quantizing.quantized, quantizing.forward
    quantizer, bit_width = property(quantizing.description), property(quantizing.learned_width)
    _apply = quantizing.apply_with_mark

    def __init__(self, scaling_impl: nn.Module, signed: bool = True, quant_delay_steps: int | None = 0) -> None:
        super().__init__()
        _check_signed(signed)
        self.scaling_impl, self.delay_wrapper = scaling_impl, DelayWrapper(quant_delay_steps)
        q = described(BinaryFormat(), scaling_impl, TensorClampSte(), self.delay_wrapper)
        quantizing.become(self, join(q, scaling_impl))


class ClampedBinaryQuant(nn.Module):
    """The sign, times a scale; gradients pass where magnitudes do not exceed it.

    Args:
        scaling_impl: what gives the scale: a scaling, or any module whose ``forward(x)`` does.
        tensor_clamp_impl: which gradients pass; None for `TensorClamp`.
        signed: True.
        quant_delay_steps: how many tensors of training pass unquantized first.
    Raises:
        TypeError: ``tensor_clamp_impl`` is no component. ValueError: ``signed`` is not True.
    """

    qparams, waits, quantized, forward = quantizing.qparams, quantizing.waits, quantizing.quantized, quantizing.forward
    quantizer, bit_width = property(quantizing.description), property(quantizing.learned_width)
    _apply = quantizing.apply_with_mark

    def __init__(
        self,
        scaling_impl: nn.Module,
        tensor_clamp_impl: nn.Module | None = None,
        signed: bool = True,
        quant_delay_steps: int | None = 0,
    ) -> None:
        super().__init__()
        _check_signed(signed)
        clamp = tensor_clamp_impl or TensorClamp()
        check_says("tensor_clamp_impl", clamp, "TensorClamp", "TensorClampSte")
        self.scaling_impl, self.tensor_clamp_impl = scaling_impl, clamp
        self.delay_wrapper = DelayWrapper(quant_delay_steps)
        q = described(BinaryFormat(), scaling_impl, clamp, self.delay_wrapper)
        quantizing.become(self, join(q, scaling_impl))


class TernaryQuant(nn.Module):
    """The sign, times a scale, where ``|x / scale|`` exceeds a threshold, else 0.

    Args:
        scaling_impl: what gives the scale: a scaling, or any module whose ``forward(x)`` does.
        threshold: in units of the scale, in [0, 1).
        tensor_clamp_impl: which gradients pass; None for `TensorClamp`.
        quant_delay_steps: how many tensors of training pass unquantized first.
    Raises:
        TypeError: ``tensor_clamp_impl`` is no component. ValueError: a threshold out of range.
    """

    qparams, waits, quantized, forward = quantizing.qparams, quantizing.waits, quantizing.quantized, quantizing.forward
    quantizer, bit_width = property(quantizing.description), property(quantizing.learned_width)
    _apply = quantizing.apply_with_mark

    def __init__(
        self,
        scaling_impl: nn.Module,
        threshold: float = 0.5,
        tensor_clamp_impl: nn.Module | None = None,
        quant_delay_steps: int | None = 0,
    ) -> None:
        super().__init__()
        clamp = tensor_clamp_impl or TensorClamp()
        check_says("tensor_clamp_impl", clamp, "TensorClamp", "TensorClampSte")
        self.scaling_impl, self.tensor_clamp_impl = scaling_impl, clamp
        self.delay_wrapper = DelayWrapper(quant_delay_steps)
        q = described(TernaryFormat(threshold), scaling_impl, clamp, self.delay_wrapper)
        quantizing.become(self, join(q, scaling_impl))

    def extra_repr(self) -> str:
        """The threshold."""
        return f"threshold={self.quantizer.format.threshold:g}"


def _check_signed(signed: bool) -> None:
    if signed is not True:
        raise ValueError(f"`signed` must be True for binary quantization, whose numbers are -1 and 1, got {signed!r}")
