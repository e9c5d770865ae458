"""Quotients and 16-bit numbers of JAX for devices that do not round once: right whatever the device's quotient is.

Every division is replaced by one that is off by a number of units in the last place. What follows are integers.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits import core, jax_backend
from samebits.core import QParams, catalog
from samebits.jax_backend import arrays, devices, ieee, ieee_any, platforms
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.halfway import nearly_halfway, subnormal_quotients
from samebits.proofs.inputs.knife_edges import knife_edges

Array = NDArray[Any]
OFF = range(-4, 5)
TOP = 2**23  # the least significand


def off_by(units: int) -> Callable[[Any, Any], Any]:
    """A quotient so many units in the last place away from the one that is rounded once; 0 stays 0."""

    def about(a: Any, b: Any) -> Any:
        quotient = a / b
        return jnp.where(quotient == 0, quotient, arrays.from_pattern(arrays.bit_pattern(quotient) + units, a.dtype))

    return about


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where a GPU is the default."""
    monkeypatch.setattr(platforms, "rounds_once", lambda: False)
    jax.clear_caches()
    yield
    jax.clear_caches()


def quotients(significand: Array, divisor: Array, units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They must be nearest: the rest, which is exact in int64, is less than half the divisor."""
    monkeypatch.setattr(devices, "about", off_by(units))
    found = jax.jit(lambda m, n: devices.quotient_of(m, n, np.float32))(significand, divisor)
    quotient, less, rest = (np.asarray(part).astype(np.int64) for part in found)
    exact = (significand.astype(np.int64) << (23 + less)) - quotient * divisor
    np.testing.assert_array_equal(exact, rest)
    assert (2 * np.abs(exact) < divisor).all()
    assert ((quotient >= TOP) & (quotient < 2 * TOP)).all()


@pytest.mark.parametrize("units", OFF)
def test_quotients_next_to_where_rounding_turns(units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """50,000 dividends next to halfway between two quotients, and as many of any kind; equal and neighbouring ones."""
    rng = np.random.default_rng(0)
    quotient, divisor = (rng.integers(TOP, 2 * TOP, 50_000) for _ in range(2))
    product = (2 * quotient + 1) * divisor  # of 49 bits: its first 24, and the next ones up and down
    bits = np.floor(np.log2(product)).astype(np.int64) - 23
    near = [(product >> bits) + step for step in (-1, 0, 1)]
    dividend = np.clip(
        np.concatenate([*near, rng.integers(TOP, 2 * TOP, 50_000), divisor, divisor - 1]), TOP, 2 * TOP - 1
    )
    quotients(dividend.astype(np.int32), np.resize(divisor, dividend.size).astype(np.int32), units, monkeypatch)


@pytest.mark.parametrize("units", [-60, *OFF, 60])
def test_quotients_nearest_to_halfway(units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near as there are, above and below; also where a division is off by 60 units, by which rests are largest."""
    divisors = np.random.default_rng(3).integers(TOP, 2 * TOP, 5_000)
    found = [nearly_halfway(divisors, distance) for distance in (1, -1, 3, -3)]
    dividend, divisor = (np.concatenate([one[i] for one in found]).astype(np.int32) for i in (0, 1))
    last = np.array([2 * TOP - 1, TOP + 1], np.int32)
    dividend, divisor = np.append(last - 1, dividend), np.append(last, divisor)  # just below 2
    size = 30_000  # one shape
    quotients(np.resize(dividend, size), np.resize(divisor, size), units, monkeypatch)


def test_subnormal_quotients_nearest_to_halfway(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    divisors = rng.integers(TOP, 2 * TOP, 2_000)
    pairs = [subnormal_quotients(nearly_halfway(divisors, d, bits), rng) for d in (1, -1) for bits in (24, 15, 4)]
    x, s = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    monkeypatch.setattr(devices, "about", off_by(-4))
    assert_same_bits(x / s, np.asarray(jax.jit(ieee.divide_exactly)(x, s)))


@pytest.mark.thorough
@pytest.mark.parametrize("units", OFF)
def test_every_significand(units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 2**23 significands of a dividend, and of a divisor, beside some of the other."""
    numbers = np.arange(TOP, 2 * TOP, dtype=np.int32)
    for other in (TOP, TOP + 1, 2 * TOP - 1, 11744051, 11184811):
        quotients(numbers, np.full_like(numbers, other), units, monkeypatch)
        quotients(np.full_like(numbers, other), numbers, units, monkeypatch)


@pytest.mark.parametrize("units", [-4, 3])
def test_quotients_of_any_numbers(elsewhere: None, units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subnormal and overflowing quotients, zeros, infinities and NaN."""
    monkeypatch.setattr(devices, "about", off_by(units))
    special = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 1e-45, 1e-38, 2.0**-126, 3.4e38, -3.4e38])
    a, b = (v.reshape(-1) for v in np.meshgrid(special, special))
    any_a, any_b = np.random.default_rng(1).integers(0, 2**32, (2, 50_000), dtype=np.uint32).view(np.float32)
    a, b = np.concatenate([a, any_a]), np.concatenate([b, any_b])
    with np.errstate(all="ignore"):
        want = a / b
    for divide in (ieee_any.divide_any, arrays.divide):  # by negative numbers, too
        assert_same_bits(want, np.asarray(jax.jit(divide)(a, b)), call=divide.__name__)
    s = np.where(np.isfinite(b) & (np.abs(b) >= 2.0**-126), np.abs(b), np.float32(0.7))
    with np.errstate(all="ignore"):
        want = a / s
    assert_same_bits(want, np.asarray(jax.jit(ieee.divide_exactly)(a, s)))


def test_float64(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "about", off_by(4))
    a, b = np.random.default_rng(1).standard_normal((2, 5_000))
    with jax.enable_x64(True):
        assert_same_bits(a / b, np.asarray(jax.jit(ieee_any.divide_any)(a, b)))


@pytest.mark.parametrize("name", ["int8_per_tensor", "float8_e4m3fn_per_tensor"])
def test_quantizers_with_such_divisions(elsewhere: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "about", off_by(-4))
    q, s = catalog[name], np.float32(0.7)
    x = knife_edges(q, s, None, np.float32)
    with np.errstate(over="ignore"):
        want = core.fake_quantize(q, x, QParams(s))
    assert_same_bits(want, np.asarray(jax_backend.fake_quantize(q, jnp.asarray(x), QParams(jnp.asarray(s)))))


def test_what_only_guesses_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the steps that the rest decides, quotients are off by as much as the division is."""
    rng = np.random.default_rng(2)
    significand, divisor = rng.integers(TOP, 2 * TOP, (2, 999)).astype(np.int32)
    monkeypatch.setattr(devices, "about", off_by(4))
    whole = devices.quotient_of(significand, divisor, np.float32)[0]
    doubled = significand.astype(np.float32) * (1 + (significand < divisor)).astype(np.float32)
    guess = off_by(4)(doubled, divisor.astype(np.float32))
    assert (np.asarray((guess * 2.0**23).astype(np.int32)) != np.asarray(whole)).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bits_are_widened_and_narrowed_as_ever(elsewhere: None, dtype: Any) -> None:
    patterns = np.arange(2**16, dtype=np.uint16).view(dtype)
    assert_same_bits(patterns.astype(np.float32), np.asarray(jax.jit(arrays.widen)(patterns)))
    x = np.random.default_rng(3).integers(0, 2**32, 50_000, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        want = x.astype(dtype)
    assert_same_bits(want, np.asarray(jax.jit(lambda v: arrays.narrow(v, dtype))(x)))


def test_the_cpu_computes_as_it_is_written() -> None:
    """One division, as before; the integers are for others."""
    assert platforms.rounds_once()
    for divide in (arrays.divide, ieee.divide_exactly, ieee_any.divide_any):
        program = str(jax.make_jaxpr(divide)(jnp.ones(3), jnp.ones(3)))
        assert program.count(" div ") == 1, divide
