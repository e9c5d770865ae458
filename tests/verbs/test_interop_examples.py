"""The examples `train_in_torch_serve_in_jax.py` and `train_in_jax_serve_in_torch.py`, for two epochs."""

import re
import sys

import pytest

from ..project.source import example

RUNS = [("train_in_torch_serve_in_jax", [], 1), ("train_in_jax_serve_in_torch", ["--eager"], 1)]
RUNS += [("train_in_jax_serve_in_torch", [], 2)]


@pytest.mark.parametrize(("name", "options", "modes"), [*RUNS[:2], pytest.param(*RUNS[2], marks=pytest.mark.thorough)])
def test_every_logit_has_the_same_bits(
    name: str, options: list[str], modes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--epochs", "2", *options])
    assert example(name).main() == 0
    printed = capsys.readouterr().out
    assert re.findall(r"(\d+) of 17,970 logits differ", printed) == ["0"] * modes
    (reached,) = re.findall(r"(\d+\.\d\d) % of the held-out digits", printed)
    assert float(reached) > 80
