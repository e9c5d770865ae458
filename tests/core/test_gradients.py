"""`core.ste` and `fake_quantize_vjp` against exact rationals."""

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import (
    Gradient,
    PerAxis,
    PerGroup,
    PerTensor,
    PerToken,
    QParams,
    Quantizer,
    catalog,
    choose_qparams,
    fake_quantize,
    fake_quantize_vjp,
    quantize,
)
from samebits.core.ste import block_sum, clip_mask, learned_scale_factor
from samebits.proofs.inputs.compare import assert_same_bits

from ..exact import DIRECTIONS, DTYPES, Machine, code, edges, elementwise, round_fraction, round_number

DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
INT8, UINT8 = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"]


def passes(q: Quantizer, x: float, scale: float, zero: float, dtype: str) -> float:
    """1.0 where the rounded quotient plus zero point lies in the range, by rationals (default arithmetic)."""
    if math.isnan(x) or q.gradient is Gradient.PASS_THROUGH:
        return 1.0
    if math.isinf(x):
        return 0.0
    quotient = Machine(q.arithmetic, dtype).true_divide(x, scale)
    if math.isinf(quotient):
        return 0.0
    return float(q.format.lo <= DIRECTIONS[q.rounding](Fraction(quotient)) + zero <= q.format.hi)


def terms(q: Quantizer, x: float, g: float, scale: float, zero: float, dtype: str) -> tuple[float, float]:
    """What one element adds to the gradients of scale and zero point, every operation rounded (default arithmetic)."""
    m, inside = Machine(q.arithmetic, dtype), passes(q, x, scale, zero, dtype)
    distance = m.add(code(q, x, scale, zero, dtype), -zero)
    distance = m.add(distance, -m.true_divide(x, scale) if inside else -0.0)
    return m.multiply(g, distance), 0.0 if inside else m.multiply(g, -scale)


def exact_total(values: list[float], dtype: str) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan if any(map(math.isnan, values)) or {math.inf, -math.inf} <= set(values) else sum(values)
    return round_fraction(sum(map(Fraction, values), Fraction(0)), dtype)


