"""Packed codes of torch: the bytes of core, for every width, sign and odd length."""

import numpy as np
import pytest
import torch

from samebits.core import packing as by_definition
from samebits.torch_frontend.ptq import pack, unpack

SHAPES = ((256,), (3, 255), (2, 1), (0, 5), (5, 0), (2, 3, 13))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_bytes_are_those_of_core(bits: int, dtype: str) -> None:
    lo = -(2 ** (bits - 1)) if dtype == "int8" else 0
    for shape in SHAPES:
        codes = np.resize(np.arange(lo, lo + 2**bits), shape).astype(dtype)
        packed = pack(torch.from_numpy(codes), bits)
        want = by_definition.pack(codes, bits)
        assert (packed.dtype, tuple(packed.shape)) == (torch.uint8, want.shape)
        assert np.array_equal(packed, want)
        back = unpack(packed, bits, shape[-1], dtype == "int8")
        assert str(back.dtype) == f"torch.{dtype}"
        assert np.array_equal(back, codes)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="`codes` must fit 2 bits, got codes from 4 to 4"):
        pack(torch.tensor([4], dtype=torch.uint8), 2)
    with pytest.raises(TypeError, match="int8 or uint8, got int32"):
        pack(torch.tensor([4], dtype=torch.int32), 2)
    with pytest.raises(ValueError, match="must have 3 bytes"):
        unpack(torch.zeros(2, dtype=torch.uint8), 4, 5, signed=True)
    with pytest.raises(TypeError, match=r"torch\.Tensor"):
        pack(np.zeros(3, np.uint8), 4)
