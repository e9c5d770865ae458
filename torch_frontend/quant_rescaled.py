"""Codes that change on the way: cut to fewer bits, or interpolated. Gradients pass as if nothing were rounded."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..core.choice import check_count, choice
from ..core.directions import DETERMINISTIC, Rounding
from ..core.integer_range import IntegerRange, integer_range
from .quant_arithmetic import centred, centred_range, whole
from .quant_borders import IN_GRAPH, gated, marked
from .quant_formats import spec_of
from .quant_tensor import FUNCTIONS, QuantTensor, wrapped
from .rounding import round_to_integer


def truncated(t: Tensor, bits: int, rounding: Rounding | str = Rounding.TIES_TO_EVEN) -> Tensor:
    """A `QuantTensor` in fewer bits: ``clamp(round((code - z) / 2**n))`` with the scale ``s * 2**n``, n bits dropped.

    Every step is exact, as in `accumulator.truncate`; of any width, in any sign. One that has no more bits stays, and
    so does what is no tensor of integer codes.

    Args:
        bits: width of the result.
        rounding: a direction that looks at nothing but the number.
    Raises:
        TypeError: ``bits`` is no int. ValueError: it is below 1, or another rounding.
    """
    check_count("bits", bits, 1)
    direction = choice("rounding", rounding, Rounding)
    if direction not in DETERMINISTIC:
        raise ValueError(f"`rounding` must look at nothing but the number, got '{direction}'")
    if not isinstance(t, QuantTensor):
        return t
    if torch.compiler.is_compiling():
        marked()
    return _truncated(t, bits, str(direction))


def interpolated(
    t: Tensor,
    size: int | tuple[int, ...] | None,
    factor: float | tuple[float, ...] | None,
    mode: str,
    align_corners: bool | None = None,
) -> Tensor:
    """``torch.nn.functional.interpolate`` of a `QuantTensor` in its format: codes are interpolated and rounded.

    By halves to even and into the format's range. ``nearest`` moves codes and rounds nothing. Linear interpolation by
    powers of two without ``align_corners`` is exact before it is rounded, and so has the same bits everywhere; other
    factors have rounded weights. What has no integer codes is interpolated as values, to a float tensor.
    """
    if not isinstance(t, QuantTensor):
        return functional.interpolate(t, size, factor, mode, align_corners)
    if torch.compiler.is_compiling():
        marked()
    return _interpolated(t, size, factor, mode, align_corners)


def _truncated(t: QuantTensor, bits: int, rounding: str) -> Tensor:
    integers = integer_range(t.format)
    if integers is None or t.offset is not None:
        return t
    format = centred_range(t, integers)
    if format.bits <= bits:
        return t
    result: Tensor = _Truncated.apply(gated(t), format, bits, Rounding(rounding))  # type: ignore[no-untyped-call]
    return result


class _Truncated(torch.autograd.Function):
    """`truncated`."""

    @staticmethod
    def forward(ctx: Any, t: QuantTensor, source: IntegerRange, bits: int, rounding: Rounding) -> QuantTensor:
        step = 2.0 ** (source.bits - bits)
        half = 1 << (bits - 1)
        lo, hi = (-half, half - 1) if source.signed else (0, 2 * half - 1)
        codes = whole(round_to_integer(centred(t) * (1 / step), rounding).clamp(lo, hi))
        format = IntegerRange(lo, hi, bits, source.signed)
        codes = codes.float() if format.carrier == "float32" and t.dtype != torch.float64 else codes
        return t.with_codes(codes, scale=t.scale * step, zero=None, format=format)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return g, None, None, None


def _interpolated(t: QuantTensor, size: Any, factor: Any, mode: str, align_corners: bool | None) -> Tensor:
    value = functional.interpolate(t.dequantize(), size, factor, mode, align_corners)
    integers, parts = integer_range(t.format), [p for p in (t.scale, t.zero, t.offset) if p is not None]
    axes = value.ndim - 2
    fixed = all(p.numel() == 1 or all(n == 1 for n in p.shape[-axes:]) for p in parts)
    if fixed and mode.startswith("nearest"):
        codes = functional.interpolate(t.codes.detach(), size, factor, mode)
        return wrapped(value, codes, t.scale, t.zero, t.offset, spec_of(t.format), t.training)
    if integers is None or t.offset is not None or not fixed:
        return value
    codes = functional.interpolate(centred(t).detach(), size, factor, mode, align_corners).round()
    codes = codes if t.zero is None else codes + t.zero
    codes = whole(codes.clamp(integers.lo, integers.hi))
    format = t.format if isinstance(t.format, IntegerRange) else integers
    return wrapped(value, codes, t.scale, t.zero, None, spec_of(format), t.training)


def _interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """``torch.nn.functional.interpolate``; of a `QuantTensor` by codes where that moves them, else by values.

    (Compiled, torch's own is one of indices, which tracers take for constants.)
    """
    rest = (recompute_scale_factor, antialias)
    if mode.startswith("nearest") and isinstance(input, QuantTensor) and rest == (None, False):
        return _interpolated(input, size, scale_factor, mode, align_corners)
    return functional.interpolate(
        input.dequantize(), size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
    )


def _pad(input: Tensor, pad: list[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """``torch.nn.functional.pad``; circular by joining slices, since torch writes them into a new tensor."""
    if mode != "circular":
        return functional.pad(input, pad, mode, value)
    for i in range(len(pad) // 2):
        axis, (before, after) = input.ndim - 1 - i, pad[2 * i : 2 * i + 2]
        n = input.shape[axis]
        if not (0 <= before <= n and 0 <= after <= n):
            raise ValueError(f"`pad` must be 0 to {n} along axis {axis} of length {n}, got {before} and {after}")
        input = torch.cat([input.narrow(axis, n - before, before), input, input.narrow(axis, 0, after)], axis)
    return input


FUNCTIONS[functional.interpolate] = _interpolate
FUNCTIONS[functional.pad] = FUNCTIONS[torch._C._nn.pad] = _pad  # the second is what compiled code calls
IN_GRAPH += [_truncated, _interpolated]
