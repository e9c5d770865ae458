"""The example `same_bits_training.py`: exact training ends at the same weights in every mode, ordinary does not."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from samebits import core
from samebits.core import QParams, Quantizer
from samebits.proofs import assert_same_bits, differences

from .source import example

QUICK = ("torch eager", "jax eager", "jax jit")


@pytest.fixture(scope="module")
def training() -> ModuleType:
    return example("same_bits_training")


@pytest.mark.parametrize("mode", QUICK)
def test_exact_training_ends_at_the_weights_of_the_specification(training: ModuleType, mode: str) -> None:
    assert_same_bits(tuple(training.exact(mode, 8)), tuple(training.exact("numpy", 8)))


@pytest.mark.thorough
@pytest.mark.parametrize("mode", [*QUICK, "torch compiled"])
def test_it_does_after_100_steps(training: ModuleType, mode: str) -> None:
    end = training.exact(mode, 100)
    assert_same_bits(tuple(end), tuple(training.exact("numpy", 100)))
    assert training.held_out_accuracy(end) > 85


def test_one_unit_in_the_last_place_of_a_scale_is_noticed(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = training.exact("numpy", 8)

    def by_reciprocal(q: Quantizer, x: np.ndarray) -> QParams:
        """The scale as XLA computes ``absmax / hi``."""
        right = core.choose_qparams(q, x)
        return QParams((np.abs(x).max() * np.float32(1 / q.format.hi)).astype(np.float32).reshape(right.scale.shape))

    verbs = {name: getattr(core, name) for name in ("linear", "fake_quantize")}
    monkeypatch.setattr(training, "core", SimpleNamespace(**verbs, choose_qparams=by_reciprocal))
    assert not differences(tuple(wanted), tuple(training.exact("numpy", 8))).same


def test_what_it_prints(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["same_bits_training.py", "--steps", "3", "--modes", "torch eager", "jax jit"])
    monkeypatch.setenv("COLUMNS", "120")
    assert training.main() == 0
    in_float, in_four_bits, exact = capsys.readouterr().out.strip().split("\n\n")
    assert "step 1, conv" in in_float
    assert "step 1, " in in_four_bits
    digests = [line.split("│")[2].strip() for line in exact.splitlines() if line.startswith("│")]
    assert len(digests) == 2
    assert len(set(digests)) == 1
