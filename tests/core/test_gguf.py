"""GGUF blocks and files, beside what gguf 0.19.0 makes of the same numbers.

`tests/data/gguf.npz` holds the numbers, its blocks and its values, and a file that it wrote. To make it again, in an
environment with it: ``python -c "from tests.core import test_gguf as t; t.record()"``.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core.gguf import block_codes, block_values
from samebits.core.gguf_files import LAYOUTS, Blocks, bytes_of, stored, write_gguf
from samebits.proofs.conformance.gguf_file import read_gguf

Array = NDArray[Any]
FILE = Path(__file__).parents[1] / "data" / "gguf.npz"
METADATA: dict[str, Any] = {
    "general.architecture": "mine",
    "general.name": "é",
    "mine.count": 5,
    "mine.names": ["a", "bc"],
    "mine.numbers": [1, -2],
    "mine.half": 0.5,
    "mine.yes": True,
}


def numbers() -> Array:
    """Random blocks, ties of every layout and their neighbours, peaks next to powers of two, tiny blocks, zeros."""
    draw = np.random.default_rng(0)
    scale = (2.0 ** draw.integers(-12, 9, (25, 1))).astype(np.float32)
    ties = draw.choice([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, -0.25, -0.75, -2.5, -5, 0, -0.0], (25, 32))
    floats = ties.astype(np.float32) * scale
    floats[:, 1] = np.nextafter(np.float32(8) * scale[:, 0], np.float32(0))
    halves = (draw.integers(-254, 255, (25, 32)) / 254).astype(np.float32) * scale
    halves[:, 5] = -scale[:, 0]
    eighths = (draw.integers(-16, 16, (25, 32)) / 16 + 1 / 32).astype(np.float32) * scale
    eighths[:, 3], eighths[:, 9] = scale[:, 0], -scale[:, 0]
    random = draw.standard_normal((25, 32)).astype(np.float32) * scale
    tiny = draw.standard_normal((6, 32)).astype(np.float32) * np.float32(1e-7)
    near = np.nextafter(floats, draw.choice([-9, 9], floats.shape).astype(np.float32))
    return np.concatenate([random, floats, near, halves, eighths, tiny, np.zeros((1, 32), np.float32)])


def tensors(blocks: dict[str, Any]) -> dict[str, Any]:
    """Those of the file."""
    return {
        **blocks,
        "half": np.linspace(0, 1, 10).astype(np.float16).reshape(2, 5),
        "b": np.arange(7, dtype=np.float32),
    }


def blocks_of(layout: str, x: Array) -> Blocks:
    return stored(layout, *block_codes(layout, x))


def values_of(blocks: Blocks) -> Array:
    return block_values(blocks.layout, blocks.codes, blocks.scale)


def record() -> None:
    gguf: Any = import_module("gguf")
    x, found = numbers(), {}
    writer = gguf.GGUFWriter(FILE.with_suffix(".gguf"), "mine")
    writer.add_string("general.name", "é")
    writer.add_uint32("mine.count", 5)
    writer.add_array("mine.names", ["a", "bc"])
    writer.add_array("mine.numbers", [1, -2])
    writer.add_float32("mine.half", 0.5)
    writer.add_bool("mine.yes", True)
    for layout in LAYOUTS:
        kind = getattr(gguf.GGMLQuantizationType, layout)
        found[layout] = gguf.quants.quantize(x, kind)
        found[f"{layout} values"] = gguf.quants.dequantize(found[layout], kind)
        writer.add_tensor(layout, gguf.quants.quantize(x[:4].reshape(2, 64), kind), raw_dtype=kind)
    for name, array in tensors({}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = np.frombuffer(FILE.with_suffix(".gguf").read_bytes(), np.uint8)
    FILE.with_suffix(".gguf").unlink()
    np.savez_compressed(FILE, x=x, whole=whole, **found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_and_scales_are_those_of_gguf(layout: str) -> None:
    with np.load(FILE) as found:
        x, blocks, values = found["x"], found[layout], found[f"{layout} values"]
    ours = blocks_of(layout, x)
    np.testing.assert_array_equal(np.frombuffer(bytes_of(ours), np.uint8).reshape(len(x), -1), blocks)
    np.testing.assert_array_equal(values_of(ours), values)


def test_a_file_is_that_of_gguf_byte_for_byte(tmp_path: Path) -> None:
    with np.load(FILE) as found:
        x = found["x"][:4].reshape(2, 64)
        write_gguf(tmp_path / "a.gguf", tensors({layout: blocks_of(layout, x) for layout in LAYOUTS}), METADATA)
        assert (tmp_path / "a.gguf").read_bytes() == found["whole"].tobytes()


def test_what_reads_files_reads_ours(tmp_path: Path) -> None:
    x = numbers()[:8].reshape(2, 4, 32)
    own = {layout: blocks_of(layout, x) for layout in LAYOUTS}
    write_gguf(tmp_path / "a.gguf", {**own, "w": x.astype(ml_dtypes.bfloat16)})
    found = read_gguf(tmp_path / "a.gguf")
    assert found["w"] == "BF16"
    for layout in ("Q8_0", "Q4_0"):
        read: Any = found[layout]
        np.testing.assert_array_equal(read.codes, own[layout].codes)
        np.testing.assert_array_equal(read.scale, own[layout].scale)


def test_blocks_where_the_tools_give_garbage() -> None:
    """1 / d is infinite below 2**-128; the exponent of MXFP4 would be below -127 for peaks below 2**-125."""
    tiny = np.full((1, 32), 1e-38, np.float32)
    for layout in LAYOUTS:
        assert not values_of(blocks_of(layout, tiny)).any()
    smallest = blocks_of("MXFP4", np.full((1, 32), 2.0**-125, np.float32))
    assert (values_of(smallest) == 2.0**-125).all()


def test_given_codes_are_stored_as_they_are(tmp_path: Path) -> None:
    codes = np.arange(-128, 128, dtype=np.int8).reshape(2, 128)
    blocks = stored("Q8_0", codes, np.full((2, 4), 0.25, np.float32))
    np.testing.assert_array_equal(values_of(blocks), codes * np.float32(0.25))
    for layout, given, scale, says in (
        ("Q8_0", codes, np.full((2, 4), 0.1, np.float32), "`scale` of Q8_0 must be float16 numbers, got 0.1"),
        ("MXFP4", codes % 16, np.full((2, 4), 0.75, np.float32), "must be powers of two from .*, got 0.75"),
        ("MXFP4", codes % 16, np.full((2, 4), 2.0**-128, np.float32), "must be powers of two"),
        ("Q4_0", codes, np.ones((2, 4), np.float32), r"`codes` of Q4_0 must be in 0..15, got -128 to 127"),
        ("Q4_0", codes % 16, np.ones((2, 3), np.float32), r"one for 32 codes, got shapes \(2, 3\) and \(2, 128\)"),
        ("Q5_0", codes, np.ones((2, 4), np.float32), "`layout` must be one of Q8_0, Q4_0, MXFP4, got 'Q5_0'"),
    ):
        with pytest.raises(ValueError, match=says):
            stored(layout, given, scale)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((3, 33)), r"last axis that is a multiple of 32, got shape \(3, 33\)"),
        (np.full((1, 32), np.nan), "must be finite"),
        (np.full((1, 32), np.inf), "must be finite"),
        (np.full((1, 32), 1e8), "must have scales that float16 holds"),
    ],
)
def test_numbers_that_have_no_blocks(x: Array, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        blocks_of("Q8_0", x)


@pytest.mark.parametrize(
    ("given", "metadata", "kind", "says"),
    [
        ({"w": np.zeros(3)}, {}, TypeError, "`w` must be Blocks, or an array of float32, .*, got float64"),
        ({"w": [1.0]}, {}, TypeError, "got list"),
        ({"w" * 64: np.zeros(3, np.float32)}, {}, ValueError, "a name of at most 63 bytes"),
        ({}, {"a": None}, TypeError, "`a` must be a text, bool, int, float"),
        ({}, {"a": [1, "b"]}, TypeError, "`a` must be a sequence of one kind"),
        ({}, {"a": []}, TypeError, "not empty"),
    ],
)
def test_what_a_file_does_not_hold(given: Any, metadata: Any, kind: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=says):
        write_gguf(tmp_path / "a.gguf", given, metadata)
    assert not (tmp_path / "a.gguf").exists()


def test_zero_is_a_block() -> None:
    assert bytes_of(Blocks("Q8_0", np.zeros(32, np.int8), np.zeros(1, np.float32))) == bytes(34)
