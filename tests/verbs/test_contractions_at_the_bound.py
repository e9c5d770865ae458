"""Exact contractions where they would stop to be exact: the longest part, the longest int8 product, the largest sum.

Every float32 product is watched: were all its terms of one sign, its sums had to stay within 2**24.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from samebits import torch_frontend
from samebits.core import BinaryFormat, IntegerFormat, QParams, Quantizer, TernaryFormat, catalog
from samebits.core.contraction import accumulator_bound, contracts_codes, largest_code
from samebits.jax_backend.exact import integer_contraction
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.torch_frontend import exact, int8

Array = NDArray[Any]
EXACT = 2**24
INT8, NARROW = catalog["int8_per_tensor"], catalog["int8_narrow_per_channel"]
UINT8, UINT8_AFFINE = catalog["uint8_per_tensor"], catalog["uint8_affine_per_tensor"]
INT16 = catalog["int16_per_tensor"]


def extremes(rows: int, shape: tuple[int, ...], largest: int, sign: int = 1) -> Array:
    """A row of the largest magnitudes, one that ends in ones (a sum that float32 cannot hold), and any."""
    a = np.full((rows, *shape), sign * largest, np.int64)
    a[1, -3:] = 1
    a[2:] = np.random.default_rng(0).integers(-largest, largest + 1, a[2:].shape)
    return a


# --- what may be added up ---------------------------------------------------------------------------------------------

FORMATS = [IntegerFormat(b, s, n) for b in (2, 3, 4) for s in (True, False) for n in ((True, False) if s else (False,))]


@pytest.mark.parametrize("format", [*FORMATS, BinaryFormat(), TernaryFormat()], ids=str)
def test_the_largest_code_is_that_of_all_codes_and_zero_points(format: Any) -> None:
    codes = range(int(format.lo), int(format.hi) + 1)
    symmetric = Quantizer(format=format)
    assert largest_code(symmetric) == max(map(abs, codes))
    if isinstance(format, IntegerFormat):
        affine = Quantizer(format=format, zero_point="min_max")
        assert largest_code(affine) == max(abs(c - z) for c in codes for z in codes)
        assert accumulator_bound(affine, symmetric, 7) == 7 * largest_code(affine) * largest_code(symmetric)


def test_what_contracts_codes() -> None:
    token, group = catalog["int8_affine_per_token"], catalog["int4_per_group32"]
    assert contracts_codes(INT8, NARROW, per_token=False)
    assert contracts_codes(token, NARROW, per_token=True)
    assert not contracts_codes(token, NARROW, per_token=False)
    assert not contracts_codes(INT8, group, per_token=True)
    assert not contracts_codes(catalog["float8_e4m3fn_per_tensor"], INT8, per_token=True)
    learned = INT8.replace(source="learned", learned_bits=4.0)
    assert not contracts_codes(INT8, learned, per_token=True)
    assert not contracts_codes(learned, INT8, per_token=True)


# --- torch ------------------------------------------------------------------------------------------------------------


def watched(contract: Callable[[Tensor, Tensor], Tensor], calls: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """The same, which notes how many channels it is given and looks at what float32 sums could reach."""

    def look(a: Tensor, b: Tensor) -> Tensor:
        calls.append(a.shape[1])
        if a.dtype == torch.float32:
            assert contract(a.abs().double(), b.abs().double()).max() <= EXACT
        return contract(a, b)

    return look


@pytest.mark.parametrize("pair", [(INT8, INT8), (UINT8_AFFINE, NARROW), (UINT8, INT8), (INT8, INT16)], ids=str)
@pytest.mark.parametrize("window", [(), (3, 3)], ids=str)
def test_parts_of_torch_stay_exact(pair: tuple[Quantizer, Quantizer], window: tuple[int, ...]) -> None:
    q_a, q_b = pair
    longest = EXACT // (largest_code(q_a) * largest_code(q_b) * int(np.prod(window)))
    contract = torch.nn.functional.conv2d if window else torch.nn.functional.linear
    for channels in sorted({2, 63, 64, longest - 1, longest, longest + 1, longest + 4, 2 * longest, 2 * longest + 1}):
        if channels < 1 or channels > 3000:
            continue
        for sign in (1, -1):
            a = extremes(3, (channels, *window), largest_code(q_a), sign)
            b = extremes(2, (channels, *window), largest_code(q_b))
            calls: list[int] = []
            parts = to_torch(a.astype(np.float32)), to_torch(b.astype(np.float32))
            got = exact.contraction(q_a, parts[0], q_b, parts[1], watched(contract, calls))
            want = a.reshape(3, -1) @ b.reshape(2, -1).T
            assert np.array_equal(got.double().numpy().reshape(3, 2), want), channels
            assert sum(calls) == channels


@pytest.mark.parametrize("terms", [1, 2, 2**15 - 1, 2**15, 33100])
def test_int8_products_of_torch_fit_an_int32(terms: int) -> None:
    """Of 33,026 terms of 255 * 255 the sum is above 2**31."""
    qparams = QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32))
    x = torch.full((2, terms), 255.0)
    x[1, ::2] = 0
    w = torch.full((1, terms), 255.0)
    got = int8.int8_product(UINT8_AFFINE, x, qparams, UINT8_AFFINE, w, qparams)
    want = (x.long() @ w.long().t()).numpy()
    if int8.saturates_nowhere():
        assert (got is None) == (terms in (1, 2**15, 33100))
    if got is not None:
        assert np.array_equal(got.numpy(), want)
    y = torch_frontend.linear(UINT8_AFFINE, x, qparams, UINT8_AFFINE, w, qparams)
    assert_same_bits(want.astype(np.float32), y)


# --- JAX --------------------------------------------------------------------------------------------------------------


def in_jax(a: Array, b: Array, largest: tuple[int, int], bound: int) -> Any:
    """``sum(a * b)`` over all axes of ``a`` but the first, and those of ``b`` but the last; every product watched."""
    axes = "hwi"[-(a.ndim - 1) :]

    def contract(part: Any, piece: Any) -> Any:
        assert max(jnp.abs(part).max(initial=0), jnp.abs(piece).max(initial=0)) <= 256  # fits bfloat16
        sums = np.einsum(f"r{axes},{axes}o->ro", *(np.abs(np.asarray(v, np.float64)) for v in (part, piece)))
        assert sums.max(initial=0) <= EXACT
        return jnp.einsum(f"r{axes},{axes}o->ro", part, piece, precision="highest")

    summed = tuple(range(b.ndim - 1))
    arrays = to_jax(a.astype(np.float32)), to_jax(b.astype(np.float32))
    return integer_contraction(contract, *arrays, summed, b.ndim - 2, largest, bound)


@pytest.mark.parametrize(
    ("largest", "inputs"),
    [
        ((128, 128), (1, 1023, 1024, 1025, 1027, 2049)),
        ((256, 256), (255, 256, 257, 513)),
        ((255, 127), (517, 518, 519, 520)),
        ((2**15, 128), (7, 255, 511, 512, 513)),  # 512 terms reach 2**31
        ((128, 2**15), (511, 512)),
        ((2**15, 2**15), (1, 2, 3, 300)),
        ((65535, 65535), (1, 2, 600)),
    ],
    ids=str,
)
def test_parts_of_jax_stay_exact(largest: tuple[int, int], inputs: tuple[int, ...]) -> None:
    for n in inputs:
        for sign in (1, -1):
            a, b = extremes(3, (n,), largest[0], sign), extremes(2, (n,), largest[1]).T
            want = (a @ b).astype(np.float32)
            assert_same_bits(want, in_jax(a, b, largest, n * largest[0] * largest[1]), call=f"{largest}, {n}")


def test_a_window_of_more_places_than_a_part_may_hold_is_cut_too() -> None:
    """256 terms of 256 * 256 are 2**24: a window of 17 by 16 holds more."""
    random = np.random.default_rng(0)
    for window, n in (((16, 16), 2), ((17, 16), 1), ((17, 16), 3), ((2, 3), 90)):
        a = np.full((2, *window, n), 256, np.int64)
        b = np.full((*window, n, 2), 256, np.int64)
        a[1] = random.integers(-256, 257, a[1].shape)
        b[..., 1] = random.integers(-256, 257, b[..., 1].shape)
        b[-1, -1, -1, 0] = 1
        want = np.einsum("rhwi,hwio->ro", a, b).astype(np.float32)
        assert_same_bits(want, in_jax(a, b, (256, 256), a[0].size * 2**16), call=str(window))


def test_nan_stays_nan_in_every_part() -> None:
    for largest, n, place in (((128, 128), 1030, 0), ((128, 128), 1030, 1029), ((2**15, 2**15), 300, 299)):
        a, b = (extremes(3, (n,), top) for top in largest)
        spoiled = a.astype(np.float64)
        spoiled[1, place] = np.nan
        arrays = to_jax(spoiled.astype(np.float32)), to_jax(b.T.astype(np.float32))
        got = integer_contraction(jnp.matmul, *arrays, (0,), 0, largest, n * largest[0] * largest[1])
        assert np.array_equal(np.isnan(got).any(1), [False, True, False])


def test_the_largest_sum_of_jax_is_refused_above_2_48() -> None:
    a = to_jax(np.ones((1, 2), np.float32))
    b = to_jax(np.ones((2, 1), np.float32))
    assert float(integer_contraction(jnp.matmul, a, b, (0,), 0, (1, 1), 2**48)[0, 0]) == 2
    with pytest.raises(ValueError, match=r"within 2\*\*48 to be exact, its bound is 281474976710657"):
        integer_contraction(jnp.matmul, a, b, (0,), 0, (1, 1), 2**48 + 1)
