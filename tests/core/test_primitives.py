"""`samebits.core.primitives` against exact numbers: fractions, integer square roots, and mpmath with 200 bits."""

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import FloatFormat, IntegerFormat, primitives
from samebits.core.minifloat import decode_float
from samebits.proofs.inputs.compare import assert_same_bits

from ..exact import DTYPES, round_fraction
from ..primitive_cases import operands

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
Array = NDArray[Any]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "exp": mpmath.exp,
    "exp2": lambda v: mpmath.mpf(2) ** v,
    "log": mpmath.log,
    "log2": lambda v: mpmath.log(v, 2),
    "tanh": mpmath.tanh,
    "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)),
    "erf": mpmath.erf,
}


def rounded(values: list[Any], dtype: str) -> Array:
    return np.array([round_fraction(v, dtype) if isinstance(v, Fraction) else v for v in values]).astype(DTYPES[dtype])


def finite(dtype: str) -> list[Array]:
    a, b, c = operands(dtype)
    good = np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & (a != 0) & (b != 0) & (c != 0)
    return [v[good][::3] for v in (a, b, c)]


def exact(*arrays: Array) -> list[tuple[Fraction, ...]]:
    return [tuple(Fraction(float(v)) for v in row) for row in zip(*arrays, strict=True)]


class Exact:
    """Arithmetic of fractions under the names of primitives."""

    add, subtract = operator.add, operator.sub
    multiply, divide = operator.mul, operator.truediv


@each_dtype
def test_arithmetic_is_exact_and_rounded_once(dtype: str) -> None:
    a, b, c = finite(dtype)
    for f in (lambda p, a, b: p.multiply(a, b), lambda p, a, b: p.divide(a, b)):
        want = [f(Exact, *row) for row in exact(a, b)]
        assert_same_bits(rounded(want, dtype) + 0, f(primitives, a, b) + 0)  # a fraction has no sign of zero
    for f in (lambda p, a, b: p.add(a, b), lambda p, a, b: p.subtract(a, b)):
        assert_same_bits(rounded([f(Exact, *row) for row in exact(a, b)], dtype), f(primitives, a, b))
    fused = rounded([a * b + c for a, b, c in exact(a, b, c)], dtype)
    assert_same_bits(fused + 0, primitives.fused_multiply_add(a, b, c) + 0)


@each_dtype
def test_square_roots_are_correctly_rounded(dtype: str) -> None:
    """From integer square roots with 200 bits more than are kept, and a last bit for what is left."""
    x = np.abs(finite(dtype)[0])
    roots = []
    for (value,) in exact(x):
        scaled = value * 4**1300  # an integer for every number of the dtypes
        root = math.isqrt(int(scaled) << 200)
        roots.append(Fraction(2 * root + (root * root != int(scaled) << 200), 2 << 100) / 2**1300)
    assert_same_bits(rounded(roots, dtype), primitives.sqrt(x))


@each_dtype
def test_parts_of_numbers(dtype: str) -> None:
    x = finite(dtype)[0]
    whole, within = primitives.exponent(x), primitives.significand(x)
    for (value,), e, m in zip(exact(x), whole.tolist(), within.tolist(), strict=True):
        assert Fraction(m) * Fraction(2) ** int(e) == value
        assert 1 <= abs(m) < 2
    assert_same_bits(x, primitives.scale_by_power(within, whole))
    n = np.trunc(finite(dtype)[1].astype(np.float64).clip(-200, 200)).astype(DTYPES[dtype])
    want = [v * Fraction(2) ** int(k) for (v,), k in zip(exact(x), n.tolist(), strict=True)]
    assert_same_bits(rounded(want, dtype) + 0, primitives.scale_by_power(x, n) + 0)


def distance(name: str, x: Array) -> float:
    """The largest error in units in the last place of the result's dtype, at most of a subnormal one."""
    with mpmath.workprec(200):
        f, got = FUNCTIONS[name], getattr(primitives, name)(x)
        bits, least = {"float32": (24, -149), "float64": (53, -1074)}[x.dtype.name]
        worst = mpmath.mpf(0)
        for value, result in zip(x.tolist(), got.tolist(), strict=True):
            want = f(mpmath.mpf(value))
            if want == 0 or not np.isfinite(result):
                continue
            unit = mpmath.ldexp(1, max(int(mpmath.frexp(want)[1]) - bits, least))
            worst = max(worst, abs(mpmath.mpf(result) - want) / unit)
        return float(worst)


def points(name: str, dtype: str) -> Array:
    random = np.random.default_rng(0)
    large = 85 if dtype == "float32" else 700
    x = np.concatenate(
        [random.uniform(-large, large, 300), random.uniform(-1.5, 1.5, 600), np.exp(-large * random.random(300))]
    )
    return (np.abs(x) if name.startswith("log") else x).astype(DTYPES[dtype])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_float32_are_correctly_rounded_where_looked_at(name: str) -> None:
    assert distance(name, points(name, "float32")) <= 0.5 + 1e-6


