"""Packed codes: bytes written by hand, and every width, sign and odd length there and back."""

from typing import Any

import numpy as np
import pytest

from samebits.core import catalog
from samebits.core.bytes_of_codes import check_stored, code_width, is_packed, packed_length
from samebits.core.packing import pack, unpack


@pytest.mark.parametrize(
    ("bits", "codes", "want"),
    [
        (4, np.array([0x1, 0x2, 0x3], np.uint8), [0x12, 0x30]),  # the even column in the high nibble, as in torchao
        (4, np.array([-1, 7], np.int8), [0xF7]),
        (1, np.array([1, 0, 0, 0, 0, 0, 0, 0, 1], np.uint8), [0b10000000, 0b10000000]),
        (1, np.array([-1, 0], np.int8), [0b10000000]),
        (3, np.array([1, 2, 3], np.uint8), [0b00101001, 0b10000000]),
        (5, np.array([-16, 15], np.int8), [0b10000011, 0b11000000]),
        (8, np.array([-128, 127], np.int8), [0x80, 0x7F]),
    ],
)
def test_bytes_by_hand(bits: int, codes: Any, want: list[int]) -> None:
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.tolist() == want
    assert unpack(packed, bits, len(codes), codes.dtype == np.int8).tolist() == codes.tolist()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_there_and_back(bits: int, dtype: Any) -> None:
    lo, hi = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if dtype == np.int8 else (0, 2**bits)
    every = np.arange(lo, hi).astype(dtype)
    for shape in ((hi - lo,), (3, hi - lo - 1), (2, 1), (0, 5), (5, 0), (2, 3, 13)):
        codes = np.resize(every, shape).astype(dtype)
        packed = pack(codes, bits)
        assert packed.shape == (*shape[:-1], packed_length(shape[-1], bits))
        back = unpack(packed, bits, shape[-1], dtype == np.int8)
        assert back.dtype == dtype
        assert np.array_equal(back, codes)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: pack(np.array([4], np.uint8), 2), ValueError, "`codes` must fit 2 bits, got codes from 4 to 4"),
        (lambda: pack(np.array([-3], np.int8), 2), ValueError, "must fit 2 bits"),
        (lambda: pack(np.array([1], np.int32), 2), TypeError, "int8 or uint8, got int32"),
        (lambda: pack(np.array(1, np.int8), 2), ValueError, "must have an axis"),
        (lambda: pack(np.array([1], np.int8), 9), ValueError, "`bits` must be in 1..8, got 9"),
        (lambda: pack(np.array([1], np.int8), 2.0), TypeError, "`bits` must be an int"),
        (lambda: unpack(np.zeros(2, np.int8), 4, 4, True), TypeError, "`packed` must have dtype uint8"),
        (lambda: unpack(np.zeros(2, np.uint8), 4, 5, True), ValueError, "must have 3 bytes .* for 5 codes of 4 bits"),
        (lambda: check_stored(catalog["int4_per_channel"], -8, 8), ValueError, r"must lie in \[-8, 7\]"),
        (lambda: check_stored(catalog["mxfp4_e2m1"], 0, 16), ValueError, r"must lie in \[0, 15\]"),
    ],
)
def test_what_is_refused(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_widths_of_codes() -> None:
    names = {"int8_per_channel": 8, "uint4_affine_per_group32": 4, "int3_per_channel": 3, "mxfp6_e2m3": 6, "nvfp4": 4}
    names |= {"binary_per_tensor": 2, "ternary_per_tensor": 2, "nf4_per_group64": 4, "int4_narrow_per_channel": 4}
    for name, bits in names.items():
        assert code_width(catalog[name]) == bits, name
        assert is_packed(catalog[name], "packed") == (bits < 8)
        assert not is_packed(catalog[name], "plain")
    assert not is_packed(catalog["int16_per_tensor"], "packed")
