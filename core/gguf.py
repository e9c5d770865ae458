"""GGUF: the codes and scales of blocks of 32 numbers, with the bits of that format's own tools.

A block lies along the last axis. Of its numbers x, with ``p`` the first of those of largest magnitude, in float32:

- ``Q8_0``: ``d = |p| / 127``, code ``round_half_away(x * fl(1 / d))``; stored: ``float16(d)``, 32 int8.
- ``Q4_0``: ``d = p / -8``, code ``trunc(x * fl(1 / d) + 8.5)``, at most 15; value ``(code - 8) * d``; stored:
  ``float16(d)``, and in byte i code i in the lower and code i + 16 in the upper half.
- ``MXFP4``: ``d = 2**(floor(log2(|p|)) - 2)``, the logarithm rounded to float32 before; code: the number of
  float4_e2m1 with the smallest error ``|number * d - x|``, in float32, and the first in the order 0, 0.5, ..., 6,
  -0.5, ..., -6; stored: the exponent of d plus 127, and the codes as above.

Codes come from d in float32, so values of tiny blocks, whose d float16 does not have, are coarse: the format's own.
Where its tools give garbage (1 / d overflows; the exponent of MXFP4 would be below -127), the values are 0.

Source: the GGUF specification, version 3; ggml's ``quantize_row_*_ref``; gguf 0.19.0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .directions import Rounding
from .gguf_files import BLOCK, NUMBERS, check_blocks, check_layout
from .rounding import round_to_integer

Array = NDArray[Any]


def block_codes(layout: str, x: Array) -> tuple[Array, Array]:
    """Codes and scales of numbers, as GGUF's tools choose them; see the module.

    Args:
        layout: ``"Q8_0"``, ``"Q4_0"`` or ``"MXFP4"``. ``x``: finite ``(..., n)`` of a dtype that float32 holds, n a
            multiple of 32.
    Returns:
        Codes ``(..., n)``, int8 for Q8_0, else uint8 of 0 to 15; scales ``(..., n / 32)``, float32: what is stored, as
        a number.
    Raises:
        ValueError: another layout or length; NaN, infinities, scales that float16 does not hold.
    """
    check_blocks(layout, np.shape(x))
    x = np.asarray(x).astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError("`x` must be finite, got NaN or infinities")
    rows = x.reshape(-1, BLOCK)
    peak = rows[np.arange(len(rows)), np.abs(rows).argmax(1)][:, None]
    codes, scale = {"Q8_0": _q8_0, "Q4_0": _q4_0, "MXFP4": _mxfp4}[layout](rows, peak)
    dtype = np.int8 if layout == "Q8_0" else np.uint8
    return codes.astype(dtype).reshape(x.shape), scale.reshape(*x.shape[:-1], -1)


def block_values(layout: str, codes: Array, scale: Array) -> Array:
    """The numbers that codes and scales of `block_codes` stand for, float32. ValueError for another layout."""
    check_layout(layout)
    if layout == "MXFP4":
        half = np.array(NUMBERS, np.float32) / 2
        numbers = np.concatenate([half, -half])[codes]
    else:
        numbers = codes.astype(np.float32) - np.float32(8 if layout == "Q4_0" else 0)
    values: Array = numbers * scale.repeat(BLOCK, -1)
    return values


def _reciprocal(d: Array) -> Array:
    """``1 / d`` in float32; 0 where d is 0 or so small that it overflows."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    found: Array = np.where(np.isfinite(inverse), inverse, np.float32(0))
    return found


def _half(d: Array) -> Array:
    """As float16 stores it. ValueError where that is infinite."""
    with np.errstate(over="ignore"):
        half = d.astype(np.float16).astype(np.float32)
    if not np.isfinite(half).all():
        raise ValueError(f"`x` must have scales that float16 holds, got {np.abs(d).max()}")
    found: Array = half
    return found


def _q8_0(x: Array, peak: Array) -> tuple[Array, Array]:
    d = np.abs(peak) / np.float32(127)
    return round_to_integer(x * _reciprocal(d), Rounding.TIES_TO_AWAY), _half(d)


def _q4_0(x: Array, peak: Array) -> tuple[Array, Array]:
    d = peak / np.float32(-8)
    inverse = _reciprocal(d)
    codes = np.minimum(np.trunc(x * inverse + np.float32(8.5)), np.float32(15))
    return codes, _half(d)


def _mxfp4(x: Array, peak: Array) -> tuple[Array, Array]:
    size = np.abs(peak).astype(np.float64)
    logarithm = np.log2(np.where(size > 0, size, 1)).astype(np.float32)
    place = np.where(size > 0, np.floor(logarithm) - 2, -127)
    exponent = np.maximum(place, -127).astype(np.int32)
    half = np.ldexp(np.float32(0.5), exponent).astype(np.float32)
    codes, smallest = np.zeros(x.shape, np.uint8), np.abs(x)
    for code in range(1, 16):
        number = np.float32(NUMBERS[code % 8] * (1 if code < 8 else -1))
        error = np.abs(half * number - x)
        better = error < smallest
        codes[better], smallest = code, np.where(better, error, smallest)
    codes[np.broadcast_to(place < -127, x.shape)] = 0
    return codes, np.ldexp(np.float32(1), exponent).astype(np.float32)
