"""Tests of the comparator: it must see every bit, and say what it saw."""

import math
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from samebits.core import QParams, QuantizerGradients
from samebits.proofs.inputs.bits import from_ordinal, neighbours, ordinal, raw_bits, stored_bits
from samebits.proofs.inputs.compare import (
    FARTHEST,
    assert_same_bits,
    describe,
    differences,
    same_bits,
    ulp_distance,
)

pytestmark = pytest.mark.filterwarnings("error")

FLOATS = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
NARROW = FLOATS[2:]
INTEGERS = [np.dtype(name) for name in ("int8", "uint8", "int16", "int32", "int64", "bool")]


def some(dtype: Any, shape: tuple[int, ...] = (3, 4)) -> NDArray[Any]:
    return np.arange(1, 1 + math.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_flipped_bit_is_seen(dtype: np.dtype[Any]) -> None:
    width = 8 * dtype.itemsize
    one = np.array([-0.0, 1.5, 3.0], dtype)
    for bit in range(width):
        other = one.copy()
        other.view(f"u{dtype.itemsize}")[1] ^= np.array(1 << bit, f"u{dtype.itemsize}")
        found = differences(one, other)
        assert (found.compared, found.differing, found.index) == (3, 1, (1,))
        assert not same_bits(one, other)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_are_compared(dtype: np.dtype[Any]) -> None:
    one = np.array([0, 1, 1]).astype(dtype)
    other = np.array([0, 1, 0]).astype(dtype)
    assert same_bits(one, one.copy())
    assert differences(one, other).index == (2,)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_signs_of_zero_differ(dtype: np.dtype[Any]) -> None:
    assert not same_bits(np.zeros(1, dtype), -np.zeros(1, dtype))
    assert same_bits(-np.zeros(1, dtype), -np.zeros(1, dtype))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_any_nan_is_any_nan_and_nothing_else(dtype: np.dtype[Any]) -> None:
    everything = np.arange(2**16, dtype=np.uint16).view(dtype)
    nan = np.full(2**16, np.nan, dtype)
    bits = {10: 0x7C00, 7: 0x7F80}[stored_bits(dtype)]
    nans = 2 * (0x7FFF - bits)  # all patterns beyond infinity, of both signs
    assert differences(everything, nan).differing == 2**16 - nans


def test_payload_and_sign_of_nan_do_not_count() -> None:
    payloads = np.array([0x7FC00000, 0xFFC00001, 0x7F800001], np.uint32).view(np.float32)
    assert same_bits(payloads, np.full(3, np.nan, np.float32))
    assert not same_bits(payloads, np.array([np.nan, np.nan, np.inf], np.float32))


@pytest.mark.parametrize(
    ("expected", "got", "reason"),
    [
        (some("float32"), some("float64"), "dtype"),
        (some("float16"), some(ml_dtypes.bfloat16), "dtype"),
        (some("int8"), some("uint8"), "dtype"),
        (some("float32", (2, 3)), some("float32", (3, 2)), "shape"),
        (some("float32", (3,)), some("float32", (1, 3)), "shape"),
        (np.float32(1), some("float32", (1,)), "shape"),
        (np.zeros((0, 2)), np.zeros((2, 0)), "shape"),
        (some("float32"), None, "structure"),
        (None, some("float32"), "structure"),
        ((some("float32"),), some("float32"), "structure"),
        ((some("float32"),), (some("float32"), None), "structure"),
    ],
)
def test_unlike_things_differ_whole(expected: Any, got: Any, reason: str) -> None:
    found = differences(expected, got)
    assert not found.same
    assert found.differing == max(found.compared, 1)
    assert found.reason.startswith(reason)
    assert found.index is None
    with pytest.raises(AssertionError, match=reason):
        assert_same_bits(expected, got)


@pytest.mark.parametrize(
    "got", [some("int8"), some("int32", (2,)), some("float64", (5, 7)), None, (some("int32"), None)]
)
def test_what_is_counted_is_what_was_expected(got: Any) -> None:
    """However much the other side holds: so results of one mode are as many as those of another."""
    expected = some("int32", (3, 4))
    found = differences(expected, got)
    assert (found.compared, found.differing) == (12, 12)
    assert (differences(got, None).compared, differences(None, got).compared) == (_elements(got), 0)
    assert differences(expected, some("int32", (5, 7))).compared == 12
    both = differences((expected, QParams(expected, None)), (expected, QParams(got, None)))
    assert (both.compared, both.differing) == (24, 12)
    assert differences((expected, expected), (got,)).compared == 24


def _elements(value: Any) -> int:
    return 0 if value is None else sum(map(_elements, value)) if isinstance(value, tuple) else value.size


def test_equal_things_are_the_same() -> None:
    for value in (None, (), (None, None), np.zeros((0, 3)), np.float32(-0.0), 1, True, QParams(np.ones(2), None)):
        assert same_bits(value, value)
        assert differences(value, value).reason == ""
        assert_same_bits(value, value)


def test_strides_and_memory_order_do_not_count() -> None:
    x = some("float32", (4, 6))
    assert same_bits(x[::2, ::-1], x[::2, ::-1].copy())
    assert same_bits(np.asfortranarray(x), x)
    assert not same_bits(x[::2, ::-1], x[::2])


def test_tuples_are_compared_part_by_part() -> None:
    one = (QParams(some("float32", (2,)), some("int32", (2,))), QuantizerGradients(some("float32"), np.float32(1)))
    other = (one[0], one[1]._replace(scale=np.float32(2)))
    found = differences(one, other)
    assert (found.compared, found.differing, found.part, found.index) == (17, 1, "1.scale", ())
    assert (found.expected, found.got) == (1, 2)


def test_frameworks_are_taken_as_they_are() -> None:
    x = np.array([1.5, -0.0, np.nan, 1e-40], np.float32)
    narrow = np.array([1.5, -0.0, np.nan, 1e-40], ml_dtypes.bfloat16)
    assert same_bits(x, torch.from_numpy(x.copy()))
    assert same_bits(x, jnp.asarray(x))
    assert same_bits(narrow, torch.tensor([1.5, -0.0, math.nan, 1e-40], dtype=torch.bfloat16))
    assert same_bits((torch.from_numpy(x.copy()), None), (jnp.asarray(x), None))
    assert not same_bits(x, torch.tensor([1.5, 0.0, math.nan, 1e-40]))
    assert same_bits(torch.tensor(2.0, requires_grad=True), np.float32(2))


def test_the_example_is_the_first_or_has_the_smallest_input() -> None:
    expected, got = some("float32", (4,)), some("float32", (4,)) * 2
    inputs = np.array([3, np.nan, -0.5, 2], np.float32)
    assert differences(expected, got).index == (0,)
    assert differences(expected, got, inputs=inputs).index == (2,)
    assert differences(expected, got, inputs=np.ones(7)).index == (0,)
    only_nan = np.array([np.nan, np.nan, 1, 1], np.float32)
    got[2:] = expected[2:]
    assert differences(expected, got, inputs=only_nan).index == (0,)


def test_the_message_holds_everything() -> None:
    expected, got = np.array([1, 0.1, 3], np.float32), np.array([1, 0.2, -3], np.float32)
    inputs = {"x": np.array([0.5, 2, -7], np.float32), "g": np.array([9, 8, 7], np.int8), "scale": np.float32(0.25)}
    with pytest.raises(AssertionError) as caught:
        assert_same_bits(expected, got, call="f(x)", inputs=inputs)
    message = str(caught.value)
    for part in (
        "f(x): 2 of 3 elements differ",
        "float32 and shape (3,)",
        "index     (1,)",
        "x         2.0 = 0x1p+1 (float32 bits 0x40000000)",
        "g         8 (int8 bits 0x08)",
        "scale     0.25 = 0x1p-2 (float32 bits 0x3e800000)",
        "expected  0.1 = 0x1.99999ap-4 (float32 bits 0x3dcccccd)",
        "got       0.2 = 0x1.99999ap-3 (float32 bits 0x3e4ccccd)",
    ):
        assert part in message
    assert "input     -7" not in message


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.1), "0.1 = 0x1.99999ap-4 (float32 bits 0x3dcccccd)"),
        (0.1, "0.1 = 0x1.999999999999ap-4 (float64 bits 0x3fb999999999999a)"),
        (np.float32(1e-45), "1e-45 = 0x1p-149 (float32 bits 0x00000001)"),
        (ml_dtypes.bfloat16(-0.0), "-0.0 = -0x0p+0 (bfloat16 bits 0x8000)"),
        (np.float16(65504), "65504.0 = 0x1.ffcp+15 (float16 bits 0x7bff)"),
        (np.float32(-np.inf), "-inf = -inf (float32 bits 0xff800000)"),
        (np.float32(np.nan), "nan = nan (float32 bits 0x7fc00000)"),
        (np.int8(-3), "-3 (int8 bits 0xfd)"),
        (np.uint8(200), "200 (uint8 bits 0xc8)"),
        (True, "True (bool bits 0x01)"),
        (np.array([[2.0]], np.float32), "2.0 = 0x1p+1 (float32 bits 0x40000000)"),
        (torch.tensor(2.0), "2.0 = 0x1p+1 (float32 bits 0x40000000)"),
    ],
)
def test_describe(value: Any, text: str) -> None:
    assert describe(value) == text


