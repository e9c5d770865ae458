"""The pytest plugin, in runs of pytest of its own: what passes, what fails and says why, and what it imports."""

import subprocess
import sys

import pytest

from samebits.proofs.modes.execution import MODES

from ...project.source import PROJECT

pytest_plugins = ["pytester"]
PLUGIN = "samebits.proofs.conformance.plugin"

GOOD = """
import numpy as np, pytest

def mine(x, scale):
    return np.clip(np.round(x / scale), -128, 127) * scale + np.float32(0)

@pytest.mark.samebits(like="int8_per_channel")
def test_mine():
    return mine

@pytest.fixture(params=["int8_per_tensor"])
def quantizer(request):
    return mine

@pytest.mark.samebits("int8_per_tensor", returns="values")
def test_of_a_fixture(quantizer):
    return quantizer

class TestsOfAClass:
    @pytest.mark.samebits("int8_per_tensor")
    def test_method(self):
        return mine

def test_not_marked():
    pass
"""

BAD = """
import numpy as np, pytest

@pytest.mark.samebits(like="int8_per_tensor")
def test_reciprocal():
    return lambda x, scale: np.clip(np.round(x * (1 / scale)), -128, 127) * scale + np.float32(0)

@pytest.mark.samebits(like="int8_per_tensor")
def test_nothing():
    pass

@pytest.mark.samebits(like="int8_per_tensr")
def test_name():
    return abs

@pytest.mark.samebits(lik="int8_per_tensor")
def test_argument():
    return abs
"""

FIXTURES = """
import numpy as np, pytest
from samebits.core import catalog, fake_quantize
from samebits.proofs import implementation

def test_edges(knife_edges):
    x, qparams = knife_edges("uint8_affine_per_channel", [0.1, 0.7], [3, 255], "bfloat16")
    assert x.shape[0] == 2 and qparams.scale.shape == (2, 1) and x.dtype.name == "bfloat16"
    assert fake_quantize(catalog["uint8_affine_per_channel"], x, qparams).shape == x.shape

def test_no_zero_point(knife_edges):
    with pytest.raises(ValueError, match="needs a `zero_point`"):
        knife_edges("uint8_affine_per_tensor", 0.1)

def test_modes(execution_mode):
    assert implementation(execution_mode).name == execution_mode
"""


def run(pytester: pytest.Pytester, source: str) -> pytest.RunResult:
    """A file of tests; the plugin is named, so that it does not matter what this installation announces."""
    pytester.makepyfile(source)
    return pytester.runpytest_inprocess("--strict-markers", "-rA", "-p", "no:samebits", "-p", PLUGIN)


def test_functions_that_conform_pass(pytester: pytest.Pytester) -> None:
    run(pytester, GOOD).assert_outcomes(passed=4)


def test_functions_that_do_not_fail_with_the_report(pytester: pytest.Pytester) -> None:
    result = run(pytester, BAD)
    result.assert_outcomes(failed=4)
    text = result.stdout.str()
    assert "input      -1.55 = -0x1.8cccccp+0 (float32 bits 0xbfc66666)" in text
    assert "rule       reciprocal: x * (1 / scale), must be x / scale" in text
    assert "but for NaN the bits of torch_fake_quantize" in text
    assert "must return the function to be tested, got None" in text
    assert "did you mean int8_per_tensor" in text
    assert "@pytest.mark.samebits: conformance() got an unexpected keyword argument 'lik'" in text
    assert "Traceback" not in text


def test_fixtures(pytester: pytest.Pytester) -> None:
    run(pytester, FIXTURES).assert_outcomes(passed=2 + len(MODES))


def test_modes_that_are_not_installed_are_skipped(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    from samebits.proofs.modes import execution

    monkeypatch.setattr(execution, "not_installed", lambda mode: "no JAX here" if "jax" in mode else None)
    result = run(pytester, "def test_modes(execution_mode): pass")
    result.assert_outcomes(passed=3, skipped=2)
    assert "no JAX here" in result.stdout.str()


def test_it_costs_nothing_until_it_is_used() -> None:
    code = f"import sys, {PLUGIN}; print({{'numpy', 'torch', 'jax', 'hypothesis', 'samebits.core'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_pytest_finds_it() -> None:
    assert PROJECT["project"]["entry-points"] == {"pytest11": {"samebits": PLUGIN}}
