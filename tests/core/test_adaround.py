"""AdaRound: codes next to each weight, outputs nearer than by rounding to nearest, and a descent that is Adam's."""

import re
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from samebits.core import IntegerFormat, PerAxis, PerGroup, Quantizer, catalog, choose_qparams, fake_quantize, quantize
from samebits.core.adaround import adaround
from samebits.core.gptq import gptq, output_error
from samebits.core.layerwise import penalty_exponents
from samebits.proofs.inputs.compare import assert_same_bits

from ..layerwise_inputs import layer, statistics

INT4 = Quantizer(format=IntegerFormat(4), granularity=PerAxis(0))
AFFINE = catalog["uint4_affine_per_group32"].replace(granularity=PerGroup(16))


@pytest.mark.parametrize("q", [INT4, AFFINE, INT4.replace(bits=3)], ids=["int4", "affine", "int3"])
def test_outputs_are_nearer_and_codes_are_neighbours(q: Quantizer) -> None:
    w, x = layer(16, 32, seed=1)
    hessian = statistics(x)
    codes, qparams, w_hat = adaround(q, w, hessian)
    assert_same_bits(qparams.scale, choose_qparams(q, w).scale)
    off = codes.astype(int) - quantize(q, w, qparams)
    assert set(np.unique(off)) == {-1, 0, 1}
    error, nearest = (output_error(w, one, hessian) for one in (w_hat, fake_quantize(q, w)))
    assert error < 0.6 * nearest
    assert error < 1.05 * output_error(w, gptq(q, w, hessian)[2], hessian)


def test_a_small_row_is_rounded_as_well_as_possible() -> None:
    """Of all 2**8 roundings of a row, what is found is among the best 5 %, for every row of 12."""
    w, x = layer(12, 8, seed=4)
    hessian = statistics(x)
    _, qparams, w_hat = adaround(INT4, w, hessian)
    floors = np.floor(w / qparams.scale)
    for row in range(12):
        ups = np.array(list(product((0, 1), repeat=8)))
        every = np.clip(floors[row] + ups, -8, 7) * qparams.scale[row]
        errors = np.einsum("ki,ij,kj->k", every - w[row], hessian, every - w[row])
        own = np.einsum("i,ij,j->", w_hat[row] - w[row], hessian, w_hat[row] - w[row])
        assert (errors < own * (1 - 1e-6)).mean() <= 0.05


def test_what_is_not_better_is_rounded_to_nearest() -> None:
    w, _ = layer(4, 8)
    independent = np.diag(np.arange(1.0, 9))  # nearest is best
    assert_same_bits(adaround(INT4, w, independent, steps=20)[2], fake_quantize(INT4, w))
    assert_same_bits(adaround(INT4, w, np.zeros((8, 8)))[2], fake_quantize(INT4, w))
    one_wild_step = adaround(INT4, w, independent, steps=1, rate=10.0)  # each code goes up or down by a rounding's sign
    assert_same_bits(one_wild_step[0], quantize(INT4, w, one_wild_step[1]))


def test_the_penalty_falls() -> None:
    exponents = penalty_exponents(100)
    assert exponents[:20] == [0.0] * 20
    assert exponents[20] == 20.0
    assert all(a > b for a, b in pairwise(exponents[20:]))
    assert 2.0 < exponents[-1] < 2.01
    assert len(penalty_exponents(1)) == 1


W, X = layer(4, 8)
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"q": catalog["float8_e4m3fn_per_tensor"]}, ValueError, "`q` must have a format of integers"),
    ({"q": INT4.replace(rounding="stochastic")}, ValueError, "`rounding` must not draw or learn here"),
    ({"q": INT4.replace(granularity=PerGroup(3))}, ValueError, "multiple of the group size 3"),
    ({"q": INT4.replace(statistic="signed_absmax")}, ValueError, "`q` must not have signed scales"),
    ({"steps": 0}, ValueError, "`steps` must be at least 1, got 0"),
    ({"rate": 0.0}, ValueError, "`rate` must be positive and finite, got 0.0"),
    ({"penalty": -1.0}, ValueError, "`penalty` must be positive and finite, got -1.0"),
    ({"penalty": "1"}, TypeError, "`penalty` must be a number"),
    ({"hessian": np.full((8, 8), np.nan)}, ValueError, "`hessian` must be finite"),
    ({"hessian": np.eye(4)}, ValueError, "`hessian` must have shape (8, 8)"),
    ({"w": W[0]}, ValueError, "`w` must be a matrix"),
    ({"w": W.astype(int)}, TypeError, "`w` must have dtype"),
]


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED)
def test_bad_input_is_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        adaround(**{"q": INT4, "w": W, "hessian": statistics(X), **changes})
