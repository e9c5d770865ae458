"""Sums over blocks: within the stated bound, also where the sum of a part is infinite and that of the whole is not."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samebits.core import catalog
from samebits.core.granularity import Granularity, PerTensor
from samebits.core.ste import block_sum as exact_sum
from samebits.jax_backend.ste import ROW, block_sum

CASES: dict[str, tuple[Granularity, tuple[int, ...]]] = {
    "per group": (catalog["uint4_affine_per_group128"].granularity, (4, 256)),
    "per channel": (catalog["int8_per_channel"].granularity, (3, 500)),
    "one axis, by the loop": (PerTensor(), (ROW * ROW + 5,)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap], ids=["plain", "jit", "vmap"])
def test_no_sum_on_the_way_is_infinite(name: str, dtype: Any, transform: Any) -> None:
    """Each block begins with large numbers of one sign, and their opposites follow."""
    granularity, shape = CASES[name]
    terms = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    n = math.prod(granularity.block_size(shape))
    blocks = terms.reshape(-1, n)
    blocks[:, :40], blocks[:, -40:] = np.finfo(dtype).max / 4, -np.finfo(dtype).max / 4
    blocks[:, 0] /= 2
    want = exact_sum(terms, granularity).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        summed = transform(lambda t: block_sum(t, granularity))
        batched = transform is jax.vmap
        got = np.asarray(summed(jnp.asarray(terms)[None] if batched else jnp.asarray(terms)))
    with np.errstate(over="ignore"):
        sizes = (np.abs(blocks) / n).sum(1)  # in units of n: they are beyond the largest number
    assert np.isfinite(want).all()
    assert got.dtype == dtype
    off = np.abs(got.reshape(-1) - want.reshape(-1)) / n
    assert (off <= ROW * math.ceil(math.log(n, ROW)) * np.finfo(dtype).eps / 2 * sizes).all()


def test_what_is_infinite_stays_so() -> None:
    for terms in ([np.inf, 1.0], [-np.inf, 1.0], [np.inf, -np.inf], [np.nan, 1.0], [3e38, 3e38], [-3e38, -3e38]):
        array = np.array(terms, np.float32)
        with np.errstate(over="ignore"):
            want = exact_sum(array, PerTensor())
        np.testing.assert_array_equal(np.asarray(block_sum(jnp.asarray(array), PerTensor())), want)
