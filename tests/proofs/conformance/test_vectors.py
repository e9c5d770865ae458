"""Test vectors: what stands in them, against formulas written here; the files; what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from samebits.core import Rounding, catalog, dialects
from samebits.proofs.conformance import vector_files
from samebits.proofs.conformance.vectors import Section, sections

KINDS = (  # one for each format and each way to cut an array into blocks
    "int8_per_tensor",
    "int16_per_tensor",
    "uint8_affine_per_channel",
    "int8_learned_per_tensor",
    "int8_affine_per_token",
    "uint4_affine_per_group32",
    "uint4_affine_float_zero_per_group64",
    "int8_percentile_per_tensor",
    "float8_e4m3fn_overflow_per_tensor",
    "float8_e4m3fn_per_block",
    "ternary_absmean_per_tensor",
    "binary_per_channel",
    "mxfp4_e2m1",
    "nvfp4",
    "nf4_per_group64",
)


def tables(name: str, level: int = 1, dtypes: tuple[str, ...] = ("float32",)) -> dict[str, Section]:
    return {section.name.partition(".")[0]: section for section in sections(catalog[name], level, dtypes)}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_quantizer_has_vectors(name: str) -> None:
    q, found = catalog[name], tables(name)
    assert list(found) == ["elements", "codes", "parameters", "gradients"]
    for section in found.values():
        assert section.rows >= 10
        assert [part.first for part in section.parts] == np.cumsum([0, *(p.rows for p in section.parts)]).tolist()[:-1]
        assert sum(part.rows for part in section.parts) == section.rows
        for column in section.columns:
            assert section.data[column.name].shape == (section.rows, column.count)
            assert section.data[column.name].dtype.name == column.dtype
    assert ("zero_point" in found["parameters"].data) is q.affine
    assert ("dzero_point" in found["gradients"].data) is q.affine
    blocks = math.prod(found["parameters"].parameter_shape or ())
    assert blocks == (1 if "tensor" in name else 2)
    clamped = found["elements"].data["dx"] != found["elements"].data["g"]
    assert 0.01 < clamped.mean() < 0.99, "elements on both sides of the clamp"


def test_special_values_and_knife_edges_come_first() -> None:
    section = tables("int8_per_tensor")["elements"]
    words = [part.what.partition(",")[0] for part in section.parts]
    assert words == ["special values", "knife edges"] * 5 + ["random"] * 5
    x = section.data["x"][:, 0]
    first = x[: section.parts[0].rows]
    assert np.isnan(first).any()
    assert np.isinf(first).any()
    edges = section.parts[7]
    assert (section.data["scale"][edges.first : edges.first + edges.rows] == 7).all()
    assert np.isin((np.arange(-129, 128) + 0.5) * 7, x[edges.first : edges.first + edges.rows]).all(), "every tie"


def test_elements_are_what_the_formula_says() -> None:
    for name in ("int8_per_tensor", "int8_affine_per_token"):
        data = {column: values[:, 0] for column, values in tables(name)["elements"].data.items()}
        x, scale, zero = data["x"], data["scale"], data.get("zero_point", np.zeros_like(data["scale"]))
        with np.errstate(all="ignore"):
            free = np.rint(x / scale).astype(np.float64) + zero
            code = np.clip(free, -128, 127)
            value = ((code - zero).astype(np.float32) * scale + np.float32(0)).astype(np.float32)
        defined = ~np.isnan(x)
        np.testing.assert_array_equal(data["code"], np.where(defined, code, zero))  # where there is none, that of 0
        np.testing.assert_array_equal(data["value"].view(np.int32)[defined], value.view(np.int32)[defined])
        assert np.isnan(data["value"][~defined]).all()
        np.testing.assert_array_equal(data["dx"], np.where((free == code) | ~defined, data["g"], 0))


def test_gradients_are_sums_and_the_bound_is_of_their_terms() -> None:
    section = tables("int8_affine_per_token")["gradients"]
    data, n = section.data, 32
    for row in range(section.rows):
        for block in range(2):
            x, g = (data[name][row].reshape(2, n)[block] for name in ("x", "g"))
            scale, zero = data["scale"][row, block], data["zero_point"][row, block]
            with np.errstate(all="ignore"):
                quotient = x / scale
                free = np.rint(quotient).astype(np.float64) + zero
                code = np.clip(free, -128, 127)
                passes = free == code
                terms = g * ((code - zero).astype(np.float32) - np.where(passes, quotient, np.float32(0)))
                of_zero = np.where(passes, np.float32(0), g * -scale)
            for name, own in (("dscale", terms), ("dzero_point", of_zero)):
                expected, total = data[name][row, block], math.fsum(own.astype(np.float64))
                if not math.isfinite(total) or abs(total) > np.finfo(np.float32).max:
                    continue
                assert abs(float(expected) - total) <= np.spacing(np.abs(expected)) / 2
                bound = data[f"{name}_bound"][row, block]
                size = math.fsum(np.abs(own).astype(np.float64))
                assert (
                    n * 2.0**-24 * size
                    <= bound
                    <= n * 2.0**-24 * size + n * 2.0**-126 + 3 * np.spacing(np.abs(expected))
                )
    assert (data["dzero_point"] != 0).any()


def test_parameters_are_those_of_the_ranges() -> None:
    section = tables("int8_per_tensor")["parameters"]
    most = np.abs(section.data["x"]).max(1)
    expected = np.maximum(most / np.float32(127), np.finfo(np.float32).smallest_normal)
    np.testing.assert_array_equal(section.data["scale"][:, 0], expected)
    assert (most == 0).any()
    assert (most == np.finfo(np.float32).max).any()


def test_level_3_has_every_number_of_16_bits() -> None:
    section = tables("int4_per_channel", 3, ("bfloat16",))["elements"]
    every = [part for part in section.parts if part.what.startswith("every bfloat16")]
    assert len(every) == 16
    for part in every:
        x = section.data["x"][part.first : part.first + part.rows, 0]
        assert len(np.unique(x.view(np.uint16))) == 2**16


def test_level_2_has_more_scales() -> None:
    few, many = (tables("int4_per_channel", level)["elements"] for level in (1, 2))
    assert len(np.unique(few.data["scale"])) == 5
    assert len(np.unique(many.data["scale"])) == 48


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    for folder in ("a", "b", "b"):  # and over what is there
        rows = vector_files.write("uint8_affine_per_channel", tmp_path / folder)
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / f).iterdir()} for f in ("a", "b"))
    assert one == other
    assert len(one) == 3 * 4 + 2
    assert rows == sum(section.rows for section in sections(catalog["uint8_affine_per_channel"]))


def test_text_and_tensors_hold_the_same_bits(tmp_path: Path) -> None:
    vector_files.write("uint4_affine_per_group32", tmp_path, dtypes=("float32", "bfloat16", "float64"))
    for name, section in vector_files.read(tmp_path).sections.items():
        lines = (tmp_path / f"{name}.txt").read_text().splitlines()
        assert lines[0] == f"# samebits vectors 1: {name}, {section.rows} rows"
        cells = [line.split() for line in lines if not line.startswith("#")]
        assert len(cells) == section.rows
        for i in (0, 1, section.rows - 1):
            row = iter(cells[i])
            for column in section.columns:
                for value in section.data[column.name][i]:
                    cell = next(row)
                    assert len(cell) == 2 * value.dtype.itemsize
                    bits = int.from_bytes(value.tobytes(), "little")
                    undefined = column.name in section.undefined and section.undefined[column.name][i]
                    assert set(cell) == {"-"} if undefined else int(cell, 16) == bits
            assert not list(row)


def test_the_manifest_describes_everything(tmp_path: Path) -> None:
    vector_files.write("mxfp4_e2m1", tmp_path, dtypes=("float16",), dialect=None)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["schema"] == "samebits vectors 1"
    assert manifest["quantizer"]["format"] == {
        "kind": "FloatFormat",
        "exponent_bits": 2,
        "mantissa_bits": 1,
        "bias": 1,
        "specials": "none",
        "saturate": True,
        "lo": -6.0,
        "hi": 6.0,
        "codes": "uint8",
    }
    assert manifest["quantizer"]["granularity"] == {"kind": "PerGroup", "size": 32, "axis": -1}
    assert set(manifest["versions"]) == {"samebits", "numpy", "ml_dtypes"}
    assert set(manifest["files"]) == {p.name for p in tmp_path.iterdir()} - {"manifest.json"}
    assert manifest["sections"]["parameters.float16"]["shape"] == [1, 64]
    assert manifest["sections"]["parameters.float16"]["parameter_shape"] == [1, 2]


def test_a_dialect_has_its_own_answers(tmp_path: Path) -> None:
    vector_files.write("int8_per_tensor", tmp_path, dialect="torch_fake_quantize", dtypes=("float32",))
    read = vector_files.read(tmp_path)
    assert read.quantizer == catalog["int8_per_tensor"].replace(**dialects["torch_fake_quantize"])
    elements = read.sections["elements.float32"]
    assert not elements.undefined, "NaN has a code there"
    ours = tables("int8_per_tensor")["elements"]
    assert (elements.data["code"] != ours.data["code"]).sum() > 20


def test_what_is_refused(tmp_path: Path) -> None:
    q = catalog["int8_per_tensor"]
    for wrong, message in (
        ((q, 4), "`level` must be one of 1, 2, 3, got 4"),
        ((q, 1, ("float8",)), "`dtypes` must be of"),
        ((q.replace(rounding=Rounding.STOCHASTIC),), "without drawing or learning"),
        ((catalog["int8_affine_per_token"].replace(zero_point_domain="shift"),), "`zero_point_domain` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            list(sections(*wrong))
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(vector_files.VectorError, match="must be a new or empty directory"):
        vector_files.write("int8_per_tensor", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]
    with pytest.raises(KeyError, match="did you mean int8_per_tensor"):
        vector_files.write("int8_per_tensr", tmp_path / "new")
    with pytest.raises(KeyError, match="did you mean brevitas"):
        vector_files.write("int8_per_tensor", tmp_path / "new", dialect="brevitass")
    with pytest.raises(ValueError, match="`restriction` must be"):
        vector_files.write("nvfp4", tmp_path / "new", dialect="torch_fused_fake_quantize")
    assert not (tmp_path / "new").exists()


def test_threefry_draws_what_it_drew(tmp_path: Path) -> None:
    """Digits that would change if any input, parameter or answer did: no release of a library may change them."""
    vector_files.write("int4_per_channel", tmp_path, dtypes=("bfloat16",))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["files"]["elements.bfloat16.txt"][:16] == "fc1e534ebfc66246"
