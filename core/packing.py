"""Codes of less than 8 bits in as few bytes as they need, row by row. Here by definition: a row is one long integer.

A row of ``n`` codes of ``b`` bits fills ``ceil(n * b / 8)`` bytes from the highest bit down, each code with its highest
bit first; what is left of the last byte is 0. So of two 4-bit codes the one of the even column is in the high nibble.
Of signed codes the lowest ``b`` bits of two's complement are stored.

Source: for 4 bits torchao's int4 tensors (even columns in the high nibble).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bytes_of_codes import check_packable, check_packed, packed_length

Array = NDArray[Any]


def pack(codes: Array, bits: int) -> Array:
    """Bytes of codes, along the last axis.

    Args:
        codes: int8 or uint8 ``(..., n)``, each fits ``bits`` bits; ``bits``: 1 to 8.
    Returns:
        uint8 ``(..., ceil(n * bits / 8))``.
    Raises:
        TypeError, ValueError: another dtype or width, no axis, or a code that needs more bits.
    """
    codes = np.asarray(codes)
    check_packable(codes.dtype.name, codes.ndim, bits)
    if codes.size and not _fits(codes, bits):
        raise ValueError(f"`codes` must fit {bits} bits, got codes from {codes.min()} to {codes.max()}")
    length = packed_length(codes.shape[-1], bits)
    rows = codes.reshape(-1, codes.shape[-1]) if codes.size else np.zeros((0, 0), codes.dtype)
    packed = np.zeros((len(rows), length), np.uint8)
    for row, out in zip(rows, packed, strict=True):
        digits = "".join(format(int(code) % 2**bits, f"0{bits}b") for code in row)
        out[:] = np.frombuffer(int(digits.ljust(8 * length, "0"), 2).to_bytes(length, "big"), np.uint8)
    return packed.reshape(*codes.shape[:-1], length)


def unpack(packed: Array, bits: int, length: int, signed: bool) -> Array:
    """Codes of bytes, along the last axis: int8 if ``signed``, else uint8, ``(..., length)``.

    Args:
        packed: uint8, as `pack` gives it for ``length`` codes.
    Raises:
        TypeError, ValueError: another dtype or width, or bytes for another number of codes.
    """
    packed = np.asarray(packed)
    check_packed(packed.dtype.name, packed.shape, bits, length)
    dtype = np.int8 if signed else np.uint8
    codes = np.zeros((*packed.shape[:-1], length), dtype)
    if not codes.size:
        return codes
    flat = codes.reshape(-1, length)
    for row, out in zip(packed.reshape(-1, packed.shape[-1]), flat, strict=True):
        digits = format(int.from_bytes(row.tobytes(), "big"), f"0{8 * len(row)}b")
        numbers = [int(digits[start : start + bits], 2) for start in range(0, bits * length, bits)]
        out[:] = [n - 2**bits if signed and n >= 2 ** (bits - 1) else n for n in numbers]
    return codes


def _fits(codes: Array, bits: int) -> bool:
    wide = codes.astype(np.int16)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if codes.dtype == np.int8 else (0, 2**bits)
    return bool((wide >= low).all() and (wide < high).all())
