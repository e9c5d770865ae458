"""The command line: what it prints, what it exits with, and that a user's mistake is one line and no traceback."""

import html
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from samebits.core import catalog
from samebits.proofs.cli import commands as cli
from samebits.proofs.modes.devices import ACCELERATED
from samebits.proofs.modes.execution import without_device

from ...planted import FORMULAS, codes_by, plant

SMALL = ("--quantizer", "int8_per_tensor", "--dtype", "float32", "--workers", "0")
EAGER = ("--mode", "torch eager", "--mode", "jax eager")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    weight = np.random.default_rng(0).standard_normal((8, 3, 3)).astype(np.float32)
    save_file({"conv.weight": weight, "steps": np.arange(4)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def samebits(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    code = "from samebits.proofs.cli.commands import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: exit code, standard output, standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["samebits", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return call


def test_help_and_version_need_no_framework() -> None:
    heavy = ("numpy", "torch", "jax", "rich.table", "matplotlib", "jinja2", "samebits.core")
    code = f"import sys, samebits.proofs.cli.commands\nsys.exit(', '.join(set({heavy}) & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for arguments in (["--help"], ["check", "--help"], ["--version"]):
        assert samebits(*arguments).returncode == 0
    assert samebits("--version").stdout.startswith("samebits ")
    assert all(name in samebits("--help").stdout for name in ("check", "diverge", "catalog"))


def test_programs_of_the_current_directory_are_found(tmp_path: Path) -> None:
    """By the installed command, whose path does not hold that directory."""
    (tmp_path / "of_mine.py").write_text(
        "import numpy as np\n"
        "from samebits.proofs.divergence.causes import Program\n"
        "mine = Program('mine', (np.float32([0.25, 7.0]),), in_torch=lambda x: x / 3)\n"
    )
    command = [Path(sys.executable).with_name("samebits"), "diverge", "of_mine:mine", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)["explanations"]
    assert {one["explanation"]["program"] for one in found} == {"mine"}


NO_GPU = "finds no CUDA device" if without_device(ACCELERATED) else "this machine has one"
MISTAKES: dict[str, tuple[Sequence[str], str]] = {
    "a quantizer in its place": (["check", "nf4_per_group64"], "is named by --quantizer nf4_per_group64"),
    "a prototype in its place": (["check", "mine.py:pact"], "is named by --quantizer mine.py:pact"),
    "missing file": (["check", "{dir}/none.safetensors"], "none.safetensors: no such file"),
    "directory": (["check", "{dir}"], "is a directory"),
    "truncated file": (["check", "{dir}/truncated.safetensors"], "truncated or corrupt"),
    "corrupt header": (["check", "{dir}/corrupt.safetensors"], "truncated or corrupt"),
    "integers alone": (["check", "{dir}/integers.safetensors"], "no floating-point tensor"),
    "quantizer": (["check", "--quantizer", "int8_per_chanel"], "did you mean int8_per_channel"),
    "mode": (["check", "--mode", "jax jat"], "did you mean jax jit"),
    "dtype": (["check", "--dtype", "float8"], "unknown dtype 'float8'"),
    "report": (["check", "--report", "{dir}/none/page.html"], "no such directory"),
    "target": (["diverge", "textbok"], "did you mean textbook"),
    "no program": (["diverge", "math:pi"], "must be a samebits.proofs.divergence.causes.Program, got float"),
    "no module": (["diverge", "maths:pi"], "maths:pi: cannot import maths: No module named 'maths'"),
    "no program of that name": (["diverge", "math:py"], "math has no 'py'"),
    "a device that no mode has": (["check", "--device", "tpu"], "`device` must be one of cpu, cuda; got 'tpu'"),
    "no GPU to check": (["check", "--device", "cuda"], NO_GPU),
    "no GPU to certify": (["certify", "int8_per_tensor", "--device", "cuda"], NO_GPU),
    "no GPU to diverge": (["diverge", "--device", "cuda"], NO_GPU),
    "option": (["check", "--quantiser", "x"], "No such option"),
    "command": (["chek"], "No such command"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_exit_code_2_and_one_line(
    run: Callable[..., tuple[int, str, str]], checkpoint: Path, arguments: Sequence[str], message: str
) -> None:
    raw = checkpoint.read_bytes()
    (checkpoint.parent / "truncated.safetensors").write_bytes(raw[:-9])
    (checkpoint.parent / "corrupt.safetensors").write_bytes(raw[:8] + b"!" + raw[9:])
    save_file({"steps": np.arange(4)}, checkpoint.parent / "integers.safetensors")
    code, out, err = run(*(argument.format(dir=checkpoint.parent) for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("samebits: ")
    assert err.count("\n") == 1


def test_a_corrupt_file_in_a_process_of_its_own(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    done = samebits("check", checkpoint, "--quantizer", "int4_per_group32", "--json")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "truncated or corrupt" in done.stderr


def test_agreement_is_exit_code_0_and_a_table(run: Callable[..., tuple[int, str, str]], checkpoint: Path) -> None:
    code, out, err = run("check", checkpoint, *SMALL, *EAGER)
    assert (code, err) == (0, "")
    assert "int8_per_tensor" in out
    assert "torch eager" in out
    assert "skipped steps: dtype I64 is not floating point" in out
    assert "\n0 of " in out
    assert "\x1b" not in out  # no colour outside a terminal


def check_schema(found: dict[str, Any]) -> None:
    """Every field and its kind."""
    kinds = {
        "command": str,
        "same": bool,
        "checkpoint": str,
        "dialect": type(None),
        "modes": list,
        "dtypes": dict,
        "seconds": float,
        "versions": dict,
        "tensors": list,
        "rows": list,
        "digits": list,
    }
    assert {name: type(value) for name, value in found.items()} == kinds
    for row in found["rows"]:
        assert set(row) == {
            "quantizer",
            "mode",
            "missing",
            "compared",
            "differing",
            "sums",
            "outside",
            "parts",
            "example",
        }
        assert all(isinstance(row[name], int) for name in ("compared", "differing", "sums", "outside"))
        assert row["quantizer"] in catalog
    for tensor in found["tensors"]:
        assert set(tensor) == {"name", "dtype", "shape", "elements", "skipped"}


def test_json_has_its_schema_and_the_page_stands_alone(
    run: Callable[..., tuple[int, str, str]], checkpoint: Path, tmp_path: Path
) -> None:
    code, out, err = run("check", checkpoint, *SMALL, *EAGER, "--json", "--report", tmp_path / "page.html")
    assert (code, err) == (0, "")
    found = json.loads(out)
    check_schema(found)
    assert found["same"] is True
    assert [row["mode"] for row in found["rows"]] == ["torch eager", "jax eager"]
    assert all(row["compared"] > 4 * 72 and row["differing"] == row["outside"] == 0 for row in found["rows"])
    assert [t["skipped"] for t in found["tensors"]].count("dtype I64 is not floating point") == 1
    assert {"torch", "jax", "numpy", "samebits", "processor"} <= set(found["versions"])
    page = (tmp_path / "page.html").read_text()
    shown = ("int8_per_tensor", html.escape(found["command"]).replace("&#x27;", "&#39;"), found["versions"]["torch"])
    assert all(text in page for text in (*shown, "steps"))
    assert "src=" not in page
    assert "<svg" not in page  # nothing differs, so there is nothing to plot


@pytest.mark.parametrize("mode", ["torch eager", "jax eager"])
def test_reciprocal_for_division_is_exit_code_1_with_input_results_and_mode(
    run: Callable[..., tuple[int, str, str]],
    checkpoint: Path,
    tmp_path: Path,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch, *codes_by(FORMULAS["reciprocal for division"][0], mode))
    code, out, _ = run("check", checkpoint, *SMALL, *EAGER, "--report", tmp_path / "page.html")
    assert code == 1
    assert f"int8_per_tensor, {mode}: " in out
    for label in ("function", "tensor", "input", "scale", "expected", "got"):
        assert f"\n  {label}" in out
    assert out.count("float32 bits") >= 2
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page
    assert "smallest example" in page
    code, out, _ = run("check", checkpoint, *SMALL, *EAGER, "--json")
    assert code == 1
    found = json.loads(out)
    check_schema(found)
    wrong = [row for row in found["rows"] if row["differing"]]
    assert [row["mode"] for row in wrong] == [mode]
    example = wrong[0]["example"]
    assert example["expected"] != example["got"]
    assert set(example) == {"function", "tensor", "dtype", "x", "scale", "zero_point", "expected", "got"}


LINE = "XLA_FLAGS has --xla_cpu_enable_fast_math=true, with which modes of JAX are not promised the same bits"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--xla_cpu_enable_fast_math=true", True),
        ("--xla_force_host_platform_device_count=2 --xla_cpu_enable_fast_math", True),
        ("--xla_cpu_enable_fast_math=true --xla_cpu_enable_fast_math=false", False),
        ("--xla_cpu_fast_math_honor_nans=true", False),
        ("", False),
    ],
)
def test_a_switch_of_xla_is_named_where_something_differs(
    run: Callable[..., tuple[int, str, str]], checkpoint: Path, flags: str, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XLA has read its flags by now, so this is about the line alone."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert LINE not in run("check", checkpoint, *SMALL, "--mode", "jax eager")[1]
    plant(monkeypatch, *codes_by(FORMULAS["reciprocal for division"][0], "jax eager"))
    code, out, _ = run("check", checkpoint, *SMALL, "--mode", "jax eager")
    assert code == 1
    assert (LINE in out.replace("\n", " ")) is named


def test_fast_math_of_xla_is_seen_and_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    asked = ("--quantizer", "mxfp4_e2m1", "--dtype", "float32", "--mode", "jax jit", "--workers", "0")
    done = samebits("check", checkpoint, *asked)
    assert done.returncode == 1, done.stderr
    assert LINE in done.stdout.replace("\n", " ")


def test_workers_give_what_one_process_gives(run: Callable[..., tuple[int, str, str]], checkpoint: Path) -> None:
    wanted = ("check", checkpoint, "--quantizer", "int2_per_channel", "--mode", "torch eager", "--json")
    alone, shared = (json.loads(run(*wanted, "--workers", workers)[1]) for workers in ("0", "2"))
    assert alone["rows"] == shared["rows"]


def test_catalog_lists_every_quantizer(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("catalog")
    assert code == 0
    assert all(name in out for name in catalog)
    listed = json.loads(run("catalog", "--json")[1])
    assert set(listed) == set(catalog)
    assert all(entry["oracle"] and entry["guarantee"] for entry in listed.values())
    assert listed["int4_per_group32"]["format"]["bits"] == 4
    assert listed["int4_per_group32"]["granularity"] == {"kind": "PerGroup", "size": 32, "axis": -1}
