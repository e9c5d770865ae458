"""The random numbers of stochastic rounding, and the rule by which they decide, in all rooms.

Oracles: the vectors of Random123, JAX's own Threefry, and fractions (`exact.stochastic`).
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.extend.random import threefry2x32_p
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import FloatFormat, Rounding, catalog
from samebits.core.formats import BFLOAT16, FLOAT16
from samebits.core.minifloat import round_to_float
from samebits.core.rounding import round_to_integer
from samebits.core.threefry import rounding_noise, threefry2x32
from samebits.proofs.inputs.bits import neighbours
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import special_values
from samebits.proofs.modes.arrays import to_jax, to_torch

from ..exact import DTYPES, stochastic
from ..planted import plant

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN is meant

Array = NDArray[Any]
SEEDS = (0, 1, 2**31, 2**32 - 1)
LARGEST = 2**24 - 1


# --- Threefry ---------------------------------------------------------------------------------------------------------

# key, counter, result: `threefry2x32` with 20 rounds in Random123's ``tests/kat_vectors``
VECTORS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]
WORDS: dict[str, Callable[..., tuple[Array, ...]]] = {  # of four arrays of uint32
    "core": lambda a, b, c, d: threefry2x32((a, b), (c, d)),
    "torch_frontend": lambda *w: _torch_words(*w),
    "jax_backend": lambda a, b, c, d: tuple(map(np.asarray, jax_backend.threefry.threefry2x32((a, b), (c, d)))),
}
each_room = pytest.mark.parametrize("room", WORDS)


def _torch_words(*words: Array) -> tuple[Array, ...]:
    a, b, c, d = (torch.from_numpy(np.ascontiguousarray(w).view(np.int32)) for w in words)
    return tuple(w.numpy().view(np.uint32) for w in torch_frontend.threefry.threefry2x32((a, b), (c, d)))


def check_words(room: str) -> None:
    """The published vectors, and random words by JAX's own Threefry."""
    given = np.array([(*key, *counter) for key, counter, _ in VECTORS], np.uint32).T
    want = np.array([result for *_, result in VECTORS], np.uint32).T
    assert_same_bits(tuple(want), WORDS[room](*given), call=room)
    random = np.random.default_rng(0).integers(0, 2**32, (4, 1000), dtype=np.uint32)
    assert_same_bits(tuple(map(np.asarray, threefry2x32_p.bind(*random))), WORDS[room](*random), call=room)


@each_room
def test_threefry_is_that_of_random123_and_of_jax(room: str) -> None:
    check_words(room)


def noise_in(room: str, seed: int, shape: tuple[int, ...]) -> Any:
    return {
        "core": lambda: rounding_noise(seed, shape),
        "torch_frontend": lambda: torch_frontend.threefry.rounding_noise(seed, shape),
        "jax_backend": lambda: jax_backend.threefry.rounding_noise(np.uint32(seed), shape),
    }[room]()


@each_room
@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_the_first_word_of_the_place(room: str, seed: int) -> None:
    for shape in ((), (0, 3), (1,), (7, 90), (3, 1, 5)):
        place = np.arange(math.prod(shape), dtype=np.uint32)
        word = threefry2x32_p.bind(np.uint32(seed), np.uint32(0), place, np.zeros_like(place))[0]
        assert_same_bits((np.asarray(word) >> 8).astype(np.float32).reshape(shape), noise_in(room, seed, shape))


def test_noise_of_several_chunks_is_that_of_one_array() -> None:
    count = torch_frontend.arrays.CHUNK + 3
    assert_same_bits(rounding_noise(5, (count,)), torch_frontend.threefry.rounding_noise(5, (count,)))


