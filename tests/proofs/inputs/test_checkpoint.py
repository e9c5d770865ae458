"""What the bytes of a checkpoint mean: every dtype that can be quantized is read as torch, which wrote it, reads it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from samebits.proofs.inputs.checkpoint import CheckpointError, mapped_values, stored_tensors
from samebits.proofs.inputs.compare import assert_same_bits

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@pytest.mark.parametrize("name", DTYPES)
def test_every_bit_pattern_means_what_it_means_to_torch(name: str, tmp_path: Path) -> None:
    """All patterns of 8 and 16 bits; of wider ones, all in their first 16 bits. NaN, infinities, largest numbers."""
    kind = DTYPES[name]
    patterns = torch.arange(256, dtype=torch.uint8) if kind.itemsize == 1 else torch.arange(-(2**15), 2**15)
    if kind.itemsize > 1:
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[kind.itemsize]
        patterns = (patterns << 8 * (kind.itemsize - 2)).to(integers)
    values = patterns.view(kind)
    save_file({"t": values}, tmp_path / "t.safetensors")
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
    save_file(tensors, path, {"about": "a test"})
    found = stored_tensors(path)
    assert [t.offset for t in found] == sorted(t.offset for t in found)
    for stored in found:
        assert_same_bits(tensors[stored.name], np.array(mapped_values(path, stored)))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=rf"tensor '{found[-1].name}' cannot be read"):
        mapped_values(path, found[-1])
