"""Checkpoints that users have: every dtype of safetensors, and files of other kinds."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file as save_torch
from typer.testing import CliRunner

from samebits.proofs.check.check import check
from samebits.proofs.cli.commands import app
from samebits.proofs.inputs.checkpoint import CheckpointError, mapped_values, stored_tensors
from samebits.proofs.inputs.compare import assert_same_bits

# every byte of the dtype of torch that safetensors writes under the name, and the dtype of ml_dtypes with its numbers
EIGHT_BITS = {
    "F8_E4M3": (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
    "F8_E5M2": (torch.float8_e5m2, ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": (torch.float8_e4m3fnuz, ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": (torch.float8_e5m2fnuz, ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": (torch.float8_e8m0fnu, ml_dtypes.float8_e8m0fnu),
}


def written(path: Path, *tensors: tuple[str, list[int], int]) -> Path:
    """A file with a tensor of zeros for each dtype, shape and size in bytes, as its format says."""
    header, offset = {}, 0
    for name, shape, size in tensors:
        header[name] = {"dtype": name, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(offset))
    return path


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_eight_bits_are_read_as_torch_reads_them(tmp_path: Path, name: str) -> None:
    theirs, ours = EIGHT_BITS[name]
    values = torch.arange(256, dtype=torch.uint8).view(theirs)
    path = tmp_path / "model.safetensors"
    save_torch({"t": values}, path)
    (stored,) = stored_tensors(path)
    assert (stored.dtype, stored.skipped) == (name, None)
    read = mapped_values(path, stored)
    assert read.dtype == ours
    np.testing.assert_array_equal(read.astype(np.float32), values.to(torch.float32).numpy())


def test_e4m3_has_no_infinities(tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", ("F8_E4M3", [2], 2))
    path.write_bytes(path.read_bytes()[:-2] + b"\x7e\x7f")
    largest, nan = mapped_values(path, stored_tensors(path)[0]).astype(np.float32)
    assert largest == 448
    assert np.isnan(nan)


def test_eight_bits_are_checked(tmp_path: Path) -> None:
    """Powers of two beyond float16 among them."""
    path = tmp_path / "model.safetensors"
    exponents = torch.arange(1, 254, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    save_torch({"scales": exponents, "w": torch.linspace(-3, 3, 64).to(torch.float8_e4m3fnuz)}, path)
    for dtype in ("float32", "float16"):
        result = check(path, quantizers=["int8_per_tensor"], modes=["torch eager"], dtypes=[dtype])
        assert result.same
        assert [t.skipped for t in result.tensors] == [None, None]


def test_what_is_skipped_says_why(tmp_path: Path) -> None:
    path = written(
        tmp_path / "model.safetensors",
        ("F4", [4], 2),
        ("F6_E2M3", [4], 3),
        ("F6_E3M2", [4], 3),
        ("C64", [1], 8),
        ("BOOL", [2], 2),
        ("U16", [2], 4),
    )
    reasons = {t.name: t.skipped for t in stored_tensors(path)}
    packed = "packs elements into less than a byte each, which is not read"
    assert reasons == {
        **{name: f"dtype {name} {packed}" for name in ("F4", "F6_E2M3", "F6_E3M2")},
        "C64": "dtype C64 is complex",
        "BOOL": "dtype BOOL is not floating point",
        "U16": "dtype U16 is not floating point",
    }


def _bytes(save: Callable[[Any], Any]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def _zip(name: str) -> bytes:
    def save(file: Any) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, "text")

    return _bytes(save)


ARRAY: NDArray[np.float32] = np.ones(3, np.float32)
STATE = {"w": torch.ones(3)}
ONNX = b"\x08\x0a\x12\x07pytorch\x1a\x052.3.0:\x80\x01"  # ir_version 10, producer, graph
OTHERS: dict[str, tuple[bytes, str]] = {
    "npz": (_bytes(lambda f: np.savez(f, a=ARRAY)), "NumPy arrays (.npz); save its tensors with safetensors first"),
    "npy": (_bytes(lambda f: np.save(f, ARRAY)), "a NumPy array (.npy); save its tensors with safetensors first"),
    "pt": (_bytes(lambda f: torch.save(STATE, f)), "a PyTorch checkpoint; save its tensors with safetensors first"),
    "old": (
        _bytes(lambda f: torch.save(STATE, f, _use_new_zipfile_serialization=False)),
        "a pickle, such as old PyTorch checkpoints are; save its tensors with safetensors first",
    ),
    "pkl": (pickle.dumps({"w": ARRAY}), "a pickle, such as old PyTorch checkpoints are; save its tensors"),
    "zip": (_zip("readme.txt"), "a zip archive; save its tensors with safetensors first"),
    "broken": (b"PK\x03\x04" + bytes(40), "a zip archive; save its tensors with safetensors first"),
    "onnx": (ONNX, "an ONNX model; save its tensors with safetensors first"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file; save its tensors with safetensors first"),
    "h5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file; save its tensors with safetensors first"),
    "json": (
        json.dumps({"metadata": {}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}, indent=2).encode(),
        "an index of safetensors files; give one of those that it names",
    ),
    "config": (b'{"hidden_size": 64}', "a JSON file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer; fetch the file"),
    "gz": (b"\x1f\x8b\x08\x00" + bytes(20), "a gzip file; unpack it first"),
    "nothing": (b"", "empty"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_other_kinds_say_what_they_are(tmp_path: Path, kind: str) -> None:
    raw, what = OTHERS[kind]
    for suffix in (f".{kind}", ".safetensors"):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(raw)
        with pytest.raises(CheckpointError) as caught:
            stored_tensors(path)
        assert str(caught.value).startswith(f"{path}: is not a safetensors file but {what}")
        assert "\n" not in str(caught.value)
    done = CliRunner().invoke(app, ["check", str(path), "--quantizer", "int8_per_tensor"])
    assert done.exit_code == 2
    assert done.stderr == f"samebits: {caught.value}\n"


@pytest.mark.parametrize("length", [1, 7, 8, 30, 70])
def test_a_truncated_file_is_called_so(tmp_path: Path, length: int) -> None:
    path = written(tmp_path / "model.safetensors", ("F32", [2], 8))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="truncated or corrupt safetensors file: "):
        stored_tensors(path)


WIDE = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@pytest.mark.parametrize("name", WIDE)
def test_every_bit_pattern_means_what_it_means_to_torch(name: str, tmp_path: Path) -> None:
    """All patterns of 16 bits; of wider dtypes, all in their first 16 bits. NaN, infinities, largest numbers."""
    kind = WIDE[name]
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[kind.itemsize]
    patterns = (torch.arange(-(2**15), 2**15) << 8 * (kind.itemsize - 2)).to(integers)
    values = patterns.view(kind)
    save_torch({"t": values}, tmp_path / "t.safetensors")
    (stored,) = stored_tensors(tmp_path / "t.safetensors")
    assert (stored.dtype, stored.shape, stored.elements, stored.skipped) == (name, values.shape, len(values), None)
    read = mapped_values(tmp_path / "t.safetensors", stored)
    wide = np.float64 if name == "F64" else np.float32
    with np.errstate(invalid="ignore"):  # signalling NaN
        assert_same_bits(values.to(torch.float64 if name == "F64" else torch.float32), read.astype(wide), call=name)
    assert not read.flags.writeable
    with pytest.raises(AttributeError):
        stored.name = "other"  # type: ignore[misc]


def test_values_are_those_at_the_place_of_their_tensor(tmp_path: Path) -> None:
    """Several tensors of different sizes, and a file that is shorter when they are read than when they were listed."""
    path = tmp_path / "t.safetensors"
    tensors = {name: torch.full((n,), float(n)) for name, n in (("b", 3), ("a", 5), ("c", 1), ("d", 4))}
    save_torch(tensors, path, {"about": "a test"})
    found = stored_tensors(path)
    assert [t.offset for t in found] == sorted(t.offset for t in found)
    for stored in found:
        assert_same_bits(tensors[stored.name], np.array(mapped_values(path, stored)))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=rf"tensor '{found[-1].name}' cannot be read"):
        mapped_values(path, found[-1])
