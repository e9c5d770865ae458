"""`samebits check` of prototypes: what it compares, faults that are planted, JSON as of the catalog, mistakes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from samebits.proofs.check.check import check, plan
from samebits.proofs.cli import commands as cli
from samebits.torch_frontend import primitives as torch_primitives

FORMULAS = """
from samebits.core import formula as p
from samebits.proofs import prototype


@prototype
def rows(x, *, peak=p.state(0.0), bits=4):
    s = p.absmax(x, -1, True) / (2.0 ** (bits - 1) - 1) + 0.0078125
    y = p.straight_through(p.round(x / s), x / s) * s
    return y, {"peak": p.maximum(peak, p.absmax(x))}


@prototype
def narrow(x):
    return x.reshape(-1, 7).reshape(x.shape)
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with formulas and a small checkpoint."""
    weight = np.random.default_rng(0).standard_normal((8, 3, 3)).astype(np.float32)
    odd = np.array([np.nan, np.inf, 1.0, -2.5], np.float32)
    save_file({"weight": weight, "odd": odd, "steps": np.arange(4)}, tmp_path / "model.safetensors")
    (tmp_path / "formulas.py").write_text(FORMULAS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.fixture
def command(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        given = ["samebits", "check", str(files / "model.safetensors"), *arguments]
        monkeypatch.setattr(sys, "argv", [*given, "--mode", "torch eager", "--workers", "0"])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return call


def test_every_dtype_of_a_prototype_agrees(files: Path) -> None:
    found = check(
        files / "model.safetensors",
        quantizers=[f"{files / 'formulas.py'}:rows"],
        modes=["torch eager"],
        parameters=["bits=3"],
    )
    (row,) = found.rows
    assert found.same
    assert (row.quantizer, row.mode, row.missing) == (f"{files / 'formulas.py'}:rows, bits=3", "torch eager", None)
    assert found.dtypes == {"float32": 1, "bfloat16": 1, "float16": 1, "float64": 1}
    assert row.tally.compared > 4 * 3 * 2 * 128 * 256  # a piece, edges, special values: results and gradients


def test_a_fault_at_edges_alone_is_found(
    files: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quotient that is one ulp smaller where it is a half: no weight is there, elements beside edges are."""
    import torch

    right = torch_primitives.divide

    def divide(a: Any, b: Any) -> Any:
        y = right(a, b)
        half = y - torch.floor(y) == 0.5
        return torch.where(half, torch.nextafter(y, torch.zeros_like(y)), y) if y.dtype == torch.float32 else y

    asked = ("--quantizer", f"{files / 'formulas.py'}:rows", "--dtype", "float32", "--json")
    assert command(*asked)[0] == 0
    monkeypatch.setattr(torch_primitives, "divide", divide)
    code, out, _ = command(*asked)
    found = json.loads(out)
    (row,) = found["rows"]
    assert (code, found["same"]) == (1, False)
    assert row["example"]["tensor"].startswith("edges found in ")
    assert row["example"]["function"] == "result"
    assert "float32 bits 0x" in row["example"]["x"]
    assert set(row["parts"]) <= {"result", "gradient of x"}
    of_rows = torch_primitives.absmax
    monkeypatch.setattr(torch_primitives, "absmax", lambda *a, **k: of_rows(*a, **k) * 2)
    out = command(*asked[:-1])[1]
    assert "new peak" in out
    assert "gradient of x" in out


MISTAKES = {
    "no such": (["--quantizer", "{0}:row"], "formulas.py has no 'row'"),
    "parameter": (["--quantizer", "{0}:rows", "--set", "width=3"], "`rows` has no parameter width; it has peak, bits"),
    "formula": (["--quantizer", "{0}:narrow"], "formulas.py:15, in `x.reshape(-1, 7)`: `reshape` must keep"),
    "dialect": (["--quantizer", "{0}:rows", "--dialect", "torchao"], "`dialect` is of quantizers of the catalog"),
    "set": (["--quantizer", "int8_per_tensor", "--set", "bits=3"], "--set is of prototypes"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(
    files: Path, command: Callable[..., tuple[int, str, str]], arguments: list[str], message: str
) -> None:
    code, out, err = command(*(one.format(files / "formulas.py") for one in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_prototypes_beside_entries_of_the_catalog(files: Path) -> None:
    name = f"{files / 'formulas.py'}:rows"
    wanted = plan(files / "model.safetensors", ["int8_per_tensor", name, name], ["jax jit"], ["float32"])
    assert wanted.quantizers == ("int8_per_tensor", name)
    assert len(wanted.jobs) == 2
    alone = plan(None, [name], ["jax jit"], ["float32", "float64"])
    assert alone.quantizers == (name,)
    assert len(alone.jobs) == 2  # and none of the digits


@pytest.mark.thorough
def test_a_compiled_mode(files: Path) -> None:
    name = f"{files / 'formulas.py'}:rows"
    assert check(files / "model.safetensors", quantizers=[name], dtypes=["bfloat16"], modes=["jax jit"]).same
