"""What a `QuantTensor` keeps of a format, and the same as constants of Python."""

from typing import Any

from torch import Tensor

from ..core.descriptions import Quantizer
from ..core.formats import BinaryFormat, CodebookFormat, FloatFormat, Format, Specials, TernaryFormat
from ..core.integer_range import IntegerRange, integer_range
from .grid import limit_to_grid, round_to_grid

Numbers = IntegerRange | FloatFormat | BinaryFormat | TernaryFormat | CodebookFormat


def spec_of(format: Numbers) -> tuple[Any, ...]:
    """A format as constants of Python, which traced programs, checkpoints and guards may hold."""
    if isinstance(format, IntegerRange):
        return ("integers", format.lo, format.hi, format.bits, format.signed)
    if isinstance(format, FloatFormat):
        widths = (format.exponent_bits, format.mantissa_bits, format.offset)
        return ("float", *widths, str(format.specials), format.saturate)
    if isinstance(format, TernaryFormat):
        return ("ternary", format.decimal)
    return ("codebook", *format.decimals) if isinstance(format, CodebookFormat) else ("binary",)


def format_of(spec: tuple[Any, ...]) -> Numbers:
    """The format that `spec_of` was given. ValueError for what is none."""
    match list(spec):
        case ["integers", lo, hi, bits, signed]:
            return IntegerRange(lo, hi, bits, signed)
        case ["float", e, m, bias, specials, saturate]:
            return FloatFormat(e, m, bias, Specials(specials), saturate)
        case ["ternary", threshold]:
            return TernaryFormat(float(threshold))
        case ["codebook", *numbers]:
            return CodebookFormat(tuple(map(float, numbers)))
        case ["binary"]:
            return BinaryFormat()
        case _:
            raise ValueError(f"`spec` must be what `spec_of` gives, got {spec!r}")


def named(format: Format) -> Numbers:
    """What a tensor keeps of a quantizer's format: of integers their range."""
    return format if isinstance(format, Numbers) else integer_range(format) or IntegerRange(0, 0, 1, False)


def on_grid(format: Numbers, numbers: Tensor) -> Tensor:
    """The numbers of the format next to these."""
    if isinstance(format, IntegerRange):
        return numbers.round().clamp(format.lo, format.hi)
    q = Quantizer(format=format)
    return limit_to_grid(q, round_to_grid(q, numbers))
