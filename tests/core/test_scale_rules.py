"""What a `ScaleRule` says beyond its defaults, against exact rationals; and that only core computes it."""

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from samebits.core import (
    QParams,
    Quantizer,
    ScaleRule,
    catalog,
    choose_qparams,
    dequantize,
    fake_quantize,
    fake_quantize_vjp,
    quantize,
)
from samebits.core.scales import OF_OTHERS
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import knife_edges, special_values

from ..exact import BFLOAT16, DTYPES, elementwise, fake_quantized, round_fraction
from ..oracle_inputs import blocks
from ..verbs.test_bad_input import INT8, UINT8

UINT4 = catalog["uint4_affine_per_group32"]
SHIFTED = UINT8.replace(zero_point_domain="shift", range="of_data", floor=0.0)
CHANNELS, FLOAT32 = catalog["int8_per_channel"], np.dtype(np.float32)
TINY = 2.0**-126


def f32(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, np.float32)


def test_every_field_is_ours_or_of_others() -> None:
    ours = {"source", "restriction", "denominator", "scale_format", "two_level", "momentum", "floor"}
    ours |= {"window", "window_percentile", "batch_in_training", "steps", "scale_value", "zero_point_value"}
    ours |= {"statistic", "percentile", "low_percentile", "sigma", "search_steps", "zero_point_rounding"}
    ours |= {"search_norm", "search_beta", "search_kappa", "learned_sigma"}
    assert {f.name for f in dataclasses.fields(ScaleRule)} == ours | set(OF_OTHERS)


def test_range_rules() -> None:
    for data, expected in (
        ((1, 5), {"with_zero": 5, "low_with_zero": 5, "of_data": 4}),
        ((-5, -1), {"with_zero": 5, "low_with_zero": 4, "of_data": 4}),
        ((-1, 3), {"with_zero": 4, "low_with_zero": 4, "of_data": 4}),
        ((2, 2), {"with_zero": 2, "low_with_zero": 2, "of_data": 0}),
    ):
        for rule, size in expected.items():
            got = choose_qparams(UINT8.replace(range=rule), f32(*data)).scale
            assert got == max(np.float32(size) / np.float32(255), np.float32(TINY)), (data, rule)
    empty = np.zeros((0,), np.float32)
    assert choose_qparams(UINT8.replace(range="of_data"), empty)[:2] == (np.float32(TINY), 0)


def test_scale_dtypes_round_where_they_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        x = (rng.standard_normal(5) * 10.0 ** rng.integers(-3, 3)).astype(BFLOAT16)
        low, high = Fraction(min(0, *map(float, x))), Fraction(max(0, *map(float, x)))
        for name, dtype in (("input", "bfloat16"), ("widened", "float32"), ("float64", "float64")):
            span = Fraction(round_fraction(high - low, dtype))
            expected = np.float32(round_fraction(span / 255, dtype))
            assert choose_qparams(UINT8.replace(scale_dtype=name), x).scale == expected, name


def test_scales_multiplied_by_a_reciprocal() -> None:
    q, x = CHANNELS.replace(scale_division="reciprocal"), np.random.default_rng(0).random((300, 2)).astype(np.float32)
    product = x.max(1, keepdims=True) * (np.float32(1) / np.float32(127))
    assert_same_bits(product, choose_qparams(q, x).scale)
    assert np.any(product != choose_qparams(CHANNELS, x).scale)
    assert_same_bits(choose_qparams(CHANNELS, x[:1]), choose_qparams(q, x[:1]))  # a single scale is divided


def test_small_ranges_and_scales() -> None:
    for changes, data, expected in (
        ({"range_floor": 1.0}, (0.5, -0.25), 1 / 127),
        ({"range_floor": 0.1}, (0.5, -0.25), 0.5 / 127),
        ({"empty_range": 1.0}, (0.0, -0.0), 1 / 127),
        ({"empty_range": 1.0}, (1e-30, 0), 1e-30 / 127),
        ({"replace_below": 0.5, "replacement": 3.0}, (1.0,), 3.0),
        ({"replace_below": 0.5}, (1.0,), 0.5),
        ({"replace_below": 0.5, "replacement": 3.0}, (63.5,), 0.5),
        ({"replace_below": "epsilon"}, (0.0,), 2.0**-23),
        ({"replace_below": "sqrt_smallest_normal", "replacement": 1.0}, (2.0**-57,), 1.0),
        ({"replace_below": "sqrt_smallest_normal", "replacement": 1.0}, (127 * 2.0**-63,), 2.0**-63),
        ({"floor": 0.0}, (0.0,), 0.0),
        ({"floor": 0.0}, (127 * 2.0**-149,), 2.0**-149),
    ):
        got = choose_qparams(INT8.replace(**changes), f32(*data)).scale
        wanted = np.float32(expected) if expected >= TINY or expected in (0, 2.0**-149) else np.float32(TINY)
        assert np.isclose(got, wanted, rtol=1e-6, atol=0), (changes, data, got)
    for dtype, epsilon in ((BFLOAT16, 2.0**-7), (np.float16, 2.0**-10), (np.float64, 2.0**-52)):
        q = INT8.replace(replace_below="epsilon", compute_dtype="input")
        assert choose_qparams(q, np.zeros(2, dtype)).scale == epsilon


def test_floors_are_numbers_of_the_dtype_that_computes() -> None:
    x = np.zeros(2, BFLOAT16)
    assert choose_qparams(INT8.replace(floor=1e-5, compute_dtype="input"), x).scale == np.float32(BFLOAT16.type(1e-5))
    assert choose_qparams(INT8.replace(floor=1e-5), x).scale == np.float32(1e-5)


