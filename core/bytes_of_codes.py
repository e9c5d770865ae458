"""How many bytes packed codes fill, and whether they can be packed: see `packing`. Nouns only."""

from .choice import check_count, check_int
from .descriptions import Quantizer
from .formats import BinaryFormat, CodebookFormat, FloatFormat

SMALL = ("int8", "uint8")


def packed_length(length: int, bits: int) -> int:
    """Bytes that ``length`` codes of ``bits`` bits fill."""
    return -(-length * bits // 8)


def check_width(bits: object) -> None:
    """TypeError, ValueError unless ``bits`` is an int in 1..8."""
    check_int("bits", bits)
    if not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"`bits` must be in 1..8, got {bits}")


def check_packable(dtype: str, axes: int, bits: int) -> None:
    """Whether codes of this dtype can be packed.

    Raises:
        TypeError: another dtype than int8 and uint8, or a width that is no int. ValueError: no axis, or a width not in
            1..8.
    """
    check_width(bits)
    if dtype not in SMALL:
        raise TypeError(f"`codes` must have dtype int8 or uint8, got {dtype}")
    if not axes:
        raise ValueError("`codes` must have an axis to be packed along, got shape ()")


def check_packed(dtype: str, shape: tuple[int, ...], bits: int, length: int) -> None:
    """Whether these are the bytes of ``length`` codes.

    Raises:
        TypeError: another dtype than uint8. ValueError: another number of bytes, or a width not in 1..8.
    """
    check_width(bits)
    check_count("length", length, 0)
    if dtype != "uint8":
        raise TypeError(f"`packed` must have dtype uint8, got {dtype}")
    if not shape or shape[-1] != packed_length(length, bits):
        want = packed_length(length, bits)
        raise ValueError(
            f"`packed` must have {want} bytes on its last axis for {length} codes of {bits} bits, got shape {shape}"
        )


def code_width(q: Quantizer) -> int:
    """Bits that a code of ``q`` needs; -1 and 1 of a binary format, with a sign, need two."""
    return 2 if isinstance(q.format, BinaryFormat) else int(q.format.bits)


def has_signs(q: Quantizer) -> bool:
    """Whether there are negative codes: of integers alone. (Codes of unsigned ones may lie in int8 all the same.)"""
    return stored_range(q)[0] < 0


def stored_range(q: Quantizer) -> tuple[int, int]:
    """Smallest and largest code as it is stored: of floats and codebooks, numbers without a sign."""
    format = q.format
    if isinstance(format, FloatFormat | CodebookFormat):
        return 0, (len(format.decimals) if isinstance(format, CodebookFormat) else 1 << format.bits) - 1
    return int(format.lo), int(format.hi)


def check_stored(q: Quantizer, least: int, most: int) -> None:
    """ValueError unless codes from ``least`` to ``most`` are codes of ``q``."""
    lo, hi = stored_range(q)
    if least < lo or most > hi:
        raise ValueError(f"`codes` of {q.format} must lie in [{lo}, {hi}], got codes from {least} to {most}")


def is_packed(q: Quantizer, layout: str) -> bool:
    """Whether codes of ``q`` lie packed in this layout: those that need less than 8 bits."""
    return layout == "packed" and q.format.storage in SMALL and code_width(q) < 8