def test_describe_wants_one_number() -> None:
    with pytest.raises(TypeError, match=r"one number, got shape \(2,\)"):
        describe(np.zeros(2))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ulp_distance_counts_numbers(dtype: np.dtype[Any]) -> None:
    x = np.array([-2, -1e-40, -0.0, 0.0, 1, np.inf, np.nan], np.float64).astype(dtype)
    assert ulp_distance(x, x).tolist() == [0] * 7
    ends = np.finfo(np.float32) if dtype == np.float32 else ml_dtypes.finfo(dtype)
    top, least = np.array(ends.max, dtype), np.array(ends.smallest_subnormal, dtype)
    assert ulp_distance(top, np.array(np.inf, dtype)) == 1
    assert ulp_distance(-least, least) == 2
    assert ulp_distance(np.array(-0.0, dtype), np.array(0.0, dtype)) == 0
    assert ulp_distance(np.array(np.nan, dtype), top) == FARTHEST
    assert ulp_distance(np.array(1, dtype), np.array(1, dtype) + np.array(ends.eps, dtype)) == 1


def test_ulp_distance_of_the_ends_of_float64_saturates() -> None:
    assert ulp_distance(np.float64(-np.inf), np.float64(np.inf)) == FARTHEST
    assert ulp_distance(np.float64(0), np.float64(np.inf)) == 0x7FF0000000000000


