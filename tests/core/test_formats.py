"""`core.formats` and `core.minifloat` against ml_dtypes, gfloat, and a search among the numbers by rationals."""

import bisect
import itertools
import math
from fractions import Fraction
from typing import Any

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import (
    BinaryFormat,
    CodebookFormat,
    FloatFormat,
    Quantizer,
    Rounding,
    Specials,
    TernaryFormat,
    catalog,
)
from samebits.core.minifloat import decode_float, encode_float, overflow, round_to_float
from samebits.proofs.inputs.bits import neighbours, raw_bits
from samebits.proofs.inputs.compare import assert_same_bits

from ..exact import DIRECTIONS, specials

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow and NaN are what is tested
Array = NDArray[Any]
NARROW = {
    "float8_e4m3fn": catalog["float8_e4m3fn_per_tensor"].format,
    "float8_e5m2": catalog["float8_e5m2_per_tensor"].format,
    "float8_e4m3fnuz": catalog["float8_e4m3fnuz_per_tensor"].format,
    "float8_e5m2fnuz": catalog["float8_e5m2fnuz_per_tensor"].format,
    "float8_e3m4": catalog["float8_e3m4_per_tensor"].format,
    "float8_e4m3": FloatFormat(4, 3),
    "float8_e4m3b11fnuz": FloatFormat(4, 3, bias=11, specials=Specials.NEGATIVE_ZERO),
    "float6_e3m2fn": catalog["float6_e3m2_per_tensor"].format,
    "float6_e2m3fn": catalog["float6_e2m3_per_tensor"].format,
    "float4_e2m1fn": catalog["float4_e2m1_per_tensor"].format,
}
WIDE = {"float16": FloatFormat(5, 10), "bfloat16": FloatFormat(8, 7)}
NAMED: dict[str, FloatFormat] = {**NARROW, **WIDE}  # by the name of ml_dtypes
ODD = [
    FloatFormat(1, 2, specials=Specials.NONE),
    FloatFormat(1, 3),  # the only exponent holds infinity: every number is subnormal
    FloatFormat(2, 0),
    FloatFormat(4, 0, specials=Specials.NAN_ONLY),
    FloatFormat(8, 1),
    FloatFormat(3, 1, bias=-20),  # multiples of 2**20
    FloatFormat(3, 2, bias=100, specials=Specials.NEGATIVE_ZERO),
]
named = pytest.mark.parametrize("name", NAMED)


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(np.float16 if name == "float16" else getattr(ml_dtypes, name))


def table(name: str) -> Array:
    """What an outsider says the codes stand for, float64."""
    size = 2 ** NAMED[name].bits
    return np.arange(size, dtype=np.uint16 if size > 256 else np.uint8).view(dtype_of(name)).astype(np.float64)


def converted(u: Array, format: FloatFormat) -> Array:
    """``u`` as the nearest number of the format, in the dtype of ``u``."""
    return overflow(round_to_float(u, format, Rounding.TIES_TO_EVEN), format)


@named
def test_oracle_ml_dtypes_parameters(name: str) -> None:
    info, fmt = ml_dtypes.finfo(dtype_of(name)), NAMED[name]
    assert (fmt.hi, fmt.lo) == (float(info.max), float(info.min))
    assert 2.0**fmt.min_exponent == float(info.smallest_normal)
    assert 2.0 ** (fmt.min_exponent - fmt.mantissa_bits) == float(info.smallest_subnormal)
    assert fmt.bits == info.bits
    assert math.frexp(fmt.hi)[1] - 1 == fmt.max_exponent


def test_largest_numbers_of_the_standards() -> None:
    # OCP 8-bit Floating Point 1.0 table 1, OCP Microscaling 1.0 tables 3 to 5, arXiv 2206.02915
    largest = [448, 57344, 240, 57344, 15.5, 240, 30, 28, 7.5, 6]
    assert [fmt.hi for fmt in NARROW.values()] == largest
    assert str(NARROW["float8_e4m3fn"]) == "float8 e4m3fn"
    assert [str(f) for f in (BinaryFormat(), TernaryFormat(0.25), catalog["nf4_per_group64"].format)] == [
        "binary",
        "ternary 0.25",
        "codebook of 16",
    ]