def test_places_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of 2**32 elements are too large to try: JAX counts by pieces, which are made shorter; torch by places."""
    monkeypatch.setattr(jax_backend.threefry, "WORDS", 4)
    high, low = np.divmod(np.arange(10, dtype=np.uint32), 4)
    want = threefry2x32((np.uint32(3), np.uint32(0)), (low, high))[0] >> 8
    assert_same_bits(want.astype(np.float32), jax_backend.threefry.rounding_noise(np.uint32(3), (10,)))
    start = 2**32 - 2
    got = torch_frontend.threefry._noise(torch.tensor(3, dtype=torch.int32), start, start + 4)
    counter = np.array([2**32 - 2, 2**32 - 1, 0, 1], np.uint32), np.array([0, 0, 1, 1], np.uint32)
    want = threefry2x32((np.uint32(3), np.uint32(0)), counter)[0] >> 8
    assert_same_bits(want.astype(np.float32), got)


def test_noise_is_uniform() -> None:
    """Each of the first 4 bits of 2**16 numbers, and each pair of neighbours and of seeds, within 5 standard errors."""
    first, second = (rounding_noise(seed, (2**16,)).astype(np.int64) for seed in (0, 1))
    for drawn in (first, first ^ second, first ^ np.roll(first, 1)):
        for bit in range(24):
            assert abs(np.count_nonzero(drawn >> bit & 1) - 2**15) < 5 * 2**7


# --- the rule ---------------------------------------------------------------------------------------------------------


def numbers_and_noise(dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Numbers around integers, halves and tiny ones, each with the noise at which it changes and those beside it."""
    places = [0.0, 1, 0.5, 1.5, 2, 3.25, 7, 126.75, 2.0**-24, 2.0**-25, 3 * 2.0**-23, 0.3, 2.0**-60, 1e7]
    x = neighbours(np.array([*places, *(-p for p in places)]).astype(dtype), 2)
    x = np.concatenate([x, special_values(dtype)])
    fraction = np.nan_to_num(np.abs(np.modf(x.astype(np.float64))[0]), nan=0.0)
    edge = np.floor(fraction * 2.0**24)
    noise = np.stack([edge - 1, edge, edge + 1, 0 * edge, 0 * edge + 1, 0 * edge + LARGEST]).clip(0, LARGEST)
    return np.broadcast_to(x, noise.shape).copy(), noise.astype(np.float32)


def exactly(x: Array, noise: Array) -> Array:
    pairs = zip(x.ravel().tolist(), noise.ravel().tolist(), strict=True)
    found = [math.copysign(stochastic(Fraction(v), int(n)), v) if math.isfinite(v) else v for v, n in pairs]
    return np.array(found).astype(x.dtype).reshape(x.shape)


