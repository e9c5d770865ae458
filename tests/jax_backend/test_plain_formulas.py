"""Formulas in plain float32: bounds hold where XLA takes subnormal numbers for zero, and results have the bits of core.

XLA's flushing is computed here in NumPy, so that bounds are checked on any platform.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import formula as p
from samebits.core.formula_values import Run
from samebits.core.prototype import Prototype
from samebits.core.prototypes import updated, vjp
from samebits.jax_backend import plain_formulas
from samebits.jax_backend.plain_numbers import NORMAL, SMALLEST, Bounds, after_product, after_quotient, after_sum
from samebits.jax_backend.prototypes import apply
from samebits.proofs import prototype
from samebits.proofs.inputs.compare import assert_same_bits

Array = NDArray[np.float32]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
RULES: dict[str, tuple[Callable[[Bounds, Bounds], Bounds | None], Any]] = {
    "sum": (after_sum, np.add),
    "product": (after_product, np.multiply),
    "quotient": (after_quotient, np.divide),
}
KINDS = {
    "anything": Bounds(),
    "watched": Bounds(least=2.0**-64, quantum=2.0**-88),
    "scale": Bounds(0.0, 2.0**-24, 2.0**24, 2.0**-48, True),
    "scale or 0": Bounds(0.0, 2.0**-24, 2.0**24, 2.0**-48),
    "code": Bounds(0.0, 1.0, 128.0, 1.0),
    "fuzzy": Bounds(2.0**-80, SMALLEST, math.inf, SMALLEST),
    "fuzzy and limited": Bounds(2.0**-80, SMALLEST, 8.0, SMALLEST),
    "constant": Bounds(0.0, 3.0, 3.0, 1.0, True),
}


def flushed(x: Array) -> Array:
    return np.where(np.abs(x) < np.float32(NORMAL), np.copysign(np.float32(0), x), x)


def drawn(bounds: Bounds, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Numbers within bounds, and what a plain array may hold in their place."""
    bits = rng.integers(0, 2**32, 8 * count, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = np.float32(bounds.least) * (1 + rng.integers(0, 4, count).astype(np.float32) * np.float32(2.0**-23))
    x = np.concatenate([bits, near, -near, np.float32([0, -0.0, np.inf, -np.inf, 1, -1, NORMAL, -NORMAL, SMALLEST])])
    x = np.round(x / bounds.quantum) * bounds.quantum if bounds.quantum >= 1 else x
    size = np.abs(x)
    fits = ((size >= bounds.least) | ((size == 0) & (not bounds.nonzero))) & ~np.isnan(x)
    x = x[fits & (size <= bounds.most)].astype(np.float32)
    x = rng.choice(x, count)
    other = np.copysign(np.float32(bounds.fuzz) * rng.choice(np.float32([0, 0, 0.999, 1e-3]), count), x)
    return x, np.where(np.abs(x) < bounds.fuzz, other, x).astype(np.float32)


@pytest.mark.parametrize("rule", RULES)
def test_bounds_hold(rule: str) -> None:
    after, operation = RULES[rule]
    rng, known = np.random.default_rng(0), 0
    for of_a in KINDS.values():
        for of_b in KINDS.values():
            bounds = after(of_a, of_b)
            if bounds is None:
                continue
            known += 1
            (a, plain_a), (b, plain_b) = drawn(of_a, rng, 4000), drawn(of_b, rng, 4000)
            if rule == "sum":
                b[:500], plain_b[:500] = -a[:500], -plain_a[:500]
                b[:500] = np.where(rng.random(500) < 0.5, b[:500], np.nextafter(b[:500], np.float32(0)))
                inside = (np.abs(b) >= of_b.least) & (np.abs(b) <= of_b.most)
                inside &= np.abs(b) >= of_b.fuzz
                inside |= np.arange(len(b)) >= 500
                whole = b / np.float64(of_b.quantum)
                inside &= (np.round(whole) == whole) | ~np.isfinite(b)
                a, plain_a, b = a[inside], plain_a[inside], b[inside]
                plain_b = np.where(np.abs(b) < of_b.fuzz, plain_b[inside], b)
            want, got = operation(a, b), flushed(operation(flushed(plain_a), flushed(plain_b)))
            same = (want.view(np.int32) == got.view(np.int32)) | (np.isnan(want) & np.isnan(got))
            small = (np.abs(want) < bounds.fuzz) & (np.abs(got) < bounds.fuzz)
            alike = np.signbit(want) == np.signbit(got)
            assert (same | (small & alike)).all(), (of_a, of_b, bounds)
            size = np.abs(want[~np.isnan(want)])
            assert (size[size > 0] >= bounds.least).all(), (of_a, of_b, bounds)
            assert (size <= bounds.most).all(), (of_a, of_b, bounds)
    assert known > 20


@prototype
def int8(x: Any, *, s: Any = p.learned(0.03)) -> Any:
    steps = x / s
    return p.clamp(p.straight_through(p.round(steps), steps), -128, 127) * s


@prototype
def several(x: Any, *, s: Any = p.learned(0.3), b: Any = p.learned(0.25)) -> Any:
    """Products that are added, quotients of quotients, what cancels, and a sum."""
    rest = x - p.round(x / s) * s
    y = p.clamp(rest / s / 3.0 + b * x, -0.5, s) * 0.1 * 0.7 + x * s
    y = p.where(x < 0.0, p.maximum(y, -1.0), p.minimum(abs(y), p.absmax(x)))
    return y - x / (x * x + 1.0) + 0.1 - p.sum(x) * 0.0


@prototype
def chosen(x: Any, *, s: Any = p.learned(0.3)) -> Any:
    """Selects by a comparison of what they select: instructions for that would flush."""
    return p.round(x * s + s) + p.minimum(x, s) + p.where(x < 3.0, x, 3.0) * 1.0


@prototype
def part(x: Any) -> Any:
    """Whose gradient is a sum with that of a part, among zeros: -0.0 elsewhere is no zero of such a sum."""
    return p.minimum(p.broadcast_to(x[:, :: x.shape[1]], x.shape) * x, 1.0)


@prototype
def blocks(x: Any) -> Any:
    rows = x.reshape(-1, 16)
    s = p.maximum(p.absmax(rows, -1, True) / 7, 2.0**-20)
    return (p.clamp(p.round(rows / s), -7, 7) * s).reshape(x.shape)


@prototype
def last(x: Any, *, s: Any = p.learned(0.5)) -> Any:
    """Where a result leaves as it is."""
    return x * s / 0.7


def costs(one: Prototype, **given: Any) -> list[int]:
    """How many operations by way of float64 the plan without conditions on ``x`` needs, and whether any is plain."""
    x = np.ones((8, 64), np.float32)

    def formula(room: Any, operands: Any) -> Any:
        return {"": one.run(Run(room), operands["x"], {n: operands[n] for n in given}, {})[0]._array}

    plan = plain_formulas._plan(formula, {"x": jax.numpy.asarray(x), **given}, (), False)
    return [len(plan.costs), plan.saves]


def test_what_needs_float64() -> None:
    """int8 with scales has no operation left that does; a product of any number, as a result, has."""
    s = jax.ShapeDtypeStruct((), np.dtype(np.float32))
    found: list[list[int]] = []
    for one, given in ((int8, {"s": s}), (blocks, {}), (last, {"s": s})):
        jax.eval_shape(lambda g, one=one: found.append(costs(one, **g)), given)
    assert found == [[0, True], [0, True], [2, False]]


def inputs(kind: str) -> Array:
    rng = np.random.default_rng(1)
    near = rng.standard_normal((16, 64)).astype(np.float32)
    match kind:
        case "small":
            return near * np.float32(2.0**-120) * rng.choice(np.float32([1, 2.0**-20, 2.0**60]), near.shape)
        case "large":
            return near * np.float32(2.0**126)
        case "any bits":
            drawn = rng.integers(0, 2**32, near.shape, dtype=np.uint64).astype(np.uint32).view(np.float32)
            return np.where(rng.random(near.shape) < 0.1, np.float32(-0.0), drawn)
        case _:
            return near


def around(function: Any, x: Any, t: Any) -> Any:
    """A formula among operations that a compiler would merge with it."""
    y = function(x * t)
    return y, y + t, y / t


@pytest.mark.parametrize(
    ("one", "scales"),
    [
        (int8, (0.03,)),
        *(pytest.param(q, s, marks=pytest.mark.thorough) for q in (several, last) for s in ((0.3,), (1e-39,), (2e38,))),
        *(pytest.param(int8, s, marks=pytest.mark.thorough) for s in ((1e-44,), (3e-8, 1e-38, -0.5, 0.0))),
        (chosen, (0.3,)),
        (part, (None,)),
        pytest.param(blocks, (None,), marks=pytest.mark.thorough),
    ],
)
def test_same_bits(one: Prototype, scales: tuple[float | None, ...]) -> None:
    def both(x: Any, g: Any, given: Any) -> Any:
        y, pull = jax.vjp(lambda x, given: apply(one, x, **given), x, given)
        return y, pull(g)

    program, seconds = jax.jit(both), jax.jit(lambda x, t, given: around(lambda v: apply(one, v, **given), x, t))
    for scale in scales:
        given = {} if scale is None else {"s": np.float32(scale)}
        for kind, of_g in (
            ("near", "small"),
            ("near", "near"),
            ("small", "near"),
            ("large", "near"),
            ("any bits", "near"),
        ):
            x, g = inputs(kind), inputs(of_g)
            want, gradients = updated(one, x, **given)[0], vjp(one, x, g, **given)
            y, (of_x, of_given) = program(x, g, given)
            assert_same_bits(want, np.asarray(y), call=f"{one.name}, {kind}, {scale}", inputs=x)
            for name, got in {"x": of_x, **of_given}.items():
                assert_same_bits(gradients[name], np.asarray(got), call=f"{name} of {one.name}, {kind}, {scale}")
            if kind == "near" and scale in (None, 0.03, 0.3):  # where textbook operations meet nothing subnormal
                t = np.float32(0.7)
                whole = updated(one, x * t, **given)[0]
                for a, b in zip((whole, whole + t, whole / t), seconds(x, t, given), strict=True):
                    assert_same_bits(a, np.asarray(b), call=f"{one.name} in a program")