@pytest.mark.parametrize(("name", "limit"), list(zip(FUNCTIONS, (1.1, 1.2, 1.9, 2.7, 3, 2.5, 2), strict=True)))
def test_functions_of_float64(name: str, limit: float) -> None:
    assert distance(name, points(name, "float64")) < limit


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_float16_are_correctly_rounded_everywhere(name: str) -> None:
    """Every float16 of one sign in eight, against mpmath; odd functions are odd."""
    x = np.arange(0, 2**16, 8, dtype=np.uint16).view(np.float16)
    x = x[np.isfinite(x) & ((x > 0) if name.startswith("log") else (x == x))]
    with mpmath.workprec(120):
        want = [FUNCTIONS[name](mpmath.mpf(v)) if abs(v) < 100 or "log" in name else None for v in x.tolist()]
        want = [
            v if v is None or not mpmath.isfinite(v) else Fraction(*mpmath.libmp.to_rational(v._mpf_)) for v in want
        ]
    known = np.array([isinstance(v, Fraction) for v in want])
    assert known.sum() > 1000
    got = getattr(primitives, name)(x)
    assert_same_bits(
        rounded([v for v in want if isinstance(v, Fraction)], "float16") + np.float16(0), got[known] + np.float16(0)
    )
    if name in ("tanh", "erf"):
        assert_same_bits(-got, getattr(primitives, name)(-x))


def test_monotone() -> None:
    """Every float32 of a few binades, in order."""
    x = np.sort(
        np.concatenate([np.arange(0x3F000000, 0x3F020000), np.arange(0x3F7F8000, 0x3F808000)]).astype(np.int32)
    ).view(np.float32)
    for name in FUNCTIONS:
        for signed in (x, -x[::-1]) if not name.startswith("log") else (x,):
            assert (np.diff(getattr(primitives, name)(signed)) >= 0).all(), name


def test_powers() -> None:
    """Against mpmath in float32; special values against NumPy's float64, whose ``pow`` follows IEEE 754 there."""
    random = np.random.default_rng(0)
    x, y = np.exp(random.uniform(-20, 20, 500)).astype(np.float32), random.uniform(-4, 4, 500).astype(np.float32)
    with mpmath.workprec(200):
        want = [mpmath.mpf(a) ** mpmath.mpf(b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        exactly = [Fraction(*mpmath.libmp.to_rational(v._mpf_)) for v in want]
    assert_same_bits(rounded(exactly, "float32"), primitives.power(x, y))
    special = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 2, -2, 3, -3, 0.5, -0.5, -1.5, 4])
    a, b = (v.ravel() for v in np.meshgrid(special, special))
    known = np.power(a, b)
    plain = np.isfinite(known) & (known != 0) & (np.abs(known) != 1)
    assert_same_bits(known[~plain], primitives.power(a, b)[~plain])
    assert np.allclose(known[plain], primitives.power(a, b)[plain], rtol=1e-15)


def test_exact_identities() -> None:
    k = np.arange(-149, 128, dtype=np.float32)
    powers = np.ldexp(np.float32(1), k.astype(int)).astype(np.float32)
    assert_same_bits(powers, primitives.exp2(k))
    assert_same_bits(k, primitives.log2(powers))
    assert primitives.sigmoid(np.float32([0, np.inf, -np.inf])).tolist() == [0.5, 1, 0]
    assert primitives.erf(np.float32([0, np.inf, -np.inf])).tolist() == [0, 1, -1]


def test_order_of_zeros_and_nan() -> None:
    nan = np.float32(np.nan)
    a, b = np.float32([0.0, -0.0, nan, 1, 1]), np.float32([-0.0, 0.0, 1, nan, 2])
    assert_same_bits(np.float32([-0.0, -0.0, nan, nan, 1]), primitives.minimum(a, b))
    assert_same_bits(np.float32([0.0, 0.0, nan, nan, 2]), primitives.maximum(a, b))
    assert_same_bits(np.float32(0.0), primitives.amax(a[:2]))
    assert_same_bits(np.float32(-0.0), primitives.amin(a[:2]))
    assert np.isnan(primitives.amax(a))
    assert np.isnan(primitives.percentile(a, 10))
    assert primitives.clamp(np.float32([-3, 0, 9]), 2.0, 1.0).tolist() == [1, 1, 1]


def test_formats_hold_what_comes_out() -> None:
    x = operands("float32")[0]
    x = x[~np.isnan(x)]
    e4m3 = FloatFormat(4, 3)
    assert set(primitives.to_format(x, e4m3).tolist()) <= set(decode_float(np.arange(256), e4m3).tolist())
    assert set(primitives.to_format(x, IntegerFormat(4)).tolist()) <= set(range(-8, 8))


def test_sums_have_the_stated_order_and_numbers_are_rounded_once() -> None:
    x = np.float32([2.0**24, 1, 1, -(2.0**24), 1])
    assert primitives.sum(x) == 1  # (x0 + x4) + x2 = 2**24, x1 + x3 = 1 - 2**24; the exact sum is 3
    half = np.full(4000, 1, np.float16)
    assert (primitives.sum(half), primitives.mean(half)) == (4000, 1)  # 16 bits alone would stop at 2048
    between = 1 + 2.0**-8 + 2.0**-40  # float32 would round it to halfway between two of bfloat16
    one = np.ones(1, DTYPES["bfloat16"])
    assert primitives.multiply(one, between).tolist() == [1 + 2.0**-7]
