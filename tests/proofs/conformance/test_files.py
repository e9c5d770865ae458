"""Files: which quantizer made the weights of a safetensors or GGUF file.

The files are made here, by formulas of their own: GGUF by the published block layouts (with the bytes of the gguf
package), int8 by NumPy. No code of the package that reads them is used to write them.
"""

import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from samebits.proofs.conformance.files import FileError, attribute
from samebits.proofs.conformance.gguf_file import Blocks, read_gguf

Array = NDArray[Any]
F32 = np.float32
TYPES = {"F32": 0, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8}


def halves(low: Array, high: Array) -> Array:
    return (low | high << 4).astype(np.uint8)


def away(x: Array) -> Array:
    return np.trunc(np.abs(x) + F32(0.5)) * np.sign(x)


def inverse(d: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.where(d == 0, F32(0), F32(1) / d).astype(F32)


def q8_0(x: Array, rounded: Callable[[Array], Array] = away) -> tuple[Array, ...]:
    d = (np.abs(x).max(1, keepdims=True) / F32(127)).astype(F32)
    return d.astype(np.float16), rounded(x * inverse(d)).astype(np.int8)


def signed_peak(bits: int) -> Callable[[Array], tuple[Array, ...]]:
    """Q4_0, Q5_0: the element of largest magnitude, with its sign, over -8 or -16."""
    half = 1 << bits - 1

    def made(x: Array) -> tuple[Array, ...]:
        peak = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
        d = (peak / F32(-half)).astype(F32)
        codes = np.clip(np.trunc(x * inverse(d) + F32(half + 0.5)), 0, 2 * half - 1).astype(np.int64)
        return (d.astype(np.float16), *packed(codes, bits))

    return made


def from_minimum(bits: int) -> Callable[[Array], tuple[Array, ...]]:
    """Q4_1, Q5_1: steps above the smallest element."""

    def made(x: Array) -> tuple[Array, ...]:
        low = x.min(1, keepdims=True)
        d = ((x.max(1, keepdims=True) - low) / F32((1 << bits) - 1)).astype(F32)
        codes = np.clip(np.trunc((x - low) * inverse(d) + F32(0.5)), 0, (1 << bits) - 1).astype(np.int64)
        return (d.astype(np.float16), low.astype(np.float16), *packed(codes, bits))

    return made


def packed(codes: Array, bits: int) -> tuple[Array, ...]:
    """The lower four bits, two to a byte; before them the fifth ones in four bytes."""
    four = halves(codes[:, :16] & 15, codes[:, 16:] & 15)
    if bits == 4:
        return (four,)
    fifth = ((codes >> 4) << np.arange(32)).sum(1).astype("<u4")[:, None]
    return fifth, four


LAYOUTS: dict[str, Callable[[Array], tuple[Array, ...]]] = {
    "Q8_0": q8_0,
    "Q4_0": signed_peak(4),
    "Q4_1": from_minimum(4),
    "Q5_0": signed_peak(5),
    "Q5_1": from_minimum(5),
}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def write_gguf(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """A GGUF file of version 3, with some metadata of each kind in front."""
    pairs = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    pairs += text("some.list") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<3i", 1, 2, 3)
    pairs += text("some.texts") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
    pairs += text("general.alignment") + struct.pack("<II", 4, 64)
    infos, data = b"", b""
    for name, (kind, shape, raw) in tensors.items():
        dimensions = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        infos += text(name) + struct.pack("<I", len(shape)) + dimensions + struct.pack("<IQ", TYPES[kind], len(data))
        data += raw + b"\0" * (-len(raw) % 64)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 4) + pairs + infos
    path.write_bytes(head + b"\0" * (-len(head) % 64) + data)


def raw_of(parts: tuple[Array, ...]) -> bytes:
    """The parts of every block side by side."""
    columns = [np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1) for part in parts]
    return np.concatenate(columns, 1).tobytes()


def weights(seed: int) -> Array:
    """Random numbers; a block of zeros, a constant one, and one of ties."""
    x = (np.random.default_rng(seed).standard_normal((16, 128)) * 0.05).astype(F32)
    x[0, :32], x[1, :32] = 0, 3
    x[2, :32] = np.concatenate([[127, -8], np.arange(-15, 15) + 0.5])
    return x


