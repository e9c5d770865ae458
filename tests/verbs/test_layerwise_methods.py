"""SmoothQuant, equalization, folding and bias correction in torch and JAX: the bits of core. AdaRound: its codes."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core
from samebits.core.adaround import adaround as core_adaround
from samebits.core.bias_correction import corrected_bias, mean_update
from samebits.core.equalization import equalization_factors
from samebits.core.folding import divide_rows, multiply_columns
from samebits.core.smoothquant import smoothing_factors
from samebits.jax_backend import ptq as of_jax
from samebits.jax_backend.ptq import folding as jax_folding
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import ptq as of_torch
from samebits.torch_frontend.ptq import folding as torch_folding

from ..core.test_adaround import AFFINE, INT4
from ..core.test_adaround import REFUSED as REFUSED_ROUNDING
from ..core.test_smoothquant import ALPHAS, FUNCTIONS, REFUSED, ranges
from ..layerwise_inputs import layer, statistics

Array = NDArray[Any]
ROOMS = {"torch": (of_torch, torch_folding, to_torch), "jax": (of_jax, jax_folding, to_jax)}
each_room = pytest.mark.parametrize("name", ROOMS)


@each_room
def test_factors_have_the_bits_of_core(name: str) -> None:
    room, _, to = ROOMS[name]
    first, second = ranges(3000, seed=5)
    for alpha in (*ALPHAS, 0.3, 0.999) if name == "torch" else (0.0, 0.3):
        got = room.smoothing_factors(to(first), to(second), alpha)
        assert_same_bits(smoothing_factors(first, second, alpha), to_numpy(got))
    assert_same_bits(equalization_factors(first, second), to_numpy(room.equalization_factors(to(first), to(second))))


@each_room
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.float64])
def test_folding_has_the_bits_of_core(name: str, dtype: Any) -> None:
    _, folding, to = ROOMS[name]
    draws = np.random.default_rng(6)
    factors = np.exp(draws.standard_normal(7)).astype(np.float32)
    with jax.enable_x64(dtype is np.float64):
        for shape in ((7, 7), (7, 7, 3, 3)):
            w = draws.standard_normal(shape).astype(dtype)
            w[0], w[1] = 0.0, -0.0
            assert_same_bits(multiply_columns(w, factors), to_numpy(folding.multiply_columns(to(w), to(factors))))
            assert_same_bits(divide_rows(w, factors), to_numpy(folding.divide_rows(to(w), to(factors))))
        bias = w[2, :, 0, 0]
        assert_same_bits(divide_rows(bias, factors), to_numpy(folding.divide_rows(to(bias), to(factors))))


@each_room
def test_biases_are_those_of_core(name: str) -> None:
    """Sums in float64 differ in their last bits, which float32 does not show here."""
    room, _, to = ROOMS[name]
    w, x = layer(20, 30)
    w_hat, bias = np.round(w * 4) / 4, w[:, 0]
    mean, n = np.zeros(30), 0
    own: Any = torch.zeros(30, dtype=torch.float64) if name == "torch" else mean
    count = 0
    for piece in np.array_split(x, 4):
        (mean, n), (own, count) = mean_update(mean, n, piece), room.mean_update(own, count, to(piece))
    assert n == count
    np.testing.assert_allclose(np.asarray(own), mean, rtol=1e-12, atol=1e-14)
    got = room.corrected_bias(to(bias), to(w), to(w_hat), own)
    assert_same_bits(corrected_bias(bias, w, w_hat, mean), to_numpy(got))


@each_room
@pytest.mark.parametrize("q", [INT4, pytest.param(AFFINE, marks=pytest.mark.thorough)], ids=["symmetric", "affine"])
def test_learned_codes_are_those_of_core(name: str, q: core.Quantizer) -> None:
    """No promise: products differ in their last bits. Expected: none differs."""
    room, _, to = ROOMS[name]
    for seed in (1, 2):
        w, x = layer(16, 32, seed=seed)
        hessian = statistics(x)
        given = torch.tensor(hessian) if name == "torch" else hessian
        expected, got = core_adaround(q, w, hessian, steps=200), room.adaround(q, to(w), given, steps=200)
        assert_same_bits(expected[0], to_numpy(got[0]))
        assert_same_bits(expected[2], to_numpy(got[2]))
        assert_same_bits(expected[1].scale, to_numpy(got[1].scale))


@each_room
def test_codes_that_are_not_better_are_rounded_to_nearest(name: str) -> None:
    room, _, to = ROOMS[name]
    w, _ = layer(4, 8)
    independent = np.diag(np.arange(1.0, 9))  # nearest is best
    given = torch.tensor(independent) if name == "torch" else independent
    codes, qparams, _ = room.adaround(INT4, to(w), given, steps=1, rate=10.0)
    assert_same_bits(core.quantize(INT4, w, core.QParams(to_numpy(qparams.scale))), to_numpy(codes))


@each_room
@pytest.mark.parametrize(("function", "given", "error", "words"), REFUSED)
def test_bad_input_is_refused_as_in_core(
    name: str, function: str, given: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    room, folding, to = ROOMS[name]
    wide = (lambda a: torch.tensor(a)) if name == "torch" else (lambda a: a)  # JAX takes float64 of NumPy

    def convert(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        return wide(value) if value.dtype == np.float64 else to(value)

    assert function in FUNCTIONS
    with pytest.raises(error, match=re.escape(words)):
        (getattr(folding, function, None) or getattr(room, function))(*map(convert, given))


@each_room
@pytest.mark.parametrize(("changes", "error", "words"), REFUSED_ROUNDING)
def test_bad_input_of_adaround_is_refused_as_in_core(
    name: str, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    room, _, _ = ROOMS[name]
    w, x = layer(4, 8)
    given = {"q": INT4, "w": w, "hessian": statistics(x), **changes}
    if name == "torch":
        given |= {key: torch.tensor(given[key]) for key in ("w", "hessian")}
    with pytest.raises(error, match=re.escape(words)):
        room.adaround(**given)


def test_arrays_of_jax_may_be_of_float64_though_it_is_off() -> None:
    assert jnp.ones(1, np.float32).astype(float).dtype == np.float32
    _, x = layer(8, 16)
    hessian, _ = of_jax.hessian_update(np.zeros((16, 16)), 0, jnp.asarray(x))
    assert hessian.dtype == np.float64
