"""`samebits verify`: answers of our other rooms and of two small programs, planted faults, what is no answer."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from samebits.core import PerToken, QParams, Quantizer, catalog, choose_qparams
from samebits.proofs import implementation
from samebits.proofs.cli import commands as cli
from samebits.proofs.conformance.results import parse
from samebits.proofs.conformance.vector_files import VectorError, Vectors, read, write
from samebits.proofs.conformance.vectors import answers
from samebits.proofs.conformance.verify import Verdict, verify
from samebits.proofs.modes.execution import Implementation

from ...project.source import ROOT

EXAMPLES = ROOT / "examples" / "verify_in_c"


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of a symmetric quantizer."""
    folder = tmp_path_factory.mktemp("vectors") / "int8"
    write("int8_per_tensor", folder, dtypes=("float32", "bfloat16"))
    return folder


@pytest.fixture(scope="module")
def affine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of an affine quantizer."""
    folder = tmp_path_factory.mktemp("vectors") / "affine"
    write("int8_affine_per_token", folder, dtypes=("float32", "bfloat16"))
    return folder


def samebits(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The command in this process: its exit code."""
    monkeypatch.setattr(sys, "argv", ["samebits", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return int(done.value.code or 0)


def elements_by(vectors: Vectors, q: Quantizer, table: str = "elements.float32") -> dict[str, Any]:
    """What another quantizer answers to the elements, as tensors."""
    data = {name: values[:, 0] for name, values in vectors.sections[table].data.items()}
    found = answers(q, data["x"], data["scale"], data.get("zero_point"), data["g"])
    return {f"{table}/{column}": values for column, values in found.items()}


def judged(folder: Path, tensors: dict[str, Any], tmp_path: Path) -> Verdict:
    save_file({name: np.ascontiguousarray(v) for name, v in tensors.items()}, tmp_path / "answers.safetensors")
    return verify(folder, tmp_path / "answers.safetensors")


def whole(vectors: Vectors, room: Implementation) -> dict[str, Any]:
    """What a room answers to everything."""
    found: dict[str, Any] = {}
    for name, section in vectors.sections.items():
        data, q = section.data, vectors.quantizer
        if section.shape is None:
            q = q.replace(granularity=PerToken())
            given = QParams(data["scale"], data.get("zero_point"))
            if "x" in data:
                x, undefined = data["x"], section.undefined["code"][:, None]
                found[f"{name}/code"] = room.quantize(q, np.where(undefined, np.zeros_like(x), x), given)[:, 0]
                found[f"{name}/value"] = room.fake_quantize(q, x, given)[:, 0]
                found[f"{name}/dx"] = room.fake_quantize_vjp(q, x, given, data["g"]).x[:, 0]
            else:
                found[f"{name}/value"] = room.dequantize(q, data["code"], given, data["value"].dtype)[:, 0]
            continue
        rows = []
        for i in range(section.rows):
            x = data["x"][i].reshape(section.shape)
            if "g" not in data:
                rows.append(room.choose_qparams(q, x)[:2])
            else:
                scale, zero = (data[n][i].reshape(section.parameter_shape) for n in ("scale", "zero_point"))
                rows.append(
                    room.fake_quantize_vjp(q, x, QParams(scale, zero), data["g"][i].reshape(section.shape))[1:3]
                )
        names = [column.name for column in section.columns if column.role == "expected"]
        for column, values in zip(names, zip(*rows, strict=True), strict=True):
            found[f"{name}/{column}"] = np.stack([np.asarray(v).reshape(-1) for v in values])
    return found


@pytest.mark.parametrize(("mode", "dtypes"), [("torch eager", ("float32", "bfloat16")), ("jax jit", ("float32",))])
def test_our_rooms_answer_everything_right(affine: Path, tmp_path: Path, mode: str, dtypes: tuple[str, ...]) -> None:
    """Other methods than core's, and sums in another order. Of JAX in one dtype, since each compiles all of it."""
    vectors = read(affine)
    tables = {name: section for name, section in vectors.sections.items() if name.endswith(dtypes)}
    verdict = judged(affine, whole(replace(vectors, sections=tables), implementation(mode)), tmp_path)
    assert [f"{one.section} {one.column}" for one in verdict.columns if one.differing] == []
    assert verdict.same
    assert verdict.answered == 8 * len(dtypes)
    assert {like.exactly for like in verdict.like.values()} == {("samebits", "onnx_float")}


PLANTED: dict[str, tuple[dict[str, Any], str, str]] = {  # changes; column; the rule that must be named
    "rounding": ({"rounding": "ties_to_away"}, "code", "rounding direction: ties_to_away, must be ties_to_even"),
    "toward zero": ({"rounding": "toward_zero"}, "value", "rounding direction: toward_zero, must be ties_to_even"),
    "clamp": ({"narrow": True}, "code", "clamp: codes must end at -128 and 127"),
    "reciprocal": ({"division": "reciprocal"}, "value", "reciprocal: x * (1 / scale), must be x / scale"),
    "order": ({"zero_point_order": "before_rounding"}, "code", "zero point before rounding"),
    "zeros": ({"keep_negative_zero": True}, "value", "negative zero: must be 0.0, since codes have one zero"),
    "NaN": ({"nan": "lowest"}, "value", "NaN: must stay NaN"),
    "subnormals": ({"flush_subnormals": True}, "code", "subnormals: flushed to zero, must be kept"),
    "mask": ({"gradient": "pass_through"}, "dx", "gradient mask: pass_through, must be clipped"),
}


@pytest.mark.parametrize(("changes", "column", "rule"), PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_is_found_and_named(
    int8: Path, affine: Path, tmp_path: Path, changes: dict[str, Any], column: str, rule: str
) -> None:
    folder = int8 if {"keep_negative_zero", "narrow"} & set(changes) else affine
    vectors = read(folder)
    verdict = judged(folder, elements_by(vectors, vectors.quantizer.replace(**changes)), tmp_path)
    assert not verdict.same
    (found,) = (one for one in verdict.columns if one.section == "elements.float32" and one.column == column)
    assert found.example is not None
    assert found.example.rule.startswith(rule)
    section = vectors.sections["elements.float32"]
    first = found.example.row
    expected = section.data[column][:, 0]
    got = elements_by(vectors, vectors.quantizer.replace(**changes))[f"elements.float32/{column}"]
    differ = expected.view(f"u{expected.itemsize}") != got.view(f"u{got.itemsize}")
    differ &= ~(np.isnan(expected.astype(np.float64)) & np.isnan(got.astype(np.float64)))
    if column == "code":
        differ &= ~section.undefined["code"]
    assert (found.differing, first) == (np.count_nonzero(differ), np.flatnonzero(differ)[0])


PARAMETERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "denominator": ({"denominator": "half_range"}, "scale", "denominator: half_range, must be hi"),
    "floor": ({"floor": 2.0**-23}, "scale", "floor of scales: 1.1920928955078125e-07"),
    "empty": ({"replace_below": 2.0**-126, "replacement": 1.0}, "scale", "empty range: scale 1.0"),
    "zero points": ({"zero_point_rounding": "ties_to_away"}, "zero_point", "rounding direction of zero points: ties"),
}


@pytest.mark.parametrize(("changes", "column", "rule"), PARAMETERS.values(), ids=PARAMETERS)
def test_a_planted_fault_of_parameters_is_found_and_named(
    int8: Path, affine: Path, tmp_path: Path, changes: dict[str, Any], column: str, rule: str
) -> None:
    folder = int8 if "denominator" in changes else affine
    vectors = read(folder)
    section, q = vectors.sections["parameters.float32"], vectors.quantizer.replace(**changes)
    chosen = [choose_qparams(q, row.reshape(section.shape)) for row in section.data["x"]]
    tensors = {f"{section.name}/scale": np.stack([np.asarray(one.scale).reshape(-1) for one in chosen])}
    if q.affine:
        tensors[f"{section.name}/zero_point"] = np.stack([one.zero_point.reshape(-1) for one in chosen])
    verdict = judged(folder, tensors, tmp_path)
    (found,) = (one for one in verdict.columns if (one.section, one.column) == (section.name, column))
    assert found.differing > 0
    assert found.example is not None
    assert found.example.rule.startswith(rule)


def test_sums_are_judged_by_their_bound(affine: Path, tmp_path: Path) -> None:
    section = read(affine).sections["gradients.float32"]
    exact, bound = section.data["dscale"].astype(np.float64), section.data["dscale_bound"]
    for part, right in ((0.4, True), (3.0, False)):
        verdict = judged(affine, {f"{section.name}/dscale": (exact + part * bound).astype(np.float32)}, tmp_path)
        assert verdict.same is right
    example = next(one.example for one in verdict.columns if one.example)
    assert example.bound == bound[example.row, example.place]
    assert set(example.inputs) == {"scale", "zero_point"}


def test_an_example_says_everything(
    int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = elements_by(read(int8), catalog["int8_per_tensor"].replace(division="reciprocal"))
    save_file(tensors, tmp_path / "answers.safetensors")
    assert samebits("verify", int8, "--results", tmp_path / "answers.safetensors", monkeypatch=monkeypatch) == 1
    text = capsys.readouterr().out
    for line in (
        "elements.float32 code      191 of 5,596 differ",
        "row 64 (knife edges, scale 0)",
        "x          -12.15 = -0x1.84ccccp+3 (float32 bits 0xc1426666)",
        "scale      0.1 = 0x1.99999ap-4 (float32 bits 0x3dcccccd)",
        "expected   -121 (int8 bits 0x87)",
        "got        -122 (int8 bits 0x86)",
        "rule       reciprocal: x * (1 / scale), must be x / scale, one correctly rounded division",
        "gradients.bfloat16 dscale  not answered",
        "elements.float32: but for NaN the bits of torch_fake_quantize",
        "9 of 12 columns not answered",
    ):
        assert line in text
    assert (
        samebits("verify", int8, "--results", tmp_path / "answers.safetensors", "--json", monkeypatch=monkeypatch) == 1
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["same"], found["name"], found["columns"][0]["differing"]) == (False, "int8_per_tensor", 191)


# --- two programs in other languages ----------------------------------------------------------------------------------


def compiled(source: str, folder: Path) -> Path:
    """A C program."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here: cc, gcc or clang")
    (folder / "program.c").write_text(source)
    command = [compiler, "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-o", "program", "program.c", "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "program"


def test_the_c_program_is_right_and_an_off_by_one_in_it_is_caught(int8: Path, tmp_path: Path) -> None:
    source = (EXAMPLES / "int8_per_tensor.c").read_text()
    assert len(source.splitlines()) <= 60
    results = tmp_path / "answers.txt"
    for planted, wrong in (
        ("code > 127 ? 127", None),
        ("code > 126 ? 126", ("code", "clamp: codes end at -128 and 126, must end")),
        ("code > 128 ? 128", ("value", "clamp: codes end at -128 and 128, must end")),
    ):
        program = compiled(source.replace("code > 127 ? 127", planted), tmp_path)
        results.write_text(subprocess.run([program, int8], capture_output=True, text=True, check=True).stdout)
        verdict = verify(int8, results)
        assert (verdict.answered, verdict.same) == (4, wrong is None)
        if wrong:
            (example,) = (one.example for one in verdict.columns if one.example and one.column == wrong[0])
            assert example.rule.startswith(wrong[1])


def test_the_numpy_program_is_right(int8: Path, tmp_path: Path) -> None:
    program = EXAMPLES / "int8_per_tensor.py"
    assert len(program.read_text().splitlines()) <= 40
    done = subprocess.run([sys.executable, program, int8], capture_output=True, text=True, check=True)
    (tmp_path / "answers.txt").write_text(done.stdout)
    verdict = verify(int8, tmp_path / "answers.txt")
    assert verdict.same
    assert verdict.answered == 4


# --- what is refused --------------------------------------------------------------------------------------------------


def text_of(vectors: Vectors, table: str, column: str) -> list[str]:
    """Right answers to one column, line by line."""
    values = vectors.sections[table].data[column]
    width = 2 * values.dtype.itemsize
    bits = values.view(f"u{values.dtype.itemsize}")
    return [" ".join(f"{int(cell):0{width}x}" for cell in row) for row in bits]


def spoil(lines: list[str], at: int, text: str) -> list[str]:
    return [*lines[:at], text, *lines[at + 1 :]]


SPOILED: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "no number": (
        lambda lines: spoil(lines, 4, "0g"),
        "answers.txt:5: '0g' is no hexadecimal number of 2 digits (code)",
    ),
    "a sign": (lambda lines: spoil(lines, 4, "-1"), "answers.txt:5: '-1' is no hexadecimal number"),
    "too many digits": (lambda lines: spoil(lines, 4, "ffffffff"), ":5: 'ffffffff' has 8 digits, code of int8 has 2"),
    "too few rows": (lambda lines: lines[:-1], "elements.float32 must have 5606 rows, got 5605"),
    "too many rows": (lambda lines: [*lines, "00"], "elements.float32 must have 5606 rows, got 5607"),
    "the first row": (lambda lines: spoil(lines, 1, "00 00"), "answers.txt:2: 1 cells are wanted, got 2"),
    "two cells": (lambda lines: spoil(lines, 9, "00 00"), "answers.txt:10: 1 cells are wanted, got 2"),
    "no section": (lambda lines: lines[1:], "answers.txt:1: a row before the first line 'section TABLE COLUMN ...'"),
    "table": (lambda lines: spoil(lines, 0, "section elements"), "answers.txt:1: unknown section 'elements'"),
    "column": (lambda lines: spoil(lines, 0, "section elements.float32 x"), "columns of elements.float32 are code,"),
    "no column": (lambda lines: spoil(lines, 0, "section elements.float32"), "each once, got none"),
    "twice": (lambda lines: [*lines, lines[0]], "answers.txt:5608: section elements.float32 is there twice"),
    "not ASCII": (lambda lines: ["# Ärger", *lines], "neither text in ASCII nor a .safetensors file"),
}


@pytest.mark.parametrize(("change", "message"), SPOILED.values(), ids=SPOILED)
def test_a_file_that_is_no_answer_is_refused(
    int8: Path, tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    lines = ["section elements.float32 code", *text_of(read(int8), "elements.float32", "code")]
    (tmp_path / "answers.txt").write_text("\n".join(change(lines)) + "\n", encoding="utf-8")
    with pytest.raises(VectorError) as refused:
        verify(int8, tmp_path / "answers.txt")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_right_answers_may_have_remarks_short_cells_and_prefixes(int8: Path, tmp_path: Path) -> None:
    lines = text_of(read(int8), "elements.float32", "value")
    cells = [f"0x{line.lstrip('0') or '0'}".replace("0x", "0X" if i % 2 else "0x") for i, line in enumerate(lines)]
    (tmp_path / "a.txt").write_text("\n".join(["# mine", "", "section elements.float32 value", *cells]))
    assert verify(int8, tmp_path / "a.txt").same


def test_tensors_of_another_kind_are_refused(int8: Path, tmp_path: Path) -> None:
    value = read(int8).sections["elements.float32"].data["value"][:, 0]
    for name, tensor, message in (
        ("elements.float32/value", value.astype(np.float64), "must be float32 of shape (5606,), got float64"),
        ("elements.float32/value", value[:-1], "of shape (5606,), got float32 of shape (5605,)"),
        ("elements.float32/x", value, "unknown tensor 'elements.float32/x'; tensors are SECTION/COLUMN, such as elem"),
        ("value", value, "unknown tensor 'value'"),
    ):
        save_file({name: np.ascontiguousarray(tensor)}, tmp_path / "a.safetensors")
        with pytest.raises(VectorError) as refused:
            verify(int8, tmp_path / "a.safetensors")
        assert message in str(refused.value)
    (tmp_path / "a.safetensors").write_bytes(b"section")
    with pytest.raises(VectorError, match="no safetensors file"):
        verify(int8, tmp_path / "a.safetensors")


def test_a_directory_that_was_changed_is_refused(int8: Path, tmp_path: Path) -> None:
    def changed(name: str, old: bytes, new: bytes) -> str:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(int8, folder)
        content = (folder / name).read_bytes()
        assert old in content
        (folder / name).write_bytes(content.replace(old, new, 1))
        with pytest.raises(VectorError) as refused:
            read(folder)
        return str(refused.value)

    assert "elements.float32.txt: is not as it was written" in changed("elements.float32.txt", b"3dcccccd", b"3dccccce")
    assert "manifest.json: is not as it was written" in changed("manifest.json", b'"level": 1', b'"level": 2')
    assert "must be 'samebits vectors 1', got 'samebits vectors 9'" in changed(
        "manifest.json", b"vectors 1", b"vectors 9"
    )
    assert "not JSON" in changed("manifest.json", b"{", b"")
    (tmp_path / "changed" / "manifest.json").write_bytes((int8 / "manifest.json").read_bytes())
    (tmp_path / "changed" / "codes.float32.txt").unlink()
    with pytest.raises(VectorError, match=r"codes.float32.txt: no such file"):
        read(tmp_path / "changed")
    with pytest.raises(VectorError, match="no vectors here"):
        read(tmp_path)


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no directory": (("vectors", "int8_per_tensor"), "give the directory: --out DIR"),
    "no name": (("vectors", "--out", "{dir}/x"), "give either catalog names or --all"),
    "name": (("vectors", "int8_per_tensr", "--out", "{dir}/x"), "did you mean int8_per_tensor"),
    "dtype": (("vectors", "int8_per_tensor", "--dtype", "int8", "--out", "{dir}/x"), "`dtypes` must be of"),
    "dialect": (("vectors", "int8_per_tensor", "--dialect", "qwx", "--out", "{dir}/x"), "did you mean qwix"),
    "level": (("vectors", "int8_per_tensor", "--level", "4", "--out", "{dir}/x"), "`level` must be one of 1, 2, 3"),
    "a file": (("vectors", "int8_per_tensor", "--out", "{dir}/file"), "must be a new or empty directory"),
    "no answers": (("verify", "{vectors}"), "give the answers: --results FILE"),
    "nothing": (("verify", "{vectors}", "--results", "{dir}/file"), "answers no section of"),
    "no file": (("verify", "{vectors}", "--results", "{dir}/none"), "No such file"),
    "no vectors": (("verify", "{dir}", "--results", "{dir}/file"), "no vectors here"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_exit_code_2_and_one_line(
    int8: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("# nothing\n")
    given = (argument.format(dir=tmp_path, vectors=int8) for argument in arguments)
    assert samebits(*given, monkeypatch=monkeypatch) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n"), err.startswith("samebits: ")) == ("", 1, True)


def test_commands_write_and_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("int4_per_channel", "nvfp4")
    assert samebits("vectors", *names, "--dtype", "bfloat16", "--out", tmp_path, monkeypatch=monkeypatch) == 0
    assert "int4_per_channel: " in capsys.readouterr().out
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    sums = {name: sha256((tmp_path / name / "manifest.json").read_bytes()).hexdigest() for name in names}
    assert lines == [f"{digest}  {name}/manifest.json" for name, digest in sums.items()]
    vectors = read(tmp_path / "nvfp4")
    assert list(parse_nothing(vectors, tmp_path)) == []
    save_file(elements_by(vectors, vectors.quantizer, "elements.bfloat16"), tmp_path / "a.safetensors")
    assert samebits("verify", tmp_path / "nvfp4", "--results", tmp_path / "a.safetensors", monkeypatch=monkeypatch) == 0
    assert "nvfp4: 0 of " in capsys.readouterr().out


def parse_nothing(vectors: Vectors, folder: Path) -> dict[str, Any]:
    (folder / "empty.txt").write_text("")
    return parse(folder / "empty.txt", vectors.sections)
