"""Formats: which numbers a quantizer can produce. Nouns only; nothing is computed on arrays here."""

import struct
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from .choice import check_int, choice


@dataclass(frozen=True)
class IntegerFormat:
    """Integers of a given width.

    Range: signed ``[-2**(bits-1), 2**(bits-1) - 1]``, unsigned ``[0, 2**bits - 1]``. ``narrow`` drops one end so that a
    signed range is symmetric (``lo + 1``), and an unsigned one loses its largest value (``hi - 1``).

    Args:
        bits: width, 1 to 16.
        signed: whether negative integers exist.
        narrow: whether the range is shortened by one, see above.

    Attributes:
        lo, hi: smallest and largest code; known from the start, since compilers that trace the frontends would look at
            every field that they come from.

    Raises:
        TypeError: ``bits`` is no ``int``, or a flag is no ``bool``.
        ValueError: ``bits`` is outside 1..16, or the range would hold a single number.

    Source: Brevitas ``min_int``/``max_int`` (same four cases).
    """

    bits: int
    signed: bool = True
    narrow: bool = False
    lo: ClassVar[int] = 0
    hi: ClassVar[int] = 0
    negative_zero = False  # whether the format has a -0.0 beside 0.0
    has_nan = False  # whether a code stands for NaN

    def __post_init__(self) -> None:
        check_int("bits", self.bits)
        for name in ("signed", "narrow"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"`{name}` must be a bool, got {getattr(self, name)!r}")
        if not 1 <= self.bits <= 16:
            raise ValueError(f"`bits` must be in 1..16, got {self.bits}")
        if self.narrow and self.bits == 1:
            raise ValueError("`bits` must be at least 2 for a narrow range (1 bit would leave only 0), got 1")
        half = 1 << (self.bits - 1)
        lo, hi = (self.narrow - half, half - 1) if self.signed else (0, 2 * half - 1 - self.narrow)
        object.__setattr__(self, "lo", lo)
        object.__setattr__(self, "hi", hi)

    @property
    def storage(self) -> str:
        """Name of the dtype that holds codes: the first of int8, uint8, int16, int32 that contains ``[lo, hi]``."""
        for name, lo, hi in (("int8", -128, 127), ("uint8", 0, 255), ("int16", -(2**15), 2**15 - 1)):
            if lo <= self.lo and self.hi <= hi:
                return name
        return "int32"

    def __str__(self) -> str:
        return f"{'int' if self.signed else 'uint'}{self.bits}{' narrow' if self.narrow else ''}"


class Specials(StrEnum):
    """Which codes of a floating-point format are no numbers."""

    IEEE = "ieee"  # the top exponent holds infinities (significand 0) and NaNs (float8_e5m2, float16, bfloat16)
    NAN_ONLY = "nan_only"  # all ones is NaN, no infinity ("fn": float8_e4m3fn)
    NEGATIVE_ZERO = "negative_zero"  # the code of -0 is the only NaN, no infinity ("fnuz")
    NONE = "none"  # every code is a number (OCP float6, float4)


