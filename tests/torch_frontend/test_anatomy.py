"""The example `anatomy.py`: the cells of the tutorial, with what they print there."""

import importlib.util
from typing import Any

import pytest
import torch

from samebits.torch_frontend import config

from ..project.source import ROOT


def example() -> Any:
    spec = importlib.util.spec_from_file_location("anatomy", ROOT / "examples" / "anatomy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tutorial_prints_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Every statement is checked before it is printed; these are all of them."""
    example().main()
    printed = capsys.readouterr().out
    assert printed.count("as it says: ") == 33
    assert "TypeError: `signed` is not set in MyBinaryWeightQuantizer" in printed
    assert 'Missing key(s) in state_dict: "weight_quant.tensor_quant.scaling_impl.value"' in printed
    assert "DependencyError: QuantIdentity, `act_quant`: AdvancedActQuantizer" in printed
    assert not config.IGNORE_MISSING_KEYS


def test_a_statement_that_is_wrong_stops_it() -> None:
    anatomy = example()
    with pytest.raises(AssertionError, match="no"):
        anatomy.check("no", False)
    with pytest.raises(AssertionError, match="signs"):
        anatomy.check_values("signs", torch.tensor([0.1, -0.1]), 0.1, "++")
    with pytest.raises(AssertionError, match="scales"):
        anatomy.check_values("scales", torch.tensor([[0.1], [-0.2]]), [0.1, 0.2001], "+-")
