"""Eager torch over several pieces of one array: what a piece finds or adds must outlast the next one.

The pieces are made small, so that small arrays have many. Numbers are such that every sum is exact, in any order.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, torch_frontend
from samebits.core import PerTensor, QParams, Quantizer, catalog
from samebits.core.formats import NF4
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_torch
from samebits.torch_frontend import arrays, eager, eager_gradients

from ..exact import DTYPES
from ..torch_beside_core import assert_same_functions, gradient, in_torch

Array = NDArray[Any]
PIECE = 64  # elements; native loops are vectorized within it
SIZE = 5 * PIECE + 21

FLOAT_ZERO = catalog["uint4_affine_float_zero_per_group64"].replace(granularity=PerTensor())
PER_TENSOR = {
    "symmetric": catalog["int8_per_tensor"],
    "affine": catalog["uint8_affine_per_tensor"],
    "floating-point zero point": FLOAT_ZERO,
    "float8": catalog["float8_e4m3fn_per_tensor"],
    "codebook": Quantizer(format=NF4),
}
PER_BLOCK = {
    "per channel": (catalog["uint8_affine_per_channel"], (3, SIZE)),
    "per token": (catalog["int8_affine_per_token"], (40, 12)),
    "per group": (catalog["uint4_affine_per_group32"], (6, 96)),
}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (arrays, eager, eager_gradients):
        monkeypatch.setattr(module, "WHOLE", PIECE)
    monkeypatch.setattr(eager_gradients, "CHUNK", PIECE // 2)
    monkeypatch.setattr(arrays.pieces, "__kwdefaults__", {"size": PIECE // 2, "whole": PIECE})
    assert len(list(arrays.pieces(torch.zeros(SIZE)))) > 10


def dyadic(q: Quantizer, shape: tuple[int, ...]) -> tuple[Array, QParams, Array]:
    """An array, its parameters and an incoming gradient whose products and sums are exact; some are clamped."""
    random = np.random.default_rng(0)
    x = (random.integers(-800, 801, shape) / 16).astype(np.float32)
    x.reshape(-1)[::3] /= 16
    g = (random.integers(-16, 17, shape) / 4).astype(np.float32)
    of_blocks = np.asarray(core.choose_qparams(q, x).scale).shape
    scale = np.full(of_blocks, 0.25, np.float32)
    scale.reshape(-1)[1::2] = 0.5
    if not q.affine:
        return x, QParams(scale), g
    zero = np.full(of_blocks, 0.75, np.float32) if q.arithmetic.has_float_zeros else np.full(of_blocks, 3, np.int32)
    return x, QParams(scale, zero), g


@pytest.mark.parametrize("name", PER_TENSOR)
def test_gradients_of_parameters_are_sums_over_all_pieces(name: str) -> None:
    q = PER_TENSOR[name]
    x, qparams, g = dyadic(q, (SIZE,))
    want = core.fake_quantize_vjp(q, x, qparams, g)
    got = torch_frontend.fake_quantize_vjp(q, to_torch(x), in_torch(qparams), to_torch(g))
    assert want.scale != 0
    assert want.zero_point is None or want.zero_point != 0
    assert_same_bits(want[:3], tuple(got)[:3], call=name)


@pytest.mark.parametrize("name", PER_BLOCK)
def test_gradients_of_blocks_that_span_pieces_are_their_sums(name: str) -> None:
    q, shape = PER_BLOCK[name]
    x, qparams, g = dyadic(q, shape)
    want = core.fake_quantize_vjp(q, x, qparams, g)
    got = torch_frontend.fake_quantize_vjp(q, to_torch(x), in_torch(qparams), to_torch(g))
    assert_same_bits(want[:3], tuple(got)[:3], call=name)


@pytest.mark.parametrize("place", [0, PIECE - 1, PIECE, 2 * PIECE + 17, 5 * PIECE, SIZE - 1])
def test_nan_in_any_piece_is_seen_in_the_backward_pass(place: int) -> None:
    """Its gradient passes, or is stopped, as the specification says: which native loops decide by the place."""
    for q in PER_TENSOR.values():
        x, qparams, g = dyadic(q, (SIZE,))
        x[place], g[place] = np.nan, 3
        want = core.fake_quantize_vjp(q, x, qparams, g).x
        assert_same_bits(want, gradient(q, to_torch(x), in_torch(qparams), to_torch(g)), call=str(q.format))
        _, may_be_nan = eager.fake_quantize_and_nan(q, to_torch(x), *wide(q, qparams), watched=True)
        assert may_be_nan
        finite = np.nan_to_num(x)
        assert not eager.fake_quantize_and_nan(q, to_torch(finite), *wide(q, qparams), watched=True)[1]


def wide(q: Quantizer, qparams: QParams) -> tuple[torch.Tensor, torch.Tensor | None]:
    scale, zero = in_torch(qparams)[:2]
    return scale, None if zero is None else zero.to(scale.dtype)


@pytest.mark.parametrize("place", [0, PIECE - 1, 2 * PIECE, SIZE - 1])
def test_nan_in_any_piece_is_refused_where_no_code_stands_for_it(place: int) -> None:
    for q in (PER_TENSOR["symmetric"], PER_TENSOR["affine"], PER_TENSOR["floating-point zero point"]):
        x, qparams, _ = dyadic(q, (SIZE,))
        x[place] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            torch_frontend.quantize(q, to_torch(x), in_torch(qparams))


def test_a_difference_of_infinities_has_the_code_of_zero() -> None:
    """Where ``s * mid`` overflows, ``x - (z - mid * s)`` is NaN for an infinite x, which is no NaN."""
    qparams = QParams(np.asarray(1e38, np.float32), np.asarray(-1e38, np.float32))
    x = np.linspace(-1, 1, SIZE, dtype=np.float32)
    x[PIECE] = -np.inf
    with np.errstate(all="ignore"):
        want = core.quantize(FLOAT_ZERO, x, qparams)
    assert want[PIECE] == 0
    assert_same_bits(want, torch_frontend.quantize(FLOAT_ZERO, to_torch(x), in_torch(qparams)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*PER_TENSOR, *PER_BLOCK])
def test_every_piece_has_the_bits_of_the_whole(name: str, dtype: str) -> None:
    q, shape = PER_BLOCK[name] if name in PER_BLOCK else (PER_TENSOR[name], (SIZE,))
    x, qparams, _ = dyadic(q, shape)
    if dtype == "float64":
        zero = qparams.zero_point
        zero = zero.astype(np.float64) if q.arithmetic.has_float_zeros else zero
        qparams = QParams(qparams.scale.astype(np.float64), zero)
    assert_same_functions(q, x.astype(DTYPES[dtype]), qparams)