def test_ulp_distance_of_integers_and_of_unlike_arrays() -> None:
    assert ulp_distance(np.array([-128, 3], np.int8), np.array([127, 3], np.int8)).tolist() == [255, 0]
    with pytest.raises(TypeError, match="one dtype"):
        ulp_distance(np.float32(1), np.float64(1))
    with pytest.raises(ValueError, match="one shape"):
        ulp_distance(np.zeros(1), np.zeros(2))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_ordinals_are_places_in_the_order_of_all_numbers(dtype: np.dtype[Any]) -> None:
    everything = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        numbers = everything[~np.isnan(everything)]
    places = ordinal(numbers)
    assert len(np.unique(places)) == len(numbers) - 1  # both zeros share one
    ascending = from_ordinal(np.arange(places.min(), places.max() + 1), dtype).astype(np.float64)
    assert (ascending[:-1] < ascending[1:]).all()
    assert same_bits(from_ordinal(places, dtype)[numbers != 0], numbers[numbers != 0])


@given(st.floats(width=32, allow_nan=False), st.integers(-3, 3))
def test_ordinals_move_as_nextafter_does(value: float, steps: int) -> None:
    expected = np.float32(value)
    for _ in range(abs(steps)):
        with np.errstate(over="ignore"):  # from the largest number to infinity
            expected = np.nextafter(expected, np.float32(math.copysign(math.inf, steps)), dtype=np.float32)
    assert from_ordinal(ordinal(np.float32(value)) + steps, np.float32) == expected


def test_neighbours() -> None:
    x = np.array([1, 1, 0, np.inf], np.float16)
    assert neighbours(x).tolist() == [-(2.0**-24), 0, 2.0**-24, 1 - 2.0**-11, 1, 1 + 2.0**-10, 65504, np.inf]
    with pytest.raises(ValueError, match="NaN"):
        neighbours(np.array([np.nan]))


@pytest.mark.parametrize(("dtype", "bits"), list(zip(FLOATS, (23, 52, 10, 7), strict=True)), ids=str)
def test_stored_bits(dtype: np.dtype[Any], bits: int) -> None:
    assert stored_bits(dtype) == bits


def test_raw_bits_keep_the_shape() -> None:
    assert raw_bits(np.float32(1)).shape == ()
    assert raw_bits(np.ones((2, 3), np.float16)[:, ::2]).tolist() == [[0x3C00, 0x3C00]] * 2
