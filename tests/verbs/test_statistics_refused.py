"""Statistics that make no sense, and those that a quantizer cannot have."""

import math
from typing import Any

import pytest

from samebits.core import ScaleRule, catalog


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistic": "median"}, "`statistic` must be one of"),
        ({"percentile": 0}, r"`percentile` must be in \(0, 100\]"),
        ({"percentile": 100.5}, r"`percentile` must be in \(0, 100\]"),
        ({"percentile": math.nan}, r"`percentile` must be in \(0, 100\]"),
        ({"low_percentile": -1}, r"`low_percentile` must be in \[0, 100\)"),
        ({"sigma": -0.5}, r"`sigma` must be in \[0, 2\*\*20\]"),
        ({"sigma": math.inf}, r"`sigma` must be in \[0, 2\*\*20\]"),
        ({"search_steps": 0}, "`search_steps` must be in 1..1000, got 0"),
        ({"search_steps": 2.5}, "`search_steps` must be an int, got 2.5"),
        ({"search_norm": 0}, r"`search_norm` must be in \(0, 1\]"),
        ({"search_beta": 0.0}, r"`search_beta` must be in \[9\.09"),
        ({"search_kappa": math.nan}, r"`search_kappa` must be in \[1, 2\]"),
        ({"zero_point_rounding": "stochastic"}, "`zero_point_rounding` must be"),
    ],
)
def test_wrong_parameters_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError if "must be an int," in message else ValueError, match=message):
        ScaleRule(**changes)


def test_statistics_that_a_quantizer_cannot_have_are_refused() -> None:
    for statistic in ("absmean", "mean_sigma", "l1", "l2", "rms"):
        if statistic != "mean_sigma":
            with pytest.raises(ValueError, match="`statistic` of an affine scale"):
                catalog["uint8_affine_per_tensor"].replace(statistic=statistic)
    with pytest.raises(ValueError, match="denominator 'larger'"):
        catalog["int8_per_tensor"].replace(statistic="rms", denominator="larger")
    with pytest.raises(ValueError, match="scales of one level"):
        catalog["nvfp4"].replace(statistic="mse")
    with pytest.raises(ValueError, match="needs a format of integers"):
        catalog["float4_e2m1_per_channel"].replace(statistic="hqo")
    with pytest.raises(ValueError, match="needs a `zero_point_domain` of 'float' or 'shift', got 'integer'"):
        catalog["uint8_affine_per_tensor"].replace(statistic="hqo")
