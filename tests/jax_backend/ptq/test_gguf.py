"""Blocks of GGUF in JAX and torch, code for code as core has them; core beside gguf itself is in `tests/core`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from samebits.core.gguf import block_codes as by_definition
from samebits.core.gguf import block_values as values_by_definition
from samebits.core.gguf_files import LAYOUTS
from samebits.jax_backend import ptq as of_jax
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import ptq as of_torch

from ...core.test_gguf import FILE


def numbers(layout: str) -> Any:
    """Those of the file; and blocks down to the smallest subnormals, of MXFP4 up to the largest numbers."""
    with np.load(FILE) as found:
        x = found["x"]
    draw = np.random.default_rng(1)
    sizes = draw.integers(-149, 127 if layout == "MXFP4" else 0, (300, 1)).astype(np.float64)
    wide = (draw.uniform(-1, 1, (300, 32)) * 2.0**sizes).astype(np.float32)
    edges = np.nextafter(2.0 ** np.arange(-125, 128, dtype=np.float32), np.float32(0))
    if layout == "MXFP4":  # peaks just below every power of two, at distances where the logarithm may round
        steps = draw.integers(0, 70, (len(edges), 1)).astype(np.int32)
        peaks = (edges.view(np.int32)[:, None] - steps).view(np.float32)
        wide = np.concatenate(
            [wide, np.repeat(peaks, 32, 1) * draw.uniform(-1, 1, (len(edges), 32)).astype(np.float32)]
        )
        wide[300:, 7] = peaks[:, 0]
    return np.concatenate([x, wide])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_and_scales_are_those_of_core(layout: str) -> None:
    x = numbers(layout)
    with np.errstate(all="ignore"):
        codes, scale = by_definition(layout, x)
    values = values_by_definition(layout, codes, scale)
    for room, array in ((of_torch, torch.from_numpy(x)), (of_jax, jnp.asarray(x))):
        found: Any = room.block_codes(layout, array)
        assert_same_bits(codes, found[0])
        assert_same_bits(scale, found[1])
        assert_same_bits(values, room.block_values(layout, *found))


def test_under_jit_and_refusals() -> None:
    x = numbers("Q4_0")
    codes, scale = jax.jit(of_jax.block_codes, static_argnums=0)("Q4_0", jnp.asarray(x))
    want = by_definition("Q4_0", x)
    assert_same_bits(want[0], codes)
    assert_same_bits(want[1], scale)
    for room, array in ((of_torch, torch.from_numpy), (of_jax, jnp.asarray)):
        for bad, says in (
            (np.zeros((2, 33)), "last axis that is a multiple of 32"),
            (np.full((2, 32), np.nan), "must be finite"),
            (np.full((2, 32), 1e8), "must have scales that float16 holds, got"),
        ):
            with pytest.raises(ValueError, match=says):
                room.block_codes("Q8_0", array(bad.astype(np.float32)))
        with pytest.raises(ValueError, match="`layout` must be one of"):
            room.block_codes("Q5_0", array(np.zeros((1, 32), np.float32)))
