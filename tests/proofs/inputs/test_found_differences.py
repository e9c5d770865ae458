"""Where two functions part that need not be step functions."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.proofs.inputs.bits import at_place, place
from samebits.proofs.inputs.found_edges import found_differences

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
S: Array = np.float32([0.1, 0.7])


def test_where_continuous_functions_part() -> None:
    """Narrowed to bfloat16 on the way: ties are asked, so the two directions of halves part there and there alone."""

    def halves_up(x: Array) -> Array:
        return ((x.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)

    def halves_even(x: Array) -> Array:
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)

    parting = found_differences(halves_even, lambda x: np.where(np.isnan(x), x, halves_up(x)), np.float32)
    bits = parting.x.view(np.uint32)
    assert ((bits & 0x1FFFF) == 0x8000).all()
    assert len(bits) == 2 * (0x7F80 // 2)
    assert len(parting.edges.row) == 2 * len(bits)
    same = found_differences(np.sqrt, lambda x: np.sqrt(x.astype(np.float64)).astype(np.float32), np.float32)
    assert (len(same.x), len(same.edges.row)) == (0, 0)  # a square root rounded twice is rounded once
    assert same.asked > 300_000


def test_of_16_bits_every_difference_is_found() -> None:
    def exact(x: Array) -> Array:
        return np.exp(x.astype(np.float64)).astype(x.dtype)

    def twice(x: Array) -> Array:
        return (np.exp(x.astype(np.float64)) * 1.001).astype(x.dtype)

    x = at_place(np.arange(~0x7F80, 0x7F80 + 1), BFLOAT16)
    with np.errstate(over="ignore"):
        expected = x[exact(x) != twice(x)]
    parting = found_differences(exact, twice, BFLOAT16)
    np.testing.assert_array_equal(place(parting.x), place(expected))
    assert len(expected) > 100


def test_differences_of_rows_of_nan_and_of_everything() -> None:
    parting = found_differences(
        lambda x, s: np.floor(x / s),
        lambda x, s: np.where(np.isnan(x) & (s == S[1]), 0, np.floor(x / s)),
        np.float16,
        S,
    )
    assert np.isnan(parting.x).tolist() == [True]
    assert (parting.row.tolist(), len(parting.edges.row)) == ([1], 0)
    everything = found_differences(np.zeros_like, np.ones_like, np.float16, start=[1.0])
    assert len(everything.x) == 2 * 0x7C01 + 1
    assert len(everything.edges.row) == 0
    with pytest.raises(ValueError, match="`f` and `g` must return the same dtypes"):
        found_differences(np.isnan, np.floor, np.float16)
