"""Statistics of other systems as oracles: Brevitas ``core.stats``, Qwix calibration, AQT calibration.

What rounds nothing (percentiles, integer scales, which candidate a search takes) is compared bit for bit. Means and
norms are sums, which every system adds in its own order: each is compared within the bound of its roundings.
"""

import math
from collections.abc import Callable
from typing import Any

import brevitas.core.restrict_val as restrict_val
import brevitas.core.stats.stats_op as stats
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from aqt.jax.v2 import calibration
from aqt.jax.v2.numerics import utils as aqt_numerics
from brevitas.core.function_wrapper import CeilSte, RoundSte
from numpy.typing import NDArray
from qwix._src.core import qarray

from samebits.core import (
    BinaryFormat,
    PerAxis,
    Quantizer,
    TernaryFormat,
    catalog,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
)
from samebits.core.learned_sigma import scale_at_sigma, sigma_gradient
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch

Array = NDArray[Any]
U = 2.0**-24
INT8 = catalog["int8_per_channel"].replace(denominator="lo")  # divides by 128, which rounds nothing
FLOOR = np.float32(2.0**-119)  # 128 times the smallest scale, which percentiles that are 0 get
SHAPES = ((4, 1), (4, 2), (3, 7), (5, 100), (2, 999), (2, 4096))
QS = (0.001, 1.0, 25.0, 50.0, 90.0, 99.0, 99.9, 99.999, 100.0)


