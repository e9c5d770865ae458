"""Tables and weights of integer networks.

Oracles: `numpy.longdouble`, `scipy.special` in float64 and torch in float64, away from halves; exact values at 0.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits.core import IntegerFormat, integer_tables
from samebits.core.integer_tables import FUNCTIONS, exponential_table, lookup_table, norm_epsilon, norm_weights

Array = NDArray[Any]
INT8, UINT8 = IntegerFormat(8), IntegerFormat(8, signed=False)
REAL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "hard_swish": torch.nn.functional.hardswish,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("x_format", "x_scale", "y_format", "y_scale", "zeros"),
    [
        (INT8, 0.05, INT8, 0.02, (0, 0)),
        (UINT8, 0.031, UINT8, 0.01, (100, 7)),
        (INT8, 3.0, IntegerFormat(4), 0.5, (-5, 1)),
    ],
)
def test_tables_are_correctly_rounded(
    function: str,
    x_format: IntegerFormat,
    x_scale: float,
    y_format: IntegerFormat,
    y_scale: float,
    zeros: tuple[int, int],
) -> None:
    table = lookup_table(function, x_format, x_scale, y_format, y_scale, *zeros)
    assert (table.shape, table.dtype) == ((256,), y_format.storage)
    codes = np.arange(x_format.lo, x_format.hi + 1)
    y = REAL[function](torch.from_numpy((codes - zeros[0]) * x_scale)).numpy() / y_scale
    clear = np.abs(np.abs(y - np.floor(y)) - 0.5) > 1e-9
    assert clear.sum() > 150
    want = np.clip(zeros[1] + np.rint(y), y_format.lo, y_format.hi)
    assert np.array_equal(table[clear], want[clear].astype(y_format.storage))


def test_halves_go_to_even_where_functions_are_rational() -> None:
    table = lookup_table("relu", INT8, 0.5, INT8, 1.0)  # 0.5, 1.5, 2.5
    assert table[128:134].tolist() == [0, 0, 1, 2, 2, 2]
    assert lookup_table("sigmoid", INT8, 1.0, INT8, 1.0)[128] == 0  # 1 / 2
    assert lookup_table("sigmoid", INT8, 1.0, INT8, Fraction(1, 3))[128] == 2  # 3 / 2


def test_scales_at_their_ends() -> None:
    for function in FUNCTIONS:
        for scale in (2.0**-126, 3.0e38):
            table = lookup_table(function, INT8, scale, INT8, 0.1)
            assert table[128] == (10 if function == "exp" else 5 if function == "sigmoid" else 0)
    assert lookup_table("exp", INT8, 3.0e38, INT8, 2.0**-126)[:128].tolist() == [0] * 128
    assert (lookup_table("exp", INT8, 3.0e38, INT8, 3.0e38)[129:] == 127).all()


def test_narrow_formats_repeat_their_ends() -> None:
    table = lookup_table("relu", IntegerFormat(4), 1.0, INT8, 1.0)
    assert table[:120].tolist() == [0] * 120
    assert table[135:].tolist() == [7] * 121


def test_exponentials_are_correctly_rounded() -> None:
    for scale in (0.001, 0.1, 2.0):
        table, bits = exponential_table(scale, 100)
        exact = np.exp(-np.arange(256) * np.longdouble(scale)) * np.longdouble(2**bits)
        assert bits == 22
        assert np.abs(table - exact).max() <= 0.5 + 1e-9
        assert (np.diff(table) <= 0).all()
    assert [exponential_table(1.0, n)[1] for n in (1, 511, 512, 2**22, 2**23 - 1)] == [22, 22, 21, 8, 8]


def test_weights_of_norms_are_the_nearest() -> None:
    random = np.random.default_rng(0)
    given = random.normal(0, 3, 100)
    weight, bias = norm_weights(given, -given, 0.04)
    assert weight.dtype == bias.dtype == np.int32
    unit = Fraction(0.04) / 65536
    assert all(abs(int(w) - Fraction(float(g)) / unit) <= Fraction(1, 2) for w, g in zip(weight, given, strict=True))
    assert np.array_equal(bias, -weight)
    assert norm_epsilon(1e-5, 0.1, 32) == round(Fraction(1e-5) * 32**2 / Fraction(0.1) ** 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: lookup_table("swish", INT8, 1.0, INT8, 1.0),
            ValueError,
            "`function` must be one of 'exp', .* got 'swish'",
        ),
        (
            lambda: lookup_table("relu", INT8, 0.0, INT8, 1.0),
            ValueError,
            "`x_scale` must be positive and finite, got 0.0",
        ),
        (lambda: lookup_table("relu", INT8, 1.0, INT8, np.inf), ValueError, "`y_scale` must be positive and finite"),
        (lambda: lookup_table("relu", INT8, 1.0, INT8, 1.0, 200), ValueError, r"`zero_point` must be in -128\.\.127"),
        (lambda: lookup_table("relu", IntegerFormat(9), 1.0, INT8, 1.0), TypeError, "at most 8 bits"),
        (lambda: exponential_table(-1.0, 3), ValueError, "`scale` must be positive"),
        (lambda: exponential_table(1.0, 2**23), ValueError, "`positions` must be at most 8388607"),
        (lambda: exponential_table(1.0, 0), ValueError, "`positions` must be at least 1"),
        (lambda: norm_weights([1.0, np.nan], [0.0, 0.0], 1.0), ValueError, "`weight` must be finite, got nan"),
        (lambda: norm_weights([1.0], [1e5], 1.0), ValueError, r"`bias / y_scale \* 2\*\*16` must be in"),
        (lambda: norm_epsilon(-1.0, 1.0, 3), ValueError, "`epsilon` must be a finite number"),
        (lambda: norm_epsilon(1.0, 1e-6, 1000), ValueError, r"`epsilon` must be in 0\.\.2\*\*40"),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_pi_and_erf() -> None:
    """Digits of pi that everyone knows; erf beside torch's."""
    assert str(integer_tables._pi()).startswith("3.14159265358979323846264338327950288419716939937510")
    from decimal import Context, localcontext

    with localcontext(Context(prec=integer_tables.DIGITS)):
        for x in (-20.0, -3.0, -0.1, 0.0, 0.5, 5.9, 14.5):
            assert (
                abs(float(integer_tables._erf(Fraction(x))) - float(torch.erf(torch.tensor(x, dtype=torch.float64))))
                < 1e-15
            )
