"""Batch invariance: integer networks have it; what looks at its batch has not, and is found with the first row."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits.proofs.networks import runs
from samebits.proofs.networks.invariance import batch_invariance
from samebits.torch_frontend.nn import QuantLinear

Array = NDArray[Any]
SIZES = (2, 3, 8)
ROWS = np.random.default_rng(0).standard_normal((13, 64)).astype(np.float32)


@pytest.mark.parametrize(("network", "run"), [("mlp", "numpy"), ("mlp", "torch int8"), ("transformer", "torch eager")])
def test_integer_networks_have_it(network: str, run: str) -> None:
    x = runs.inputs(network)[:13]
    found = batch_invariance(runs.run_of(network, run), x, SIZES)
    assert found.holds
    assert found.first is None
    # each row, in 3 orders, of every size and all at once; the last batch of each size, filled
    assert found.compared == 13 * 3 * 3 + 13 + sum(13 % size or 1 for size in SIZES)


def test_a_scale_that_comes_from_the_batch_is_found() -> None:
    """Dynamic quantization per tensor: the largest element of a batch sets the scale of all. Per token it holds."""
    torch.manual_seed(0)
    x = torch.from_numpy(ROWS)
    of_batch = QuantLinear(64, 10, input_quant="int8_per_tensor").eval()
    found = batch_invariance(of_batch, x, SIZES)
    assert not found.holds
    assert found.first is not None
    row = found.first
    together = of_batch(x[list(row.batch)])[row.batch.index(row.input)]
    assert row.together == together[row.element].item() != row.alone == of_batch(x[[row.input]])[0][row.element].item()
    assert str(row).startswith(f"row {row.input}, in order, batch of 2: element")
    assert batch_invariance(QuantLinear(64, 10, input_quant="int8_per_token").eval(), x, SIZES).holds


def test_a_fault_at_one_size_alone_is_found() -> None:
    """Another order of sums from some batch size on, as libraries choose another kernel."""

    def other_kernel(x: Array) -> Array:
        order = np.arange(64) if len(x) < 8 else np.arange(64)[::-1]
        total = np.zeros(len(x), np.float32)
        for place in order:
            total = total + x[:, place] * np.float32(0.1)
        return total[:, None]

    found = batch_invariance(other_kernel, ROWS, SIZES)
    assert 0 < found.differing < found.compared
    assert found.first is not None
    assert len(found.first.batch) == 8
    assert batch_invariance(other_kernel, ROWS[:7], (2, 3, 5)).holds


def test_a_fault_of_places_is_found() -> None:
    """What depends on the place in the batch, or on the row before, shows in another order."""
    assert not batch_invariance(lambda x: x + np.arange(len(x))[:, None], ROWS, (2,)).holds
    assert not batch_invariance(lambda x: x + np.roll(x, 1, 0), ROWS, (2,)).holds
    assert not batch_invariance(lambda x: x if len(x) != 13 else x + 1, ROWS, (2,)).holds
    assert batch_invariance(lambda x: x, ROWS, (1, 2)).holds


def test_several_results_and_special_values() -> None:
    x = ROWS.copy()
    x[3, :4] = np.nan, np.inf, -0.0, 1e-40
    assert batch_invariance(lambda x: (x, x[:, 0]), x, (2,)).holds
    signs = batch_invariance(lambda x: (x, x + (0.0 if len(x) > 1 else -0.0)), x, (2,))
    assert signs.first is not None
    assert (signs.first.input, signs.first.alone, signs.first.together) == (3, 0.0, 0.0)
    assert np.signbit(signs.first.alone) != np.signbit(signs.first.together)


def test_refused() -> None:
    with pytest.raises(ValueError, match="`inputs` must have a row, got none"):
        batch_invariance(lambda x: x, ROWS[:0])
    with pytest.raises(ValueError, match="`sizes` must be at least 1, got 0"):
        batch_invariance(lambda x: x, ROWS, (0,))
    with pytest.raises(ValueError, match=r"`run` must give a row for each of 1 inputs, gave shape \(64, 1\)"):
        batch_invariance(lambda x: x.T, ROWS)
    with pytest.raises(ValueError, match="`run` must give an array, or a tuple of arrays, gave none"):
        batch_invariance(lambda x: (), ROWS)
    with pytest.raises(TypeError, match="`inputs` must be an array of rows, got list"):
        batch_invariance(lambda x: x, ROWS.tolist())
    with pytest.raises(TypeError, match=r"`sizes` must be an int, got 2\.5"):
        batch_invariance(lambda x: x, ROWS, (2.5,))


def test_rows_of_another_dtype_are_told() -> None:
    first = batch_invariance(lambda x: x if len(x) == 1 else x.astype(np.float64), ROWS, (2,)).first
    assert first is not None
    assert "dtype: expected float32, got float64" in str(first)
