"""Reading a ``.safetensors`` file tensor by tensor: its header is validated at once, its values are mapped, not loaded.

Source of the layout: the safetensors format (8 bytes little-endian header length, JSON header, data at the offsets that
it names).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...core.requirements import explaining

with explaining(__name__):
    from safetensors import SafetensorError, safe_open

FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),  # as safetensors means it: no infinities
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),  # powers of two, such as the scales of MX formats
}
PACKED = ("F4", "F6_E2M3", "F6_E3M2")
SAVED_AS = "; save its tensors with safetensors first"
# How files of other kinds begin, and what is said of them
SIGNATURES: dict[bytes, str] = {
    b"\x93NUMPY": f"a NumPy array (.npy){SAVED_AS}",
    b"GGUF": f"a GGUF file{SAVED_AS}",
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file{SAVED_AS}",
    b"\x80": f"a pickle, such as old PyTorch checkpoints are{SAVED_AS}",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file that it stands for with git lfs pull",
    b"\x1f\x8b": "a gzip file; unpack it first",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message is one line and names the file and the reason."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint: what its header says, and where its values start in the file."""

    name: str
    dtype: str  # as safetensors spells it: "F32", "I64", ...
    shape: tuple[int, ...]
    offset: int

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def skipped(self) -> str | None:
        """Why its values cannot be quantized, or None when they can."""
        if self.dtype in PACKED:
            return f"dtype {self.dtype} packs elements into less than a byte each, which is not read"
        if self.dtype == "C64":
            return "dtype C64 is complex"
        if self.dtype not in FLOATS:
            return f"dtype {self.dtype} is not floating point"
        return None if self.elements else "it has no elements"


def stored_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """Every tensor of a checkpoint, in the order of the file. Reads the header only.

    Raises:
        CheckpointError: no such file, not a file, no permission, a file of another kind (the message says which and
            what to do), or a header that is truncated, corrupt or does not cover the file exactly.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path}: is a directory, not a .safetensors file")
        with safe_open(path, "numpy"):  # validates lengths, dtypes and offsets against the size of the file
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        if kind := _other_kind(path):
            raise CheckpointError(f"{path}: is not a safetensors file but {kind}") from None
        raise CheckpointError(f"{path}: truncated or corrupt safetensors file: {_one_line(error)}") from None
    header.pop("__metadata__", None)
    found = (
        StoredTensor(name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    )
    return tuple(sorted(found, key=lambda tensor: (tensor.offset, tensor.name)))


def mapped_values(path: Path, tensor: StoredTensor) -> NDArray[Any]:
    """The values of a floating-point tensor, read-only and mapped: pages are read when they are touched.

    Raises:
        CheckpointError: a tensor that `StoredTensor.skipped` rules out, or a file that changed since it was listed.
    """
    if tensor.skipped:
        raise CheckpointError(f"{path}: tensor {tensor.name!r} cannot be quantized: {tensor.skipped}")
    try:
        return np.memmap(path, FLOATS[tensor.dtype], "r", tensor.offset, tensor.shape)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: tensor {tensor.name!r} cannot be read: {_one_line(error)}") from None


def _other_kind(path: Path) -> str | None:
    """What a file that is no safetensors file seems to be, and what to do about it; None where that cannot be said."""
    with path.open("rb") as file:
        head = file.read(2**20)
    if not head:
        return "empty"
    if head[8:9] == b"{":  # a header of safetensors, after its length
        return None
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_archive(path)
    if head.lstrip().startswith(b"{"):
        index = b'"weight_map"' in head
        return "an index of safetensors files; give one of those that it names" if index else "a JSON file"
    if head[:1] == b"\x08" and (
        path.suffix == ".onnx" or head[2:3] in (b"\x12", b":")
    ):  # its version, then a name or graph
        return f"an ONNX model{SAVED_AS}"
    return next((kind for start, kind in SIGNATURES.items() if head.startswith(start)), None)


def _kind_of_archive(path: Path) -> str:
    try:
        names = ZipFile(path).namelist()
    except (BadZipFile, OSError):
        names = []
    if any(name.endswith("data.pkl") for name in names):
        return f"a PyTorch checkpoint{SAVED_AS}"
    kind = "NumPy arrays (.npz)" if names and all(name.endswith(".npy") for name in names) else "a zip archive"
    return kind + SAVED_AS


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).removeprefix("Error while deserializing header: ")
