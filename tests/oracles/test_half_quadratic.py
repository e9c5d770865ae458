"""Half-quadratic optimization of other systems as oracles: Brevitas HQO, quanto and torchao HQQ.

They take powers from torch, add in torch's order and stop when the mean over the whole tensor no longer falls: bits
cannot be promised. On tensors of one block, where the steps are the same ones, each number is compared within the
rounding of one step: errors do not add up, since a step sees the parameter before it only through codes and residues.
"""

from typing import Any

import numpy as np
import pytest
import torch
from brevitas.nn import QuantLinear
from brevitas.quant.scaled_int import Int8WeightPerTensorFloatHQO
from numpy.typing import NDArray
from optimum.quanto import qint2, qint4
from optimum.quanto.tensor.optimizers import HqqOptimizer
from torchao.quantization import quant_primitives

from samebits import jax_backend, torch_frontend
from samebits.core import PerAxis, PerTensor, QParams, Quantizer, catalog, choose_qparams, fake_quantize
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch

Array = NDArray[Any]
U = 2.0**-24
SYMMETRIC = catalog["int8_narrow_per_channel"].replace(granularity=PerTensor(), statistic="hqo")
SHIFTED = catalog["uint8_affine_per_channel"].replace(zero_point_domain="shift", statistic="hqo")
SIZES = (0.05, 1.0, 0.005)  # of the data; the method depends on them


def data(seed: int, shape: tuple[int, ...]) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * SIZES[seed % 3]).astype(np.float32)


def error(q: Quantizer, x: Array, qparams: QParams) -> float:
    """Mean absolute error."""
    return float(np.mean(np.abs(fake_quantize(q, x, qparams).astype(np.float64) - x)))


def of_brevitas(w: Array, bits: int) -> float:
    layer = QuantLinear(
        w.shape[1],
        w.shape[0],
        bias=False,
        weight_quant=Int8WeightPerTensorFloatHQO,
        weight_bit_width=bits,
        weight_hqo_iters_scale=20,
    )
    layer.weight.data = to_torch(w)
    return float(layer.quant_weight().scale)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_scales_are_those_of_brevitas(bits: int) -> None:
    """A median is one of the quotients: within the roundings of one, two of a threshold that is 2**-23 off, and d."""
    moved, q = 0, SYMMETRIC.replace(bits=bits)
    for seed in range(6):
        w = data(seed, (8, 64))
        want = of_brevitas(w, bits)
        got, start = choose_qparams(q, w), choose_qparams(q.replace(statistic="extremes"), w)
        assert abs(float(got.scale) / want - 1) <= 8 * U, (bits, seed)
        moved += abs(float(start.scale) / want - 1) > 2.0**-16
    assert moved >= 5


def test_blocks_stop_at_the_first_step_that_is_no_better() -> None:
    """Rows whose error would fall below the best again later, in all rooms."""
    rows = (np.random.default_rng(0).standard_normal((400, 8)) * 0.05).astype(np.float32)[[14, 25, 117, 137, 157]]
    q = SYMMETRIC.replace(bits=3, narrow=False, granularity=PerAxis(0))
    got = choose_qparams(q, rows)
    for row, scale in zip(rows, got.scale.ravel().tolist(), strict=True):
        assert abs(scale / of_brevitas(row[None], 3) - 1) <= 8 * U
    assert_same_bits(got, torch_frontend.choose_qparams(q, to_torch(rows)))
    assert_same_bits(got, jax_backend.choose_qparams(q, to_jax(rows)))


@pytest.mark.parametrize(("bits", "qtype"), [pytest.param(2, qint2, marks=pytest.mark.thorough), (4, qint4)])
def test_zero_points_are_those_of_quanto(bits: int, qtype: Any) -> None:
    """The start and 20 more. Means of 128 numbers within the range, ours added in halves, theirs in any order."""
    moved = 0
    for seed in range(9):
        w = data(seed, (1, 128))
        scale, shift = HqqOptimizer().optimize(to_torch(w), qtype, 0)
        q = SHIFTED.replace(bits=bits, search_steps=21)
        got, start = choose_qparams(q, w), choose_qparams(q.replace(statistic="extremes"), w)
        assert float(got.scale[0, 0]) == float(scale)
        bound = 2 * np.ptp(w) * (7 + 128) * U
        assert abs(float(got.zero_point[0, 0]) - float(shift)) <= bound, (bits, seed)
        moved += abs(float(start.zero_point[0, 0]) - float(shift)) > 2.0**-10 * float(scale)
        assert error(q, w, got) <= error(q, w, start)
    assert moved >= 3


def test_zero_points_are_no_worse_than_those_of_torchao() -> None:
    """torchao gives the zero point one step after the last that it judged; ours is the best that was judged."""
    better = 0
    for seed in range(9):
        w = data(seed, (1, 128))
        _, scale, zero, _ = quant_primitives._choose_qparams_and_quantize_affine_hqq(
            to_torch(w), nbits=3, group_size=128, device="cpu", compute_dtype=torch.float32, raw_output=True
        )
        q = SHIFTED.replace(bits=3, search_steps=21)
        got = choose_qparams(q, w)
        theirs = QParams(to_numpy(scale).reshape(1, 1), to_numpy(zero * scale).reshape(1, 1))
        assert abs(float(got.scale[0, 0]) / float(scale) - 1) <= 3 * U  # theirs is a reciprocal of a quotient
        ours, other = error(q, w, got), error(q, w, theirs)
        assert ours <= other * (1 + 2.0**-16), seed
        better += ours < other * (1 - 2.0**-10)
    assert better >= 1


def test_rounded_zero_points_do_not_move() -> None:
    """Why zero points of integers are refused: rounding what HQQ finds never lowers an error, and often raises one."""
    x = np.random.default_rng(0).standard_normal((60, 64)).astype(np.float32)
    plain = SHIFTED.replace(statistic="extremes", zero_point_domain="integer", bits=4)
    found = choose_qparams(SHIFTED.replace(bits=4), x)
    start = choose_qparams(plain, x)
    rounded = np.clip(np.rint(found.zero_point / found.scale), 0, 15).astype(np.int32)
    before, after = (
        np.abs(fake_quantize(plain, x, QParams(start.scale, z)) - x).mean(1) for z in (start.zero_point, rounded)
    )
    assert (rounded != start.zero_point).any()
    assert (after >= before).all()
