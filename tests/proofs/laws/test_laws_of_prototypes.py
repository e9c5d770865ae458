"""Laws of prototypes: what keeps them, and faults that break each of them."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings

from samebits.core import PerToken, QParams, catalog
from samebits.core import formula as p
from samebits.proofs import prototype
from samebits.proofs.inputs import strategies
from samebits.proofs.laws.of_prototypes import (
    EVERY,
    LAWS,
    Law,
    blocks_do_not_touch,
    broken,
    error_is_bounded,
    takes_few_values,
)
from samebits.torch_frontend import primitives as torch_primitives

X = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
G = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)
X[0, :6] = 0.0, -0.0, 1.5, -1.5, 7.25, -9.0


@prototype
def grid(x: Any, *, s: Any = p.learned(0.25), hi: float = 7.0) -> Any:
    """It keeps every law."""
    q = p.clamp(x / s, -hi, hi)
    return p.round(p.stop_gradient(q)) * p.stop_gradient(s)


@grid.gradient
def grid_gradient(g: Any, x: Any, *, s: Any, hi: float) -> Any:
    return p.where(abs(x / s) <= hi, g, 0.0)


@prototype
def rows(x: Any) -> Any:
    s = p.maximum(p.absmax(x, -1, True), 0.0078125) / 127
    return p.straight_through(p.round(x / s) * s, x)


PARAMETRIZED: tuple[Law, ...] = (
    blocks_do_not_touch(PerToken()),
    error_is_bounded(0.125, -1.75, 1.75),
    takes_few_values(15),
)


def test_a_good_prototype_keeps_all() -> None:
    assert broken(grid, [*LAWS, *PARAMETRIZED], X, G) == {}
    assert broken(grid, [*LAWS, *PARAMETRIZED], X, G, "torch eager", given={"s": np.float32(0.25)}) == {}
    own = ["is_monotone", "is_odd", "order_plays_no_part", "zero_stays_zero", blocks_do_not_touch(PerToken())]
    assert broken(rows, own, X, G) == {}
    for x in (X[:0], X[0, 2], X.astype(np.float64)):
        assert broken(grid, list(LAWS), x, given={"s": np.asarray(0.25, x.dtype)}) == {}


def bad(function: Callable[..., Any]) -> Any:
    return prototype(function)


FAULTS: dict[str, tuple[str | Law, Any]] = {
    "an offset": ("zero_stays_zero", bad(lambda x: p.round(x) + 0.5)),
    "a shift at every call": ("is_idempotent", bad(lambda x: p.round(x) * 0.75)),
    "a step down": ("is_monotone", bad(lambda x: p.where(x > 1.5, 1.0, p.round(x)))),
    "halves away from below": ("is_odd", bad(lambda x: p.floor(x + 0.5))),
    "a constant for NaN": ("nan_propagates", bad(lambda x: p.where(p.is_nan(x), 0.0, p.round(x)))),
    "NaN for infinities": ("infinities_are_finite", bad(lambda x: p.round(x - x + 1))),
    "a statistic": ("shapes_play_no_part", rows),
    "a factor in the gradient": ("gradient_is_g_or_zero", bad(lambda x: x * 1.5)),
    "a place": ("order_plays_no_part", bad(lambda x: x * p.where(x == x[..., :1], x, 1.0))),
    "a large step": (error_is_bounded(0.125), bad(lambda x: p.round(x))),
    "too many levels": (takes_few_values(3), bad(lambda x: p.round(x))),
    "one scale for all": (blocks_do_not_touch(PerToken()), bad(lambda x: x / p.maximum(p.absmax(x), 1.0))),
}


@pytest.mark.parametrize(("law", "one"), FAULTS.values(), ids=FAULTS)
def test_faults_are_found(law: str | Law, one: Any) -> None:
    found = broken(one, [law], X, G)
    assert list(found) == [law if isinstance(law, str) else law.__qualname__.partition(".")[0]]
    (text,) = found.values()
    assert text.startswith(f"numpy, {one.name}: ")


def test_faults_of_a_mode_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that only arrays of another shape, or a formula that fails, show."""
    assert set(EVERY) <= set(LAWS)
    right = torch_primitives.divide
    monkeypatch.setattr(torch_primitives, "divide", lambda a, b: torch_primitives.multiply(a, right(1.0, b)))
    found = broken(grid, [], X, G, "torch eager", given={"s": np.float32(0.3)})
    assert list(found) == ["equals_specification"]
    assert "torch eager, grid: y: " in found["equals_specification"]
    assert broken(grid, [], X, G, "torch eager", given={"s": np.float32(0.3)}, edges=False) == {}  # seldom without
    monkeypatch.undo()
    shaped = prototype(lambda x: p.round(x) * (1.0 / (x.shape[0] - 64)))
    assert "the formula fails" in broken(shaped, ["shapes_play_no_part"], X)["shapes_play_no_part"]
    written = prototype(lambda x: p.round(x))
    calls = iter(range(10**6))
    monkeypatch.setattr(torch_primitives, "round", lambda x, *_: x + next(calls))
    assert "inputs_are_kept" in broken(written, [], X, G, "torch eager")


def test_mistakes() -> None:
    with pytest.raises(KeyError, match="unknown law 'is_monoton'; did you mean is_monotone"):
        broken(grid, ["is_monoton"], X)
    with pytest.raises(ValueError, match="`mode` must be one of 'numpy'"):
        broken(grid, [], X, mode="jax")
    with pytest.raises(ValueError, match="`bound` must be at least 0, got -1"):
        error_is_bounded(-1)
    with pytest.raises(TypeError, match="is no primitive"):
        broken(prototype(lambda x: np.exp(x)), [], X)


@settings(max_examples=25, deadline=None)
@given(strategies.cases(catalog["int8_per_tensor"], shape=(2, 8)))
def test_drawn_arrays(case: tuple[Any, QParams, Any]) -> None:
    """Ties, numbers of the grid, subnormal and special ones, at a scale that is drawn."""
    x, qparams, g = case
    own = ["is_odd", "nan_propagates", "infinities_are_finite", "zero_stays_zero", "shapes_play_no_part"]
    given_there = {"s": np.asarray(qparams.scale).astype(x.dtype), "hi": 127.0}
    assume(0 < given_there["s"] < ml_dtypes.finfo(x.dtype).max / 256)  # else the largest number is not clamped
    assert broken(grid, [*own, "is_monotone", "gradient_is_g_or_zero"], x, g, given=given_there, edges=False) == {}
