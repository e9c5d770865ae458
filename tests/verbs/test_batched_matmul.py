"""Products of batches of matrices: every room beside linear layers, one matrix after the other."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import PerTensor, QParams, catalog
from samebits.core.contraction import contracts_matrices
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch

from ..exact import DTYPES

Array = NDArray[Any]
ROOMS: list[tuple[Any, Any]] = [(core, np.asarray), (torch_frontend, to_torch), (jax_backend, to_jax)]
PAIRS = [("uint8_affine_per_tensor", "int8_per_tensor"), ("int16_per_tensor", "uint8_affine_per_tensor")]


def operands(names: tuple[str, str], shapes: tuple[Any, Any], dtype: str = "float32", special: bool = False) -> Any:
    rng, (q_x, q_w) = np.random.default_rng(0), (catalog[name] for name in names)
    x, w = (rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes)
    p, r = core.choose_qparams(q_x, x), core.choose_qparams(q_w, w)
    if special:
        for array in (x, w):
            array.reshape(-1)[rng.permutation(array.size)[:4]] = [np.nan, np.inf, -np.inf, -0.0]
    return q_x, x, p, q_w, w, r


def given(parts: Any, convert: Any) -> Any:
    q_x, x, p, q_w, w, r = parts
    p, r = (QParams(*(None if a is None else convert(np.array(a)) for a in q[:2])) for q in (p, r))
    return q_x, convert(x), p, q_w, convert(w), r


@pytest.mark.parametrize("names", [PAIRS[0], pytest.param(PAIRS[1], marks=pytest.mark.thorough)], ids="-".join)
def test_every_room_multiplies_one_matrix_after_the_other(names: tuple[str, str]) -> None:
    """As `core.linear` does, whose sums `tests.core.test_matmul` holds against exact ones; also past 2**24."""
    shapes: list[tuple[Any, Any]] = [((2, 3, 5, 4), (2, 3, 6, 4)), ((2, 3, 1500), (2, 2, 1500)), ((3, 4), (5, 4))]
    for shape, dtype, special in (*((s, "float32", False) for s in shapes), (shapes[0], "bfloat16", True)):
        parts = operands(names, shape, dtype, special)
        q_x, x, p, q_w, w, r = parts
        assert contracts_matrices(q_x, q_w)
        rows = zip(x.reshape(-1, *x.shape[-2:]), w.reshape(-1, *w.shape[-2:]), strict=True)
        with np.errstate(all="ignore"):
            want = np.stack([core.linear(q_x, a, p, q_w, b, r) for a, b in rows])
            for room, convert in ROOMS:
                got = room.batched_matmul(*given(parts, convert))
                assert_same_bits(want.reshape(*x.shape[:-1], w.shape[-2]), got, call=f"{room.__name__}, {shape}")


def test_largest_codes_do_not_round() -> None:
    q = catalog["int8_per_tensor"]
    signs = np.where(np.random.default_rng(0).random((2, 2, 3000)) < 0.9, 1e9, -1e9).astype(np.float32)
    parts = q, signs, QParams(np.float32(1)), q, signs, QParams(np.float32(1))
    codes = np.where(signs > 0, 127, -128).astype(np.int64)
    want = codes @ codes.swapaxes(-2, -1)
    assert abs(want).max() > 2**24
    for room, convert in ROOMS:
        assert_same_bits(want.astype(np.float32), room.batched_matmul(*given(parts, convert)))


def test_other_scales_contract_values_and_nothing_is_nothing() -> None:
    parts = operands(("int8_affine_per_token", "int8_per_tensor"), ((2, 3, 4), (2, 5, 4)))
    hats = [core.fake_quantize(q, a, p).astype(np.float64) for q, a, p in (parts[:3], parts[3:])]
    for room, convert in ROOMS:
        got = to_numpy(room.batched_matmul(*given(parts, convert)))
        np.testing.assert_allclose(got, hats[0] @ hats[1].swapaxes(-2, -1), rtol=1e-5, atol=1e-6)
        for x, w in (((0, 3, 4), (0, 5, 4)), ((2, 0, 4), (2, 5, 4)), ((2, 3, 0), (2, 5, 0))):
            one = QParams(convert(np.array(1, np.float32)))
            q, arrays = catalog["int8_per_tensor"], [convert(np.ones(shape, np.float32)) for shape in (x, w)]
            y = room.batched_matmul(q, arrays[0], one, q, arrays[1], one)
            assert_same_bits(np.zeros((*x[:-1], w[-2]), np.float32), y)


def test_gradients_are_those_of_dequantized_operands() -> None:
    q_x, q_w = (catalog[name].replace(gradient="learned_scale") for name in PAIRS[0])
    _, x, p, _, w, r = operands(PAIRS[0], ((2, 3, 5, 4), (2, 3, 6, 4)))
    leaves = [a.astype(np.float32) for a in (x, p.scale * np.float32(0.8), p.zero_point, w, r.scale * np.float32(0.7))]

    def product(room: Any, x: Any, s: Any, z: Any, w: Any, t: Any) -> Any:
        return room.batched_matmul(q_x, x, QParams(s, z), q_w, w, QParams(t))

    tensors = [torch.tensor(a, requires_grad=True) for a in leaves]
    hats = (
        torch_frontend.fake_quantize(q_x, tensors[0], QParams(*tensors[1:3])),
        torch_frontend.fake_quantize(q_w, tensors[3], QParams(tensors[4])),
    )
    want, got = hats[0] @ hats[1].transpose(-2, -1), product(torch_frontend, *tensors)
    g = torch.randn(want.shape)
    _, pull = jax.vjp(lambda *a: product(jax_backend, *a), *map(to_jax, leaves))
    ours, expected = (torch.autograd.grad(y, tensors, g) for y in (got, want))
    for d, in_jax, e in zip(ours, pull(to_jax(g.numpy())), expected, strict=True):
        size = float(e.abs().max())
        torch.testing.assert_close(d, e, rtol=1e-4, atol=1e-5 * size)
        np.testing.assert_allclose(to_numpy(in_jax), e.numpy(), rtol=1e-4, atol=2e-5 * size)


@pytest.mark.parametrize("shapes", [((2, 3, 4), (3, 5, 4)), ((2, 3, 4), (2, 5, 3)), ((3, 4), (1, 5, 4)), ((4,), (4,))])
def test_every_room_refuses_with_the_same_words(shapes: tuple[Any, Any]) -> None:
    q, words = catalog["int8_per_tensor"].replace(granularity=PerTensor()), []
    for room, convert in ROOMS:
        x, w = (convert(np.ones(shape, np.float32)) for shape in shapes)
        one = QParams(convert(np.array(1, np.float32)))
        with pytest.raises(ValueError, match="`x` must fit `w` of shape") as refusal:
            room.batched_matmul(q, x, one, q, w, one)
        words.append(str(refusal.value))
    assert len(set(words)) == 1