@pytest.mark.parametrize("q", [UINT8, UINT8.replace(signed=True), UINT8.replace(bits=4)], ids=lambda q: str(q.format))
def test_zero_point_rules(q: Quantizer) -> None:
    """In float64, where the exact quotient decides except within a few parts in 2**50 of a half."""
    lo, hi, seen = q.format.lo, q.format.hi, set()
    for x in (row.astype(np.float64) for block in blocks(FLOAT32, powers=(0, 2)) for row in block if row.any()):
        chosen = {
            rule: choose_qparams(q.replace(zero_point_rule=rule), x)
            for rule in ("rounded_quotient", "rounded_code", "smaller_difference", "smaller_sum")
        }
        scale = Fraction(float(chosen["rounded_quotient"].scale))
        exact = lo - Fraction(min(0.0, *x.tolist())) / scale
        near = abs(exact - round(exact))
        expected = min(max(round(exact), lo), hi)
        for rule, qparams in chosen.items():
            assert qparams.scale == chosen["rounded_quotient"].scale
            assert lo <= qparams.zero_point <= hi
            assert qparams.zero_point == expected or near > Fraction(49, 100), rule
        seen.add(int(chosen["rounded_code"].zero_point))
    assert len(seen) > 5


def test_zero_points_of_halves() -> None:
    """-127.5 .. 127.5: by the quotient -127.5 the even code is 128 in uint8, 0 in int8; by the code both are even."""
    x = f32(-126.5, 128.5)
    for signed, rule, expected in (
        (False, "rounded_quotient", 126),
        (True, "rounded_quotient", -2),
        (False, "rounded_code", 126),
        (True, "rounded_code", -2),
    ):
        q = UINT8.replace(signed=signed, zero_point_rule=rule)
        assert choose_qparams(q, x)[:2] == (1, expected)
    narrow = UINT8.replace(signed=True, narrow=True)  # lo is odd: the two part
    data = f32(-126.5, 127.5)
    assert choose_qparams(narrow.replace(zero_point_rule="rounded_quotient"), data).zero_point == -1
    assert choose_qparams(narrow.replace(zero_point_rule="rounded_code"), data).zero_point == 0


def test_zero_points_where_the_scale_was_too_small() -> None:
    x = f32(-1, 3)
    for rule, expected in (("used", 1), ("raw", 64), ("stretched", 64)):
        got = choose_qparams(UINT8.replace(floor=1.0, zero_point_scale=rule), x)
        assert got[:2] == (1, expected), rule
    one_sided = UINT8.replace(floor=1.0, zero_point_scale="stretched")
    assert choose_qparams(one_sided, f32(-3, 0))[:2] == (1, 255)
    assert choose_qparams(one_sided, f32(0, 3))[:2] == (1, 0)


def test_scales_without_a_floor() -> None:
    q, x = INT8.replace(floor=0.0, nan="zero"), f32(0, 1, -1, np.nan)
    zero = QParams(np.float32(0))
    assert quantize(q, x, zero).tolist() == [0, 127, -128, 0]
    assert fake_quantize(q, x, zero).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"`qparams\.scale` must hold non-negative finite numbers, got -1"):
        quantize(q, x, QParams(np.float32(-1)))
    with pytest.raises(ValueError, match=r"`qparams\.scale` must hold positive normal finite numbers, got 0"):
        quantize(INT8, x, zero)


def test_shifted_zero_points() -> None:
    """``round((x + z) / s)`` and ``code * s - z``, and their gradients."""
    qparams = choose_qparams(SHIFTED, f32(2, 3, 4))
    assert_same_bits(QParams(f32(2)[0] / f32(255)[0], f32(-2)[0]), qparams)
    assert quantize(SHIFTED, f32(2, 3, 4), qparams).tolist() == [0, 127, 255]
    exact = QParams(np.float32(0.5), np.float32(-2))
    assert dequantize(SHIFTED, np.array([0, 3], np.uint8), exact).tolist() == [2, 3.5]
    x, g = f32(1.0, 2.25, 3.5, 1000), f32(1, 10, 100, 1000)
    grads = fake_quantize_vjp(SHIFTED, x, exact, g)
    assert grads.x.tolist() == [0, 10, 100, 0]  # 1.0 and 1000 are clamped
    # codes 0, 0 (0.5 to even), 3, 255; d scale = g * (code - (x + z) / s where not clamped); d z = -g where clamped
    assert grads.scale == 0 * 1 + 10 * (0 - 0.5) + 100 * 0 + 1000 * 255
    assert grads.zero_point == -1 - 1000


@pytest.mark.parametrize("switches", [{}, {"division": "reciprocal"}, {"fused_multiply_add": True}], ids=str)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_shifted_quantizers_are_exact(name: str, switches: dict[str, Any]) -> None:
    q = UINT4.replace(granularity=UINT8.granularity, zero_point_domain="shift", compute_dtype="input", **switches)
    for scale, zero in ((0.1, 0.0), (0.37, -1.3), (2.0, 20.1)):
        dtype = DTYPES[name]
        scale, zero = (np.float32(np.asarray(v).astype(dtype)) for v in (scale, zero))
        x = np.concatenate([knife_edges(q, scale, zero, dtype), special_values(dtype)])
        expected = elementwise(fake_quantized, q, x, scale, zero)
        assert_same_bits(expected, fake_quantize(q, x, QParams(scale, zero)), inputs=x)