def data(q: Quantizer, scale: float, zero: float, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    x = edges(q, scale, zero, dtype, codes=3)
    return x, np.random.default_rng(0).standard_normal(x.shape).astype(dtype)


@DTYPE
@pytest.mark.parametrize("gradient", [Gradient.CLIPPED, Gradient.PASS_THROUGH])
@pytest.mark.parametrize(("name", "zero"), [("int8_per_tensor", 0), ("uint8_affine_per_tensor", 7)])
def test_gradients_are_exact(name: str, zero: int, gradient: Gradient, dtype: np.dtype[Any]) -> None:
    for rounding in DIRECTIONS:
        q = catalog[name].replace(gradient=gradient, rounding=rounding)
        wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        scale = np.array(0.1, wide)
        x, g = data(q, 0.1, zero, dtype)
        got = fake_quantize_vjp(q, x, QParams(scale, np.int32(zero) if q.affine else None), g)
        mask = elementwise(passes, q, x, float(scale), zero).astype(bool)
        assert_same_bits(np.where(mask, g, np.zeros_like(g)), got.x, inputs=x)
        assert mask.any()
        assert mask.all() == (gradient is Gradient.PASS_THROUGH)
        finite = np.isfinite(x)
        got = fake_quantize_vjp(q, x[finite], QParams(scale, np.int32(zero) if q.affine else None), g[finite])
        each = [
            terms(q, *pair, float(scale), zero, dtype.name)
            for pair in zip(x[finite].tolist(), g[finite].tolist(), strict=True)
        ]
        assert_same_bits(np.array(exact_total([a for a, _ in each], wide.name), wide), got.scale)
        assert got.scale.dtype == wide
        if q.affine:
            assert_same_bits(np.array(exact_total([b for _, b in each], wide.name), wide), got.zero_point)
        else:
            assert got.zero_point is None


def test_mask_at_the_limits_by_hand() -> None:
    x = np.array([127.25, 127.5, -128.5, -128.75, np.nan, np.inf, -np.inf], np.float32)
    got = fake_quantize_vjp(INT8, x, QParams(np.float32(1)), np.full_like(x, 3))
    assert got.x.tolist() == [3, 0, 3, 0, 3, 0, 0]  # rounded: 127, 128, -128, -129
    assert clip_mask(INT8, np.array([127, 128, -128, -129, np.nan])).tolist() == [True, False, True, False, True]


def test_special_values_in_the_gradient_of_the_scale() -> None:
    one, g = QParams(np.float32(1)), np.ones(2, np.float32)
    assert fake_quantize_vjp(INT8, np.array([np.inf, 0], np.float32), one, g).scale == 127
    assert fake_quantize_vjp(INT8, np.array([-np.inf, 0.25], np.float32), one, g).scale == -128.25
    assert np.isnan(fake_quantize_vjp(INT8, np.array([np.nan, 0], np.float32), one, g).scale)
    passing = INT8.replace(gradient="pass_through")
    assert fake_quantize_vjp(passing, np.array([np.inf, 0], np.float32), one, g).scale == -np.inf
    masked = fake_quantize_vjp(INT8, np.array([1e9], np.float32), one, np.array([-np.inf], np.float32))
    assert_same_bits(np.array([0.0], np.float32), masked.x)  # +0.0, whatever comes in


def test_gradient_of_a_clamped_element_by_hand() -> None:
    """uint8, s = 0.5, z = 10: x = 200 becomes code 255, so x_hat = 245 s and d x_hat / d s = 245, d z = -s."""
    got = fake_quantize_vjp(
        UINT8, np.array([200.0], np.float32), QParams(np.float32(0.5), np.int32(10)), np.array([2.0], np.float32)
    )
    assert (got.x.tolist(), float(got.scale), float(got.zero_point)) == ([0.0], 490.0, -1.0)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("int8_per_channel", (4, 9)), ("uint8_affine_per_channel", (3, 2, 5)), ("int8_per_block", (32, 64))],
)
def test_learned_scale_is_the_clipped_gradient_times_a_factor(name: str, shape: tuple[int, ...]) -> None:
    q, rng = catalog[name], np.random.default_rng(0)
    x, g = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    qparams = choose_qparams(q, x / 2)
    clipped, learned = (fake_quantize_vjp(q.replace(gradient=v), x, qparams, g) for v in ("clipped", "learned_scale"))
    count = math.prod(q.granularity.block_size(shape))
    factor = np.float32(1 / math.sqrt(count * q.format.hi))
    assert_same_bits(clipped.x, learned.x)
    assert_same_bits(clipped.scale * factor, learned.scale)
    assert np.count_nonzero(clipped.scale) == clipped.scale.size
    if q.affine:
        assert_same_bits(clipped.zero_point * factor, learned.zero_point)
        assert np.count_nonzero(clipped.zero_point)


def test_factor() -> None:
    assert learned_scale_factor(INT8, 100) == 1
    learned = INT8.replace(gradient="learned_scale")
    assert learned_scale_factor(learned, 127) == 1 / 127
    assert learned_scale_factor(learned, 0) == 1
    one_bit = UINT8.replace(
        bits=1, signed=True, gradient="learned_scale"
    )  # [-1, 0]: hi is 0, which the factor cannot have
    assert learned_scale_factor(one_bit, 4) == 0.5


@pytest.mark.parametrize("granularity", [PerAxis(0), PerAxis(1), PerToken(), PerGroup(3), PerGroup(2, axis=0)], ids=str)
def test_sums_run_over_the_block_of_their_scale(granularity: Any) -> None:
    q, rng = UINT8.replace(granularity=granularity), np.random.default_rng(3)
    x, g = rng.standard_normal((4, 6)).astype(np.float32), rng.standard_normal((4, 6)).astype(np.float32)
    qparams = choose_qparams(q, x / 2)
    got = fake_quantize_vjp(q, x, qparams, g)
    block = granularity.block_size(x.shape)
    for at in np.ndindex(got.scale.shape):
        part = tuple(slice(i * b, (i + 1) * b) for i, b in zip(at, block, strict=True))
        alone = fake_quantize_vjp(UINT8, x[part], QParams(qparams.scale[at], qparams.zero_point[at]), g[part])
        assert_same_bits(alone.x, got.x[part])
        assert_same_bits(np.asarray(alone.scale), np.asarray(got.scale[at]))
        assert_same_bits(np.asarray(alone.zero_point), np.asarray(got.zero_point[at]))


