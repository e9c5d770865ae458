"""GGUF: tensors in blocks of 32 with a scale each, and files of them, with the bits of that format's own tools.

A block lies along the last axis. Of its numbers x, with ``p`` the first of those of largest magnitude, in float32:

- ``Q8_0``: ``d = |p| / 127``, code ``round_half_away(x * fl(1 / d))``; stored: ``float16(d)``, 32 int8.
- ``Q4_0``: ``d = p / -8``, code ``trunc(x * fl(1 / d) + 8.5)``, at most 15; value ``(code - 8) * d``; stored:
  ``float16(d)``, and in byte i code i in the lower and code i + 16 in the upper half.
- ``MXFP4``: ``d = 2**(floor(log2(|p|)) - 2)``, the logarithm rounded to float32 before; code: the number of float4_e2m1
  with the smallest error ``|number * d - x|``, in float32 and the first in the order 0, 0.5, ..., 6, -0.5, ..., -6; stored:
  the exponent of d plus 127, and the codes as above.

Codes come from d in float32, so values of tiny blocks, whose d float16 does not have, are coarse: the format's own. Where
its tools give garbage (1 / d overflows; the exponent of MXFP4 would be below -127), codes are 0 and the exponent is -127.

Source: the GGUF specification, version 3; ggml's ``quantize_row_*_ref``; gguf 0.19.0.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Value = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]
BLOCK, ALIGNMENT, VERSION = 32, 32, 3
KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "BF16": 30, "MXFP4": 39}  # by the name of a layout: its number
LAYOUTS = ("Q8_0", "Q4_0", "MXFP4")
DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}
FORMS = {4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}  # of values, by the number of their type
INTEGERS = {4, 10, 11}
NUMBERS = (0, 1, 2, 3, 4, 6, 8, 12)  # of float4_e2m1, doubled


@dataclass(frozen=True)
class Blocks:
    """A tensor in one of `LAYOUTS`.

    Args:
        layout: its name.
        codes: ``(..., n)``, int8 for Q8_0, else uint8 of 0 to 15.
        scale: ``(..., n / 32)``, float32: what is stored, as a number.
    """

    layout: str
    codes: Array
    scale: Array


def blocks_of(layout: str, x: Array) -> Blocks:
    """The codes and scales of a tensor as GGUF's tools choose them; see the module.

    Args:
        layout: one of `LAYOUTS`. ``x``: finite numbers ``(..., n)`` of a dtype that float32 holds, n a multiple of 32.
    Raises:
        ValueError: another layout or length, NaN or infinities, a scale that float16 does not hold.
    """
    check_layout(layout)
    x = np.asarray(x).astype(np.float32)
    if x.ndim == 0 or x.shape[-1] % BLOCK:
        raise ValueError(f"`x` must have a last axis that is a multiple of {BLOCK}, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("`x` must be finite, got NaN or infinities")
    rows = x.reshape(-1, BLOCK)
    peak = rows[np.arange(len(rows)), np.abs(rows).argmax(1)][:, None]
    codes, scale = {"Q8_0": _q8_0, "Q4_0": _q4_0, "MXFP4": _mxfp4}[layout](rows, peak)
    return stored(layout, codes.reshape(x.shape), scale.reshape(*x.shape[:-1], -1))


def stored(layout: str, codes: Array, scale: Array) -> Blocks:
    """`Blocks` of given codes and scales, which must be such that the layout stores.

    Raises:
        ValueError: another layout, codes that are none, another shape; scales that are no float16 numbers, or for MXFP4
            no powers of two from 2**-127 to 2**127.
    """
    check_layout(layout)
    scale, codes = np.asarray(scale, np.float32), np.asarray(codes)
    low, high, dtype = (-128, 127, np.int8) if layout == "Q8_0" else (0, 15, np.uint8)
    if codes.shape[:-1] != scale.shape[:-1] or codes.shape[-1] != BLOCK * scale.shape[-1]:
        raise ValueError(f"`scale` must have one for {BLOCK} codes, got shapes {scale.shape} and {codes.shape}")
    if codes.size and not (low <= codes.min() and codes.max() <= high):
        raise ValueError(f"`codes` of {layout} must be in {low}..{high}, got {codes.min()} to {codes.max()}")
    with np.errstate(over="ignore"):
        held = _power(scale) if layout == "MXFP4" else scale.astype(np.float16).astype(np.float32) == scale
    if not np.all(held & np.isfinite(scale)):
        kind = "powers of two from 2**-127 to 2**127" if layout == "MXFP4" else "float16 numbers"
        raise ValueError(f"`scale` of {layout} must be {kind}, got {scale[~(held & np.isfinite(scale))][0]}")
    return Blocks(layout, codes.astype(dtype), scale)


def values_of(blocks: Blocks) -> Array:
    """The numbers that blocks stand for, float32."""
    match blocks.layout:
        case "Q8_0":
            numbers = blocks.codes.astype(np.float32)
        case "Q4_0":
            numbers = blocks.codes.astype(np.float32) - np.float32(8)
        case _:
            half = np.array(NUMBERS, np.float32) / 2
            numbers = np.concatenate([half, -half])[blocks.codes]
    values: Array = numbers * blocks.scale.repeat(BLOCK, -1)
    return values


def bytes_of(blocks: Blocks) -> bytes:
    """Blocks as they lie in a file."""
    codes = blocks.codes.reshape(-1, BLOCK)
    scale = blocks.scale.reshape(-1, 1)
    if blocks.layout == "MXFP4":
        head = (np.frexp(scale)[1] - 1 + 127).astype(np.uint8)
    else:
        head = scale.astype("<f2").view(np.uint8)
    if blocks.layout == "Q8_0":
        return np.concatenate([head, codes.view(np.uint8)], 1).tobytes()
    return np.concatenate([head, codes[:, : BLOCK // 2] + 16 * codes[:, BLOCK // 2 :]], 1).tobytes()


def write_gguf(
    path: str | PathLike[str], tensors: Mapping[str, Array | Blocks], metadata: Mapping[str, Value] | None = None
) -> None:
    """Writes a GGUF file, version 3, little-endian.

    Args:
        tensors: by name, in their order: `Blocks`, or arrays of float32, float16 or bfloat16.
        metadata: by key; texts, bools, ints (uint32 where they fit, else uint64 or int64), floats (float32), and
            sequences of one of these (ints as int32, else int64). Readers want ``general.architecture``.
    Raises:
        TypeError: a tensor or value of another kind. ValueError: a name of more than 63 bytes, more than 4 axes. Nothing
            is written then.
    """
    parts, infos, offset = [], [], 0
    for name, tensor in tensors.items():
        kind, shape, data = _tensor(name, tensor)
        infos.append(
            _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), KINDS[kind], offset)
        )
        parts.append(data + bytes(-len(data) % ALIGNMENT))
        offset += len(parts[-1])
    pairs = [_text(key) + _pair(key, value) for key, value in (metadata or {}).items()]
    head = b"GGUF" + struct.pack("<IQQ", VERSION, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
    Path(path).write_bytes(head + bytes(-len(head) % ALIGNMENT) + b"".join(parts))


def check_layout(layout: object) -> None:
    """ValueError unless it is one of `LAYOUTS`."""
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}")


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
    quotient = x * _reciprocal(d)
    whole = np.trunc(quotient)
    away = np.abs(quotient - whole) >= np.float32(0.5)  # exact: a float less its integer part
    return whole + np.where(away, np.sign(quotient), 0), _half(d)


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


def _power(scale: Array) -> Array:
    mantissa, exponent = np.frexp(scale)
    found: Array = (mantissa == 0.5) & (exponent >= -126) & (exponent <= 128)
    return found


def _tensor(name: str, tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
    """The layout, shape and bytes of a tensor."""
    if isinstance(tensor, Blocks):
        kind, shape, data = tensor.layout, tensor.codes.shape, bytes_of(tensor)
    elif isinstance(tensor, np.ndarray) and tensor.dtype in DTYPES:
        kind, shape, data = DTYPES[tensor.dtype], tensor.shape, np.ascontiguousarray(tensor).tobytes()
    else:
        found = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
        raise TypeError(f"`{name}` must be Blocks, or an array of {', '.join(map(str, DTYPES))}, got {found}")
    if len(name.encode()) > 63 or len(shape) > 4:
        raise ValueError(f"`{name}` must have a name of at most 63 bytes and at most 4 axes, got shape {shape}")
    return kind, shape, data


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, value: Any) -> bytes:
    """The number of a type, and a value of it."""
    if isinstance(value, list | tuple):
        kinds = {_kind(key, one) for one in value}
        if kinds and kinds <= INTEGERS:  # one type for all of them
            kinds = {5 if all(-(2**31) <= one < 2**31 for one in value) else 11}
        if len(kinds) != 1:
            raise TypeError(f"`{key}` must be a sequence of one kind, not empty, got {value!r}")
        (kind,) = kinds
        return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(_plain(kind, one) for one in value)
    kind = _kind(key, value)
    return struct.pack("<I", kind) + _plain(kind, value)


def _kind(key: str, value: Any) -> int:
    match value:
        case str():
            return 8
        case bool():
            return 7
        case int():
            return 4 if 0 <= value < 2**32 else 10 if value > 0 else 11
        case float():
            return 6
    raise TypeError(f"`{key}` must be a text, bool, int, float or a sequence of these, got {value!r}")


def _plain(kind: int, value: Any) -> bytes:
    return _text(value) if kind == 8 else struct.pack("<" + FORMS[kind], value)
