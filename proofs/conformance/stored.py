"""Quantized weights as files hold them: codes, scales and zero points, one row for each block.

A safetensors file holds them as tensors beside each other: codes (int8 or uint8) under the name of the weight, scales
under that name and ``_scale`` or the like; or codes in words (`packed`). A GGUF file holds blocks of 32.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.arithmetic import ZeroPointDomain
from ...core.blocks import split_blocks
from ...core.descriptions import Quantizer, ZeroPoint
from ...core.formats import IntegerFormat
from ...core.granularity import Granularity, PerAxis, PerGroup, PerTensor
from ..inputs.checkpoint import FLOATS, StoredTensor, mapped_values, stored_tensors
from .gguf_file import BLOCK, Blocks, FileError, read_gguf
from .packed import WHOLE, Words, integers, out_of_words

Array = NDArray[Any]
CODES = ("", "_q", ".q", ".int_data", ".qdata", "_codes", ".codes", "_quantized", ".quantized")
SCALES = ("_scale", "_scales", ".scale", ".scales", "_absmax")
ZEROS = ("_zero_point", "_zero_points", ".zero_point", "_zeros", ".zeros", "_zero")


@dataclass(frozen=True)
class Stored:
    """One quantized tensor, and the floats that it was made of.

    Args:
        tensor: its name; ``layout``: how it lies in the file, in words.
        q: format, `PerAxis(0)` for the rows, and kind of zero point.
        x: (blocks, elements) as they were; ``codes``: int64, of that shape; ``scale``: float32, (blocks,).
        zero: int32, or float32 where they are real; None without.
        scale_dtype: of the scale in the file.
    """

    tensor: str
    layout: str
    q: Quantizer
    x: Array
    codes: Array
    scale: Array
    zero: Array | None
    scale_dtype: np.dtype[Any]


def read_pairs(quantized: Path, original: Path) -> Iterator[Stored]:
    """The tensors that both files hold.

    Raises:
        FileError, CheckpointError: a file that cannot be read; shapes that do not fit each other; no tensor in common.
    """
    floats = {t.name: t for t in stored_tensors(original) if not t.skipped}
    found = (
        _of_gguf(quantized, original, floats) if _is_gguf(quantized) else _of_safetensors(quantized, original, floats)
    )
    if not found:
        raise FileError(f"{quantized}: holds no quantized tensor that {original} has as floats")
    yield from found


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None


def _of_gguf(path: Path, original: Path, floats: Mapping[str, StoredTensor]) -> list[Stored]:
    found = []
    for name, blocks in read_gguf(path).items():
        if isinstance(blocks, str) or name not in floats:
            continue
        x = np.asarray(mapped_values(original, floats[name]))
        if x.shape != blocks.codes.shape:
            raise FileError(f"{path}: {name} has shape {blocks.codes.shape}, and {x.shape} in {original}")
        found.append(_of_blocks(name, blocks, x))
    return found


def _of_blocks(name: str, blocks: Blocks, x: Array) -> Stored:
    bits = int(blocks.layout[1])
    rows = [v.reshape(-1, BLOCK) for v in (x, blocks.codes)]
    zero = None if blocks.least is None else -blocks.least.reshape(-1)
    whole = zero is None and bits < 8
    codes = rows[1] - (1 << bits - 1 if whole else 0)
    q = Quantizer(format=IntegerFormat(bits, signed=zero is None), granularity=PerAxis(0))
    if zero is not None:
        q = q.replace(zero_point=ZeroPoint.MIN_MAX, zero_point_domain=ZeroPointDomain.SHIFT)
    layout = f"GGUF {blocks.layout}"
    return Stored(name, layout, q, rows[0], codes, blocks.scale.reshape(-1), zero, np.dtype(np.float16))


def _of_safetensors(path: Path, original: Path, floats: Mapping[str, StoredTensor]) -> list[Stored]:
    held = {t.name: t for t in stored_tensors(path)}
    found = []
    for name, entry in floats.items():
        x = np.asarray(mapped_values(original, entry))
        words = out_of_words(path, held, name, x)
        if words is not None:
            found.append(_of_words(name, words, x))
            continue
        codes = _first(held, name, CODES, WHOLE)
        scale = _first(held, name, SCALES, FLOATS)
        if codes is None or scale is None or codes.dtype not in ("I8", "U8"):
            continue
        zero = _first(held, name, ZEROS, WHOLE)
        if codes.shape != x.shape:
            raise FileError(f"{path}: {codes.name} has shape {codes.shape}, and {x.shape} in {original}")
        found.append(_of_tensors(path, name, x, codes, scale, zero))
    return found


def _of_words(name: str, words: Words, x: Array) -> Stored:
    size = x.shape[1] // words.scale.shape[1]
    rows = [v[:, words.order].reshape(-1, size) for v in (x, words.codes)]
    q = Quantizer(format=IntegerFormat(words.bits, signed=words.signed), granularity=PerAxis(0))
    zero = None
    if words.zero is not None:
        q, zero = q.replace(zero_point=ZeroPoint.MIN_MAX), words.zero.reshape(-1).astype(np.int32)
    shuffled = "" if (np.diff(words.order) == 1).all() else ", columns in the order of their groups"
    layout = f"{words.layout}, {PerGroup(size)}, scale {_spelled(words.scale.dtype)}{shuffled}"
    scale = words.scale.reshape(-1).astype(np.float32)
    return Stored(name, layout, q, rows[0], rows[1], scale, zero, words.scale.dtype)


def _spelled(dtype: np.dtype[Any]) -> str:
    """As safetensors spells it."""
    return next(name for name, known in FLOATS.items() if known == dtype)


def _of_tensors(
    path: Path, name: str, x: Array, codes: StoredTensor, scale: StoredTensor, zero: StoredTensor | None
) -> Stored:
    whole, steps = integers(path, codes), np.asarray(mapped_values(path, scale))
    points = None if zero is None else integers(path, zero)
    granularity = _granularity(path, scale, x.shape)
    rows = [v.reshape(-1, v.shape[-1]) for v in (split_blocks(v, granularity) for v in (x, whole))]
    if points is not None and not points.any():
        points = None
    signed = codes.dtype == "I8"
    bits = _bits(whole, signed)
    q = Quantizer(format=IntegerFormat(bits, signed=signed), granularity=PerAxis(0))
    flat = None
    if points is not None or not signed:
        q = q.replace(zero_point=ZeroPoint.MIN_MAX)
        flat = np.zeros(len(rows[0]), np.int32) if points is None else points.reshape(-1).astype(np.int32)
    layout = f"{codes.dtype}, {granularity}, scale {scale.dtype}"
    return Stored(name, layout, q, rows[0], rows[1], steps.reshape(-1).astype(np.float32), flat, FLOATS[scale.dtype])


def _first(
    held: Mapping[str, StoredTensor], name: str, endings: tuple[str, ...], dtypes: Mapping[str, Any]
) -> StoredTensor | None:
    """The tensor that goes with a weight: its name, or that of its layer, with one of the endings."""
    stem = name.rpartition(".")[0]
    names = [f"{base}{ending}" for base in (name, stem) if base for ending in endings]
    names += [f"{stem}{ending}" for ending in endings if ending.startswith(".")]
    return next((held[n] for n in names if n in held and held[n].dtype in dtypes), None)


def _granularity(path: Path, scale: StoredTensor, shape: tuple[int, ...]) -> Granularity:
    """Which elements share a scale, from the shape of the scales."""
    own = tuple(n for n in scale.shape if n != 1)
    if not own:
        return PerTensor()
    for axis, count in enumerate(shape):
        if own == (count,):
            return PerAxis(axis)
    groups = scale.shape[-1]
    if scale.shape[:-1] == shape[:-1] and groups and shape[-1] % groups == 0:
        return PerGroup(shape[-1] // groups)
    raise FileError(f"{path}: {scale.name} has shape {scale.shape}, which fits no blocks of {shape}")


def _bits(codes: Array, signed: bool) -> int:
    """The narrowest width, of at least 2 bits, that holds the codes."""
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    widths = (2, 3, 4, 5, 6, 7, 8)
    fits = [b for b in widths if IntegerFormat(b, signed).lo <= low and high <= IntegerFormat(b, signed).hi]
    return fits[0] if fits else 8
