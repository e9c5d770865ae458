"""`core.statistics`, `core.scaling`, `core.zero_point` and `choose_qparams` against exact rationals."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import (
    Denominator,
    IntegerFormat,
    PerAxis,
    PerGroup,
    PerTensor,
    QParams,
    Quantizer,
    Restriction,
    ScaleRule,
    catalog,
    choose_qparams,
    fake_quantize,
    quantize,
)
from samebits.core.elementary import exp2, log2
from samebits.core.formats import FLOAT8_E4M3FN
from samebits.core.scales import INTEGER_SCALE
from samebits.core.scaling import affine_scale, restrict_scale, symmetric_scale
from samebits.core.statistics import absmax, min_max
from samebits.core.zero_point import affine_zero_point
from samebits.proofs.inputs.compare import assert_same_bits

from ..exact import BFLOAT16, DTYPES, round_fraction

DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
INT8, UINT8 = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"]
FORMATS = [IntegerFormat(b, s, n) for b in (2, 3, 4, 8, 16) for s in (True, False) for n in (True, False)]
TINY = 2.0**-126


def wide(dtype: np.dtype[Any]) -> str:
    return "float64" if dtype == np.float64 else "float32"


def ranges(dtype: str) -> list[tuple[float, float]]:
    """Smallest and largest elements, both widened to 0: random, one-sided, equal, tiny, huge."""
    rng = np.random.default_rng(0)
    pairs = [(-abs(a), abs(b)) for a, b in rng.standard_normal((40, 2)).astype(np.float32).tolist()]
    big = float(np.finfo(dtype).max)
    pairs += [(0.0, 1.0), (-1.0, 0.0), (-3.0, 3.0), (-big, big), (-big, 0.0), (0.0, big), (-big, big / 3)]
    return [*pairs, (0.0, TINY), (-TINY / 2, TINY), (0.0, 0.0), (-1e-30, 1.0), (-1.0, 1e-45)]


@pytest.mark.parametrize("denominator", Denominator)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_symmetric_scale_is_one_division(dtype: str, denominator: Denominator) -> None:
    for fmt in FORMATS:
        if denominator is Denominator.LO and fmt.lo == 0:
            continue
        q = Quantizer(format=fmt, scale=ScaleRule(denominator=denominator))
        for low, high in ranges(dtype):
            magnitude = Fraction(max(-low, high))
            by = {"hi": Fraction(fmt.hi), "half_range": Fraction(fmt.hi - fmt.lo, 2), "lo": Fraction(-fmt.lo)}
            by |= {"edge": fmt.hi + Fraction(1, 2), "next": Fraction(fmt.hi + 1)}
            if denominator is Denominator.LARGER:
                exact = max(Fraction(-low) / -fmt.lo if fmt.lo else Fraction(0), Fraction(high) / fmt.hi)
            else:
                exact = magnitude / by[denominator]
            got = symmetric_scale(q, np.array(low, dtype), np.array(high, dtype))
            assert float(got) == round_fraction(exact, dtype), (fmt, low, high)
            assert got.dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_affine_scale_rounds_the_range_and_the_quotient(dtype: str) -> None:
    for fmt, (low, high) in itertools.product(FORMATS, ranges(dtype)):
        q = Quantizer(format=fmt, zero_point="min_max")
        with np.errstate(over="ignore"):
            got = affine_scale(q, np.array(low, dtype), np.array(high, dtype))
        span = round_fraction(Fraction(high) - Fraction(low), dtype)
        if np.isinf(span):  # halved first: exact powers of two, so the same number without the overflow
            span, steps = round_fraction((Fraction(high) - Fraction(low)) / 2, dtype), Fraction(fmt.hi - fmt.lo, 2)
        else:
            steps = Fraction(fmt.hi - fmt.lo)
        assert float(got) == round_fraction(Fraction(span) / steps, dtype), (fmt, low, high)
        assert np.isfinite(got)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_point_is_the_rounded_code_of_zero(dtype: str) -> None:
    for fmt, (low, high) in itertools.product(FORMATS, ranges(dtype)):
        q = Quantizer(format=fmt, zero_point="min_max", rounding="toward_negative")  # which it does not use
        x = np.array([low, high], dtype)
        qparams = choose_qparams(q, x)
        quotient = Fraction(round_fraction(Fraction(low) / Fraction(float(qparams.scale)), dtype))
        assert qparams.zero_point == min(max(fmt.lo - round(quotient), fmt.lo), fmt.hi)
        assert qparams.zero_point.dtype == np.int32


def test_zero_point_ties_to_even() -> None:
    # low / scale = -127.5 and -126.5: range [-127.5, 127.5] of uint8 has scale 1 and code 128 at zero
    assert choose_qparams(UINT8, np.array([-127.5, 127.5], np.float32)) == QParams(1, 128)
    assert choose_qparams(UINT8, np.array([-126.5, 128.5], np.float32)) == QParams(1, 126)
    assert affine_zero_point(UINT8, np.array(np.nan, np.float32), np.array(1, np.float32)) == 0


def test_zero_is_always_in_the_range_and_exact() -> None:
    for data in ([5.0, 6.0], [-6.0, -5.0], [0.0, 0.0], [100.0, 101.5]):
        x = np.array(data, np.float32)
        qparams = choose_qparams(UINT8, x)
        assert fake_quantize(UINT8, np.zeros(1, np.float32), qparams)[0] == 0
        assert float(qparams.scale) == max(float(np.float32(max(0, *data) - min(0, *data)) / np.float32(255)), TINY)


@DTYPE
def test_statistics_are_exact(dtype: np.dtype[Any]) -> None:
    x = (np.random.default_rng(0).standard_normal((3, 4, 6)) * 3 - 1).astype(dtype)
    for granularity in (PerTensor(), PerAxis(1), PerGroup(2)):
        low, high = min_max(x, granularity)
        largest = absmax(x, granularity)
        block = granularity.block_size(x.shape)
        assert {low.dtype, high.dtype, largest.dtype} == {dtype}
        for at in np.ndindex(low.shape):
            part = (
                x[tuple(slice(i * b, (i + 1) * b) for i, b in zip(at, block, strict=False))]
                .astype(float)
                .ravel()
                .tolist()
            )
            assert (float(low[at]), float(high[at])) == (min(0, *part), max(0, *part))
            assert float(largest[at]) == max(map(abs, part))


@DTYPE
def test_statistics_of_special_blocks(dtype: np.dtype[Any]) -> None:
    one = PerTensor()
    for data, expected in (
        ([], (0, 0)),
        ([0.0, -0.0], (0, 0)),
        ([2, 3], (0, 3)),
        ([-2, -3], (-3, 0)),
        ([-np.inf, 1], (-np.inf, 1)),
    ):
        x = np.array(data).astype(dtype)
        assert tuple(map(float, min_max(x, one))) == expected
        assert float(absmax(x, one)) == max(-expected[0], expected[1])
    with np.errstate(invalid="ignore"):
        assert all(
            np.isnan(v.astype(float))
            for v in (
                *min_max(np.array([np.nan, 1]).astype(dtype), one),
                absmax(np.array([1, np.nan]).astype(dtype), one),
            )
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_powers_of_two_for_every_exponent(dtype: str) -> None:
    info = np.finfo(dtype)
    exact = np.ldexp(np.ones((), dtype), np.arange(info.minexp, info.maxexp))
    q = INT8.replace(restriction=Restriction.POWER_OF_TWO)
    assert_same_bits(exact, restrict_scale(q, exact))
    assert_same_bits(exact[1:], restrict_scale(q, np.nextafter(exact[1:], np.zeros((), dtype))))  # up, never down
    above = np.nextafter(exact, np.array(np.inf, dtype))
    assert_same_bits(np.append(exact[1:], exact[-1]), restrict_scale(q, above))  # the last has no power of two above it
    assert_same_bits(np.append(exact[1:], exact[-1]), restrict_scale(q, exact * np.array(1.5, dtype)))
    assert restrict_scale(q, np.array(info.max)) == exact[-1]
    assert restrict_scale(q, np.array(0, dtype)) == exact[0]


def test_restriction_keeps_the_floor_and_refuses_what_is_no_scale() -> None:
    for restriction in Restriction:
        levels = FLOAT8_E4M3FN if restriction is Restriction.QUANTIZED else None
        q = INT8.replace(restriction=restriction, scale_format=levels, floor=0.3)
        least = dict.fromkeys((Restriction.FLOAT, Restriction.QUANTIZED), np.float32(0.3))
        least[Restriction.LOG_FLOAT] = max(exp2(log2(np.float32(0.3))), np.float32(0.3))
        least |= dict.fromkeys(INTEGER_SCALE, 1.0)
        raised = restrict_scale(q, np.array([0.0, 0.29], np.float32))
        assert raised.tolist() == [least.get(restriction, 0.5)] * 2
        special = restrict_scale(q, np.array([np.nan, np.inf, -np.inf], np.float32))
        assert np.isnan(special).all()


@pytest.mark.parametrize("name", ["int8_power_of_two_per_tensor", "int8_per_tensor", "uint8_affine_per_tensor"])
def test_scales_are_positive_normal_numbers_whatever_the_data(name: str) -> None:
    q = catalog[name]
    for value in (0.0, -0.0, 1e-45, 1e-38, TINY, 3.4e38, 1.0):
        for x in (np.full(4, value, np.float32), np.array([value, -value], np.float32)):
            scale = choose_qparams(q, x).scale
            assert TINY <= scale <= np.finfo(np.float32).max
            # a grid point above the largest element may lie above the largest number, too
            assert np.isfinite(fake_quantize(q, x)).all() or abs(value) > 3e38
            assert np.all(fake_quantize(q, np.zeros(2, np.float32), choose_qparams(q, x)) == 0)


def test_all_zero_and_all_equal() -> None:
    assert choose_qparams(INT8, np.zeros(3, np.float32)) == QParams(np.float32(TINY))
    assert choose_qparams(UINT8, np.zeros(3, np.float32)) == QParams(np.float32(TINY), 0)
    assert choose_qparams(catalog["int8_per_tensor"], np.zeros(3)).scale == 2.0**-1022
    x = np.full(5, -3.5, np.float32)
    assert fake_quantize(INT8, x).tolist() == [float(np.float32(-127) * (np.float32(3.5) / np.float32(127)))] * 5
    assert quantize(UINT8, x, choose_qparams(UINT8, x)).tolist() == [0] * 5


def test_scales_of_bfloat16_are_float32_and_as_small_as_they_must_be() -> None:
    x = np.array([2.0**-40, -(2.0**-41)]).astype(BFLOAT16)
    qparams = choose_qparams(INT8, x)
    assert_same_bits(np.array(2.0**-40, np.float32) / np.float32(127), np.asarray(qparams.scale))
    assert quantize(INT8, x, qparams).tolist() == [127, -64]


@DTYPE
def test_choice_is_made_in_float32_at_least(dtype: np.dtype[Any]) -> None:
    x = np.random.default_rng(0).standard_normal(100).astype(dtype)
    same = x.astype(wide(dtype))
    for q in (INT8, UINT8, catalog["int8_power_of_two_per_tensor"]):
        assert_same_bits(choose_qparams(q, same), choose_qparams(q, x))
        assert choose_qparams(q, x).scale.dtype == wide(dtype)


@pytest.mark.parametrize(
    "name",
    ["int8_per_channel", "uint8_affine_per_channel", "int4_per_group32", "int8_affine_per_token", "int8_per_block"],
)
def test_every_block_has_the_parameters_it_would_have_alone(name: str) -> None:
    q = catalog[name]
    x = np.random.default_rng(5).standard_normal((2, 64, 64)).astype(np.float32)
    x[1] *= 1e-3
    got, block = choose_qparams(q, x), q.granularity.block_size(x.shape)
    for at in np.ndindex(got.scale.shape):
        part = x[tuple(slice(i * b, (i + 1) * b) for i, b in zip(at, block, strict=True))]
        alone = choose_qparams(q.replace(granularity=PerTensor()), part)
        zero = None if got.zero_point is None else np.asarray(got.zero_point[at])
        assert_same_bits(alone, QParams(np.asarray(got.scale[at]), zero))


def test_strides_do_not_matter() -> None:
    x: NDArray[Any] = np.random.default_rng(6).standard_normal((8, 6)).astype(np.float32)
    for q in (catalog["int8_per_channel"], UINT8, catalog["int4_per_group32"].replace(granularity=PerGroup(2, 0))):
        for view in (x.T, x[::-1, ::3], np.asfortranarray(x)):
            assert_same_bits(choose_qparams(q, np.ascontiguousarray(view)), choose_qparams(q, view))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["int8_per_channel", "uint8_affine_per_channel"])
def test_data_without_a_finite_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="`x` must be finite to choose a scale from it"):
        choose_qparams(catalog[name], np.array([[1, 2], [value, 3]], np.float32))


def test_float_zero_point_is_the_smallest_element_plus_half_the_range() -> None:
    q = UINT8.replace(bits=4, zero_point_domain="float")
    got = choose_qparams(q, np.array([-1, 2], np.float32))
    scale = np.float32(3) / np.float32(15)
    assert_same_bits(QParams(np.asarray(scale), np.asarray(np.float32(8) * scale + np.float32(-1))), got)
