"""Test vectors as files: a manifest, one text file for each table, and all tables once more in one safetensors file.

``manifest.json`` says what the rest is, and holds its digests and one of itself. In ``TABLE.txt`` a line is a row,
lines that begin with ``#`` are remarks, and a cell is the bits of a number in hexadecimal, most significant digit
first, as many digits as its dtype has: an integer in two's complement, codes of a float format as they are encoded.
Where no answer is expected a cell is of dashes. In ``vectors.safetensors`` the tensor ``TABLE/COLUMN`` holds a column,
of shape ``(rows,)`` or, where a row holds an array, ``(rows, count)``; ``TABLE/COLUMN.undefined`` says by 1 where no
answer is expected.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import Quantizer, catalog, dialects
from ...core.descriptions import Gradient
from ...core.requirements import explaining
from ..inputs.bits import raw_bits
from ..inputs.checkpoint import FLOATS
from ..modes.source import all_modules, tree_digest
from .vectors import USUAL, Column, Part, Section, sections

with explaining(__name__):
    from safetensors import SafetensorError, deserialize
    from safetensors.numpy import save

Array = NDArray[Any]
SCHEMA = 1
MANIFEST, TENSORS, SUMS = "manifest.json", "vectors.safetensors", "SHA256SUMS"
LIBRARIES = ("samebits", "numpy", "ml_dtypes")
KINDS = {  # dtypes by their names in safetensors
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    **{name: FLOATS[name] for name in ("F64", "F32", "F16", "BF16")},
}
DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)


class VectorError(ValueError):
    """A directory of vectors, or a file of results, that cannot be used; one line that names the file and why."""


@dataclass(frozen=True)
class Vectors:
    """A directory of vectors, read: the name of the quantizer and of its dialect, the quantizer, and its tables."""

    name: str
    dialect: str | None
    quantizer: Quantizer
    sections: Mapping[str, Section]


def write(name: str, out: Path, level: int = 1, dtypes: Sequence[str] = USUAL, dialect: str | None = None) -> int:
    """The vectors of a catalog entry, into a directory, which is made; how many rows there are. The same bytes always.

    Args:
        dialect: of `core.dialects`, that the entry is to be of.
    Raises:
        KeyError: an unknown name, with the nearest known ones.
        ValueError: as `sections`; a dialect that the entry cannot be of.
        VectorError: a directory that holds something else than vectors, or is a file.
    """
    q = described(name, dialect)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file())):
        raise VectorError(f"{out}: must be a new or empty directory, or one of vectors")
    found = list(sections(q, level, dtypes))
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("*.txt"), *out.glob(TENSORS), *out.glob(MANIFEST)):
        old.unlink()
    files = {f"{section.name}.txt": as_text(section) for section in found} | {TENSORS: _as_tensors(found)}
    for file, content in files.items():
        (out / file).write_bytes(content)
    manifest = {
        "schema": f"samebits vectors {SCHEMA}",
        "name": name,
        "dialect": dialect,
        "level": level,
        "quantizer": description(q),
        "formulas": formulas(q),
        "versions": {library: _version(library) for library in LIBRARIES},
        "source": core_digest(),
        "sections": {section.name: _described(section) for section in found},
        "files": {file: hashlib.sha256(content).hexdigest() for file, content in sorted(files.items())},
    }
    manifest["digest"] = _digest(manifest)
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return sum(section.rows for section in found)


def write_sums(out: Path, names: Sequence[str]) -> None:
    """Beside the directories of several quantizers ``SHA256SUMS``: their manifests, as ``sha256sum -c`` reads it."""
    manifests = [f"{name}/{MANIFEST}" for name in names]
    sums = [f"{hashlib.sha256((out / file).read_bytes()).hexdigest()}  {file}\n" for file in manifests]
    (out / SUMS).write_text("".join(sums), encoding="utf-8")


def read(folder: Path) -> Vectors:
    """The vectors of a directory, digests checked.

    Raises:
        VectorError: no such directory, no manifest in it, one of another schema, or a file that is not as it was
            written.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise VectorError(f"{folder}: no vectors here: {error.strerror}: {MANIFEST}") from None
    except ValueError:
        raise VectorError(f"{folder / MANIFEST}: not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != f"samebits vectors {SCHEMA}":
        found = manifest.get("schema") if isinstance(manifest, dict) else manifest
        raise VectorError(f"{folder / MANIFEST}: the schema must be 'samebits vectors {SCHEMA}', got {found!r}")
    if manifest.get("digest") != _digest({key: value for key, value in manifest.items() if key != "digest"}):
        raise VectorError(f"{folder / MANIFEST}: is not as it was written: its digest is another")
    for file, digest in manifest["files"].items():
        path = folder / file
        if not path.is_file():
            raise VectorError(f"{path}: no such file")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise VectorError(f"{path}: is not as it was written: its digest is another")
    tensors = load_tensors(folder / TENSORS)
    tables = {name: _section(name, said, tensors) for name, said in manifest["sections"].items()}
    name, dialect = manifest["name"], manifest["dialect"]
    q = described(name, dialect)
    if description(q) != manifest["quantizer"]:
        raise VectorError(f"{folder / MANIFEST}: {name} is another quantizer in this release of samebits")
    return Vectors(name, dialect, q, tables)


def described(name: str, dialect: str | None) -> Quantizer:
    """The catalog entry, in a dialect if one is named.

    Raises:
        KeyError: an unknown name, with the nearest known ones.
        ValueError: a dialect that the entry cannot be of.
    """
    return catalog[name].replace(**(dialects[dialect] if dialect else {}))


def as_text(section: Section) -> bytes:
    """A table as text: remarks, then one line for each row."""
    wanted = [c.name for c in section.columns if c.role == "given"]
    others = [c.name for c in section.columns if c.role != "given"]
    head = [
        f"# samebits vectors {SCHEMA}: {section.name}, {section.rows} rows",
        f"# {' '.join(wanted)} -> {' '.join(others)}",
    ]
    cells = [_hex(section.data[c.name], section.undefined.get(c.name)) for c in section.columns]
    lines = np.concatenate(cells, axis=1)
    lines[:, -1] = ord("\n")
    return "\n".join([*head, ""]).encode() + lines.tobytes()


def description(q: Quantizer) -> dict[str, Any]:
    """A quantizer field by field, for JSON: its nouns with their kinds; numbers are as Python writes them."""

    def noun(value: Any) -> Any:
        if not hasattr(value, "__dataclass_fields__"):
            return [noun(part) for part in value] if isinstance(value, tuple) else value
        own = {f.name: noun(getattr(value, f.name)) for f in fields(value) if f.init}
        return {"kind": type(value).__name__, **own}

    ends = {"lo": q.format.lo, "hi": q.format.hi, "codes": q.format.storage}
    said = noun(q)
    said["format"] |= ends
    plain: dict[str, Any] = json.loads(json.dumps(said))
    return plain


def formulas(q: Quantizer) -> dict[str, str]:
    """What the columns are, for a reader of the manifest; the fields of the quantizer say how operations round."""
    zero = "zero_point" if q.affine else "0"
    mask = "1 where the code was not clamped, else 0"
    rules = {Gradient.PASS_THROUGH: "1", Gradient.CLIPPED_QUOTIENT: "1 where lo <= x / scale <= hi, else 0"}
    return {
        "code": f"clamp(round(x / scale) + {zero}, lo, hi)",
        "value": f"(code - {zero}) * scale, rounded to the dtype of x",
        "dx": "g * m, and +0 where m is 0",
        "m": rules.get(q.gradient, mask if q.gradient is not Gradient.LEARNED_CLIP else "1 where 0 <= x / scale < hi"),
        "dscale": f"sum(g * ((code - {zero}) - m * x / scale)) over the block, times the factor of the gradient rule",
        "dzero_point": "sum(g * scale * (m - 1)) over the block, times that factor",
        "bound": "how far a sum of these terms, each operation rounded, may lie from the expected one: float64",
        "more": "docs/semantics.md, docs/vectors.md",
    }


def core_digest() -> str:
    """SHA-256 over the syntax trees of the specification, which words and comments do not change."""
    modules = {name: text for name, text in all_modules().items() if name.startswith("core/")}
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(f"{name} {tree_digest(modules[name])}\n".encode())
    return digest.hexdigest()


def load_tensors(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file, bfloat16 as ml_dtypes has it.

    Raises:
        VectorError: no such file, none of this kind, or a tensor that is neither of integers nor of such floats.
    """
    try:
        stored = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise VectorError(f"{path}: {error.strerror}") from None
    except SafetensorError as error:
        raise VectorError(f"{path}: no safetensors file: {error}") from None
    found = {}
    for name, tensor in stored:
        if tensor["dtype"] not in KINDS:
            raise VectorError(f"{path}: {name} is of dtype {tensor['dtype']}, which no table has")
        found[name] = np.frombuffer(tensor["data"], KINDS[tensor["dtype"]]).reshape(tensor["shape"])
    return found


def _hex(values: Array, undefined: Array | None) -> Array:
    """Cells as characters, ``(rows, characters)``, a space behind each."""
    rows, count = values.shape
    width = values.dtype.itemsize
    data = np.ascontiguousarray(raw_bits(values)).astype(f">u{width}").view(np.uint8).reshape(rows, count, width)
    cells = np.full((rows, count, 2 * width + 1), ord(" "), np.uint8)
    cells[:, :, : 2 * width : 2] = DIGITS[data >> 4]
    cells[:, :, 1 : 2 * width : 2] = DIGITS[data & 15]
    if undefined is not None:
        cells[undefined, :, : 2 * width] = ord("-")
    return cells.reshape(rows, -1)


def _as_tensors(found: Sequence[Section]) -> bytes:
    tensors = {}
    for section in found:
        for column in section.columns:
            values = section.data[column.name]
            flat = values if section.shape is not None else values[:, 0]
            tensors[f"{section.name}/{column.name}"] = np.ascontiguousarray(flat)
            if column.name in section.undefined:
                mask = section.undefined[column.name].astype(np.uint8)
                tensors[f"{section.name}/{column.name}.undefined"] = mask
    content: bytes = save(tensors)
    return content


def _described(section: Section) -> dict[str, Any]:
    said: dict[str, Any] = {
        "file": f"{section.name}.txt",
        "rows": section.rows,
        "columns": [asdict(column) for column in section.columns],
        "parts": [asdict(part) for part in section.parts],
    }
    if section.shape is not None:
        said |= {"shape": list(section.shape), "parameter_shape": list(section.parameter_shape or ())}
    return said


def _section(name: str, said: Mapping[str, Any], tensors: Mapping[str, Array]) -> Section:
    columns = tuple(Column(**column) for column in said["columns"])
    data = {c.name: tensors[f"{name}/{c.name}"].reshape(said["rows"], c.count) for c in columns}
    masks = {c.name: tensors.get(f"{name}/{c.name}.undefined") for c in columns}
    undefined = {column: mask.astype(np.bool_) for column, mask in masks.items() if mask is not None}
    shape = tuple(said["shape"]) if "shape" in said else None
    inner = tuple(said["parameter_shape"]) if "parameter_shape" in said else None
    return Section(name, columns, data, tuple(Part(**part) for part in said["parts"]), undefined, shape, inner)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
