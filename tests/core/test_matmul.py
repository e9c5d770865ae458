"""`core.matmul`: linear and convolution over codes against exact rationals, term by term."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import (
    PerTensor,
    QParams,
    Quantizer,
    catalog,
    choose_qparams,
    contraction_bound,
    conv,
    fake_quantize,
    linear,
    quantize,
)
from samebits.proofs.inputs.compare import assert_same_bits

from ..exact import DTYPES, round_fraction

DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
PAIRS = [
    ("int8_per_tensor", "int8_per_channel"),
    ("uint8_affine_per_tensor", "int4_per_channel"),
    ("int8_affine_per_token", "uint8_affine_per_channel"),
    ("int16_per_tensor", "int8_per_tensor"),
]


def arrays(*shapes: tuple[int, ...], dtype: np.dtype[Any], seed: int = 0) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(shape) * 2).astype(dtype) for shape in shapes]


def centred(q: Quantizer, x: NDArray[Any], qparams: QParams) -> NDArray[Any]:
    """Codes less their zero points, as Python integers."""
    codes = quantize(q, x, qparams).astype(object)
    if qparams.zero_point is None:
        return codes
    full = np.asarray(qparams.zero_point)
    block = q.granularity.block_size(x.shape)
    zero = [
        int(full[tuple(i // b for i, b in zip(at, block, strict=True))] if full.ndim else full)
        for at in np.ndindex(x.shape)
    ]
    return codes - np.array(zero, object).reshape(x.shape)


def scaled(acc: int, s_x: float, s_w: float, bias: float | None, work: str, out: str) -> float:
    """``fl(fl(fl(acc) * max(fl(s_x * s_w), tiny)) + bias)``, then rounded to the dtype of x."""
    tiny = Fraction(2) ** (-1022 if work == "float64" else -126)
    scale = max(Fraction(round_fraction(Fraction(s_x) * Fraction(s_w), work)), tiny)
    y = round_fraction(Fraction(round_fraction(Fraction(acc), work)) * scale, work)
    y = y if bias is None else round_fraction(Fraction(y) + Fraction(bias), work)
    return round_fraction(Fraction(y), out)


@DTYPE
@pytest.mark.parametrize(("x_name", "w_name"), PAIRS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_is_exact(x_name: str, w_name: str, with_bias: bool, dtype: np.dtype[Any]) -> None:
    q_x, q_w = catalog[x_name], catalog[w_name]
    x, w = arrays((2, 3, 40), (5, 40), dtype=dtype)
    p_x, p_w = choose_qparams(q_x, x), choose_qparams(q_w, w)
    work = p_x.scale.dtype.name
    bias = np.linspace(-3, 3, 5).astype(work) if with_bias else None
    got = linear(q_x, x, p_x, q_w, w, p_w, bias)
    a, b = centred(q_x, x, p_x), centred(q_w, w, p_w)
    s_x = np.broadcast_to(p_x.scale, (2, 3, 1))
    s_w = np.broadcast_to(p_w.scale.reshape(-1) if p_w.scale.ndim else p_w.scale, 5)
    expected = np.empty(got.shape, float)
    for i, j, k in itertools.product(range(2), range(3), range(5)):
        acc = sum(a[i, j, n] * b[k, n] for n in range(40))
        add = None if bias is None else float(bias[k])
        expected[i, j, k] = scaled(acc, float(s_x[i, j, 0]), float(s_w[k]), add, work, dtype.name)
    assert_same_bits(expected.astype(dtype), got)


@pytest.mark.parametrize(
    ("x_name", "w_name"), [PAIRS[0], PAIRS[1], ("uint8_affine_per_tensor", "uint8_affine_per_channel")]
)
@pytest.mark.parametrize(("stride", "padding"), [((1, 1), (0, 0)), ((2, 1), (1, 2)), ((3, 2), (2, 0))])
def test_conv_is_exact(x_name: str, w_name: str, stride: tuple[int, int], padding: tuple[int, int]) -> None:
    q_x, q_w, dtype = catalog[x_name], catalog[w_name], np.dtype(np.float32)
    x, w = arrays((2, 3, 6, 7), (4, 3, 3, 2), dtype=dtype)
    p_x, p_w = choose_qparams(q_x, x), choose_qparams(q_w, w)
    bias = np.linspace(-1, 1, 4).astype(np.float32)
    got = conv(q_x, x, p_x, q_w, w, p_w, bias, stride, padding)
    a, b = centred(q_x, x, p_x), centred(q_w, w, p_w)
    height, width = ((6 + 2 * padding[0] - 3) // stride[0] + 1, (7 + 2 * padding[1] - 2) // stride[1] + 1)
    assert got.shape == (2, 4, height, width)
    expected = np.empty(got.shape, float)
    for n, o, i, j in np.ndindex(got.shape):
        acc = 0
        for c, u, v in np.ndindex(3, 3, 2):
            at = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
            if 0 <= at[0] < 6 and 0 <= at[1] < 7:  # outside lies the real number 0
                acc += a[(n, c, *at)] * b[o, c, u, v]
        expected[n, o, i, j] = scaled(
            acc, float(p_x.scale), float(p_w.scale.reshape(-1)[o]), float(bias[o]), "float32", "float32"
        )
    assert_same_bits(expected.astype(np.float32), got)


def test_every_row_is_what_it_is_alone() -> None:
    q_x, q_w = catalog["uint8_affine_per_tensor"], catalog["int8_per_channel"]
    x, w = arrays((16, 100), (7, 100), dtype=np.dtype(np.float32))
    p_x, p_w = choose_qparams(q_x, x), choose_qparams(q_w, w)
    together = linear(q_x, x, p_x, q_w, w, p_w)
    assert_same_bits(together, np.stack([linear(q_x, row, p_x, q_w, w, p_w) for row in x]))
    order = np.random.default_rng(1).permutation(100)
    assert_same_bits(together, linear(q_x, x[:, order], p_x, q_w, w[:, order], p_w))  # exact sums have no order


def test_nan_spoils_the_outputs_it_enters_and_no_other() -> None:
    q_x, q_w = catalog["int8_per_tensor"], catalog["int8_per_channel"]
    x, w = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)
    p_x, p_w = choose_qparams(q_x, x), choose_qparams(q_w, w)
    x[1, 2] = np.nan
    assert np.isnan(linear(q_x, x, p_x, q_w, w, p_w)).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    x[1, 2], w[1, 0] = np.inf, np.nan
    assert np.isnan(linear(q_x, x, p_x, q_w, w, p_w)).tolist() == [[False, True]] * 3


def test_zero_sums_are_positive_zeros_and_tiny_scales_do_not_vanish() -> None:
    q = catalog["int8_per_tensor"]
    tiny = QParams(np.array(2.0**-126, np.float32))
    x, w = np.array([[2.0**-126, -(2.0**-126)]], np.float32), np.array([[2.0**-126, 2.0**-126]], np.float32)
    assert_same_bits(np.zeros((1, 1), np.float32), linear(q, x, tiny, q, w, tiny))
    assert linear(q, x[:, :1], tiny, q, w[:, :1], tiny) == 2.0**-126  # not 2**-252, which is no float32
    assert_same_bits(np.zeros((1, 1), np.float32), linear(q, 0 * x[:, :1], tiny, q, -w[:, :1], tiny))  # of one term


@pytest.mark.parametrize(
    ("x_name", "w_name"), [("int8_per_tensor", "int4_per_group32"), ("int4_per_group32", "int8_per_channel")]
)
def test_scales_along_the_contraction_leave_a_bounded_float_product(x_name: str, w_name: str) -> None:
    q_x, q_w = catalog[x_name], catalog[w_name]
    x, w = arrays((4, 96), (5, 96), dtype=np.dtype(np.float32))
    p_x, p_w = choose_qparams(q_x, x), choose_qparams(q_w, w)
    bias = np.linspace(-1, 1, 5).astype(np.float32)
    got = linear(q_x, x, p_x, q_w, w, p_w, bias)
    x_hat, w_hat = fake_quantize(q_x, x, p_x), fake_quantize(q_w, w, p_w)
    bound = contraction_bound(x_hat, w_hat, bias)
    for i, j in np.ndindex(got.shape):
        products = [Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x_hat[i], w_hat[j], strict=True)]
        exact = sum(products, Fraction(float(bias[j])))
        assert abs(Fraction(float(got[i, j])) - exact) <= Fraction(float(bound[i, j]))
        size = sum(map(abs, products), abs(Fraction(float(bias[j]))))
        assert math.isclose(bound[i, j], float(size) * 98 * 2.0**-24, rel_tol=1e-4)


@pytest.mark.parametrize(
    ("shapes", "error", "words"),
    [
        (((2, 4), (3, 5)), ValueError, "`x` must fit `w` of shape (3, 5), got shape (2, 4)"),
        (((2, 4), (3, 4, 1)), ValueError, "`w` must have 2 axes, got shape (3, 4, 1)"),
        (((), (3, 4)), ValueError, "`x` must fit `w` of shape (3, 4), got shape ()"),
    ],
)
def test_operands_that_do_not_fit(shapes: Any, error: type[Exception], words: str) -> None:
    q, one = catalog["int8_per_tensor"].replace(granularity=PerTensor()), QParams(np.array(1, np.float32))
    x, w = (np.ones(shape, np.float32) for shape in shapes)
    with pytest.raises(error) as refusal:
        linear(q, x, one, q, w, one)
    assert str(refusal.value) == words


def test_other_operands_that_do_not_fit() -> None:
    q, one = catalog["int8_per_tensor"], QParams(np.array(1, np.float32))
    x, w = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)
    with pytest.raises(TypeError, match="`w` must have the dtype of `x`, float32, got float16"):
        linear(q, x, one, q, w.astype(np.float16), one)
    with pytest.raises(ValueError, match=r"`bias` must have shape \(3,\), got \(4,\)"):
        linear(q, x, one, q, w, one, np.ones(4, np.float32))
    with pytest.raises(ValueError, match=r"`x` must fit `w` of shape \(3, 4, 1, 1\), got shape \(4, 2, 2\)"):
        conv(q, np.ones((4, 2, 2), np.float32), one, q, np.ones((3, 4, 1, 1), np.float32), one)