@named
def test_oracle_ml_dtypes_codes(name: str) -> None:
    fmt, want = NAMED[name], table(name)
    codes = np.arange(2**fmt.bits).astype(fmt.storage)
    assert_same_bits(want, decode_float(codes, fmt))
    nan = int(encode_float(np.array(np.nan), fmt)) if fmt.has_nan else None
    assert fmt.has_nan == bool(np.isnan(want).any())
    assert nan is None or np.isnan(want[nan])
    assert nan is None or nan == np.flatnonzero(np.isnan(want))[0]
    numbers = ~np.isnan(want)
    assert_same_bits(codes[numbers], encode_float(want[numbers], fmt))


SMALL = [
    FloatFormat(e, m, specials=s)
    for e, m, s in itertools.product(range(1, 6), range(5), Specials)
    if not (e == 1 and m == 0 and s in (Specials.NAN_ONLY, Specials.IEEE))  # only zero and specials
]


@pytest.mark.parametrize("fmt", [*SMALL, *ODD], ids=str)
def test_every_format_by_its_formula(fmt: FloatFormat) -> None:
    values = decode_float(np.arange(2**fmt.bits), fmt)
    finite = np.isfinite(values)
    top, count = 2**fmt.exponent_bits - 1, 2**fmt.mantissa_bits
    for code in np.flatnonzero(finite).tolist():
        sign, exponent, mantissa = code >> fmt.bits - 1, code // count % (top + 1), code % count
        significand = Fraction(mantissa, count) + (exponent > 0)
        exact = (-1) ** sign * Fraction(2) ** (max(exponent, 1) - fmt.offset) * significand
        assert values[code] == exact
    assert fmt.hi == values[finite].max() == -fmt.lo
    assert 2.0 ** (fmt.min_exponent - fmt.mantissa_bits) == values[values > 0].min()
    assert fmt.has_nan == np.isnan(values).any()
    assert fmt.negative_zero == (np.count_nonzero(values == 0) == 2)
    assert_same_bits(np.arange(2**fmt.bits)[finite].astype(fmt.storage), encode_float(values[finite], fmt))
    assert_same_bits(values[finite], round_to_float(values[finite], fmt, Rounding.TIES_TO_EVEN))


def test_encoding_refuses_what_is_no_number_of_the_format() -> None:
    fmt = NARROW["float4_e2m1fn"]
    for value in (0.75, 8.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"`values` must be numbers of float4 e2m1, got {value}"):
            encode_float(np.array([1.0, value], np.float32), fmt)
    with pytest.raises(ValueError, match="`values` must be numbers of"):
        encode_float(np.array(-0.0), NARROW["float8_e4m3fnuz"])


@named
@pytest.mark.parametrize("source", ["bfloat16", "float16", "float32"])
def test_oracle_ml_dtypes_conversion(name: str, source: str) -> None:
    """Exhaustive over the 16-bit dtypes; 300,000 random patterns of float32. Overflow: as ml_dtypes, and saturating."""
    fmt, dtype = NAMED[name], dtype_of(name)
    if source == "float32":
        x = np.random.default_rng(0).integers(0, 2**32, 300_000, dtype=np.uint32).view(np.float32)
    else:
        x = np.arange(2**16, dtype=np.uint16).view(dtype_of(source)).astype(np.float32)
    if not fmt.has_nan:
        x = x[~np.isnan(x)]  # which ml_dtypes turns into -0
    for saturate in (False, True):
        target = FloatFormat(fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, fmt.specials, saturate)
        u = np.clip(x, fmt.lo, fmt.hi) if saturate else x
        want, got = u.astype(dtype), converted(x, target)
        assert_same_bits(want.astype(np.float32), got, inputs=x)
        if fmt.bits <= 8:
            number = ~np.isnan(got)
            assert_same_bits(raw_bits(want)[number], encode_float(got[number], target), inputs=x[number])


GFLOAT = {  # ours, by the name of theirs
    "ocp_e4m3": NARROW["float8_e4m3fn"],
    "ocp_e5m2": NARROW["float8_e5m2"],
    "ocp_e3m2": NARROW["float6_e3m2fn"],
    "ocp_e2m3": NARROW["float6_e2m3fn"],
    "ocp_e2m1": NARROW["float4_e2m1fn"],
    "binary16": WIDE["float16"],
    "bfloat16": WIDE["bfloat16"],
}
GFLOAT_DIRECTIONS = {
    Rounding.TIES_TO_EVEN: gfloat.RoundMode.TiesToEven,
    Rounding.TIES_TO_AWAY: gfloat.RoundMode.TiesToAway,
    Rounding.TOWARD_ZERO: gfloat.RoundMode.TowardZero,
    Rounding.TOWARD_POSITIVE: gfloat.RoundMode.TowardPositive,
    Rounding.TOWARD_NEGATIVE: gfloat.RoundMode.TowardNegative,
}


