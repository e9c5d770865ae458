"""Knife edges of prototypes where they stand, and what users name."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samebits.core import formula as p
from samebits.core import prototypes
from samebits.proofs import prototype
from samebits.proofs.inputs.bits import place, raw_bits
from samebits.proofs.inputs.named import named
from samebits.proofs.prototypes.edges import beside_edges, found_inputs
from samebits.proofs.prototypes.users import arrays_of, parameters_of, prototype_of, what_mixes

EXAMPLES = Path(__file__).parents[3] / "examples" / "prototypes"
X = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)


@prototype
def stepped(x: Any, *, s: Any = p.learned(0.3)) -> Any:
    v = p.clamp(x / s, -8.0, 7.0)
    return p.straight_through(p.round(v), v) * s


@prototype
def scaled(x: Any, *, bits: int = 4) -> Any:
    """Statistics of every row: an extreme, and a mean, which moves with every element."""
    s = p.absmax(x, -1, True) / (2.0 ** (bits - 1) - 1) + p.mean(abs(x), -1, True) / 8
    return p.round(x / s) * s


@pytest.mark.parametrize("one", [stepped, scaled])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_elements_stand_beside_edges(one: Any, dtype: Any) -> None:
    """Neighbours with different results, with the statistics of the tensor as it is."""
    x = X.astype(dtype)
    pair = beside_edges(one, x)
    apart = np.abs(place(pair.before) - place(pair.after))
    assert set(apart[pair.moved].tolist()) == {1}
    assert not apart[~pair.moved].any()
    y, other = (prototypes.apply(one, v) for v in (pair.before, pair.after))
    assert pair.edges == np.count_nonzero((raw_bits(y) != raw_bits(other))[pair.moved])  # zeros have signs
    assert pair.moved.sum() > 100
    assert pair.edges >= 0.95 * pair.moved.sum()


def test_edges_of_the_gradient() -> None:
    pair = beside_edges(stepped, X * 4, "d x")
    ends = np.float32(0.3) * np.float32([-8, 7])
    assert pair.edges == pair.moved.sum() > 5
    assert np.abs(pair.before[pair.moved][:, None] - ends).min(1).max() < 1e-5
    with pytest.raises(ValueError, match="`which` must be one of 'y', 'd x', got 'dx'"):
        beside_edges(stepped, X, "dx")


def test_what_is_not_finite_and_what_is_small() -> None:
    x = X.copy()
    x[0, :3] = np.nan, np.inf, -np.inf
    for array in (x, x[:1, :1], x[0, 5], x[:0]):
        for found in found_inputs(stepped, array):
            assert found.shape == array.shape
            np.testing.assert_array_equal(np.isfinite(found), np.isfinite(array))
    assert not list(found_inputs(prototype(lambda x: x * 0 + 1), X))


def test_what_mixes() -> None:
    assert what_mixes(stepped, X) == ""
    line = scaled.function.__code__.co_firstlineno + 3
    assert what_mixes(scaled, X).startswith(
        f"{__file__}:{line}: `absmax` of `scaled` makes an element depend on others"
    )
    assert "is an array of shape (16, 1)" in what_mixes(stepped, X, s=np.ones((16, 1), np.float32))
    assert "begins as a formula" in what_mixes(prototype(lambda x, *, s=p.learned(p.absmax): x * s), X)
    of_parameters = prototype(lambda x, *, s=p.learned(0.5): x * p.amax(s))
    assert what_mixes(of_parameters, X) == ""
    assert "`random_bits`" in what_mixes(prototype(lambda x: p.round(x, "stochastic", noise=p.random_bits(3, x))), X)
    aside = prototype(lambda x, *, s=p.learned(0.5): p.round(x / s) * s)
    aside.gradient(lambda g, x, *, s: (g, {"s": p.sum(g * x)}))
    assert what_mixes(aside, X) == ""  # the sum is of the gradient of s
    other = prototype(lambda x: p.round(x))
    other.gradient(lambda g, x: g - p.mean(g))
    assert "`mean`" in what_mixes(other, X)


def test_names_and_parameters_of_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    pact = prototype_of(f"{EXAMPLES / 'pact.py'}:pact")
    assert pact is prototype_of(f"{EXAMPLES / 'pact.py'}:pact")  # executed once
    assert parameters_of(pact, ["alpha=0.5", " bits = 3 "]) == {"alpha": 0.5, "bits": 3}
    given = arrays_of(pact, {"alpha": 1, "bits": 3}, np.float16)
    assert given["alpha"].dtype == np.float16
    assert given["bits"] == 3
    (tmp_path / "beside.py").write_text("number = 7")
    (tmp_path / "mine.py").write_text("from beside import number\nlist = [number]")
    (tmp_path / "broken.py").write_text("1 / 0")
    assert named(f"{tmp_path / 'mine.py'}:list") == [7]
    with pytest.raises(ImportError, match=r"broken.py cannot be executed: ZeroDivisionError: division by zero"):
        named(f"{tmp_path / 'broken.py'}:x")
    with pytest.raises(ImportError, match="no such file: "):
        named(f"{tmp_path / 'absent.py'}:x")
    with pytest.raises(KeyError, match="has no 'other'"):
        named(f"{tmp_path / 'mine.py'}:other")
    assert named("math:pi") == np.pi
