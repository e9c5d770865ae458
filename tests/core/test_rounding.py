"""`core.rounding` and `core.clamp` against exact rationals."""

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from samebits.core import Rounding
from samebits.core.clamp import clamp
from samebits.core.rounding import round_to_integer
from samebits.proofs.inputs.bits import neighbours
from samebits.proofs.inputs.compare import assert_same_bits

from ..exact import DIRECTIONS, DTYPES, integer, specials

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN is meant

# halves around zero in every direction, written down by hand from the definitions (IEEE 754-2019 section 4.3; Brevitas
# `dpu_round`: to even, except that negative halves go up)
TABLE = {
    "values": [-2.5, -1.5, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.5, 2.5],
    "ties_to_even": [-2, -2, -1, 0, 0, 0, 0, 1, 2, 2],
    "ties_to_away": [-3, -2, -1, -1, 0, 0, 1, 1, 2, 3],
    "ties_toward_positive": [-2, -1, -1, 0, 0, 0, 1, 1, 2, 3],
    "toward_zero": [-2, -1, 0, 0, 0, 0, 0, 0, 1, 2],
    "toward_positive": [-2, -1, 0, 0, 0, 1, 1, 1, 2, 3],
    "toward_negative": [-3, -2, -1, -1, -1, 0, 0, 0, 1, 2],
    "dpu": [-2, -1, -1, 0, 0, 0, 0, 1, 2, 2],
}


def test_the_oracle_knows_every_direction() -> None:
    assert {*DIRECTIONS, Rounding.STOCHASTIC, Rounding.LEARNED} == set(Rounding)
    assert set(TABLE) - {"values"} == set(DIRECTIONS)


@pytest.mark.parametrize("rounding", DIRECTIONS)
def test_halves(rounding: Rounding) -> None:
    values = np.array(TABLE["values"], np.float32)
    assert round_to_integer(values, rounding).tolist() == TABLE[rounding]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("rounding", DIRECTIONS)
def test_rounding_is_exact_at_and_around_every_half(rounding: Rounding, dtype: np.dtype[Any]) -> None:
    precision = ml_dtypes.finfo(dtype).nmant + 1
    near_zero = np.arange(-40, 41) / 2
    where_halves_end = [
        s * (2.0**p + k / 2) for p in (precision - 2, precision - 1, precision) for k in range(-3, 4) for s in (1, -1)
    ]
    x = np.concatenate([neighbours(np.append(near_zero, where_halves_end).astype(dtype), 2), specials(dtype)])
    expected = np.array([integer(float(v), rounding) for v in x]).astype(dtype)
    assert_same_bits(expected, round_to_integer(x, rounding), inputs=x)


@pytest.mark.parametrize("rounding", DIRECTIONS)
def test_rounding_of_every_float16(rounding: Rounding) -> None:
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    got = round_to_integer(x, rounding)
    assert_same_bits(x[~np.isfinite(x)], got[~np.isfinite(x)])
    x, got = x[np.isfinite(x)], got[np.isfinite(x)]
    assert [DIRECTIONS[rounding](Fraction(v)) for v in x.tolist()] == got.tolist()
    assert np.array_equal(np.signbit(got), np.signbit(x))


@pytest.mark.parametrize("rounding", DIRECTIONS)
def test_rounding_keeps_shape(rounding: Rounding) -> None:
    for x in (np.array(2.5, np.float32), np.zeros((0, 3), np.float32), np.full((4, 6), 1.25)[:, ::2]):
        got = round_to_integer(x, rounding)
        assert (got.shape, got.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_clamp(dtype: np.dtype[Any]) -> None:
    x = np.concatenate([neighbours(np.array([-8, -1, 0, 7], dtype), 2), specials(dtype)])
    expected = [v if math.isnan(v) or -8 <= v <= 7 else math.copysign(8 - (v > 0), v) for v in x.astype(float).tolist()]
    assert_same_bits(np.array(expected).astype(dtype), clamp(x, -8, 7), inputs=x)


def test_clamp_keeps_what_equals_a_limit() -> None:
    zeros = np.array([-0.0, 0.0], np.float32)
    assert_same_bits(zeros, clamp(zeros, 0, 1))
    assert_same_bits(zeros, clamp(zeros, -1, 0))


def test_clamp_takes_limits_per_element() -> None:
    x = np.array([[-3.0, 0.0, 3.0], [-3.0, 0.0, 3.0]], np.float32)
    low, high = np.array([[-1], [-2]], np.float32), np.array([[1], [2]], np.float32)
    assert clamp(x, low, high).tolist() == [[-1, 0, 1], [-2, 0, 2]]
