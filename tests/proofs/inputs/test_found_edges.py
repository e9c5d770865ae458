"""Edges found by asking: all boundaries of every kind of quantizer, planted faults of one number, what is promised."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from samebits import core
from samebits.core import PerToken, QParams, Quantizer, catalog
from samebits.core.formats import BinaryFormat
from samebits.proofs.inputs.bits import at_place, place
from samebits.proofs.inputs.found_edges import TooManyEdges, found_differences, found_edges
from samebits.proofs.inputs.knife_edges import boundaries, knife_edges, special_values
from samebits.proofs.inputs.numbers import zero_points

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SIXTEEN = (BFLOAT16, np.dtype(np.float16))
SCALES = (0.1, 1.0, 1 / 127, 3e4, 2.0**-126)
KINDS: dict[Any, Quantizer] = {}
for entry in catalog.values():
    if entry.deterministic:
        KINDS.setdefault((entry.format, entry.rounding, entry.zero_point, entry.arithmetic), entry)


def codes_of(q: Quantizer, zeros: Array | None) -> Callable[..., Any]:
    """A function of x, scale and the row: codes."""
    each = q.replace(granularity=PerToken())

    def codes(x: Array, scale: Array, row: Array) -> Array:
        given = QParams(scale[:, None], None if zeros is None else zeros[row][:, None])
        return core.quantize(each, x[:, None], given)[:, 0]

    return codes


def windows(q: Quantizer, scale: Any, zero: Any, dtype: Any) -> Array:
    """Every number within 4 places of a boundary, and both zeros: where `knife_edges` says that all changes are."""
    with np.errstate(over="ignore"):
        near = place(boundaries(q, scale, zero).astype(dtype))
    end = int(place(np.asarray(np.inf, dtype)))
    places = np.clip(np.add.outer(near, np.arange(-4, 5)).reshape(-1), ~end, end)
    return np.unique(np.append(places, [-1, 0]))


@pytest.mark.parametrize("q", KINDS.values(), ids=[f"{q.format}-{q.rounding}-{q.zero_point}" for q in KINDS.values()])
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.filterwarnings("error")
def test_edges_of_every_kind_of_quantizer_are_those_at_its_boundaries(q: Quantizer, dtype: np.dtype[Any]) -> None:
    if q.format.bits > 8 and dtype != np.float32:
        pytest.skip("the boundaries of 16 bits lie closer than the numbers")
    scales: Array = np.float32(SCALES[:2] if q.format.bits > 8 else SCALES)
    middle = np.full(len(scales), int(q.format.lo + q.format.hi) // 2)
    zeros = zero_points(q, middle, scales) if q.affine else None
    codes = codes_of(q, zeros)
    found = found_edges(codes, dtype, scales, np.arange(len(scales)), spacing=2**16 if dtype == np.float32 else None)
    for i, scale in enumerate(scales):
        places = windows(q, scale, None if zeros is None else zeros[i], dtype)
        x = at_place(places, dtype)
        made = codes(x, np.full(x.shape, scale), np.full(x.shape, i)).astype(np.int64)
        changes = np.flatnonzero((made[1:] != made[:-1]) & (np.diff(places) == 1))
        before, after = (place(side[found.row == i]) for side in (found.before, found.after))
        np.testing.assert_array_equal(after, before + 1)
        assert np.isin(places[changes], before).all()
        if elsewhere(q):
            assert len(before) == q.format.hi - q.format.lo - isinstance(q.format, BinaryFormat)
        else:
            np.testing.assert_array_equal(before, places[changes])
            assert len(changes) > 0


def elsewhere(q: Quantizer) -> bool:
    """Whether codes may change away from what `boundaries` says of real numbers.

    Zero points that are floats are added with a rounding error of their own size, large beside an x near 0; and the
    sign of x is lost where the quotient of a small x and a large scale is 0.
    """
    return q.arithmetic.has_float_zeros or isinstance(q.format, BinaryFormat)


def test_edges_of_float64_are_those_at_its_boundaries() -> None:
    q, scales = catalog["int4_per_channel"], np.array([0.1, 2.0**-1022])
    found = found_edges(codes_of(q, None), np.float64, scales, np.arange(2), spacing=2**52)
    for i, scale in enumerate(scales):
        ends = np.concatenate([side[found.row == i] for side in (found.before, found.after)])
        assert np.isin(ends, knife_edges(q, scale, None, np.float64)).all()
        assert len(ends) == 2 * (q.format.hi - q.format.lo)


# --- planted faults --------------------------------------------------------------------------------------------------

S: Array = np.float32([0.1, 0.7])


def quotients(x: Array, s: Array) -> Array:
    return np.asarray(np.clip(np.round(x / s), -128, 127) + np.float32(0))


def moved(k: int, by: int) -> Callable[..., Any]:
    """The formula of int8 with the threshold below code k moved by so many numbers, at scale 0.1."""
    after = place(found_edges(quotients, np.float32, S).after[k + 127])

    def wrong(x: Array, s: Array) -> Array:
        right, at = quotients(x, s), place(x)
        between = (at >= min(after, after + by)) & (at < max(after, after + by)) & (s == S[0])
        return np.where(between, np.float32(k - (by > 0)), right)

    return wrong


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("k", [-127, -126, -2, 1, 2, 77, 127])
def test_a_threshold_that_one_number_moves_is_found(k: int, by: int) -> None:
    right, found = (found_edges(f, np.float32, S) for f in (quotients, moved(k, by)))
    apart = np.flatnonzero(place(right.before) != place(found.before))
    np.testing.assert_array_equal(apart, [k + 127])
    assert place(found.before[k + 127]) - place(right.before[k + 127]) == by
    parting = found_differences(quotients, moved(k, by), np.float32, S)
    assert (len(parting.x), parting.row.tolist()) == (1, [0])
    assert parting.x[0] == (right.after if by > 0 else right.before)[k + 127]


def test_a_reciprocal_is_found() -> None:
    def by_reciprocal(x: Array, s: Array) -> Array:
        return np.asarray(np.clip(np.round(x * (1 / s)), -128, 127) + np.float32(0))

    right, found = (found_edges(f, np.float32, S) for f in (quotients, by_reciprocal))
    assert len(right.row) == len(found.row) == 2 * 255
    for i, s in enumerate(S):
        ends = [place(edges.after[edges.row == i]) for edges in (right, found)]
        between = [np.arange(min(pair), max(pair)) for pair in zip(*ends, strict=True)]
        x = at_place(windows(catalog["int8_per_tensor"], s, None, np.float32), np.float32)
        expected = x[quotients(x, s) != by_reciprocal(x, s)]
        np.testing.assert_array_equal(np.concatenate(between), place(expected))
        assert len(expected) > 20


def test_a_wrong_tie_of_one_code_is_found() -> None:
    def wrong(x: Array, s: Array) -> Array:
        return np.where(x / s == 44.5, 45, quotients(x, s))

    right, found = (found_edges(f, np.float32, np.float32([0.25])) for f in (quotients, wrong))
    apart = np.flatnonzero(place(right.before) != place(found.before))
    np.testing.assert_array_equal(apart, [44 + 128])
    assert found.after[apart] == np.float32(44.5 * 0.25) == right.before[apart]


def bump(at: float, width: int, dtype: Any = np.float32) -> Callable[..., Any]:
    first = int(place(np.asarray(at, dtype)))

    def wrong(x: Array) -> Array:
        where = place(x) - first
        return np.where((where >= 0) & (where < width), np.float32(99), np.round(x.astype(np.float32)))

    return wrong


def sees(function: Callable[..., Any], **how: Any) -> bool:
    """Whether both ends of the bump are among the edges."""
    dtype = how.pop("dtype", np.float32)
    found = found_edges(function, dtype, between=(-200, 200), **how)
    return len(found.row) == len(found_edges(bump(300, 0, dtype), dtype, between=(-200, 200)).row) + 2


def test_a_single_wrong_number_is_found_where_promised_and_missed_elsewhere() -> None:
    """In 2**32 numbers it is a matter of luck; the test says so, and what finds it."""
    after = float(np.nextafter(np.float32(6.5), np.float32(7)))  # the first number that becomes 7
    second = float(np.nextafter(np.float32(after), np.float32(7)))
    assert not sees(bump(6.8123, 1))
    assert len(found_edges(bump(6.8123, 1), np.float32, between=(6.75, 6.875), spacing=1).row) == 2
    assert sees(bump(6.8123, 1, BFLOAT16), dtype=BFLOAT16)
    assert sees(bump(second, 1))  # beside an edge
    assert sees(bump(-4.0, 1))  # a power of two
    assert sees(bump(float(np.nextafter(np.float32(4), np.float32(5))), 1))  # a neighbour of one
    assert sees(bump(6.8123, 1), start=np.float32([6.8123]))
    assert sees(bump(6.8123, 2**16))  # as wide as the grid


# --- what the module promises, on all numbers of 16 bits -------------------------------------------------------------


def by_places(dtype: np.dtype[Any], cuts: list[int], values: list[int]) -> tuple[Callable[..., Any], Array]:
    """A step function with the first place of every plateau but the first, and its edges."""
    at, value = np.array(cuts, np.int64), np.array(values)

    def function(x: Array) -> Array:
        return value[np.searchsorted(at, place(x), side="right")]

    changes = at[value[1:] != value[:-1]]
    return function, changes


@st.composite
def plateaus(draw: st.DrawFn, least: int) -> tuple[np.dtype[Any], list[int]]:
    dtype = draw(st.sampled_from(SIXTEEN))
    end = int(place(np.asarray(np.inf, dtype)))
    widths = draw(st.lists(st.one_of(st.integers(least, least + 3), st.integers(least, 4000)), min_size=1, max_size=30))
    first = draw(st.integers(~end + least, end))
    cuts = [c for c in np.cumsum([first, *widths]).tolist() if c <= end + 1 - least]
    return dtype, cuts or [0]


@settings(max_examples=60)
@given(plateaus(least=1), st.sampled_from([8, 64]), st.booleans())
def test_all_edges_of_a_monotone_function_are_found(
    drawn: tuple[np.dtype[Any], list[int]], spacing: int, down: bool
) -> None:
    dtype, cuts = drawn
    values = list(range(len(cuts) + 1))
    function, edges = by_places(dtype, cuts, values[::-1] if down else values)
    found = found_edges(function, dtype, spacing=spacing)
    np.testing.assert_array_equal(place(found.after), edges)


@settings(max_examples=60)
@given(st.sampled_from([8, 64]).flatmap(lambda n: st.tuples(st.just(n), plateaus(least=n))), st.data())
def test_all_edges_between_plateaus_as_wide_as_the_grid_are_found(
    drawn: tuple[int, tuple[np.dtype[Any], list[int]]], data: st.DataObject
) -> None:
    spacing, (dtype, cuts) = drawn
    size = len(cuts) + 1
    function, edges = by_places(dtype, cuts, data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
    found = found_edges(function, dtype, spacing=spacing)
    np.testing.assert_array_equal(place(found.after), edges)


@settings(max_examples=60)
@given(st.sampled_from(SIXTEEN), st.integers(-20_000, 20_000), st.data())
def test_a_plateau_as_wide_as_it_is_far_from_an_edge_is_seen(dtype: Any, edge: int, data: st.DataObject) -> None:
    spacing = 2**7
    distance = data.draw(st.integers(1, spacing), label="distance")
    width = data.draw(st.integers(distance, spacing + 9), label="width")
    far = edge + distance
    cuts, values = [edge, far, far + width], [0, 1, 2, 1]
    if data.draw(st.booleans(), label="below"):
        cuts, values = [edge - distance - width, edge - distance, edge], values[::-1]
    function, edges = by_places(np.dtype(dtype), cuts, values)
    found = found_edges(function, dtype, spacing=spacing)
    np.testing.assert_array_equal(place(found.after), edges)


@settings(max_examples=40)
@given(st.sampled_from(SIXTEEN), st.lists(st.integers(-30_000, 30_000), min_size=1, max_size=20), st.data())
def test_what_is_found_is_an_edge(dtype: Any, cuts: list[int], data: st.DataObject) -> None:
    cuts = sorted(set(cuts))
    size = len(cuts) + 1
    values = data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    function, edges = by_places(np.dtype(dtype), cuts, values)
    coarse = found_edges(function, dtype, spacing=2**7)
    assert np.isin(place(coarse.after), edges).all()
    assert (function(coarse.before) != function(coarse.after)).all()
    assert (place(coarse.after) == place(coarse.before) + 1).all()
    np.testing.assert_array_equal(place(found_edges(function, dtype).after), edges)


@pytest.mark.parametrize("dtype", [*SIXTEEN, np.dtype(np.float32), np.dtype(np.float64)])
def test_places_are_the_order_of_numbers_with_both_zeros(dtype: np.dtype[Any]) -> None:
    end = int(place(np.asarray(np.inf, dtype)))
    places = np.arange(~end, end + 1) if dtype.itemsize == 2 else np.array([~end, ~end + 1, -2, -1, 0, 1, end - 1, end])
    x = at_place(places, dtype)
    np.testing.assert_array_equal(place(x), places)
    wide = x.astype(np.float64)
    assert (np.diff(np.sign(wide)) >= 0).all()
    with np.errstate(invalid="ignore"):
        assert ((wide[1:] > wide[:-1]) | ((places[1:] == 0) & (wide[1:] == 0))).all()
    assert np.signbit(wide[places == -1]).all()
    assert not np.signbit(wide[places == 0]).any()
    with np.errstate(invalid="ignore"):  # signalling NaN
        assert np.isnan(at_place(np.array([end + 1]), dtype)).all()


# --- calls -----------------------------------------------------------------------------------------------------------


def test_what_is_asked_grows_with_the_logarithm_of_the_spacing() -> None:
    for log in (12, 16, 20):
        found = found_edges(quotients, np.float32, S, spacing=2**log)
        start = 2 * (2**32 // 2**log + 2000)
        assert len(found.row) == 510
        assert found.asked <= start + 510 * (log + 2 * log)
        assert found.calls <= 2 * (log + 4) + start // 2**20


def test_calls_have_one_shape_where_a_width_is_given() -> None:
    shapes = []

    @jax.jit
    def compiled(x: jax.Array, s: jax.Array) -> jax.Array:
        shapes.append((x.shape, s.shape))  # seen when it is traced
        return jnp.clip(jnp.round(x / s), -128, 127).astype(jnp.int32)

    found = found_edges(compiled, np.float32, S, width=5000, library="jax", spacing=2**20)
    assert shapes == [((5000,), (5000,))]
    right = found_edges(quotients, np.float32, S)
    assert len(found.row) == len(right.row)
    assert (np.abs(place(found.after) - place(right.after)) <= 1).all()  # XLA multiplies by the reciprocal
    assert -(-found.asked // 5000) <= found.calls


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float64)])
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_functions_of_torch_and_jax_are_asked(library: str, dtype: np.dtype[Any]) -> None:
    m: Any = torch if library == "torch" else jnp
    found = found_edges(lambda x: (m.round(x), x > 2.25), dtype, between=(0.1, 3.7), library=library)
    assert found.after.dtype == dtype
    up = [at_place(place(np.asarray(v, dtype)) + 1, dtype) for v in (0.5, 2.25, 2.5)]
    np.testing.assert_array_equal(found.after, np.array([up[0], 1.5, up[1], up[2], 3.5], dtype))


def fails(x: Array, *_: Any) -> Array:
    return x[:-1]


class Changing:
    """Answers of another dtype the second time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Array) -> Array:
        self.calls += 1
        return np.round(x).astype(np.int8 if self.calls == 1 else np.int16)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "int8"}, TypeError, "`dtype` must be float32, float64, bfloat16 or float16, got int8"),
        ({"parameters": (S, S[:1])}, ValueError, "1-d arrays of one length, at least 1, got shapes (2,), (1,)"),
        ({"parameters": (S[:0],)}, ValueError, "at least 1, got shapes (0,)"),
        ({"parameters": (0.1,)}, ValueError, "got shapes ()"),
        ({"spacing": 0}, ValueError, "`spacing` must be in 1..8388608 for float32, got 0"),
        ({"spacing": 2**24}, ValueError, "got 16777216"),
        ({"between": (1, 1)}, ValueError, "two different numbers of float32, ascending, got (1, 1)"),
        ({"between": (0, np.nan)}, ValueError, "`between` must be two numbers, got (0, nan)"),
        ({"between": (0, 1, 2)}, ValueError, "`between` must be two numbers"),
        ({"start": [1.0, np.nan]}, ValueError, "`start` must be numbers, 1-d or of shape (1, n)"),
        ({"start": np.ones((2, 3))}, ValueError, "got shape (2, 3)"),
        ({"width": 0}, ValueError, "`width` must be positive, got 0"),
        ({"library": "cupy"}, ValueError, "`library` must be one of numpy, torch, jax, got 'cupy'"),
        ({"most": 0}, ValueError, "`most` must be positive, got 0"),
        ({"function": fails}, ValueError, "arrays of the shape of x, "),
        ({"function": lambda x: x.astype(str)}, TypeError, "`function` must return numbers, got an array of <U"),
        ({"function": Changing()}, ValueError, "same dtypes every time"),
        ({"function": lambda x: x}, TooManyEdges, "more than 1,048,576 edges (`most`)"),
        ({"function": np.round, "most": 100}, TooManyEdges, "`found_differences` compares two functions"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_wrong_requests_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    how = {"function": np.signbit, "dtype": np.float32, "parameters": (), **arguments}
    function, dtype, parameters = (how.pop(name) for name in ("function", "dtype", "parameters"))
    with pytest.raises(error) as refused:
        found_edges(function, dtype, *parameters, **how)
    assert message in str(refused.value)


def test_edges_of_what_has_none_and_of_special_values() -> None:
    nothing = found_edges(np.zeros_like, np.float32)
    assert len(nothing.row) == 0
    np.testing.assert_array_equal(nothing.knife_edges(), special_values(np.float32))
    payloads = found_edges(lambda x: (x.view(np.uint32) | 0x7FC00000).view(np.float32), np.float32)
    assert len(payloads.row) == 0  # any NaN is the same
    sign = found_edges(np.signbit, np.float16)
    assert (place(sign.before).tolist(), place(sign.after).tolist()) == ([-1], [0])
    finite = found_edges(lambda x: np.where(np.isinf(x), np.nan, 0), np.float32)
    assert finite.after[1] == np.inf
    assert finite.before[0] == -np.inf