@dataclass(frozen=True)
class FloatFormat:
    """Floating-point numbers of a sign, ``exponent_bits`` and ``mantissa_bits``, with subnormals.

    Value of a code with exponent field ``e`` and significand field ``m``:
    ``2**(e - bias) * (1 + m / 2**mantissa_bits)``, or ``2**(1 - bias) * m / 2**mantissa_bits`` for ``e == 0``.

    Args:
        exponent_bits: 1 to 8.
        mantissa_bits: 0 to 10; the code has ``1 + exponent_bits + mantissa_bits`` bits, at most 16.
        bias: None for ``2**(exponent_bits - 1) - 1``, one more for `Specials.NEGATIVE_ZERO`.
        specials: which codes are no numbers.
        saturate: whether magnitudes beyond the largest number become it; else infinity, or NaN without infinities, or
            (with neither) the largest number.

    Raises:
        TypeError: a width or bias that is no int, ``saturate`` no bool.
        ValueError: a width out of range, an unknown ``specials``, or a bias that puts numbers outside float32.

    Source: IEEE 754-2019, OCP 8-bit Floating Point Specification 1.0, OCP Microscaling Formats 1.0; "fnuz" is
    arXiv 2206.02915.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int | None = None
    specials: Specials = Specials.IEEE
    saturate: bool = True

    @property
    def negative_zero(self) -> bool:
        """Whether the format has a -0.0 beside 0.0."""
        return self.specials is not Specials.NEGATIVE_ZERO

    @property
    def has_nan(self) -> bool:
        """Whether a code stands for NaN."""
        infinity_alone = self.specials is Specials.IEEE and self.mantissa_bits == 0
        return self.specials is not Specials.NONE and not infinity_alone

    def __post_init__(self) -> None:
        for name, low, high in (("exponent_bits", 1, 8), ("mantissa_bits", 0, 10)):
            value = getattr(self, name)
            check_int(name, value)
            if not low <= value <= high:
                raise ValueError(f"`{name}` must be in {low}..{high}, got {value}")
        if self.bits > 16:
            raise ValueError(f"`exponent_bits` + `mantissa_bits` + 1 must be at most 16, got {self.bits}")
        if not isinstance(self.saturate, bool):
            raise TypeError(f"`saturate` must be a bool, got {self.saturate!r}")
        object.__setattr__(self, "specials", choice("specials", self.specials, Specials))
        if self.bias is None:
            usual = 2 ** (self.exponent_bits - 1) - (self.specials is not Specials.NEGATIVE_ZERO)
            object.__setattr__(self, "bias", usual)
        check_int("bias", self.bias)
        if self.min_exponent < -126 or self.max_exponent > 127:
            raise ValueError(f"`bias` must keep the exponents within float32's -126..127, got {self.bias}")

    @property
    def offset(self) -> int:
        """The bias, as a number even where it was left to its default."""
        return self.bias if self.bias is not None else 0

    @property
    def bits(self) -> int:
        """Width of a code, sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number; subnormals are multiples of ``2**(min_exponent - mantissa_bits)``."""
        return 1 - self.offset

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest number."""
        top = (1 << self.exponent_bits) - 1 - (self.specials is Specials.IEEE)
        if self.specials is Specials.NAN_ONLY and self.mantissa_bits == 0:
            top -= 1
        return top - self.offset

    @property
    def hi(self) -> float:
        """Largest number; a subnormal one where the special codes leave no other exponent."""
        missing = 1 + (self.specials is Specials.NAN_ONLY and self.mantissa_bits > 0)
        missing += self.max_exponent < self.min_exponent
        return float(2.0**self.max_exponent * (2 - missing * 2.0**-self.mantissa_bits))

    @property
    def lo(self) -> float:
        """Smallest number."""
        return -self.hi

    @property
    def storage(self) -> str:
        """Name of the dtype that holds the bits of a code: uint8 up to 8 bits, else int32."""
        return "uint8" if self.bits <= 8 else "int32"

    def __str__(self) -> str:
        suffix = {"ieee": "", "nan_only": "fn", "negative_zero": "fnuz", "none": ""}[self.specials]
        return f"float{self.bits} e{self.exponent_bits}m{self.mantissa_bits}{suffix}"


@dataclass(frozen=True)
class BinaryFormat:
    """The numbers -1 and +1: the sign, where zero of either sign counts as positive. Codes are -1 and 1.

    Source: BinaryConnect, arXiv 1511.00363; Brevitas ``binary_sign``.
    """

    negative_zero = False
    has_nan = False
    bits = 1
    lo = -1
    hi = 1
    storage = "int8"

    def __str__(self) -> str:
        return "binary"


@dataclass(frozen=True)
class TernaryFormat:
    """The numbers -1, 0 and +1: the sign where ``|x / s| > threshold``, else 0. Codes are -1, 0 and 1.

    Args:
        threshold: in units of the scale, 0 <= threshold < 1; rounded to the dtype of the arithmetic.

    Attributes:
        decimal: the threshold as text, exact: what compilers that trace Python take for a constant, where a float may
            become a variable.

    Raises:
        ValueError: a threshold outside [0, 1).

    Source: Ternary Weight Networks, arXiv 1605.04711; Brevitas ``TernaryQuant`` (which compares with a rounded
    ``threshold * s`` instead of dividing).
    """

    threshold: float = 0.5
    decimal: str = field(init=False, repr=False, compare=False)
    negative_zero = False
    has_nan = False
    bits = 2
    lo = -1
    hi = 1
    storage = "int8"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(f"`threshold` must be in [0, 1), got {self.threshold!r}")
        object.__setattr__(self, "decimal", repr(float(self.threshold)))

    def __str__(self) -> str:
        return f"ternary {self.threshold:g}"