@pytest.fixture
def gguf_pair(tmp_path: Path) -> tuple[Path, Path]:
    originals = {f"blk.{i}.weight": weights(i) for i in range(len(LAYOUTS))} | {"plain": weights(9)}
    made = {
        f"blk.{i}.weight": (name, (16, 128), raw_of(make(originals[f"blk.{i}.weight"].reshape(-1, 32))))
        for i, (name, make) in enumerate(LAYOUTS.items())
    }
    made["plain"] = ("F32", (16, 128), originals["plain"].tobytes())
    write_gguf(tmp_path / "model.gguf", made)
    save_file(originals, tmp_path / "model.safetensors")
    return tmp_path / "model.gguf", tmp_path / "model.safetensors"


def test_the_tensors_of_a_gguf_file_are_attributed(gguf_pair: tuple[Path, Path]) -> None:
    found = {one.layout: one for one in attribute(*gguf_pair)}
    assert [*found] == [f"GGUF {name}" for name in LAYOUTS]
    for name, one in zip(LAYOUTS, found.values(), strict=True):
        assert one.explained == 1, one
        assert one.makers == (f"gguf.{name}",)
        assert (one.elements, one.blocks) == (2048, 64)
    assert found["GGUF Q8_0"].fields == {
        "statistic": "extremes",
        "absmax over": "127",
        "rounding": "ties_to_away",
        "division": "divide or reciprocal",
        "codes from": "unrounded scale",
    }
    assert found["GGUF Q4_0"].fields["statistic"] == "signed_absmax"
    assert found["GGUF Q4_1"].fields["range"] == "of_data"


def test_another_writer_of_the_same_layout_is_told_apart(tmp_path: Path) -> None:
    """Q8_0 by somebody who rounds ties to even: its ties say so."""
    x = weights(0)
    write_gguf(tmp_path / "a.gguf", {"w": ("Q8_0", x.shape, raw_of(q8_0(x.reshape(-1, 32), np.rint)))})
    save_file({"w": x}, tmp_path / "a.safetensors")
    (one,) = attribute(tmp_path / "a.gguf", tmp_path / "a.safetensors")
    assert one.explained == 1
    assert one.makers == ()
    assert one.fields["rounding"] == "ties_to_even"


def test_a_changed_code_is_a_share_below_one(tmp_path: Path) -> None:
    x = weights(0)
    d, codes = q8_0(x.reshape(-1, 32))
    codes[5, 7] += 1
    write_gguf(tmp_path / "a.gguf", {"w": ("Q8_0", x.shape, raw_of((d, codes)))})
    save_file({"w": x}, tmp_path / "a.safetensors")
    (one,) = attribute(tmp_path / "a.gguf", tmp_path / "a.safetensors")
    assert one.codes == 2047 / 2048
    assert one.scales == 1


def int8(x: Array, divisor: float, low: int = -128, axis: int | None = None, dtype: Any = F32) -> dict[str, Array]:
    """Symmetric int8 by a divisor, computed from the scale that is stored."""
    peak = np.abs(x).max() if axis is None else np.abs(x).max(1, keepdims=True)
    scale = np.asarray(peak / F32(divisor), dtype)
    return {"": np.clip(np.rint(x / scale.astype(F32)), low, 127).astype(np.int8), "_scale": scale}


