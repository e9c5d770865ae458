"""GGUF files: tensors in blocks of 32 with a scale each, and how they lie in a file. Nouns only.

A block lies along the last axis. ``Q8_0``: ``float16(d)`` and 32 int8; ``Q4_0``: ``float16(d)``, and in byte i code i
in the lower and code i + 16 in the upper half; ``MXFP4``: the exponent of d plus 127, and codes likewise. Which codes
and scales numbers have is said by `samebits.core.gguf`.

Source: the GGUF specification, version 3; gguf 0.19.0.
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
NUMBERS = (0, 1, 2, 3, 4, 6, 8, 12)  # of float4_e2m1, doubled: codes 0 to 7, and 8 to 15 with the sign


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
        TypeError: a tensor or value of another kind. ValueError: a name of more than 63 bytes, more than 4 axes.
            Nothing is written then.
    """
    parts, infos, offset = [], [], 0
    for name, tensor in tensors.items():
        kind, shape, data = _tensor(name, tensor)
        infos.append(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), KINDS[kind], offset))
        parts.append(data + bytes(-len(data) % ALIGNMENT))
        offset += len(parts[-1])
    pairs = [_text(key) + _pair(key, value) for key, value in (metadata or {}).items()]
    head = b"GGUF" + struct.pack("<IQQ", VERSION, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
    Path(path).write_bytes(head + bytes(-len(head) % ALIGNMENT) + b"".join(parts))


def check_layout(layout: object) -> None:
    """ValueError unless it is one of `LAYOUTS`."""
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}")


def check_blocks(layout: object, shape: tuple[int, ...]) -> None:
    """ValueError unless this is a layout, and an array of this shape has blocks along its last axis."""
    check_layout(layout)
    if not shape or shape[-1] % BLOCK:
        raise ValueError(f"`x` must have a last axis that is a multiple of {BLOCK}, got shape {shape}")


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
    """The number of the type of a single value."""
    if isinstance(value, str | bool | float):
        return 8 if isinstance(value, str) else 7 if isinstance(value, bool) else 6
    if isinstance(value, int):
        return 4 if 0 <= value < 2**32 else 10 if value > 0 else 11
    raise TypeError(f"`{key}` must be a text, bool, int, float or a sequence of these, got {value!r}")


def _plain(kind: int, value: Any) -> bytes:
    return _text(value) if kind == 8 else struct.pack("<" + FORMS[kind], value)
