"""Files with codes in 32-bit words: compressed-tensors and GPTQ. They are made here by integers of Python."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from samebits.proofs.conformance.files import Attribution, FileError, attribute

Array = NDArray[Any]
F32 = np.float32
ROWS, COLUMNS, SIZE = 16, 128, 32


def weights() -> Array:
    return (np.random.default_rng(0).standard_normal((ROWS, COLUMNS)) * 0.05).astype(F32)


def in_words(codes: Array, bits: int) -> Array:
    """Each row as one large number, the first code in its lowest bits, cut into words."""
    rows = []
    for row in codes.tolist():
        whole = sum(code << i * bits for i, code in enumerate(row))
        rows.append([whole >> 32 * i & 0xFFFFFFFF for i in range(-(-len(row) * bits // 32))])
    return np.array(rows, np.uint32).view(np.int32)


def grouped(x: Array) -> Array:
    return x.reshape(ROWS, COLUMNS // SIZE, SIZE)


def symmetric(x: Array, bits: int, divisor: float, dtype: Any = F32) -> tuple[Array, Array]:
    """Signed codes and scales of groups, from the scale that is stored."""
    groups = grouped(x)
    scale = (np.abs(groups).max(2) / F32(divisor)).astype(dtype)
    half = 1 << bits - 1
    codes = np.clip(np.rint(groups / scale.astype(F32)[:, :, None]), -half, half - 1)
    return codes.astype(np.int64).reshape(ROWS, COLUMNS), scale


def affine(x: Array, bits: int) -> tuple[Array, Array, Array]:
    """Unsigned codes, scales and zero points of groups whose range holds 0."""
    groups, hi = grouped(x), (1 << bits) - 1
    low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
    scale = ((high - low) / F32(hi)).astype(F32)
    zero = np.rint(-low / scale)
    codes = np.clip(np.rint(groups / scale[:, :, None]) + zero[:, :, None], 0, hi)
    return codes.astype(np.int64).reshape(ROWS, COLUMNS), scale, zero.astype(np.int64)


def attributed(folder: Path, made: dict[str, Array], x: Array) -> Attribution:
    for name, tensors in (("quantized", made), ("floats", {"layer.weight": x})):
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / f"{name}.safetensors")
    (one,) = attribute(folder / "quantized.safetensors", folder / "floats.safetensors")
    return one


def compressed(bits: int, x: Array) -> dict[str, Array]:
    codes, scale = symmetric(x, bits, (1 << bits - 1) - 0.5)
    words = in_words(codes + (1 << bits - 1), bits)
    return {"layer.weight_packed": words, "layer.weight_scale": scale, "layer.weight_shape": np.array(x.shape)}


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_packed_codes_of_compressed_tensors(bits: int, tmp_path: Path) -> None:
    one = attributed(tmp_path, compressed(bits, weights()), weights())
    assert one.explained == 1, one
    assert one.layout == f"{bits} bits of compressed-tensors, per group of 32, scale F32"
    assert one.fields["absmax over"] == f"{(1 << bits - 1) - 0.5:g}"
    assert "compressed_tensors" in one.makers
    assert (one.elements, one.blocks) == (ROWS * COLUMNS, ROWS * COLUMNS // SIZE)


def test_packed_zero_points_of_compressed_tensors(tmp_path: Path) -> None:
    codes, scale, zero = affine(weights(), 4)
    made = {"layer.weight_packed": in_words(codes, 4), "layer.weight_scale": scale}
    made["layer.weight_zero_point"] = in_words(zero.T, 4).T
    one = attributed(tmp_path, made, weights())
    assert one.explained == 1, one
    assert one.fields["range"].startswith("with_zero")


def gptq(codes: Array, scale: Array, stored_zero: Array, bits: int = 4) -> dict[str, Array]:
    return {
        "layer.qweight": in_words(codes, bits).T,
        "layer.scales": scale.T,
        "layer.qzeros": in_words(stored_zero.T, bits),
        "layer.g_idx": (np.arange(COLUMNS) // SIZE).astype(np.int32),
    }


@pytest.mark.parametrize(("less", "note"), [(1, ", zero points less 1"), (0, "")])
def test_zero_points_of_gptq_are_read_as_they_fit(less: int, note: str, tmp_path: Path) -> None:
    codes, scale, zero = affine(weights(), 4)
    one = attributed(tmp_path, gptq(codes, scale, zero - less & 15), weights())
    assert one.explained == 1, one
    assert one.layout == f"4 bits of GPTQ{note}, per group of 32, scale F32"


def test_symmetric_gptq_with_its_columns_in_another_order(tmp_path: Path) -> None:
    """`desc_act`: each column says its group; zero points all 8 are none."""
    x = weights()
    codes, scale = symmetric(x, 4, 7.5, np.float16)
    order = np.random.default_rng(1).permutation(COLUMNS)
    made = gptq((codes + 8)[:, order], scale, np.full(scale.shape, 7))
    made["layer.g_idx"] = (order // SIZE).astype(np.int32)
    one = attributed(tmp_path, made, x[:, order])
    assert one.explained == 1, one
    assert one.fields["absmax over"] == "7.5"
    assert one.layout.endswith("scale F16, columns in the order of their groups")


def test_a_changed_code_is_seen(tmp_path: Path) -> None:
    x, made = weights(), compressed(4, weights())
    made["layer.weight_packed"][3, 5] ^= 1 << 8
    assert attributed(tmp_path, made, x).codes == (x.size - 1) / x.size


BAD: dict[str, tuple[Callable[[dict[str, Array]], dict[str, Array]], str]] = {
    "words": (lambda m: m | {"layer.weight_packed": m["layer.weight_packed"][:, :-1]}, "fits no width of codes"),
    "rows": (lambda m: m | {"layer.weight_scale": m["layer.weight_scale"][:-1]}, "does not fit 16 rows"),
    "groups": (lambda m: m | {"layer.weight_scale": m["layer.weight_scale"][:, :3]}, "do not divide into 3 groups"),
    "no groups": (lambda m: m | {"layer.weight_scale": m["layer.weight_scale"][:, :0]}, "no elements"),
    "columns": (
        lambda m: m | {"layer.weight_g_idx": np.zeros(COLUMNS, np.int32)},
        "has groups of different sizes",
    ),
    "zero points": (
        lambda m: m | {"layer.weight_zero_point": np.zeros((1, 4), np.int32)},
        r"layer.weight_zero_point has shape \(1, 4\), must be \(2, 4\)",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_words_that_do_not_fit_the_weight(bad: str, tmp_path: Path) -> None:
    change, message = BAD[bad]
    with pytest.raises((FileError, ValueError), match=message):
        attributed(tmp_path, change(compressed(4, weights())), weights())


# SHA-256 of the words that compressed-tensors 0.20.0 makes of `codes`: pack_to_int32(codes, bits) (its first digits)
GOLDEN = {3: "6a571ec0c3b03bad", 4: "cd578ae0de901642", 8: "8c9c692671c930e3"}


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_words_of_these_tests_are_those_of_the_library(bits: int) -> None:
    codes = symmetric(weights(), bits, (1 << bits - 1) - 0.5)[0]
    assert sha256(in_words(codes + (1 << bits - 1), bits).tobytes()).hexdigest()[:16] == GOLDEN[bits]
