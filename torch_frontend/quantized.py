"""How a `QuantTensor` is made: by a quantizer, or of values that are already multiples of a scale."""

import torch
from torch import Tensor

from ..core import checks
from ..core.descriptions import QParams, Quantizer
from ..core.formats import IntegerFormat
from ..core.granularity import PerBlock, PerGroup
from ..core.integer_range import IntegerRange
from . import devices, routes
from . import quant_contractions as quant_contractions  # what operators do, and functions of several
from . import quant_rescaled as quant_rescaled
from .arguments import check_operands, check_tensor
from .arrays import dtype_name, is_concrete, records_gradient, wide_dtype
from .blocks import expand_blocks
from .quant_formats import named, spec_of
from .quant_tensor import QuantTensor, plain_values, wrapped
from .quantizer import choose_qparams, fake_quantize
from .zero_point import middle_code


def quantized_tensor(q: Quantizer, x: Tensor, qparams: QParams | None = None, training: bool = False) -> Tensor:
    """`fake_quantize` of ``x`` as a `QuantTensor`: the same values and gradients, with their codes.

    A float tensor where values are no codes times a positive scale: learned rounding while it is soft, negative scales,
    and other arithmetics.

    Args:
        qparams: None to choose them from ``x``.
        training: kept in the result.
    Raises:
        TypeError, ValueError: as `fake_quantize`. RuntimeError: inside a transform of ``torch.func``.
    """
    _refuse_transforms()
    qparams = choose_qparams(q, x) if qparams is None else check_operands(q, x, qparams)
    if q.relaxed or q.scale.signed or not q.usual:
        return fake_quantize(q, x, qparams)
    scale, zero, offset = qparams.scale.detach(), qparams.zero_point, None
    width = None if qparams.bit_width is None else qparams.bit_width.detach()
    zero = None if zero is None else zero.detach().to(scale.dtype)
    codes = routes.codes(q, x.detach(), scale, zero, routes.seed_of(q, x, qparams), width)
    if isinstance(q.granularity, PerGroup | PerBlock):
        scale = expand_blocks(scale, q.granularity, tuple(x.shape))
        zero = None if zero is None else expand_blocks(zero, q.granularity, tuple(x.shape))
    if zero is not None and q.arithmetic.has_float_zeros:
        zero, offset = torch.full_like(zero, middle_code(q)), zero
    if is_concrete(x, scale) and not records_gradient(x, qparams.scale, qparams.zero_point, qparams.bit_width):
        return QuantTensor(codes, scale, zero, offset, named(q.format), x.dtype, training)
    value = fake_quantize(q, x, qparams)
    return wrapped(value, codes, scale, zero, offset, spec_of(named(q.format)), training)


def quant_tensor(
    value: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | float | None = None,
    bit_width: int = 8,
    signed: bool = True,
    training: bool = False,
) -> Tensor:
    """A `QuantTensor` of values that are ``(code - z) * s`` already, each bit for bit.

    Args:
        value: of any floating-point dtype; gradients go to it.
        scale, zero_point: numbers, or tensors that broadcast against ``value``.
        bit_width, signed: of the codes.
    Raises:
        TypeError: ``value`` is no float tensor, or the width no int. ValueError: in eager mode, a value that is no
            integer of that width times the scale, or a scale that is no positive normal number; in compiled code such a
            value becomes NaN.
    """
    _refuse_transforms()
    check_tensor("value", value)
    checks.check_float("value", dtype_name(value.dtype))
    format, wide = IntegerFormat(bit_width, signed), wide_dtype(value.dtype)
    integers = IntegerRange(format.lo, format.hi, bit_width, signed)
    s = torch.as_tensor(scale, dtype=wide, device=value.device).detach()
    z = None if zero_point is None else torch.as_tensor(zero_point, dtype=wide, device=value.device).detach()
    if is_concrete(value, s):
        checks.check_scale_values(s.cpu().numpy())
    quotient = devices.quotient(value.detach().to(wide), s).round()
    codes = (quotient if z is None else quotient + z).clamp(format.lo, format.hi)
    back = plain_values(QuantTensor(codes, s, z, None, integers, value.dtype))
    wrong = (back != value.detach()) & ~value.detach().isnan()
    if is_concrete(value, s) and bool(wrong.any()):
        index = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"`value` must hold integers of {integers} times the scale, got {value.detach()[index].item()!r} at index "
            f"{index}; quantized_tensor rounds to such"
        )
    codes = torch.where(wrong, torch.nan, codes + 0.0)
    return wrapped(value, codes, s, z, None, spec_of(integers), training)


def _refuse_transforms() -> None:
    """RuntimeError inside of ``torch.func.grad``, ``vmap``, ``jvp`` and so on, whose tensors hold no others."""
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "transforms of torch.func take no QuantTensor: use fake_quantize, or layers with return_quant_tensor=False"
        )
