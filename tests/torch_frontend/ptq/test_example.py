"""The example `static_digits.py`: what it prints, and its exit code."""

import importlib.util
import re
import sys
from types import ModuleType

import pytest

from ...project.source import ROOT


def example() -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("static_digits", ROOT / "examples" / "static_digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_finds_no_difference(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["static_digits.py", "--images", "64", "--observer", "min_max"])
    assert example().main() == 0
    printed = capsys.readouterr().out
    found = re.findall(r"(\d\d\.\d\d) % +│ +([\d,]+)", printed)
    assert [wrong for _, wrong in found[1:]] == ["0", "0", "0"]
    assert all(float(right) > 98.5 for right, _ in found)
