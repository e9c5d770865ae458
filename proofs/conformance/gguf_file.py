"""Reading a GGUF file: the names, shapes and blocks of its tensors. Little-endian, versions 2 and 3.

Source: the GGUF specification, and the block layouts of ggml: an array is cut into blocks of 32 along its last axis,
each with its own float16 scale.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLOCK = 32
LAYOUTS: Mapping[int, tuple[str, int]] = MappingProxyType(  # by the number of the type: name, bytes of a block
    {2: ("Q4_0", 18), 3: ("Q4_1", 20), 6: ("Q5_0", 22), 7: ("Q5_1", 24), 8: ("Q8_0", 34)}
)
PLAIN: Mapping[int, str] = MappingProxyType({0: "F32", 1: "F16", 30: "BF16"})
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of a value, by the number of its type
STRING, LIST = 8, 9


class FileError(ValueError):
    """A file that cannot be read; the message is one line and names the file and the reason."""


@dataclass(frozen=True)
class Blocks:
    """A tensor in blocks.

    Args:
        layout: "Q8_0" and so on.
        codes: int64, of the shape of the tensor, as the layout counts them (0 to 15 for Q4_0).
        scale: float32 values of the stored float16 ones, one per block, last axis shorter by 32.
        least: the stored minimum of each block (Q4_1, Q5_1), or None.
    """

    layout: str
    codes: Array
    scale: Array
    least: Array | None


def read_gguf(path: Path) -> dict[str, Blocks | str]:
    """The tensors of a file by name; for one in no layout of `LAYOUTS` the name of its type.

    Raises:
        FileError: no GGUF file, one of another version or byte order, or one that ends too early.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None
    except (struct.error, KeyError, UnicodeDecodeError):
        raise FileError(f"{path}: truncated or corrupt") from None


def _read(path: Path, file: BinaryIO) -> dict[str, Blocks | str]:
    if file.read(4) != b"GGUF":
        raise FileError(f"{path}: no GGUF file")
    (version,) = _unpack(file, "I")
    if version not in (2, 3):
        raise FileError(f"{path}: GGUF version {version} is not read, 2 and 3 are (or its bytes are in another order)")
    tensors, pairs = _unpack(file, "QQ")
    alignment = 32
    for _ in range(pairs):
        name, (kind,) = _string(file), _unpack(file, "I")
        value = _value(file, kind)
        alignment = int(value) if name == "general.alignment" else alignment
    infos = [_info(file) for _ in range(tensors)]
    start = -(-file.tell() // alignment) * alignment
    return {name: _tensor(path, file, start + offset, shape, kind) for name, shape, kind, offset in infos}


def _info(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name, (rank,) = _string(file), _unpack(file, "I")
    shape = tuple(reversed(_unpack(file, f"{rank}Q")))  # stored with the axis that varies fastest first
    kind, offset = *_unpack(file, "I"), *_unpack(file, "Q")
    return name, shape, kind, offset


def _tensor(path: Path, file: BinaryIO, at: int, shape: tuple[int, ...], kind: int) -> Blocks | str:
    if kind not in LAYOUTS:
        return PLAIN.get(kind, f"type {kind}")
    layout, size = LAYOUTS[kind]
    count = int(np.prod(shape)) // BLOCK
    file.seek(at)
    data = file.read(count * size)
    if len(data) < count * size or not shape or shape[-1] % BLOCK:
        raise FileError(f"{path}: truncated or corrupt")
    return decoded(layout, np.frombuffer(data, np.uint8).reshape(count, size), shape)


def decoded(layout: str, raw: Array, shape: tuple[int, ...]) -> Blocks:
    """Blocks of bytes apart: the scale, the minimum, the fifth bits, and the codes in halves of a byte."""
    per_block = (*shape[:-1], shape[-1] // BLOCK)
    at = 4 if layout.endswith("_1") else 2
    halves = np.ascontiguousarray(raw[:, :at]).view(np.float16).astype(np.float32)
    least = halves[:, 1].reshape(per_block) if at == 4 else None
    scale = halves[:, 0].reshape(per_block)
    if layout == "Q8_0":
        return Blocks(layout, raw[:, 2:].view(np.int8).astype(np.int64).reshape(shape), scale, None)
    fifth = np.zeros((len(raw), BLOCK), np.int64)
    if layout.startswith("Q5"):
        bits = np.ascontiguousarray(raw[:, at : at + 4]).view("<u4").astype(np.int64)
        fifth = (bits >> np.arange(BLOCK)) & 1
        at += 4
    packed = raw[:, at:].astype(np.int64)  # element i in the lower half of byte i, i + 16 in the upper
    codes = np.concatenate([packed & 15, packed >> 4], 1) | fifth << 4
    return Blocks(layout, codes.reshape(shape), scale, least)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind == LIST:
        inner, count = *_unpack(file, "I"), *_unpack(file, "Q")
        if inner in SIZES:
            file.seek(SIZES[inner] * count, 1)
            return None
        return [_value(file, inner) for _ in range(count)]
    data = file.read(SIZES[kind])
    return int.from_bytes(data, "little")


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    return _bytes(file, length).decode()


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    size = struct.calcsize("<" + form)
    return struct.unpack("<" + form, _bytes(file, size))


def _bytes(file: BinaryIO, count: int) -> bytes:
    data = file.read(count) if count < 2**31 else b""
    if len(data) < count:
        raise struct.error("ends too early")
    return data
