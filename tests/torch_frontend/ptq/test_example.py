"""The examples `static_digits.py` and `calibrate_functions.py`: what they print, and the exit code."""

import re
import sys

import jax
import pytest

from ...project.source import example


def test_it_finds_no_difference(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["static_digits.py", "--images", "64", "--observer", "min_max"])
    assert example("static_digits").main() == 0
    printed = capsys.readouterr().out
    found = re.findall(r"(\d\d\.\d\d) % +│ +([\d,]+)", printed)
    assert [wrong for _, wrong in found[1:]] == ["0", "0", "0"]
    assert all(float(right) > 98.5 for right, _ in found)


def test_functions_are_calibrated_in_both(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["calibrate_functions.py"])
    with jax.numpy_rank_promotion("allow"):
        example("calibrate_functions").main()
    in_torch, in_jax, distances = capsys.readouterr().out.split("\n\n")
    for name in ("sigmoid_0", "softmax_0"):
        line = next(line for line in in_torch.splitlines() if line.startswith(name))
        assert "no data needed" in line
        assert line.split() in [other.split() for other in in_jax.splitlines()]
    for name in ("log_0", "elu_1"):
        assert all("has no bound" in next(x for x in t.splitlines() if x.startswith(name)) for t in (in_torch, in_jax))
    from_float, between = (float(line.rpartition(" ")[2]) for line in distances.strip().splitlines())
    assert from_float < 0.01
    assert between <= 0.001
