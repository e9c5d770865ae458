"""Which integers a tensor of codes may hold, before and after arithmetic. Nouns only: nothing is computed on arrays."""

from dataclasses import dataclass

from .formats import BinaryFormat, Format, IntegerFormat, TernaryFormat

CARRIERS = (("float32", 2**22), ("float64", 2**51))  # the largest integers that adding 1.5 * 2**23 (2**52) keeps whole


@dataclass(frozen=True)
class IntegerRange:
    """Integers from ``lo`` to ``hi``, with a name: a width and a sign that have room for them.

    Widths after arithmetic are those of Brevitas, which looks at the width and not at the ends, or as much more as the
    ends need: there the negative of -8 in 4 bits, and sums of a signed and an unsigned tensor, have none.

    Args:
        lo, hi: smallest and largest integer, ``lo <= hi``.
        bits: width; raised to what ``lo`` and ``hi`` need.
        signed: whether negative integers exist; ``lo`` is at least 0 otherwise.

    Raises:
        ValueError: no integer between the ends, or a negative one that is not signed.
    """

    lo: int
    hi: int
    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if self.lo > self.hi or (self.lo < 0 and not self.signed):
            raise ValueError(f"`lo` and `hi` must be ends of a range, from 0 on if unsigned, got {self.lo}, {self.hi}")
        need = max(self.hi, 0).bit_length()
        if self.signed:
            need = 1 + max(need, (-self.lo - 1).bit_length() if self.lo < 0 else 0)
        object.__setattr__(self, "bits", max(self.bits, need, 1))

    @property
    def largest(self) -> int:
        """Largest magnitude."""
        return max(-self.lo, self.hi)

    @property
    def carrier(self) -> str | None:
        """The floating-point dtype that holds every integer of the range, or None if there is none."""
        return next((name for name, most in CARRIERS if self.largest <= most), None)

    @property
    def storage(self) -> str:
        """The integer dtype of the codes: of up to 8 bits int8 or uint8, of up to 32 int32, else int64."""
        if self.bits <= 8:
            return "int8" if self.signed else "uint8"
        return "int32" if self.bits + (not self.signed) <= 32 else "int64"

    @property
    def ends(self) -> tuple[int, int]:
        """The ends that the width and the sign allow."""
        half = 1 << (self.bits - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    def plus(self, other: "IntegerRange") -> "IntegerRange":
        """Of sums."""
        (lo, hi), (other_lo, other_hi) = self.ends, other.ends
        bits = (hi + other_hi - lo - other_lo - 1).bit_length()
        return IntegerRange(self.lo + other.lo, self.hi + other.hi, bits, self.signed or other.signed)

    def minus(self, other: "IntegerRange") -> "IntegerRange":
        """Of differences, always signed."""
        (lo, hi), (other_lo, other_hi) = self.ends, other.ends
        bits = (hi - other_lo - lo + other_hi - 1).bit_length()
        return IntegerRange(self.lo - other.hi, self.hi - other.lo, bits, True)

    def times(self, other: "IntegerRange") -> "IntegerRange":
        """Of products."""
        products = [a * b for a in (self.lo, self.hi) for b in (other.lo, other.hi)]
        return IntegerRange(min(products), max(products), self.bits + other.bits, self.signed or other.signed)

    def negated(self) -> "IntegerRange":
        """Of negatives, always signed: an unsigned width grows by one bit, a signed one if it has to."""
        return IntegerRange(-self.hi, -self.lo, self.bits + (not self.signed), True)

    def magnitude(self) -> "IntegerRange":
        """Of absolute values, never signed."""
        return IntegerRange(max(self.lo, -self.hi, 0), self.largest, max(self.bits - self.signed, 1), False)

    def centred(self) -> "IntegerRange":
        """Of ``code - z`` with any ``z`` of the range."""
        return IntegerRange(self.lo - self.hi, self.hi - self.lo, self.bits + 1, True)

    def joined(self, other: "IntegerRange") -> "IntegerRange":
        """Of what is in either."""
        lo, hi = min(self.lo, other.lo), max(self.hi, other.hi)
        return IntegerRange(lo, hi, max(self.bits, other.bits), self.signed or other.signed)

    def rectified(self) -> "IntegerRange":
        """Of ``max(code, 0)``; the width and the sign stay."""
        return IntegerRange(max(self.lo, 0), max(self.hi, 0), self.bits, self.signed)

    def summed(self, terms: int) -> "IntegerRange":
        """Of sums of ``terms`` integers or fewer: ``ceil(log2((2**bits - 1) * terms))`` bits."""
        bits = (((1 << self.bits) - 1) * terms - 1).bit_length()
        return IntegerRange(min(self.lo * terms, 0), max(self.hi * terms, 0), bits, self.signed)

    def contracted(self, other: "IntegerRange", terms: int) -> "IntegerRange":
        """Of sums of ``terms`` products or fewer: ``ceil(log2((2**bits - 1) * (2**other - 1) * terms))`` bits.

        Source: Brevitas ``max_acc_bit_width_linear``. One more where weights use their lowest code in all terms and it
        has none for that.
        """
        bits = (((1 << self.bits) - 1) * ((1 << other.bits) - 1) * terms - 1).bit_length()
        product = self.times(other)
        return IntegerRange(min(product.lo * terms, 0), max(product.hi * terms, 0), bits, product.signed)

    def __str__(self) -> str:
        return f"{'int' if self.signed else 'uint'}{self.bits}"


def integer_range(format: Format | IntegerRange) -> IntegerRange | None:
    """The range of codes of a format whose numbers are integers, else None. -1 and 1, binary, lie in two bits."""
    match format:
        case IntegerRange():
            return format
        case IntegerFormat():
            return IntegerRange(format.lo, format.hi, format.bits, format.signed)
        case BinaryFormat() | TernaryFormat():
            return IntegerRange(-1, 1, 2, True)
        case _:
            return None
