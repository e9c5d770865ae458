"""The script that measures on a GPU: it ends in one line without one, and its parts and pages work on the CPU."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from samebits import core
from samebits.core import requirements
from samebits.proofs.modes.devices import ACCELERATED
from samebits.proofs.modes.execution import without_device

from .source import ROOT

SCRIPT = ROOT / "benchmarks" / "accelerator.sh"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program that the script runs. It lowers what releases are taken, which the end of the test takes back."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(requirements, "EXTRAS", requirements.EXTRAS)
    yield importlib.import_module("accelerator")
    for name in ("accelerator", "accelerator_speed", "timing"):
        sys.modules.pop(name, None)


@pytest.mark.skipif(without_device(ACCELERATED) is None, reason="there is a GPU")
def test_without_a_gpu_it_ends_in_one_line(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["accelerator.py"])
    assert script.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("accelerator: torch ")
    assert err.count("\n") == 1


def test_every_part_is_in_the_results(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part that fails does not take the others with it, one that takes too long is cut, and both are said."""

    def parts(differing: int) -> dict[str, Any]:
        def failing(*_: Any) -> Any:
            raise OSError("no such device")
            yield

        row = {"mode": "one", "compared": 10, "differing": differing}
        return {"check": lambda *_: iter([row, row]), "speed": failing, "digits": lambda *_: iter([row] * 5)}

    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--device", "cpu", "--quick", "--out", str(tmp_path)])
    monkeypatch.setattr(script, "PARTS", parts(3))
    monkeypatch.setitem(script.SHARES, "digits", -1)
    assert script.main() == 1
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["check"]["rows"][0]["differing"] == 3
    assert found["speed"]["rows"] == [{"failed": "OSError: no such device"}]
    assert found["digits"]["rows"][1:] == [{"stopped": "after -1 s"}]
    assert {"numpy", "torch", "jax"} <= set(found["versions"])
    page = (tmp_path / "results.md").read_text()
    assert "| mode | compared | differing |" in page
    assert "10 of 30 results differ" in page
    capsys.readouterr()


def test_the_digits_are_those_of_the_package(script: ModuleType) -> None:
    rows = list(script.digits(("torch eager",), True))
    assert rows == [{"mode": "torch eager", "compared": 640, "differing": 0}]


def test_twelve_entries_have_knife_edges(script: ModuleType) -> None:
    assert len(script.ENTRIES) == 12
    for name, dtype in script.ENTRIES:
        x, p = script.edges_of(name, dtype)
        assert core.fake_quantize(core.catalog[name], x, p).dtype == dtype


@pytest.mark.thorough
def test_a_little_of_everything_on_the_cpu(tmp_path: Any) -> None:
    command = [str(SCRIPT), "--device", "cpu", "--quick", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable, "LIMIT": "1200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert all(found[part]["rows"] for part in ("check", "speed", "digits", "diverge", "certificate"))