@dataclass(frozen=True)
class CodebookFormat:
    """The numbers of a list; the code is the index. A number goes to the nearest, by float32 midpoints.

    Between neighbours ``a < b`` everything above ``float32((a + b) / 2)`` goes to b, the midpoint itself to a.

    Args:
        values: 2 to 256 finite numbers, ascending, each a float32 number.

    Attributes:
        midpoints: float32 numbers between neighbours: above goes up.
        decimals: the values, and midpoint_decimals: the midpoints, as text, exact; see `TernaryFormat`.

    Raises:
        TypeError: no tuple of floats.
        ValueError: too few or many, not ascending, not numbers of float32, or -0.0 (dequantized codes have one zero).

    Source: NF4 of QLoRA, arXiv 2305.14314, is `NF4`.
    """

    values: tuple[float, ...]
    midpoints: tuple[float, ...] = field(init=False, repr=False, compare=False)
    decimals: tuple[str, ...] = field(init=False, repr=False, compare=False)
    midpoint_decimals: tuple[str, ...] = field(init=False, repr=False, compare=False)
    negative_zero = False
    has_nan = False
    storage = "uint8"

    def __post_init__(self) -> None:
        if not isinstance(self.values, tuple) or not all(isinstance(v, float) for v in self.values):
            raise TypeError(f"`values` must be a tuple of floats, got {self.values!r}")
        if not 2 <= len(self.values) <= 256:
            raise ValueError(f"`values` must hold 2 to 256 numbers, got {len(self.values)}")
        if any(a >= b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError(f"`values` must be ascending, got {self.values!r}")
        if any(struct.unpack("f", struct.pack("f", v))[0] != v for v in self.values):
            raise ValueError(f"`values` must be numbers of float32, got {self.values!r}")
        if any(struct.pack("f", v) == struct.pack("f", -0.0) for v in self.values):
            raise ValueError(f"`values` must hold 0.0 rather than -0.0, got {self.values!r}")
        pairs = zip(self.values, self.values[1:], strict=False)
        midpoints = tuple(struct.unpack("f", struct.pack("f", (a + b) / 2))[0] for a, b in pairs)
        object.__setattr__(self, "midpoints", midpoints)
        object.__setattr__(self, "decimals", tuple(map(repr, self.values)))
        object.__setattr__(self, "midpoint_decimals", tuple(map(repr, midpoints)))

    @property
    def bits(self) -> int:
        """Width of a code."""
        return (len(self.decimals) - 1).bit_length()

    @property
    def lo(self) -> float:
        """Smallest number."""
        return float(self.decimals[0])

    @property
    def hi(self) -> float:
        """Largest number."""
        return float(self.decimals[-1])

    def __str__(self) -> str:
        return f"codebook of {len(self.values)}"


FLOAT8_E4M3FN = FloatFormat(4, 3, specials=Specials.NAN_ONLY)
FLOAT8_E5M2 = FloatFormat(5, 2)
FLOAT8_E4M3FNUZ = FloatFormat(4, 3, specials=Specials.NEGATIVE_ZERO)
FLOAT8_E5M2FNUZ = FloatFormat(5, 2, specials=Specials.NEGATIVE_ZERO)
FLOAT8_E3M4 = FloatFormat(3, 4)
FLOAT6_E3M2 = FloatFormat(3, 2, specials=Specials.NONE)
FLOAT6_E2M3 = FloatFormat(2, 3, specials=Specials.NONE)
FLOAT4_E2M1 = FloatFormat(2, 1, specials=Specials.NONE)
FLOAT16 = FloatFormat(5, 10)
BFLOAT16 = FloatFormat(8, 7)

# NormalFloat: quantiles of the normal distribution, normalised to [-1, 1] (QLoRA, arXiv 2305.14314, appendix E)
NF4 = CodebookFormat(
    tuple(
        struct.unpack("f", struct.pack("f", v))[0]
        for v in (
            -1.0,
            -0.6961928009986877,
            -0.5250730514526367,
            -0.39491748809814453,
            -0.28444138169288635,
            -0.18477343022823334,
            -0.09105003625154495,
            0.0,
            0.07958029955625534,
            0.16093020141124725,
            0.24611230194568634,
            0.33791524171829224,
            0.44070982933044434,
            0.5626170039176941,
            0.7229568362236023,
            1.0,
        )
    )
)

Format = IntegerFormat | FloatFormat | BinaryFormat | TernaryFormat | CodebookFormat


def significand_bits(format: Format) -> int:
    """Bits behind the point of the largest number's significand: 3 for float8_e4m3fn, 6 for int8."""
    return format.mantissa_bits if isinstance(format, FloatFormat) else int(format.hi).bit_length() - 1
