"""Factors of SmoothQuant and equalization, their folding, and bias correction, against exact or wider arithmetic."""

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core.bias_correction import corrected_bias, mean_update
from samebits.core.equalization import equalization_factors
from samebits.core.folding import divide_rows, multiply_columns
from samebits.core.smoothquant import smoothing_factors
from samebits.proofs.inputs.compare import assert_same_bits

Array = NDArray[Any]
ALPHAS = (0.0, 0.25, 0.5, 0.8, 1.0)


def ranges(n: int = 2000, seed: int = 0) -> tuple[Array, Array]:
    """Two ranges of channels over many magnitudes; some are 0, subnormal, or so that their ratio overflows."""
    draws = np.random.default_rng(seed)
    first, second = (np.exp2(draws.uniform(-40, 40, n)).astype(np.float32) for _ in range(2))
    first[:6] = [0, 1, 0, 1e-41, 3e38, 1.2e-38]
    second[:6] = [1, 0, 0, 1, 1.2e-38, 3e38]
    return first, second


@pytest.mark.parametrize("alpha", ALPHAS)
def test_smoothing_factors_are_the_formula(alpha: float) -> None:
    x, w = ranges()
    factors = smoothing_factors(x, w, alpha)
    assert factors.dtype == np.float32
    assert (factors[:4] == 1).all()  # a range of 0, or as good as 0
    exact = x[6:].astype(np.float64) ** alpha / w[6:].astype(np.float64) ** (1 - alpha)
    # two powers within 2 + |r| units in the last place, and one rounding
    assert (abs(factors[6:] / exact - 1) <= 6 * 2.0**-23).all()


def test_ends_of_alpha() -> None:
    """At 1 inputs get ranges of 1, at 0 weights do; powers of two are exact."""
    x, w = (np.float32(2) ** np.arange(-8, 8).astype(np.float32), np.full(16, 0.25, np.float32))
    assert_same_bits(smoothing_factors(x, w, 1.0), x)
    assert_same_bits(smoothing_factors(x, w, 0.0), np.full(16, 4, np.float32))


def test_equalization_makes_ranges_equal() -> None:
    first, second = ranges()
    factors = equalization_factors(first, second)
    assert (factors[:4] == 1).all()
    assert (factors[4:6] == 1).all()  # whose ratio is no normal number
    ratio = (first[6:] / second[6:]).astype(np.float64)
    assert_same_bits(factors[6:], np.sqrt(ratio).astype(np.float32))  # a root in float64 rounds to the nearest float32
    rows, columns = first[6:] / factors[6:], second[6:] * factors[6:]
    assert (abs(rows / columns - 1) <= 6 * 2.0**-24).all()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_folding_rounds_once(dtype: Any) -> None:
    draws = np.random.default_rng(1)
    w, factors = draws.standard_normal((5, 7, 2)).astype(dtype), np.exp(draws.standard_normal(7)).astype(np.float32)
    wide = w.astype(np.float64)
    single = (wide * factors[:, None]).astype(np.float32)  # exact in float64, then float32, then the dtype
    assert_same_bits(multiply_columns(w, factors), single.astype(dtype))
    rows = (wide.transpose(1, 0, 2) / factors[:, None, None]).astype(np.float32)
    assert_same_bits(divide_rows(np.ascontiguousarray(w.transpose(1, 0, 2)), factors), rows.astype(dtype))


def test_powers_of_two_change_nothing() -> None:
    draws = np.random.default_rng(2)
    w, v = draws.standard_normal((6, 4)).astype(np.float32), draws.standard_normal((3, 6)).astype(np.float32)
    x, factors = draws.standard_normal((9, 4)).astype(np.float32), np.float32(2) ** np.arange(-3, 3, dtype=np.float32)
    plain = np.maximum(x.astype(np.float64) @ w.T, 0) @ v.T
    folded = np.maximum(x.astype(np.float64) @ divide_rows(w, factors).T, 0) @ multiply_columns(v, factors).T
    assert_same_bits(plain, folded)


def test_corrected_bias_keeps_the_mean() -> None:
    draws = np.random.default_rng(3)
    w, w_hat = (draws.standard_normal((6, 4)).astype(np.float32) for _ in range(2))
    x, bias = draws.standard_normal((50, 4)).astype(np.float32) + 1, draws.standard_normal(6).astype(np.float32)
    mean, n = np.zeros(4), 0
    for piece in np.array_split(x, 3):
        mean, n = mean_update(mean, n, piece)
    assert n == 50
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-14)
    new = corrected_bias(bias, w, w_hat, mean)
    before, after = ((x.astype(np.float64) @ m.T + b).mean(0) for m, b in ((w, bias), (w_hat, new)))
    assert (abs(after - before) <= 2.0**-24 * abs(new) + 1e-13).all()
    assert_same_bits(corrected_bias(bias, w, w, mean), bias)


ONES = np.ones(3, np.float32)
REFUSED: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    ("smoothing_factors", (ONES, ONES, 1.5), ValueError, "`alpha` must be in [0, 1], got 1.5"),
    ("smoothing_factors", (ONES, ONES, -0.5), ValueError, "`alpha` must be in [0, 1], got -0.5"),
    ("smoothing_factors", (ONES, ONES, "half"), TypeError, "`alpha` must be a number, got 'half'"),
    ("smoothing_factors", (ONES, ONES[:2], 0.5), ValueError, "one and the same axis, got shapes (3,) and (2,)"),
    ("smoothing_factors", (ONES * np.nan, ONES, 0.5), ValueError, "ranges must be finite, got NaN or an infinity"),
    ("smoothing_factors", (ONES, ONES * np.inf, 0.5), ValueError, "ranges must be finite, got NaN or an infinity"),
    ("equalization_factors", (ONES, ONES[:2]), ValueError, "one and the same axis"),
    ("equalization_factors", (ONES, ONES * np.inf), ValueError, "ranges must be finite"),
    ("divide_rows", (np.ones((4, 3), np.float32), ONES), ValueError, "`factors` must have shape (4,)"),
    ("divide_rows", (np.ones((3, 3), np.float32), ONES * 0), ValueError, "`factors` must be positive and finite"),
    ("multiply_columns", (np.ones((3, 4), np.float32), ONES), ValueError, "`factors` must have shape (4,)"),
    ("multiply_columns", (np.ones((4, 3), np.float32), ONES * np.nan), ValueError, "`factors` must be positive"),
    ("mean_update", (np.zeros(3), 0, np.ones((2, 4), np.float32)), ValueError, "`x` must have shape (rows, 3)"),
    ("mean_update", (np.zeros(3), -1, np.ones((2, 3), np.float32)), ValueError, "`n` must be at least 0"),
    ("mean_update", (np.zeros(3), 0, np.ones((2, 3), np.int32)), TypeError, "`x` must have dtype"),
    (
        "corrected_bias",
        (ONES, np.ones((3, 4), np.float32), np.ones((3, 5), np.float32), np.ones(4)),
        ValueError,
        "`w` and `w_hat` must have shape (out, in)",
    ),
    (
        "corrected_bias",
        (ONES, np.ones((3, 4), np.float32), np.ones((3, 4), np.float32), np.full(4, np.nan)),
        ValueError,
        "`mean` must be finite",
    ),
]
FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (smoothing_factors, equalization_factors, divide_rows, multiply_columns, mean_update, corrected_bias)
}


@pytest.mark.parametrize(("name", "given", "error", "words"), REFUSED)
def test_bad_input_is_refused(name: str, given: tuple[Any, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        FUNCTIONS[name](*given)
