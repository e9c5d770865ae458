"""GPTQ against Qwix, in its arithmetic.

Qwix computes factors and updates in float32, the specification in float64, so a code may differ where a weight lies
within that of a boundary, and then what follows in its row. With Qwix's scale, m / 7.5, the largest weight of a group
lies just there. It divides columns by scales of their shape, so nothing is multiplied by a reciprocal (`dialects` says
when).
"""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import IntegerFormat, PerAxis, PerGroup, Quantizer, dialects
from samebits.core.blocks import expand_blocks
from samebits.core.gptq import gptq, inverse_factor, output_error

from ..layerwise_inputs import layer, statistics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from qwix._src.core import qarray
    from qwix.contrib import gptq_core

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Array = NDArray[Any]
TILES = {PerAxis(0): {}, PerGroup(8): {1: 8}}


def quantizer(granularity: Any) -> Quantizer:
    plain = Quantizer(format=IntegerFormat(4), granularity=granularity)
    return plain.replace(**dialects["qwix"]).replace(division="divide")


def of_qwix(w: Array, hessian: Array, tiles: dict[int, int]) -> tuple[Array, Array]:
    """Codes and scales of Qwix."""
    how = qarray.HowToQuantize(qtype=jnp.int4, channelwise_axes=(0,), tiled_axes=tiles)
    given = jnp.asarray(w), jnp.asarray(hessian, np.float32)
    found, _ = gptq_core.quantize_weight(*given, how, blocksize=16)
    return np.asarray(found.qvalue.astype(np.int8)), np.asarray(found.scale)


def unexplained(q: Quantizer, w: Array, hessian: Array, codes: Array, **settings: Any) -> tuple[int, list[float]]:
    """How many rows differ from other codes, and how far from halfway, in steps, the first weight that does lies."""
    own, qparams, _, losses = gptq(q, w, hessian, blocksize=16, **settings)
    scale = expand_blocks(qparams.scale, q.granularity, w.shape)
    off = np.sqrt(2 * losses) * np.diag(inverse_factor(hessian, settings.get("percdamp", 0.01))) / scale
    rows = np.flatnonzero((own != codes).any(1))
    firsts = [np.argmax(own[row] != codes[row]) for row in rows]
    return len(rows), [abs(off[row, first] - 0.5) for row, first in zip(rows, firsts, strict=True)]


def test_codes_are_those_of_qwix() -> None:
    w, x = layer(24, 32, seed=1)
    x[:, 5] = x[:, 4]  # where no input is, Qwix damps otherwise: see below
    hessian = statistics(x)
    for granularity, tiles in TILES.items():
        q = quantizer(granularity)
        codes, scales = of_qwix(w, hessian, tiles)
        rows, distances = unexplained(q, w, hessian, codes)
        assert rows <= (0 if granularity == PerAxis(0) else 12)
        assert max(distances, default=0.0) < 1e-4
        _, qparams, w_hat, _ = gptq(q, w, hessian, blocksize=16)
        same = scales[:, 0] == qparams.scale[:, 0]  # of a group that begins first
        assert same.all()
        theirs = codes * np.repeat(scales, w.shape[1] // scales.shape[1], 1)
        ours = output_error(w, w_hat, hessian)
        assert output_error(w, theirs, hessian) == pytest.approx(ours, rel=1e-4 if not rows else 0.1)


def test_qwix_damps_without_the_ones_of_unused_columns() -> None:
    """A known difference: the original program takes the mean of the diagonal after it has put ones there."""
    w, x = layer(24, 32, seed=1)
    x[:, 8:24] = 0
    hessian = statistics(x) * 1e-3  # beside which 1 is large
    q = quantizer(PerAxis(0))
    codes, _ = of_qwix(w, hessian, {})
    assert unexplained(q, w, hessian, codes)[0] >= 6
    diagonal = np.diag(hessian)
    share = 0.01 * diagonal.mean() / np.where(diagonal == 0, 1, diagonal).mean()
    assert unexplained(q, w, hessian, codes, percdamp=float(share)) == (0, [])
