"""Quotients and products of torch for devices that do not round once: right whatever the device's own quotient is.

The first quotient is replaced by every number up to four units in the last place away; what follows is computed in
float64, exactly, so the CPU stands for any device. Compared with NumPy, which rounds once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses import FakeTensorMode

from samebits.core import catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.halfway import LEAST, nearly_halfway, subnormal_quotients
from samebits.torch_frontend import devices, int8

Array = NDArray[Any]
OFF = range(-4, 5)
# Of both rows of the certificates (binades of 1 and of 2**-100) ends and some between; and the ends of all scales
SCALES = np.array(
    [1, 1 + 2**-23, 2 - 2**-23, 1.4, 4 / 3, 1.6, 2.0**-100, 1.1 * 2.0**-100, 0.1, 2.0**-126, 3.4028235e38], np.float32
)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a device that is not the CPU, in compiled code."""
    monkeypatch.setattr(devices, "rounds_once", lambda _: False)


def off_by(units: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A guess that is so many units in the last place of float32 away from the quotient that NumPy would round to."""

    def guess(dividend: Tensor, inverse: Tensor) -> Tensor:
        quotient = dividend * inverse
        near = quotient.to(torch.float32)
        size = near.view(torch.int32) & 0x7FFFFFFF
        moved = (size + units).clamp(0, 0x7F7FFFFF) | (near.view(torch.int32) & -(2**31))
        return torch.where(size < 0x7F800000, moved.view(torch.float32).to(torch.float64), quotient)

    return guess


def assert_divided(x: Array, s: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.errstate(all="ignore"):
        want = np.asarray(x / s)
    for units in OFF:
        monkeypatch.setattr(devices, "guess", off_by(units))
        got = devices.quotient(torch.from_numpy(x), torch.from_numpy(s))
        assert_same_bits(want, got.numpy(), call=f"guessed {units} units off", inputs=x)


def around(x: Array) -> Array:
    """These and the numbers on both sides of them."""
    with np.errstate(over="ignore"):
        return np.concatenate([np.nextafter(x, np.float32(-np.inf)), x, np.nextafter(x, np.float32(np.inf))])


def boundaries(significands: Array, s: np.float32, rng: Any) -> Array:
    """Dividends next to where the quotient by ``s`` is rounded the other way, for quotients of these significands.

    One of them for each, at an exponent at which neither quotient nor dividend overflows or is subnormal.
    """
    exponents = rng.integers(-100, 100, significands.size) - int(np.log2(s)) // 2
    halfway = np.ldexp(significands + 0.5, exponents - 23)  # exact, between two neighbours
    with np.errstate(all="ignore"):
        x = (halfway * np.float64(s)).astype(np.float32)
    return x[np.isfinite(x) & (np.abs(x) > 1e-37)]


def test_quotients_next_to_where_rounding_turns(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 significands of quotients at each of `SCALES`, at exponents of their own."""
    rng = np.random.default_rng(0)
    for s in SCALES:
        x = around(boundaries(rng.integers(2**23, 2**24, 2_000), s, rng))
        assert x.size > 3_000
        assert_divided(x, np.full_like(x, s), monkeypatch)


def hardest(count: int) -> tuple[Array, Array]:
    """Quotients as near to halfway between two numbers as there are, by divisors of any significand; some subnormal."""
    rng = np.random.default_rng(6)
    divisors = np.append(rng.integers(LEAST, 2 * LEAST, count), [LEAST + 1, 2 * LEAST - 1, LEAST + (LEAST >> 1)])
    pairs = []
    for distance in (1, -1, 3):
        near = nearly_halfway(divisors, distance)
        pairs.append([np.ldexp(a.astype(np.float64), -23).astype(np.float32) for a in (near.dividend, near.divisor)])
        for bits in (24, 15, 4):
            pairs.append(list(subnormal_quotients(nearly_halfway(divisors, distance, bits), rng)))
    x, s = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return x, s


def test_quotients_nearest_to_halfway(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_divided(*hardest(2_000), monkeypatch)


def fused(near: Tensor, divisor: Tensor, dividend: Tensor) -> Tensor:
    """``dividend - near * divisor``, rounded once: with halves of 26 and 27 bits, times 24, every product is exact."""
    high = (near.view(torch.int64) & -(2**26)).view(torch.float64)
    product = near * divisor
    lost = (high * divisor - product) + (near - high) * divisor
    return (dividend - product) - lost


def test_a_contracted_rest_and_a_worse_inverse_do_no_harm(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both as `_refined` says that it takes them: the inverse good to 2**-20, products contracted or not."""
    x, s = hardest(2_000)

    def refined(dividend: Tensor, divisor: Tensor, inverse: Tensor, guessed: Tensor) -> Tensor:
        near = guessed
        inverse = inverse + inverse * fused(inverse, divisor, torch.ones_like(divisor))
        for _ in range(2):
            near = near + fused(near, divisor, dividend) * inverse
        return near

    plainly = devices._refined
    worse = [lambda *a, off=off: plainly(*a[:2], a[2] * (1 + off), a[3]) for off in (2.0**-20, -(2.0**-20))]
    for instead in (refined, *worse):
        with monkeypatch.context() as one:
            one.setattr(devices, "_refined", instead)
            assert_divided(x, s, one)


def test_how_far_off_a_guess_may_be(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is off by 2,000 units is still made right, one by an eighth is not; that is seen."""
    x, s = hardest(500)
    want = x / s
    for units in (-2_000, 2_000):
        monkeypatch.setattr(devices, "guess", off_by(units))
        found = devices.quotient(torch.from_numpy(x), torch.from_numpy(s)).numpy()
        normal = want > 1e-30  # next to zero 2,000 units are more than the number
        assert_same_bits(want[normal], found[normal])
    monkeypatch.setattr(devices, "guess", lambda dividend, inverse: dividend * inverse * 1.125)
    monkeypatch.setattr(devices, "_refined", lambda a, b, i, near: near + (a - near * b) * i * (1 + 2.0**-20))
    assert (devices.quotient(torch.from_numpy(x), torch.from_numpy(s)).numpy() != want).any()


@pytest.mark.thorough
@pytest.mark.parametrize("units", OFF)
def test_every_significand(elsewhere: None, monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    """All 2**23 significands of a scale, where int8 codes change and next to it; all of a dividend by `SCALES`."""
    monkeypatch.setattr(devices, "guess", off_by(units))
    numbers = (np.arange(2**23, dtype=np.int32) | (127 << 23)).view(np.float32)
    for tie in (0.5, 1.5, 63.5, 127.5):
        dividends = around((tie * numbers.astype(np.float64)).astype(np.float32)).reshape(3, -1)
        for x in dividends:
            assert_same_bits(x / numbers, devices.quotient(torch.from_numpy(x), torch.from_numpy(numbers)).numpy())
    for s in SCALES:
        with np.errstate(all="ignore"):
            want = numbers / s
        assert_same_bits(want, devices.quotient(torch.from_numpy(numbers), torch.from_numpy(np.asarray(s))).numpy())


def test_subnormal_quotients_and_their_ties(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    s = np.ldexp(1 + rng.integers(0, 2**12, 20_000) / 2**12, rng.integers(-10, 100, 20_000)).astype(np.float32)
    halves = rng.integers(0, 2**12, s.size) + 0.5
    x = (halves * 2.0**-149 * s).astype(np.float32)  # exact: every quotient lies halfway between two numbers
    assert_divided(around(x), np.concatenate([s, s, s]), monkeypatch)
    tiny = rng.integers(0, 2**23, 20_000, dtype=np.uint32).view(np.float32)
    assert_divided(tiny, np.ldexp(rng.uniform(1, 2, 20_000), rng.integers(-20, 20, 20_000)).astype("f4"), monkeypatch)


def test_quotients_that_overflow(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    largest, rng = np.finfo(np.float32).max, np.random.default_rng(2)
    s = rng.uniform(0.5, 1, 20_000).astype(np.float32)
    x = (np.float64(largest) * s).astype(np.float32)
    assert_divided(around(np.concatenate([x, -x])), np.resize(s, 6 * s.size), monkeypatch)


def test_special_and_any_operands(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    special = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 1e-45, -1e-45, 1e-38, 2.0**-126, 3.4e38, -3.4e38])
    assert_divided(*(a.reshape(-1).copy() for a in np.meshgrid(special, special)), monkeypatch)
    bits = np.random.default_rng(3).integers(0, 2**32, (2, 50_000), dtype=np.uint32).view(np.float32)
    assert_divided(bits[0].copy(), bits[1].copy(), monkeypatch)


def test_what_only_guesses_is_seen(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of quotients halfway between two numbers: an error as large as may be left, and no rest that brings it near."""
    x, s = hardest(500)
    single = lambda a, b, inverse, near: near.float() + (a.float() - near.float() * b.float()) * inverse.float()  # noqa: E731
    with monkeypatch.context() as one:  # a rest that is neither fused nor in float64 says nothing
        one.setattr(devices, "_refined", lambda *given: single(*given).double())
        with pytest.raises(AssertionError):
            assert_divided(x, s, one)
    s = np.float32(1.25 * 2**20)
    x = ((np.random.default_rng(4).integers(2**10, 2**12, 999) + 0.5) * np.float64(s) * 2.0**-149).astype(np.float32)
    for name, instead in (
        ("_decided", lambda near: near + near * 2.0**-51),
        ("_refined", lambda dividend, divisor, inverse, guessed: guessed),
    ):
        with monkeypatch.context() as one:
            one.setattr(devices, name, instead)
            with pytest.raises(AssertionError):
                assert_divided(x, np.full_like(x, s), one)


def test_float64_is_divided_by_what_is_no_constant(elsewhere: None) -> None:
    x, s = torch.linspace(-3, 3, 99, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    assert_same_bits((x / s).numpy(), devices.quotient(x, s).numpy())
    assert devices.quotient(torch.tensor([torch.nan], dtype=torch.float64), s).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_what_they_were(elsewhere: None, dtype: torch.dtype) -> None:
    """The zero that is added, and the selects, change no bit: of zeros, subnormals, infinities and NaN neither."""
    edges = [0.0, -0.0, 1.0, -128.0, 127.0, torch.inf, -torch.inf, torch.nan]
    codes = torch.tensor(edges, dtype=dtype)[:, None]
    s = torch.tensor([1e-37, 0.7, 3e38, torch.nan, 1.1754944e-38], dtype=dtype)
    for product in (devices.product, devices.product_of_codes):
        assert_same_bits((codes * s).numpy(), product(codes, s).numpy(), call=product.__name__)
    assert_same_bits((codes * 0.3).numpy(), devices.product(codes, 0.3).numpy())


def test_the_cpu_computes_as_it_is_written() -> None:
    """Compiled or not: its programs have no more operations than before."""
    x, s = torch.ones(3), torch.tensor(0.7)
    assert devices.rounds_once(x)
    seen = torch.fx.experimental.proxy_tensor.make_fx(lambda x, s: devices.quotient(x, s))(x, s)
    assert [n.name for n in seen.graph.nodes if n.op == "call_function"] == ["div"]


@pytest.mark.thorough
def test_inductor_compiles_what_other_devices_are_given(elsewhere: None) -> None:
    """In one graph, with a sum behind it; here by the compiler of the CPU."""
    torch._dynamo.reset()

    def program(x: Tensor, s: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        codes = devices.quotient(x, s).round().clamp(-128, 127)
        return devices.product_of_codes(codes, s) + b, devices.product(codes, b) + s

    x = np.random.default_rng(5).standard_normal(999).astype(np.float32)
    s, b = np.float32(0.07), np.cos(x)
    got = torch.compile(program, fullgraph=True)(*(torch.from_numpy(np.asarray(a)) for a in (x, s, b)))
    codes = np.clip(np.rint(x / s), -128, 127)
    for want, found in zip((codes * s + b, codes * b + s), got, strict=True):
        assert_same_bits(want, found.numpy(), inputs=x)


def test_numbers_of_python_are_divided_by_as_tensors(elsewhere: None) -> None:
    x = torch.arange(1.0, 99.0) * 3
    for device in ("cpu", "meta"):
        assert devices.reciprocal(x.to(device)).device.type == device
        assert devices.quotient_by_number(x.to(device), 6).device.type == device
    assert_same_bits((np.float32(1) / x.numpy()), devices.reciprocal(x).numpy())
    assert_same_bits((x.numpy() / np.float32(6)), devices.quotient_by_number(x, 6).numpy())


def test_int8_products_stay_on_the_cpu() -> None:
    """Those of a GPU take only some shapes: there codes are multiplied as floats."""
    q, exact = catalog["int8_per_tensor"], int8.saturates_nowhere()
    assert int8.fits_int8(q, q, torch.empty(10, 64)) == exact
    with FakeTensorMode():
        assert not int8.fits_int8(q, q, torch.empty(10, 64, device="cuda"))
