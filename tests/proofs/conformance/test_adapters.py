"""What adapters of other libraries compute themselves: codes out of words, tables, layouts. Without those libraries."""

import numpy as np
import pytest

from samebits.proofs.conformance.adapters import bitsandbytes, mlx


@pytest.mark.parametrize("bits", mlx.BITS)
def test_codes_of_mlx_are_read_across_words(bits: int) -> None:
    """The words are made by integers of Python: the first code in the lowest bits, 32 bits to a word."""
    codes = [int(c) for c in np.random.default_rng(bits).integers(0, 1 << bits, 64)]
    whole = sum(code << i * bits for i, code in enumerate(codes))
    words = [whole >> 32 * i & 0xFFFFFFFF for i in range(64 * bits // 32)]
    assert mlx._unpacked(np.array([words], np.uint32), bits).tolist() == codes


def test_both_zeros_of_a_table_of_bitsandbytes_are_one_number() -> None:
    table = np.array([0, 0.25, 1, -0.0, -0.25, -1], np.float32)
    assert bitsandbytes._codebook(table).values == (-1.0, -0.25, 0.0, 0.25, 1.0)