def check_rule(dtype: str) -> None:
    """In every room away from zero exactly where the fraction times 2**24 exceeds the noise."""
    x, noise = numbers_and_noise(DTYPES[dtype])
    want, how = exactly(x, noise), Rounding.STOCHASTIC
    assert_same_bits(want, round_to_integer(x, how, noise), call="core", inputs=x)
    got = torch_frontend.rounding.round_to_integer(to_torch(x), how, to_torch(noise))
    assert_same_bits(want, got, call="torch_frontend", inputs=x)
    with jax.enable_x64(dtype == "float64"):
        given = to_jax(x), to_jax(noise)
        for run in (
            jax_backend.rounding.round_to_integer,
            jax.jit(jax_backend.rounding.round_to_integer, static_argnums=1),
        ):
            assert_same_bits(want, run(given[0], how, given[1]), call="jax_backend", inputs=x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rule_is_exact(dtype: str) -> None:
    check_rule(dtype)


FORMATS = [
    catalog["float8_e4m3fn_per_tensor"].format,
    catalog["float8_e4m3fnuz_per_tensor"].format,
    catalog["float4_e2m1_per_tensor"].format,
    BFLOAT16,
    FLOAT16,
    FloatFormat(2, 0, -60),  # quanta above 1
    FloatFormat(8, 0),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_the_rule_is_exact_between_numbers_of_any_format(form: FloatFormat, dtype: str) -> None:
    """The integer is that of the multiple of the distance between numbers around u."""
    random, kind = np.random.default_rng(0), DTYPES[dtype]
    exponents = np.arange(form.min_exponent - form.mantissa_bits - 30, min(form.max_exponent + 2, 120))
    exponents = exponents[(exponents > -148)] if dtype == "float32" else exponents
    few = random.integers(1, 2**23, (3, len(exponents))) * 2.0**-22
    u = np.concatenate([np.ldexp(few, exponents).ravel(), np.ldexp(1.0, exponents), special_values(kind)]).astype(kind)
    u = np.concatenate([u, -u])
    noise = np.stack([random.integers(0, 2**24, u.size), np.zeros(u.size), np.full(u.size, LARGEST), *_edges(u, form)])
    u = np.broadcast_to(u, noise.shape).copy()
    want = [_between(float(v), int(n), form) for v, n in zip(u.ravel(), noise.ravel(), strict=True)]
    wanted, noise, how = np.array(want).astype(kind).reshape(u.shape), noise.astype(np.float32), Rounding.STOCHASTIC
    assert_same_bits(wanted, round_to_float(u, form, how, noise), call="core", inputs=u)
    got = torch_frontend.minifloat.round_to_float(to_torch(u), form, how, to_torch(noise))
    assert_same_bits(wanted, got, call="torch_frontend", inputs=u)
    with jax.enable_x64(dtype == "float64"):
        given = to_jax(u), to_jax(noise)
        assert_same_bits(wanted, jax_backend.minifloat.round_to_float(given[0], form, how, given[1]), inputs=u)


def _quantum(value: float, form: FloatFormat) -> Fraction:
    return Fraction(2) ** (max(math.frexp(value)[1] - 1, form.min_exponent) - form.mantissa_bits)


def _edges(u: Array, form: FloatFormat) -> Array:
    """The noise at which each number changes, and the one before."""
    finite = [v if math.isfinite(v) else 0.0 for v in u.tolist()]
    edge = np.array([math.floor(abs(Fraction(v) / _quantum(v, form)) % 1 * 2**24) for v in finite])
    return np.stack([edge, np.maximum(edge - 1, 0)])


def _between(value: float, noise: int, form: FloatFormat) -> float:
    if not math.isfinite(value):
        return value
    quantum = _quantum(value, form)
    exact = stochastic(Fraction(value) / quantum, noise) * quantum
    rounded = math.inf if abs(exact) >= 2**1024 else float(exact)
    return math.copysign(rounded, value) if rounded or form.negative_zero else 0.0


@pytest.mark.parametrize("fraction", [0.5, 0.3, 2.0**-30, 1 - 2.0**-24])
def test_probability_is_the_fraction_rounded_up(fraction: float) -> None:
    """Of all 2**24 values of the noise, each as likely."""
    noise = np.arange(2**24, dtype=np.float32)
    x = np.broadcast_to(np.float32(fraction), noise.shape)
    away = int(round_to_integer(x, Rounding.STOCHASTIC, noise).sum())
    assert away == math.ceil(Fraction(float(np.float32(fraction))) * 2**24)


def test_noise_must_be_given() -> None:
    form = catalog["float8_e4m3fn_per_tensor"].format
    for room, x in ((core, np.ones(2, np.float32)), (torch_frontend, torch.ones(2)), (jax_backend, jnp.ones(2))):
        for run in (
            lambda room=room, x=x: room.rounding.round_to_integer(x, Rounding.STOCHASTIC),
            lambda room=room, x=x: room.minifloat.round_to_float(x, form, Rounding.STOCHASTIC),
        ):
            with pytest.raises(ValueError, match="`noise` must be given for stochastic rounding"):
                run()


# --- planted faults ---------------------------------------------------------------------------------------------------


def _one_off(original: Any) -> Any:
    """Away from zero if the fraction times 2**24 is at least the noise."""
    return lambda x, rounding, noise=None: original(x, rounding, None if noise is None else noise - 1)


def _carries(original: Any) -> Any:
    """``trunc(x + noise / 2**24)``: the sum is rounded."""

    def added(x: Any, rounding: Rounding, noise: Any = None) -> Any:
        if rounding is not Rounding.STOCHASTIC:
            return original(x, rounding)
        m = torch if isinstance(x, torch.Tensor) else jnp
        return m.trunc(x + m.sign(x) * noise * 2.0**-24)

    return added


FAULTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "torch: at least": ("torch_frontend.rounding.round_to_integer", _one_off),
    "jax: at least": ("jax_backend.rounding.round_to_integer", _one_off),
    "torch: carry": ("torch_frontend.rounding.round_to_integer", _carries),
    "jax: carry": ("jax_backend.rounding.round_to_integer", _carries),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, *FAULTS[name])
    with pytest.raises(AssertionError):
        check_rule("float32")


def test_a_round_too_few_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_frontend.threefry, "EVEN", (13, 15, 26))
    monkeypatch.setattr(jax_backend.threefry, "ROTATIONS", jax_backend.threefry.ROTATIONS[:19])
    for room in ("torch_frontend", "jax_backend"):
        with pytest.raises(AssertionError):
            check_words(room)