def test_float_zero_point_has_gradient_one_where_clamped() -> None:
    """x_hat = (code - mid) * s + z: inside, the code undoes what z does; where it is clamped, z moves x_hat alone."""
    q = UINT8.replace(zero_point_domain="float")
    x, qparams = np.array([0.2, 300.0], np.float32), QParams(np.float32(1), np.float32(0.5))
    got = fake_quantize_vjp(q, x, qparams, np.ones(2, np.float32))
    assert (got.x.tolist(), float(got.zero_point)) == ([1, 0], 1)
    # code of 0.2 is round(0.2 - 0.5 + 128) = 128: (128 - 128) - (0.2 - 0.5) / 1; 300 is clamped to 255 - 128
    assert got.scale == np.float32(127) - (np.float32(0.2) - np.float32(0.5))


@pytest.mark.parametrize(
    "name", ["int8_per_channel", "uint8_affine_per_channel", "int8_affine_per_token", "uint4_affine_per_group32"]
)
@pytest.mark.parametrize("shape", [(0, 32), (3, 0), (0, 0)])
def test_empty_blocks(name: str, shape: tuple[int, ...]) -> None:
    q, x = catalog[name], np.zeros(shape, np.float32)
    qparams = choose_qparams(q, x)
    got = fake_quantize_vjp(q, x, qparams, x)
    assert got.x.shape == fake_quantize(q, x, qparams).shape == quantize(q, x, qparams).shape == shape
    assert_same_bits(np.zeros_like(qparams.scale), got.scale)
    assert np.all(qparams.scale == 2.0**-126)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_empty_and_zero_dimensional(shape: tuple[int, ...]) -> None:
    x = np.full(shape, 0.75, np.float32)
    got = fake_quantize_vjp(INT8, x, QParams(np.float32(1)), np.ones_like(x))
    assert_same_bits(np.ones_like(x), got.x)
    assert_same_bits(np.array(0.25 if x.size else 0.0, np.float32), got.scale)


@DTYPE
def test_block_sum_is_exact_and_rounded_once(dtype: np.dtype[Any]) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(64) * 10.0 ** rng.integers(-4, 4, 64) for _ in range(60)]
    rows += [np.concatenate([big, rng.standard_normal(62) * 2.0**-20]) for big in ([[3e4, -3e4]] * 20)]  # cancellation
    half = 2.0 ** -(ml_dtypes.finfo(dtype).nmant + 1)  # 1 + half is a tie, but for what no float64 could add to it
    rows += [np.array([1.0, half, rest] + [0.0] * 61) for rest in (0.0, half / 4, -half / 4, 2.0**-90, -(2.0**-90))]
    x = np.array(rows).astype(dtype)
    expected = np.array([[exact_total(row.astype(float).tolist(), dtype.name)] for row in x]).astype(dtype)
    assert_same_bits(expected, block_sum(x, PerAxis(0)))
    assert_same_bits(expected, block_sum(x[:, ::-1], PerToken()))  # in any order


def test_block_sum_of_float64_survives_partial_sums_that_overflow() -> None:
    huge, one = 1.5e308, PerTensor()
    assert block_sum(np.array([huge, huge, -huge]), one) == huge
    assert block_sum(np.array([huge, huge]), one) == np.inf
    assert block_sum(np.array([-huge, -huge, 1.0]), one) == -np.inf
    assert block_sum(np.array([huge, huge, -np.inf]), one) == -np.inf
    assert np.isnan(block_sum(np.array([np.inf, -np.inf]), one))
    assert np.isnan(block_sum(np.array([np.inf, np.nan]), one))


def test_block_sum_of_zeros_is_positive() -> None:
    for row in ([-0.0], [-0.0, -0.0], [1.0, -1.0], []):
        assert_same_bits(np.array(0, np.float32), np.asarray(block_sum(np.array(row, np.float32), PerTensor())))


def test_round_number_is_the_oracle_of_conversions() -> None:
    assert round_number(1 + 2.0**-24, "float32") == 1
    assert round_number(1 + 3 * 2.0**-24, "float32") == 1 + 2.0**-22
    assert round_number(65520.0, "float16") == math.inf
    assert round_number(2.0**-25, "float16") == 0
    assert round_number(2.0**-25 + 2.0**-40, "float16") == 2.0**-24
