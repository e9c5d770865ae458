"""Codes in 32-bit words, as checkpoints of small integers hold them: compressed-tensors, and GPTQ.

The codes of a line lie densely, the first in the lowest bits; those of 3, 5, 6 and 7 bits go across words.

compressed-tensors (`pack-quantized`), beside the name of the weight: ``_packed`` (rows, words), ``_scale`` (rows,
groups), of affine ones ``_zero_point`` (words of all rows, groups), and ``_g_idx``, the group of each column. Codes and
zero points are signed, stored with half of the range added.

GPTQ, in the layer of the weight, whose columns are its rows: ``qweight`` (words of all columns, rows), ``scales``
(groups, rows), ``qzeros`` (groups, words of all rows), ``g_idx``. Nothing in the file says whether one is subtracted
from zero points before they are stored, as its first version does: what brings the numbers nearer to the original is
taken.

Source: `compressed_tensors.compressors.pack_quantized`; AutoGPTQ's `QuantLinear.pack`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.checkpoint import FLOATS, StoredTensor, mapped_values
from .gguf_file import FileError

Array = NDArray[Any]
WHOLE = {"I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "I32": np.dtype(np.int32), "I64": np.dtype(np.int64)}
WORD = 32
Held = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class Words:
    """The codes of a weight out of words.

    Args:
        layout: whose it is, in words.
        bits, signed: of the codes.
        codes: (rows, columns), int64. scale: (rows, groups), as stored. zero: int32, of that shape, or None.
        order: columns in the order of their groups, equally many in each.
    """

    layout: str
    bits: int
    signed: bool
    codes: Array
    scale: Array
    zero: Array | None
    order: Array


def integers(path: Path, tensor: StoredTensor) -> Array:
    """The values of a tensor of integers, int64."""
    dtype: Any = WHOLE[tensor.dtype]
    values = np.memmap(path, dtype, "r", tensor.offset, tensor.shape or (1,))
    return np.asarray(values).reshape(tensor.shape).astype(np.int64)


def out_of_words(path: Path, held: Held, name: str, x: Array) -> Words | None:
    """The codes of the weight of this name and these floats; None where the file holds none in words.

    Raises:
        FileError: words, scales or groups whose shapes do not fit the weight.
    """
    stem = name.rpartition(".")[0]
    if x.ndim != 2:
        return None
    if _has(held, f"{name}_packed", f"{name}_scale"):
        return _of_compressed_tensors(path, held, name, x)
    if stem and _has(held, f"{stem}.qweight", f"{stem}.scales"):
        return _of_gptq(path, held, f"{stem}.", x)
    return None


def _has(held: Held, words: str, scales: str) -> bool:
    known = words in held and scales in held
    return known and held[words].dtype == "I32" and held[scales].dtype in FLOATS


def _of_compressed_tensors(path: Path, held: Held, name: str, x: Array) -> Words:
    words = held[f"{name}_packed"]
    rows, columns = x.shape
    bits = _bits(path, words, (rows, columns))
    codes = unpacked(integers(path, words), bits, columns) - (1 << bits - 1)
    scale = _scales(path, held[f"{name}_scale"], rows)
    zero, points = None, held.get(f"{name}_zero_point")
    if points is not None and points.dtype == "I32":
        _check(path, points, (-(-rows * bits // WORD), scale.shape[1]))
        zero = unpacked(integers(path, points).T, bits, rows).T - (1 << bits - 1)
    order = _order(path, held.get(f"{name}_g_idx"), columns, scale.shape[1])
    found = Words(f"{bits} bits of compressed-tensors", bits, True, codes, scale, zero, order)
    return found if zero is None or zero.any() else replace(found, zero=None)


def _of_gptq(path: Path, held: Held, layer: str, x: Array) -> Words:
    rows, columns = x.shape
    words, points = held[f"{layer}qweight"], held.get(f"{layer}qzeros")
    bits = _bits(path, words, (rows, columns), across=True)
    codes = unpacked(integers(path, words).T, bits, columns)
    scale = _scales(path, held[f"{layer}scales"], rows, across=True)
    order = _order(path, held.get(f"{layer}g_idx"), columns, scale.shape[1])
    middle = 1 << bits - 1
    plain = Words(f"{bits} bits of GPTQ", bits, True, codes - middle, scale, None, order)
    if points is None or points.dtype != "I32":
        return plain
    _check(path, points, (scale.shape[1], -(-rows * bits // WORD)))
    stored = unpacked(integers(path, points), bits, rows).T
    ways = {"": stored, ", zero points less 1": stored + 1 & (1 << bits) - 1}
    note, zero = min(ways.items(), key=lambda way: _error(x, codes, scale, way[1], order))
    if (zero == middle).all():
        return replace(plain, layout=plain.layout + note)
    return Words(plain.layout + note, bits, False, codes, scale, zero, order)


def unpacked(words: Array, bits: int, count: int) -> Array:
    """The first codes of each row of words.

    Args:
        words: (rows, words), integers of which the lower 32 bits count.

    Returns:
        (rows, count), int64.
    """
    stream = np.unpackbits(np.ascontiguousarray(words.astype("<u4")).view(np.uint8), axis=-1, bitorder="little")
    each = stream[:, : count * bits].reshape(len(words), count, bits)
    codes = np.zeros((len(words), count), np.uint8)
    for bit in range(bits):
        codes |= each[..., bit] << bit
    return codes.astype(np.int64)


def _bits(path: Path, words: StoredTensor, shape: tuple[int, int], *, across: bool = False) -> int:
    """The width at which the codes of a weight fill these words, along its columns."""
    rows, columns = shape
    lines = tuple(reversed(words.shape)) if across else words.shape
    fits = [b for b in range(2, 9) if lines == (rows, -(-columns * b // WORD))]
    if len(fits) != 1:
        raise FileError(f"{path}: {words.name} has shape {words.shape}, which fits no width of codes of {shape}")
    return fits[0]


def _scales(path: Path, scales: StoredTensor, rows: int, *, across: bool = False) -> Array:
    """Scales as (rows, groups)."""
    values = np.asarray(mapped_values(path, scales))
    values = values.T if across else values
    if values.ndim != 2 or len(values) != rows:
        raise FileError(f"{path}: {scales.name} has shape {scales.shape}, which does not fit {rows} rows")
    return values


def _order(path: Path, groups: StoredTensor | None, columns: int, count: int) -> Array:
    """Columns in the order of their groups; in their own where nothing else is said."""
    if not count or columns % count:
        raise FileError(f"{path}: {columns} columns do not divide into {count} groups")
    if groups is None or groups.dtype not in WHOLE or groups.shape != (columns,):
        return np.arange(columns)
    each = integers(path, groups)
    if (np.bincount(np.maximum(each, 0), minlength=count) != columns // count).any():
        raise FileError(f"{path}: {groups.name} has groups of different sizes, which is not read")
    return np.argsort(each, kind="stable")


def _error(x: Array, codes: Array, scale: Array, zero: Array, order: Array) -> float:
    """How far from the floats the codes are with these zero points."""
    size = codes.shape[1] // scale.shape[1]
    wide = np.repeat(scale.astype(np.float64), size, 1), np.repeat(zero, size, 1)
    return float(np.abs((codes[:, order] - wide[1]) * wide[0] - x[:, order].astype(np.float64)).mean())


def _check(path: Path, tensor: StoredTensor, shape: tuple[int, int]) -> None:
    if tensor.shape != shape:
        raise FileError(f"{path}: {tensor.name} has shape {tensor.shape}, must be {shape}")
