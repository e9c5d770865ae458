"""Formats: which numbers a quantizer can produce. Nouns only; nothing is computed on arrays here."""

from dataclasses import dataclass


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
