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
    monkeypatch.setitem(script.SHARES, "digits", -1000)
    assert script.main() == 1
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["check"]["rows"][0]["differing"] == 3
    assert found["speed"]["rows"] == [{"failed": "OSError: no such device"}]
    assert found["digits"]["rows"][1:] == [{"stopped": "after -740 s"}], "its share, and what the two before it left"
    assert {"numpy", "torch", "jax"} <= set(found["versions"])
    page = (tmp_path / "results.md").read_text()
    assert "| mode | compared | differing |" in page
    assert "10 of 30 results differ" in page
    capsys.readouterr()


def test_rows_are_written_as_they_come_and_parts_that_were_begun_are_not_run_again(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def watching(*_: Any) -> Iterator[dict[str, int]]:
        for differing in (0, 0):
            yield {"compared": 1, "differing": differing}
            seen.append(json.loads((tmp_path / "results.json").read_text())["second"]["rows"])

    begun = {"seconds": 3.0, "rows": [{"failed": "the process ended"}]}
    (tmp_path / "results.json").write_text(json.dumps({"device": "d", "versions": {}, "first": begun}))
    monkeypatch.setattr(script, "PARTS", {"first": watching, "second": watching})
    monkeypatch.setattr(script, "SHARES", {"first": 1, "second": 1})
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--device", "cpu", "--resume", "--out", str(tmp_path)])
    assert script.main() == 1, "the part that ended its process has failed"
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["first"] == begun
    assert [len(rows) for rows in seen] == [2, 3]
    assert all("the process ended" in rows[-1]["failed"] for rows in seen)
    assert found["second"]["rows"] == [{"compared": 1, "differing": 0}] * 2
    capsys.readouterr()


@pytest.mark.parametrize(("codes", "said"), [((139, 142, 1), 1), ((0,), 0), ((2,), 2)])
def test_what_a_signal_ends_goes_on_with_the_parts_that_are_left(
    codes: tuple[int, ...], said: int, tmp_path: Any
) -> None:
    """By an interpreter that ends with one code after the other, and writes down how it was called."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$@" >> "$CALLS"\nexit $(sed -n "$(wc -l < "$CALLS")p" "$CODES")\n', encoding="utf-8"
    )
    python.chmod(0o755)
    calls, lines = tmp_path / "calls", tmp_path / "codes"
    lines.write_text("".join(f"{code}\n" for code in codes))
    environment = {**os.environ, "PYTHON": str(python), "CALLS": str(calls), "CODES": str(lines)}
    done = subprocess.run([str(SCRIPT), "--quick"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == said, done.stderr
    asked = calls.read_text().splitlines()
    assert [line.endswith("accelerator.py --quick --resume") for line in asked] == [i > 0 for i in range(len(codes))]


def test_a_peer_that_breaks_is_left_out(script: ModuleType) -> None:
    def broken() -> None:
        raise TypeError("no such argument\nand more")

    apart = sys.modules["accelerator_speed"].apart
    usable, rows = apart({"copy": int, "torchao, compiled": broken, "samebits, jit": broken})
    assert list(usable) == ["copy"]
    assert [sorted(row) for row in rows] == [["left out", "program"], ["failed", "program"]]
    with pytest.raises(TypeError):
        apart({"copy": broken})


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