def data(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Normal numbers of rows from 2**-20 to 2**20, with ties and zeros among them."""
    random = np.random.default_rng([seed, *shape])
    x = random.standard_normal(shape) * np.exp2(random.integers(-20, 20, (shape[0], 1)))
    x[:, 1::5] = np.round(x[:, 1::5])
    return x.astype(np.float32)


def magnitude(q: Quantizer, x: Array) -> Array:
    """What took the place of absmax in the scale."""
    return np.asarray(choose_qparams(q, x).scale).ravel() * 128


@pytest.mark.parametrize("percent", QS)
def test_percentiles_have_the_bits_of_brevitas(percent: float) -> None:
    for shape in SHAPES:
        x = data(shape)
        if math.floor(0.01 * percent * shape[1] + 0.5) < 1:
            with pytest.raises(RuntimeError):  # Brevitas asks for the 0-th number; here it is the first
                stats.AbsPercentile(percent, 1)(to_torch(x))
            want = np.maximum(np.abs(x).min(1), FLOOR)
            assert_same_bits(want, magnitude(INT8.replace(statistic="percentile", percentile=percent), x))
            continue
        want = to_numpy(stats.AbsPercentile(percent, 1)(to_torch(x)))
        assert_same_bits(
            np.maximum(want, FLOOR), magnitude(INT8.replace(statistic="percentile", percentile=percent), x)
        )
        whole = INT8.replace(
            statistic="percentile", percentile=percent, granularity=catalog["int8_per_tensor"].granularity
        )
        want = to_numpy(stats.AbsPercentile(percent, None)(to_torch(x))).reshape(1)
        assert_same_bits(np.maximum(want, FLOOR), magnitude(whole, x))


@pytest.mark.parametrize(("low", "high"), [(0.001, 99.999), (1.0, 99.0), (10.0, 80.0), (45.0, 95.0)])
def test_percentile_intervals_have_the_bits_of_brevitas(low: float, high: float) -> None:
    q = catalog["uint8_affine_per_channel"].replace(statistic="percentile", percentile=high, low_percentile=low)
    for shape in SHAPES[1:]:
        x = data(shape)
        interval = to_numpy(stats.PercentileInterval(low, high, 1)(to_torch(x)))
        lowest = to_numpy(stats.NegativePercentileOrZero(low, 1)(to_torch(x)))
        highest = interval + lowest
        spans_zero = highest >= 0  # Brevitas lets an interval end below 0, ours includes it
        got = choose_qparams(q, x)
        scale = np.maximum(interval / np.float32(255), np.finfo(np.float32).smallest_normal)
        assert_same_bits(scale[spans_zero], np.asarray(got.scale).ravel()[spans_zero])
        zero = -np.rint(lowest / np.asarray(got.scale).ravel())
        assert np.array_equal(zero[spans_zero], np.asarray(got.zero_point).ravel()[spans_zero])
        assert spans_zero.any()


def bound(n: int, roundings: int) -> float:
    """Of two sums of n numbers that are not negative, ours in halves and one in any order, and what follows."""
    return ((n - 1) + math.ceil(math.log2(max(n, 2))) + roundings) * U


def _row(statistic: torch.nn.Module) -> Callable[[torch.Tensor], Array]:
    return lambda x: to_numpy(statistic(x)).ravel()


@pytest.mark.parametrize(
    ("statistic", "oracle", "roundings"),
    [
        ("absmean", _row(stats.AbsAve(1)), 2),
        ("l1", _row(stats.L1Norm(1)), 2),
        ("l2", _row(stats.L2Norm(1)), 6),
    ],
)
def test_means_and_norms_lie_near_those_of_brevitas(statistic: str, oracle: Any, roundings: int) -> None:
    for shape in SHAPES:
        x = data(shape)
        want = oracle(to_torch(x)).astype(np.float64)
        got = magnitude(INT8.replace(statistic=statistic), x).astype(np.float64)
        assert (np.abs(got - want) <= bound(shape[1], roundings) * want).all(), (statistic, shape)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0])
def test_mean_and_sigma_lies_near_that_of_brevitas(sigma: float) -> None:
    """Without Brevitas' constant in the variance, 1e-8, which is no multiple of the data."""
    oracle = stats.MeanSigmaStd(sigma, 1, std_dev_epsilon=0.0)
    for shape in SHAPES[1:]:
        x = data(shape)
        want = to_numpy(oracle(to_torch(x))).ravel().astype(np.float64)
        got = magnitude(INT8.replace(statistic="mean_sigma", sigma=sigma), x).astype(np.float64)
        size = np.abs(x.astype(np.float64))
        scale = size.mean(1) + sigma * np.sqrt((size**2).mean(1))  # the error of a variance is one of the second moment
        assert (np.abs(got - want) <= 4 * bound(shape[1], 8) * scale).all()


@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_a_learned_sigma_and_its_gradient_lie_near_those_of_brevitas(sigma: float) -> None:
    """Its epsilon is 0 here, as above; the gradient is the sum of the deviations, times what comes in."""
    q = INT8.replace(statistic="mean_sigma", learned_sigma=True)
    for shape in SHAPES[1:]:
        x, g = data(shape), np.exp2(-np.arange(shape[0], dtype=np.float32))
        oracle = stats.MeanLearnedSigmaStd(sigma, (), 1, std_dev_epsilon=0.0)
        want = oracle(to_torch(x)).ravel()
        (want * to_torch(g)).sum().backward()
        got = scale_at_sigma(q, x, np.float32(sigma)).ravel().astype(np.float64) * 128
        size = np.abs(x.astype(np.float64))
        rms = np.sqrt((size**2).mean(1))
        scale = size.mean(1) + sigma * rms
        assert (np.abs(got - to_numpy(want.detach())) <= 4 * bound(shape[1], 8) * scale).all()
        d = float(sigma_gradient(q, x, np.float32(sigma), g.reshape(-1, 1))) * 128
        allowed = 4 * bound(shape[1], 8) * (g * rms).sum() + bound(shape[0], 2) * (g * rms).sum()
        assert abs(d - float(oracle.value.grad)) <= allowed
        assert d > 100 * allowed


def test_rms_lies_near_that_of_qwix() -> None:
    for shape in SHAPES:
        x = data(shape)
        how = qarray.HowToQuantize(qtype=jnp.int8, channelwise_axes=[0], calibration_method="rms,1")
        want = np.asarray(qarray.calibrate(to_jax(x), how)["absmax"], np.float64).ravel()
        got = magnitude(INT8.replace(statistic="rms"), x).astype(np.float64)
        assert (np.abs(got - want) <= bound(shape[1], 6) * want).all()


def test_absmean_lies_near_that_of_aqt() -> None:
    """Of data without zeros, which AQT does not count."""
    numerics = aqt_numerics.get_numerics(8)
    for shape in SHAPES:
        x = np.where(data(shape) == 0, np.float32(1), data(shape))
        by = calibration.AbsMeanCalibration(clipping_scale=1.0, p=1)
        by.init_calibration()
        scales, _, _ = by.get_scale_and_bias_and_sparsity(to_jax(x), (1,), numerics)
        want = np.asarray(scales[0], np.float64).ravel()
        got = np.asarray(choose_qparams(INT8.replace(statistic="absmean", denominator="edge"), x).scale, np.float64)
        assert (np.abs(got.ravel() - want) <= bound(shape[1], 4) * want).all()


def test_bitnet_ternary_weights() -> None:
    """BitNet b1.58: scale mean(|w|), codes round(w / scale) clamped to [-1, 1]; the mean within its bound."""
    w = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    gamma = w.abs().mean()
    q = catalog["ternary_per_tensor"].replace(statistic="absmean", format=TernaryFormat(0.5))
    got = choose_qparams(q, to_numpy(w))
    assert abs(float(got.scale) / float(gamma) - 1) <= bound(w.numel(), 2)
    want = (w / to_torch(np.asarray(got.scale))).round().clamp(-1, 1)
    assert_same_bits(to_numpy(want.to(torch.int8)), quantize(q, to_numpy(w), got))


def test_binary_weights_of_xnor_net() -> None:
    """XNOR-Net: sign(w) * mean(|w|) of each output channel."""
    w = data((6, 100))
    q = catalog["binary_per_channel"].replace(statistic="absmean", format=BinaryFormat())
    alpha = np.abs(w.astype(np.float64)).mean(1, keepdims=True)
    got = fake_quantize(q, w)
    assert np.array_equal(np.sign(got), np.where(w >= 0, 1, -1))
    assert (np.abs(np.abs(got) - alpha) <= bound(100, 2) * alpha).all()


@pytest.mark.parametrize(("name", "direction"), [("integer", CeilSte), ("integer_nearest", RoundSte)])
def test_integer_scales_have_the_bits_of_brevitas(name: str, direction: type) -> None:
    restrict = restrict_val.IntRestrictValue(direction())
    for shape in SHAPES:
        x = data(shape)
        plain = to_torch(np.asarray(choose_qparams(INT8, x).scale))
        want = to_numpy(restrict(plain).clamp(min=1))
        assert_same_bits(want, choose_qparams(INT8.replace(restriction=name), x).scale)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_search_takes_the_candidate_of_brevitas(bits: int) -> None:
    """Brevitas' grid search, over our candidates' errors in float64: the same number of twentieths of absmax."""
    q = INT8.replace(statistic="mse", bits=bits, denominator="hi")
    x = data((12, 300), bits)
    x[:, 0] *= np.linspace(1, 10, 12)
    rows = to_torch(x)

    def loss(candidate: torch.Tensor) -> torch.Tensor:
        scale = (candidate / q.format.hi)[:, None].double()
        codes = (rows.double() / scale).round().clamp(q.format.lo, q.format.hi)
        return ((codes * scale - rows.double()) ** 2).sum(1)

    largest = rows.abs().amax(1)
    best, _ = stats.mse_grid_search(largest / 20, largest, loss, 20)
    got = np.asarray(choose_qparams(q, x).scale, np.float64).ravel() * q.format.hi
    ours, theirs = (np.rint(20 * v / to_numpy(largest).astype(np.float64)) for v in (got, to_numpy(best)))
    assert np.array_equal(ours, theirs)
    assert len(set(theirs)) > 2


def test_clipping_loses_less_than_covering() -> None:
    """What a search is for: on data with an outlier its error is the smaller."""
    x = np.append(np.random.default_rng(1).standard_normal(2000), 20.0).astype(np.float32)
    q = catalog["int8_per_tensor"].replace(bits=4, granularity=PerAxis(0))
    row = x[None]

    def error(q: Quantizer) -> float:
        qparams = choose_qparams(q, row)
        return float(np.sum((dequantize(q, quantize(q, row, qparams), qparams).astype(np.float64) - row) ** 2))

    assert error(q.replace(statistic="mse")) < 0.5 * error(q)