def test_the_tensors_of_a_safetensors_file_are_attributed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = {name: rng.standard_normal((12, 64)).astype(F32) for name in ("a", "b", "c", "d", "e", "f")}
    made = {f"a.weight{k}": v for k, v in int8(x["a"], 127, axis=0).items()}
    made |= {f"b.weight{k}": v for k, v in int8(x["b"], 127.5).items()}
    made |= {f"c.weight{k}": v for k, v in int8(x["c"], 128, axis=0).items()}
    made |= {f"d.weight{k}": v for k, v in int8(x["d"], 127, axis=0, dtype=np.float16).items()}
    low, high = x["e"].min(1, keepdims=True), x["e"].max(1, keepdims=True)
    scale = (high - low) / F32(255)
    zero = np.clip(-np.rint(low / scale), 0, 255)
    made["e.weight"] = np.clip(np.rint(x["e"] / scale) + zero, 0, 255).astype(np.uint8)
    made |= {"e.weight_scale": scale, "e.weight_zero_point": zero.astype(np.uint8)}
    groups = x["f"].reshape(12, 2, 32)
    scale = np.abs(groups).max(2, keepdims=True) / F32(7)
    made["f.weight"] = np.clip(np.rint(groups / scale), -8, 7).astype(np.int8).reshape(12, 64)
    made["f.weight_scale"] = scale[:, :, 0]
    save_file(made, tmp_path / "quantized.safetensors")
    save_file({f"{name}.weight": value for name, value in x.items()}, tmp_path / "floats.safetensors")
    found = {
        one.tensor[0]: one for one in attribute(tmp_path / "quantized.safetensors", tmp_path / "floats.safetensors")
    }
    assert [*found] == ["a", "b", "c", "d", "e", "f"]
    assert all(one.explained == 1 for one in found.values()), found
    assert [found[k].fields["absmax over"] for k in "abcdf"] == ["127", "127.5", "128", "127", "7"]
    assert found["b"].fields["division"] in ("divide", "divide or reciprocal")
    assert found["d"].fields["codes from"] == "stored scale"
    assert found["e"].fields["zero_point_order"] == "after_rounding or before_rounding"  # no tie tells
    assert {"onnx", "torch_fake_quantize"} & set(found["e"].makers)
    assert found["f"].layout == "I8, per group of 32, scale F32"
    assert "torchao" not in found["a"].makers


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-200],
    "header": lambda data: data[:60],
    "version": lambda data: data[:4] + b"\1" + data[5:],
    "endless text": lambda data: data[:24] + b"\xff" * 8 + data[32:],
}


@pytest.mark.parametrize("broken", BROKEN)
def test_gguf_files_that_cannot_be_read(broken: str, gguf_pair: tuple[Path, Path]) -> None:
    quantized, original = gguf_pair
    data = quantized.read_bytes()
    plain = 16 * 128 * 4
    quantized.write_bytes(BROKEN[broken](data[:-plain]))
    with pytest.raises(FileError, match=r"truncated or corrupt|version 1 is not read"):
        attribute(quantized, original)


def test_files_without_a_pair(gguf_pair: tuple[Path, Path], tmp_path: Path) -> None:
    quantized, original = gguf_pair
    save_file({"other": weights(0)}, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="holds no quantized tensor that"):
        attribute(quantized, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="No such file"):
        attribute(tmp_path / "none.gguf", original)
    save_file({"blk.0.weight": weights(0)[:8]}, tmp_path / "half.safetensors")
    with pytest.raises(FileError, match=r"has shape \(16, 128\), and \(8, 128\)"):
        attribute(quantized, tmp_path / "half.safetensors")


# The first digits of the SHA-256 of what gguf 0.19.0 makes of `weights(3)`: gguf.quants.quantize(x, type).tobytes()
GOLDEN = {
    "Q8_0": "13a4fb84c3504873",
    "Q4_0": "dc990e986a3bda80",
    "Q4_1": "1dbaa43d5564d7c2",
    "Q5_0": "6cec698b6280f0b1",
    "Q5_1": "f92c76ec71f8a349",
}


def test_the_writer_of_these_tests_gives_the_bytes_of_the_gguf_package() -> None:
    made = {name: sha256(raw_of(make(weights(3).reshape(-1, 32)))).hexdigest()[:16] for name, make in LAYOUTS.items()}
    assert made == GOLDEN


def test_codes_are_decoded_to_the_published_values(gguf_pair: tuple[Path, Path]) -> None:
    blocks = read_gguf(gguf_pair[0])
    assert blocks["plain"] == "F32"
    one = blocks["blk.1.weight"]
    assert isinstance(one, Blocks)
    values = (one.codes.reshape(-1, 32) - 8) * one.scale.reshape(-1, 1)
    error = np.abs(values - weights(1).reshape(-1, 32)).max(1)
    assert (error <= np.abs(one.scale.reshape(-1)) * 1.01 + 1e-6).all()