def around(format: FloatFormat, dtype: Any) -> Array:
    """The numbers of a format, the midpoints between them and beyond the last, each with two neighbours; specials.

    Of more than 600 such places about 600, always the outermost.
    """
    numbers = np.unique(decode_float(np.arange(2**format.bits), format))
    numbers = numbers[np.isfinite(numbers)]
    beyond = np.array([2 * format.hi - numbers[-2], 4 * format.hi])
    grid = np.concatenate([-beyond, numbers, beyond])
    grid.sort()
    places = np.sort(np.concatenate([grid, grid[:-1] + np.diff(grid) / 2])).astype(dtype)
    if len(places) > 600:
        places = np.concatenate([places[:7], places[:: len(places) // 600 | 1], places[-7:]])
    return np.concatenate([neighbours(places, 2), specials(np.dtype(dtype))])


@pytest.mark.parametrize("name", GFLOAT)
@pytest.mark.parametrize("rounding", GFLOAT_DIRECTIONS)
def test_oracle_gfloat_directions(rounding: Rounding, name: str) -> None:
    fmt, mode = GFLOAT[name], GFLOAT_DIRECTIONS[rounding]
    assert isinstance(fmt, FloatFormat)
    info = getattr(gfloat.formats, f"format_info_{name}")
    x = np.random.default_rng(0).integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x, around(fmt, np.float32)])
    x = x[~np.isnan(x)].astype(np.float64)
    got = overflow(round_to_float(x, fmt, rounding), fmt)
    assert_same_bits(gfloat.round_ndarray(info, x, mode, sat=True), got, inputs=x)
    if not fmt.has_nan:
        return
    # Without saturation gfloat gives finite numbers that overflow the largest number where the direction leads inwards
    # (IEEE 754-2019 section 7.4). Ours is one rule for all directions: what rounds beyond the largest number is lost.
    loose = FloatFormat(fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, fmt.specials, saturate=False)
    rounded = round_to_float(x, loose, rounding)
    inwards = {"toward_zero": x == x, "toward_positive": x < 0, "toward_negative": x > 0}.get(rounding, x != x)
    known = (np.abs(rounded) > fmt.hi) & np.isfinite(x) & inwards
    theirs, ours = gfloat.round_ndarray(info, x, mode, sat=False), overflow(rounded, loose)
    assert_same_bits(theirs[~known], ours[~known], inputs=x[~known])
    assert (np.abs(theirs[known]) == fmt.hi).all()
    assert not np.isfinite(ours[known]).any()


def searched(u: float, numbers: list[float], zero: int, one_digit: bool, rounding: Rounding) -> float:
    """The number of an ascending list (0 at index ``zero``) that ``u`` rounds to.

    Even numbers are an even number of steps from 0. Without a significand none but 0 is: then the larger one is taken.
    """
    at = bisect.bisect_right(numbers, u) - 1
    below = numbers[at]
    if below == u:
        return u
    above = numbers[at + 1]
    larger = above if u > 0 else below
    even = below if (at - zero) % 2 == 0 else above
    even = larger if one_digit and 0 not in (below, above) else even  # IEEE 754-2019 section 4.3.1
    if rounding in ("toward_positive", "toward_negative", "toward_zero"):
        up = {"toward_positive": True, "toward_negative": False, "toward_zero": u < 0}[rounding]
        return above if up else below
    left, right = Fraction(u) - Fraction(below), Fraction(above) - Fraction(u)
    if left != right:
        return below if left < right else above
    return {
        "ties_to_even": even,
        "ties_to_away": larger,
        "ties_toward_positive": above,
        "dpu": even if u > 0 else above,
    }[rounding]


@pytest.mark.parametrize("fmt", [*NARROW.values(), *ODD], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_direction_by_searching_the_numbers(fmt: FloatFormat, dtype: Any) -> None:
    numbers = np.unique(decode_float(np.arange(2**fmt.bits), fmt))
    numbers = numbers[np.isfinite(numbers)].tolist()
    x = around(fmt, dtype)
    x = x[np.abs(x.astype(np.float64)) <= fmt.hi]
    for rounding in DIRECTIONS:
        expected = [searched(u, numbers, numbers.index(0), fmt.mantissa_bits == 0, rounding) for u in x.tolist()]
        signs = np.copysign(np.array(expected, dtype), x)
        want = signs if fmt.negative_zero else np.where(signs == 0, np.zeros_like(x), signs)
        assert_same_bits(want, round_to_float(x, fmt, rounding), call=rounding, inputs=x)


def test_rounding_goes_on_beyond_the_largest_number() -> None:
    fmt = NARROW["float8_e4m3fn"]
    x = np.array([463.9, 464, 465, 480, 500, 1e6, 3.4e38, np.inf, -np.inf, np.nan], np.float32)
    assert round_to_float(x, fmt, Rounding.TIES_TO_EVEN)[:6].tolist() == [448, 448, 480, 480, 512, 2.0**20 * 0.9375]
    assert_same_bits(
        np.array([np.inf, np.inf, -np.inf, np.nan], np.float32), round_to_float(x[6:], fmt, "ties_to_even")
    )
    assert converted(x[:9], fmt).tolist() == [448] * 8 + [-448]
    wide = FloatFormat(8, 7, saturate=False)
    assert converted(np.array([3.4e38, -3.4e38], np.float32), wide).tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("saturate", [True, False])
def test_overflow_by_hand(saturate: bool) -> None:
    x = np.array([1e6, -1e6, np.inf, -np.inf, np.nan, 1, -0.0], np.float32)
    for specials_, instead in (("ieee", np.inf), ("nan_only", np.nan), ("negative_zero", np.nan), ("none", None)):
        fmt = FloatFormat(4, 3, specials=specials_, saturate=saturate)
        big = fmt.hi if saturate or instead is None else instead
        assert_same_bits(np.array([big, -big, big, -big, np.nan, 1, -0.0], np.float32), overflow(x, fmt))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: FloatFormat(0, 3), ValueError, "`exponent_bits` must be in 1..8, got 0"),
        (lambda: FloatFormat(4, 11), ValueError, "`mantissa_bits` must be in 0..10, got 11"),
        (lambda: FloatFormat(4.0, 3), TypeError, "`exponent_bits` must be an int, got 4.0"),
        (lambda: FloatFormat(8, 8), ValueError, "`exponent_bits` + `mantissa_bits` + 1 must be at most 16, got 17"),
        (lambda: FloatFormat(4, 3, saturate=1), TypeError, "`saturate` must be a bool, got 1"),
        (lambda: FloatFormat(4, 3, specials="fn"), ValueError, "`specials` must be one of 'ieee', 'nan_only'"),
        (lambda: FloatFormat(4, 3, bias=128), ValueError, "`bias` must keep the exponents within float32's"),
        (lambda: FloatFormat(4, 3, bias=-120), ValueError, "`bias` must keep the exponents within float32's"),
        (lambda: TernaryFormat(1.0), ValueError, "`threshold` must be in [0, 1), got 1.0"),
        (lambda: TernaryFormat(math.nan), ValueError, "`threshold` must be in [0, 1), got nan"),
        (lambda: CodebookFormat([0.0, 1.0]), TypeError, "`values` must be a tuple of floats, got [0.0, 1.0]"),
        (lambda: CodebookFormat((0.0,)), ValueError, "`values` must hold 2 to 256 numbers, got 1"),
        (lambda: CodebookFormat((0.0, 0.0)), ValueError, "`values` must be ascending"),
        (lambda: CodebookFormat((0.0, 0.1)), ValueError, "`values` must be numbers of float32"),
        (lambda: CodebookFormat((-0.0, 1.0)), ValueError, "`values` must hold 0.0 rather than -0.0"),
        (lambda: Quantizer(format=FloatFormat(4, 3), zero_point="min_max"), ValueError, "`zero_point` must be 'none'"),
        (lambda: Quantizer(format=BinaryFormat(), rounding="dpu"), ValueError, "`rounding` must be 'ties_to_even' for"),
        (lambda: catalog["nf4_per_group64"].replace(midpoints=()), TypeError, "no field midpoints in a quantizer"),
        (lambda: Quantizer(format=FloatFormat(1, 0)), ValueError, "`format` of a symmetric quantizer must have a"),
    ],
)
def test_formats_that_make_no_sense(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as refusal:
        make()
    assert refusal.value.args[0].startswith(words)


def test_changing_a_format_keeps_what_depends_on_it() -> None:
    q = catalog["nf4_per_group64"].replace(values=(0.0, 1.0, 3.0))
    assert q.format == CodebookFormat((0.0, 1.0, 3.0))
    assert q.format.midpoints == (0.5, 2.0)
    assert catalog["float8_e4m3fn_per_tensor"].replace(saturate=False).format == FloatFormat(
        4, 3, specials=Specials.NAN_ONLY, saturate=False
    )
