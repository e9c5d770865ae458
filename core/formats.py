"""Formats: which numbers a quantizer can produce. Nouns only; nothing is computed on arrays here."""

from dataclasses import dataclass
from enum import StrEnum

from .choice import choice


@dataclass(frozen=True)
class IntegerFormat:
    """Integers of a given width.

    Range: signed ``[-2**(bits-1), 2**(bits-1) - 1]``, unsigned ``[0, 2**bits - 1]``. ``narrow`` drops one end so that a
    signed range is symmetric (``lo + 1``), and an unsigned one loses its largest value (``hi - 1``).

    Args:
        bits: width, 1 to 16.
        signed: whether negative integers exist.
        narrow: whether the range is shortened by one, see above.

    Raises:
        TypeError: ``bits`` is no ``int``, or a flag is no ``bool``.
        ValueError: ``bits`` is outside 1..16, or the range would hold a single number.

    Source: Brevitas ``min_int``/``max_int`` (same four cases).
    """

    bits: int
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or isinstance(self.bits, bool):
            raise TypeError(f"`bits` must be an int, got {self.bits!r}")
        for name in ("signed", "narrow"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"`{name}` must be a bool, got {getattr(self, name)!r}")
        if not 1 <= self.bits <= 16:
            raise ValueError(f"`bits` must be in 1..16, got {self.bits}")
        if self.narrow and self.bits == 1:
            raise ValueError("`bits` must be at least 2 for a narrow range (1 bit would leave only 0), got 1")

    @property
    def lo(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) + self.narrow if self.signed else 0

    @property
    def hi(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1 - self.narrow

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

    Value of a code with exponent field ``e`` and significand field ``m``: ``2**(e - bias) * (1 + m / 2**mantissa_bits)``,
    or ``2**(1 - bias) * m / 2**mantissa_bits`` for ``e == 0``.

    Args:
        exponent_bits: 1 to 8.
        mantissa_bits: 0 to 10; the code has ``1 + exponent_bits + mantissa_bits`` bits, at most 16.
        bias: None for ``2**(exponent_bits - 1) - 1``, one more for `Specials.NEGATIVE_ZERO`.
        specials: which codes are no numbers.
        saturate: whether magnitudes beyond the largest number become it; else infinity, or NaN without infinities, or
            (with neither) the largest number.

    Raises:
        TypeError: a width that is no int, ``saturate`` no bool.
        ValueError: a width out of range, an unknown ``specials``, or a bias that puts numbers outside float32.

    Source: IEEE 754-2019, OCP 8-bit Floating Point Specification 1.0, OCP Microscaling Formats 1.0; "fnuz" arXiv 2206.02915.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int | None = None
    specials: Specials = Specials.IEEE
    saturate: bool = True

    def __post_init__(self) -> None:
        for name, low, high in (("exponent_bits", 1, 8), ("mantissa_bits", 0, 10)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"`{name}` must be an int, got {value!r}")
            if not low <= value <= high:
                raise ValueError(f"`{name}` must be in {low}..{high}, got {value}")
        if self.bits > 16:
            raise ValueError(f"`exponent_bits` and `mantissa_bits` must make at most 16 bits with the sign, got {self.bits}")
        if not isinstance(self.saturate, bool):
            raise TypeError(f"`saturate` must be a bool, got {self.saturate!r}")
        object.__setattr__(self, "specials", choice("specials", self.specials, Specials))
        if self.bias is None:
            usual = 2 ** (self.exponent_bits - 1) - (self.specials is not Specials.NEGATIVE_ZERO)
            object.__setattr__(self, "bias", usual)
        if not -126 <= 1 - self.offset or self.max_exponent > 127:
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
        top = 2**self.exponent_bits - 1 - (self.specials is Specials.IEEE)
        if self.specials is Specials.NAN_ONLY and self.mantissa_bits == 0:
            top -= 1
        return top - self.offset

    @property
    def hi(self) -> float:
        """Largest number."""
        missing = 1 + (self.specials is Specials.NAN_ONLY and self.mantissa_bits > 0)
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
