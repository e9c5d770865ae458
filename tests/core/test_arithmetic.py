"""`core.arithmetic`: every switch changes what its docstring says, and nothing else.

For each: an input, worked out by hand, at which it differs from the default, and a law about where it does not.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import (
    Arithmetic,
    ClampOrder,
    ComputeDtype,
    Division,
    NanRule,
    QParams,
    Quantizer,
    Rounding,
    ZeroPointDomain,
    ZeroPointOrder,
    catalog,
    choose_qparams,
    dequantize,
    fake_quantize,
    fake_quantize_vjp,
    quantize,
)
from samebits.proofs.inputs.compare import assert_same_bits, differences

from ..exact import BFLOAT16, PARAMETERS, Machine, edges, integer, round_number

INT8, UINT8 = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"]
SCALES = [np.float32(v) for v in (0.1, 1 / 3, 2.0**-7, 3e30)]
POWERS = [np.float32(2.0**e) for e in (-126, -7, 0, 5, 100)]


def f32(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def both(
    q: Quantizer, x: NDArray[Any], scale: Any, zero: Any = None, **switches: Any
) -> tuple[list[float], list[float]]:
    """Results of the default arithmetic and of the one with switches, as floats."""
    qparams = QParams(scale, None if zero is None else np.int32(zero))
    return tuple(np.asarray(fake_quantize(v, x, qparams)).astype(float).tolist() for v in (q, q.replace(**switches)))


def assert_unchanged(q: Quantizer, x: NDArray[Any], qparams: QParams, **switches: Any) -> None:
    assert_same_bits(fake_quantize(q, x, qparams), fake_quantize(q.replace(**switches), x, qparams), inputs=x)


def all_edges(scale: Any, zero: int = 0, q: Quantizer = INT8) -> NDArray[Any]:
    return edges(q, float(scale), zero, np.dtype(np.float32), codes=20)


def test_defaults_are_the_documented_ones() -> None:
    a = Arithmetic()
    assert a.compute_dtype is ComputeDtype.WIDENED
    assert a.division is Division.DIVIDE
    assert a.zero_point_order is ZeroPointOrder.AFTER_ROUNDING
    assert a.zero_point_domain is ZeroPointDomain.INTEGER
    assert a.clamp_order is ClampOrder.AFTER_ROUNDING
    assert a.nan is NanRule.PROPAGATE
    assert (a.fused_multiply_add, a.flush_subnormals, a.keep_negative_zero) == (False, False, False)


def test_input_dtype_rounds_every_step() -> None:
    x = np.array([41.75], BFLOAT16)
    scale = np.float32(0.5) + np.float32(2.0**-20)  # bfloat16 has 0.5: quotient 83.4999 or, in bfloat16, 83.5
    assert both(INT8, x, scale, compute_dtype="input") == ([41.5], [42.0])


@pytest.mark.parametrize("scale", SCALES)
def test_input_dtype_changes_nothing_for_float32(scale: Any) -> None:
    assert_unchanged(INT8, all_edges(scale), QParams(scale), compute_dtype="input")
    assert_unchanged(UINT8, all_edges(scale, 7, UINT8), QParams(scale, np.int32(7)), compute_dtype="input")


def test_float64_sees_quotients_that_float32_rounds_to_a_tie() -> None:
    scale, x = np.float32(0.1), f32(0.35)  # 0.1f > 0.1 and 0.35f < 0.35, so x / s < 3.5, by less than float32 can show
    assert np.float32(x[0] / scale) == 3.5
    assert float(x[0]) / float(scale) < 3.5
    assert both(INT8, x, scale, compute_dtype="float64") == (
        [float(np.float32(4) * scale)],
        [float(np.float32(3) * scale)],
    )


def test_float64_changes_nothing_for_float64() -> None:
    x = edges(INT8, 0.1, 0, np.dtype(float))
    assert_unchanged(INT8, x, QParams(np.float64(0.1)), compute_dtype="float64")


def test_reciprocal() -> None:
    # -99.95f / 0.1f is a little above -999.5; by the reciprocal it becomes the tie
    q, x, scale = catalog["int16_per_tensor"], f32(-99.95), np.float32(0.1)
    quotients = (x[0] / scale, x[0] * (np.float32(1) / scale))
    assert [float(v) for v in quotients] == [-999.49993896484375, -999.5]
    divided, multiplied = both(q, x, scale, division="reciprocal")
    assert [round(divided[0] / 0.1), round(multiplied[0] / 0.1)] == [-999, -1000]


@pytest.mark.parametrize("scale", POWERS)
def test_reciprocal_changes_nothing_for_powers_of_two(scale: Any) -> None:
    assert_unchanged(INT8, all_edges(scale), QParams(scale), division="reciprocal")


def test_reciprocal_is_about_the_division_of_x_alone() -> None:
    """Scales and zero points are chosen by true division, as torch and torchao choose theirs."""
    x = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    for name in ("int8_per_channel", "uint8_affine_per_channel"):
        q = catalog[name]
        assert_same_bits(choose_qparams(q, x), choose_qparams(q.replace(division="reciprocal"), x))


def test_zero_point_before_rounding_moves_ties_by_an_odd_one() -> None:
    # 0.5 + 1 rounds to 2, which is 1 above the zero point; 0.5 rounds to 0
    assert both(UINT8, f32(0.5, -0.5), np.float32(1), 1, zero_point_order="before_rounding") == ([0, 0], [1, -1])
    x = all_edges(1, 7, UINT8)
    x = x[np.abs(x) < 2**15]  # beyond, x + 7 rounds as a number, too
    scale = QParams(np.float32(1), np.int32(7))
    found = x[
        fake_quantize(UINT8, x, scale) != fake_quantize(UINT8.replace(zero_point_order="before_rounding"), x, scale)
    ]
    exact = found[np.abs(found) % 1 == 0.5]
    assert exact.size > 10
    assert np.all(np.abs(np.abs(found) % 1 - 0.5) < 2.0**-16)


@pytest.mark.parametrize("scale", POWERS)
def test_zero_point_before_rounding_changes_nothing_for_even_ones_and_sums_that_are_exact(scale: Any) -> None:
    qparams = QParams(scale, np.int32(8))
    x = np.array(sorted({k / 4 for k in range(-1200, 1200)}), np.float32) * scale
    assert_unchanged(UINT8, x, qparams, zero_point_order="before_rounding")


def test_float_zero_point_is_a_real_value() -> None:
    # tinygemm: code = round((x - (z - mid * s)) / s), x_hat = (code - mid) * s + z, mid = 8 for 4 bits
    q = catalog["uint4_affine_per_group32"].replace(granularity=INT8.granularity, zero_point_domain="float")
    qparams = QParams(np.float32(0.5), np.float32(0.3))
    x = f32(0.3, 0.0, -99, 99)
    assert quantize(q, x, qparams).tolist() == [8, 7, 0, 15]  # (0 - 0.3 + 4) / 0.5 = 7.4
    assert fake_quantize(q, x, qparams).tolist() == (f32(0, -0.5, -4, 3.5) + np.float32(0.3)).tolist()
    assert fake_quantize(q, f32(0), qparams) != 0  # 0.0 need not be representable


@pytest.mark.parametrize("scale", SCALES)
def test_float_zero_point_of_zero_is_the_symmetric_quantizer(scale: Any) -> None:
    # of a signed format, whose middle is 0
    q, x = INT8.replace(zero_point="min_max", zero_point_domain="float"), all_edges(scale)
    expected = fake_quantize(INT8, x, QParams(scale))
    assert_same_bits(expected, fake_quantize(q, x, QParams(scale, np.float32(0))), inputs=x)


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("scale", SCALES)
def test_clamp_before_rounding_changes_no_value(rounding: Rounding, scale: Any) -> None:
    """The limits are integers and every direction is monotone and keeps integers, so the two commute."""
    q, x = INT8.replace(rounding=rounding), all_edges(scale)
    assert_unchanged(q, x, QParams(scale), clamp_order="before_rounding")
    q, x = UINT8.replace(rounding=rounding), all_edges(scale, 7, UINT8)
    assert_unchanged(q, x, QParams(scale, np.int32(7)), clamp_order="before_rounding")


def test_clamp_before_rounding_clips_gradients_half_a_code_earlier() -> None:
    x = f32(127, 127.25, 127.5, -128, -128.5, -128.75)
    masks = []
    for q in (INT8, INT8.replace(clamp_order="before_rounding")):
        masks.append(fake_quantize_vjp(q, x, QParams(np.float32(1)), np.ones_like(x)).x.tolist())
    assert masks == [[1, 1, 0, 1, 1, 0], [1, 0, 0, 1, 0, 0]]  # 127.5 rounds to 128, -128.5 to -128
    # the same places of uint8 with zero point 7: 248.5 rounds to 248, inside, and -7.5 to -8, outside
    shifted, affine = x + np.float32(128 - 7), QParams(np.float32(1), np.int32(7))
    after, before = (
        fake_quantize_vjp(v, shifted, affine, np.ones_like(x)).x
        for v in (UINT8, UINT8.replace(clamp_order="before_rounding"))
    )
    assert [after.tolist(), before.tolist()] == [[1, 1, 1, 1, 0, 0], [1, 0, 0, 1, 0, 0]]


NAN_CODES = {"lowest": 0, "highest": 255, "zero": 0, "zero_point": 7}


@pytest.mark.parametrize("rule", NanRule)
def test_nan(rule: NanRule) -> None:
    q, qparams, x = UINT8.replace(nan=rule), QParams(np.float32(0.5), np.int32(7)), f32(np.nan, 1)
    if rule is NanRule.PROPAGATE:
        assert np.isnan(fake_quantize(q, x, qparams)).tolist() == [True, False]
        with pytest.raises(ValueError, match="must not hold NaN"):
            quantize(q, x, qparams)
        return
    assert quantize(q, x, qparams).tolist() == [NAN_CODES[rule], 9]
    assert fake_quantize(q, x, qparams).tolist() == [(NAN_CODES[rule] - 7) / 2, 1]


@pytest.mark.parametrize("rule", NanRule)
def test_nan_rules_differ_in_nan_alone(rule: NanRule) -> None:
    x = all_edges(0.1)
    assert_unchanged(INT8, x[~np.isnan(x)], QParams(np.float32(0.1)), nan=rule)


def test_zero_rule_gives_the_nearest_code_where_the_range_has_no_zero_code() -> None:
    # every integer format holds 0, so "zero" and "lowest" are one for unsigned and apart for signed formats
    x, qparams = f32(np.nan), QParams(np.float32(1))
    assert quantize(INT8.replace(nan="zero"), x, qparams) == 0
    assert quantize(INT8.replace(nan="lowest"), x, qparams) == -128


def test_fused_multiply_add() -> None:
    switches = {"division": "reciprocal", "zero_point_order": "before_rounding"}
    q, x, qparams = UINT8.replace(**switches), all_edges(0.1, 7, UINT8), QParams(np.float32(0.1), np.int32(7))
    found = differences(fake_quantize(q, x, qparams), fake_quantize(q.replace(fused_multiply_add=True), x, qparams))
    assert 0 < found.differing < x.size / 4
    for scale in POWERS:  # a product that is exact has nothing to lose
        x = all_edges(scale, 7, UINT8)
        assert_unchanged(q, x, QParams(scale, np.int32(7)), fused_multiply_add=True)


def test_fused_multiply_add_is_about_sums_alone() -> None:
    x = all_edges(0.1)
    assert_unchanged(INT8, x, QParams(np.float32(0.1)), fused_multiply_add=True)
    assert_unchanged(UINT8, x, QParams(np.float32(0.1), np.int32(7)), fused_multiply_add=True)


def test_flushed_subnormals() -> None:
    x, scale = f32(1e-39, -1e-39, 2.0**-126), np.float32(2.0**-126)
    up = INT8.replace(rounding="toward_positive")
    assert both(up, x, scale, flush_subnormals=True) == ([2.0**-126, 0, 2.0**-126], [0, 0, 2.0**-126])
    # a quotient that is subnormal, of normal numbers
    assert both(up, f32(2.0**-100), np.float32(2.0**30), flush_subnormals=True) == ([2.0**30], [0])


def test_flushed_subnormals_change_nothing_where_all_is_normal() -> None:
    for scale in SCALES:
        x = all_edges(scale)
        x = x[(np.abs(x) >= 2.0**-126 * max(1, float(scale))) | (x == 0) | np.isnan(x)]
        assert_unchanged(INT8, x, QParams(scale), flush_subnormals=True)


def test_negative_zero() -> None:
    x = all_edges(0.1)
    qparams = QParams(np.float32(0.1))
    ours, kept = fake_quantize(INT8, x, qparams), fake_quantize(INT8.replace(keep_negative_zero=True), x, qparams)
    assert not np.signbit(ours[ours == 0]).any()
    assert np.array_equal(np.signbit(kept[kept == 0]), np.signbit(x[kept == 0]))
    assert_same_bits(ours, np.where(kept == 0, np.float32(0), kept))  # apart from the sign of zero nothing differs


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scales_of_an_arithmetic_in_the_input_dtype_are_normal_in_it(dtype: str) -> None:
    q = INT8.replace(compute_dtype="input")
    x = np.zeros(3, BFLOAT16 if dtype == "bfloat16" else np.float16)
    scale = choose_qparams(q, x).scale
    assert scale == (2.0**-126 if dtype == "bfloat16" else 2.0**-14)
    assert fake_quantize(q, x).astype(float).tolist() == [0, 0, 0]
    assert dequantize(q, quantize(q, x, QParams(scale)), QParams(scale), x.dtype).dtype == x.dtype


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_zero_points_of_an_arithmetic_in_the_input_dtype(dtype: str, bits: int) -> None:
    """Every operation rounds to 16 bits, torchao's eager chain for 16-bit input; the zero point stays in the format."""
    q = UINT8.replace(bits=bits, compute_dtype="input")
    for data in ([-2, 3], [-5, -1], [1, 4], [0, 0]):
        x = np.array(data).astype(BFLOAT16 if dtype == "bfloat16" else np.float16)
        qparams = choose_qparams(q, x)
        m = Machine(q.arithmetic, dtype)
        low, high = min(0.0, *data), max(0.0, *data)
        smallest = 2.0 ** PARAMETERS[dtype][1]
        quotient = Machine(q.arithmetic, "float32").true_divide(m.add(high, -low), q.format.hi)  # 65535 is no float16
        scale = max(round_number(quotient, dtype), smallest)
        zero = min(max(-integer(m.true_divide(low, scale), Rounding.TIES_TO_EVEN), 0), q.format.hi)
        assert (float(qparams.scale), int(qparams.zero_point)) == (scale, zero)
        assert bits == 16 or np.isfinite(fake_quantize(q, x, qparams).astype(float)).all()
