"""Laws of prototypes: what a quantizer that is a formula over values may promise, and what every one must keep.

A prototype has no codes and no scales of its own, so the laws of the catalog that speak of these do not apply. Each law
here takes a mode, a prototype, an array, an incoming gradient and the parameters, and raises AssertionError with an
element at which its promise is broken. `broken` asks several and gives what was found:

    broken(pact, ["is_idempotent", "is_monotone"], x, g, alpha=np.float32(2))

Every prototype has to keep `EVERY`; the others are promises of some, which their author names.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.catalog import Named
from ...core.granularity import Granularity
from ...core.prototype import Prototype
from ..inputs.compare import assert_same_bits
from ..modes.execution import MODES
from ..prototypes.agreement import results
from ..prototypes.edges import found_inputs
from ..prototypes.users import complete, what_mixes
from .blockwise import owners
from .judging import require, with_every

Array = NDArray[Any]
Given = Mapping[str, Any]
Law = Callable[[str, Prototype, Array, Array, Given], None]


def equals_specification(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
    """Result, new states and gradients have the bits of mode "numpy"."""
    expected, got = results("numpy", one, x, g, **given), results(mode, one, x, g, **given)
    for name, value in expected.items():
        assert_same_bits(value, got[name], call=_claim(mode, one, name), inputs={"x": x})


def inputs_are_kept(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
    """Nothing that is given is written to, and the same arrays give the same bits again."""
    arrays = {"x": x, "g": g, **{name: np.asarray(given[name]) for name in given if name in one.parameters}}
    before = {name: array.copy() for name, array in arrays.items()}
    first, second = results(mode, one, x, g, **given), results(mode, one, x, g, **given)
    for name, array in before.items():
        assert_same_bits(array, arrays[name], call=_claim(mode, one, f"`{name}` afterwards"))
    for name, value in first.items():
        assert_same_bits(value, second[name], call=_claim(mode, one, f"{name}, second call"), inputs={"x": x})


def memory_plays_no_part(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
    """Arrays that are not contiguous, or in another order of memory, have the results of their copies."""
    apart = np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x
    expected = results(mode, one, x, g, **given)
    for kind, given_x in (("not contiguous", apart), ("in Fortran's order", np.array(x, order="F"))):
        for name, value in results(mode, one, given_x, np.array(g, order="F"), **given).items():
            assert_same_bits(expected[name], value, call=_claim(mode, one, f"{name}, {kind}"), inputs={"x": x})


def shapes_play_no_part(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
    """Of elementwise formulas: an element has its result in any shape: flat, by itself (0-d), and empty arrays too."""
    if reason := what_mixes(one, x, **given):
        raise AssertionError(_claim(mode, one, f"elementwise: {reason}"))
    whole = results(mode, one, x, g, **given)
    for shape, part in ((-1, slice(None)), ((), slice(0, 1)), ((0, 3), slice(0, 0))):
        some = (x.reshape(-1)[part].reshape(shape), g.reshape(-1)[part].reshape(shape)) if x.size else (x, g)
        alone = results(mode, one, *some, **given)
        for name in ("y", "d x"):
            expected = whole[name].reshape(-1)[part].reshape(shape) if x.size else whole[name]
            call = _claim(mode, one, f"{name} in the shape {np.shape(some[0])}")
            assert_same_bits(expected, alone[name], call=call, inputs={"x": some[0]})


def nan_propagates(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
    """The result is NaN where x is NaN; and nowhere else, if the formula is elementwise."""
    holed = with_every(np.where(np.isfinite(x), x, np.zeros_like(x)), np.nan, 3)
    y = _y(mode, one, holed, given)
    alone = not what_mixes(one, x, **given)
    held = (np.isnan(y) == np.isnan(holed)) if alone else np.isnan(y) | ~np.isnan(holed)
    require(held, _claim(mode, one, "NaN where x is NaN" + (", nowhere else" if alone else "")), x=holed, y=y)


def infinities_are_finite(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
    """Of formulas that clamp: an infinity has the result of the largest number of its sign."""
    infinite = with_every(np.full_like(x, np.inf), -np.inf, 2)
    largest = np.nextafter(infinite, np.zeros_like(x))
    y, of_largest = _y(mode, one, infinite, given), _y(mode, one, largest, given)
    assert_same_bits(of_largest, y, call=_claim(mode, one, "the result of infinities"), inputs={"x": infinite})


def zero_stays_zero(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
    """Both zeros have a zero for a result, beside whatever else there is."""
    zeros = with_every(with_every(x, 0.0, 2), -0.0, 4)
    y = _y(mode, one, zeros, given)
    require((zeros != 0) | (y == 0), _claim(mode, one, "zero stays zero"), x=zeros, y=y)


def is_idempotent(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
    """What is quantized stays as it is, at the same parameters, bit for bit."""
    y = _y(mode, one, x, given)
    assert_same_bits(y, _y(mode, one, y, given), call=_claim(mode, one, "the result again"), inputs={"x": x, "y": y})


def is_monotone(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
    """A larger element of a row has no smaller result. Elements of the last axis, NaN aside."""
    row = np.sort(np.where(np.isnan(x), np.zeros_like(x), x), axis=-1) if x.ndim else x
    y = _y(mode, one, row, given)
    if x.ndim and x.shape[-1] > 1:
        wide = y.astype(np.float64)
        held = (wide[..., 1:] >= wide[..., :-1]) | np.isnan(wide[..., 1:]) | np.isnan(wide[..., :-1])
        values = {"x": row[..., :-1], "next x": row[..., 1:], "y": y[..., :-1], "next y": y[..., 1:]}
        require(held, _claim(mode, one, "results ascend with the inputs"), **values)


def is_odd(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
    """The result of -x is -y; zeros of either sign are the same here."""
    y, mirrored = _y(mode, one, x, given), _y(mode, one, -x, given)
    held = (mirrored == -y) | (np.isnan(y) & np.isnan(mirrored))
    require(held, _claim(mode, one, "f(-x) = -f(x)"), x=x, y=y, mirrored=mirrored)


def order_plays_no_part(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
    """Elements of the last axis may stand in any order: only as far as statistics are no sums of rounded terms."""
    order = np.random.default_rng(0).permutation(x.shape[-1] if x.ndim else 0)
    if x.ndim:
        y, mixed = _y(mode, one, x, given), _y(mode, one, np.ascontiguousarray(x[..., order]), given)
        assert_same_bits(y[..., order], mixed, call=_claim(mode, one, "elements in another order"))


def gradient_is_g_or_zero(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
    """Every element of the gradient of x is the incoming one, bit for bit, or a zero: a straight-through rule."""
    dx = results(mode, one, x, g, **given)["d x"]
    expected = np.where(dx == 0, dx, g)
    assert_same_bits(expected, dx, call=_claim(mode, one, "the gradient of x is g or 0"), inputs={"x": x, "g": g})


def error_is_bounded(bound: float, lo: float = -np.inf, hi: float = np.inf) -> Law:
    """A law of a bound: ``|y - x| <= bound`` for x in [lo, hi], by float64.

    Raises:
        ValueError: a bound that is no number of at least 0.
    """
    if not bound >= 0:
        raise ValueError(f"`bound` must be at least 0, got {bound}")

    def law(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
        y, wide = _y(mode, one, x, given), x.astype(np.float64)
        with np.errstate(invalid="ignore"):
            inside = np.isfinite(wide) & (wide >= lo) & (wide <= hi)
            error = np.abs(y.astype(np.float64) - wide)
        require(~inside | (error <= bound), _claim(mode, one, f"an error of at most {bound}"), x=x, y=y, error=error)

    return law


def takes_few_values(most: int) -> Law:
    """A law of a number of levels: a row of the last axis has at most so many different results; zeros are one."""

    def law(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
        y = _y(mode, one, x, given)
        rows = y.reshape(-1, y.shape[-1]) if y.ndim and y.size else y.reshape(1, -1)
        counts = np.array([len(np.unique(row[~np.isnan(row)] + 0.0)) for row in rows])
        require(counts <= most, _claim(mode, one, f"at most {most} values in a row"), values=counts)

    return law


def blocks_do_not_touch(granularity: Granularity) -> Law:
    """A law of blocks: whatever one block holds, the results of the others stay, bit for bit."""

    def law(mode: str, one: Prototype, x: Array, g: Array, given: Given) -> None:
        rows = owners(granularity, x.shape)
        if len(rows) < 2:
            return
        y = _y(mode, one, x, given)
        kept = np.ones(x.size, np.bool_)
        kept[rows[:: len(rows) - 1]] = False  # the first block and the last one
        mask = kept.reshape(x.shape)
        for value in (0.0, np.finfo(np.float16).max, 2.0**-12):
            changed = np.where(mask, x, np.asarray(value, x.dtype))
            again = np.where(mask, _y(mode, one, changed, given), y)
            assert_same_bits(y, again, call=_claim(mode, one, f"other blocks of {granularity}"), inputs={"x": changed})

    return law


EVERY = ("equals_specification", "inputs_are_kept", "memory_plays_no_part")
LAWS: Mapping[str, Law] = MappingProxyType(
    {
        law.__name__: law
        for law in (
            *(equals_specification, inputs_are_kept, memory_plays_no_part),
            *(shapes_play_no_part, nan_propagates, infinities_are_finite, zero_stays_zero, is_idempotent, is_monotone),
            *(is_odd, order_plays_no_part, gradient_is_g_or_zero),
        )
    }
)


def broken(
    prototype: Prototype,
    laws: Sequence[str | Law],
    x: Array,
    g: Array | None = None,
    mode: str = "numpy",
    *,
    edges: bool = True,
    given: Given | None = None,
) -> dict[str, str]:
    """Which laws an array breaks, with the counterexample in words; {} if it keeps all.

    Args:
        laws: names of `LAWS`, or laws, such as ``error_is_bounded(0.5)``. `EVERY` is asked, too.
        x: float32, bfloat16, float16 or float64; ``g``: the incoming gradient, of its shape; ones if it is None.
        mode: of `MODES`.
        edges: whether to ask beside the edges that are found in ``x``, too.
        given: static options, and arrays of parameters; those that are missing are where they begin at ``x``.
    Raises:
        KeyError: an unknown law, with the nearest ones. ValueError: another mode; and what the formula raises.
    """
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {', '.join(map(repr, MODES))}; got {mode!r}")
    known, own = Named("law", LAWS), complete(prototype, x, given or {})
    asked = {str(law): known[law] for law in (*EVERY, *(law for law in laws if isinstance(law, str)))}
    asked |= {law.__qualname__.partition(".")[0]: law for law in laws if not isinstance(law, str)}
    incoming = np.ones_like(x) if g is None else g
    arrays = [x, *(found_inputs(prototype, x, **own) if edges and x.size else ())]
    found: dict[str, str] = {}
    with np.errstate(all="ignore"):
        results(mode, prototype, x, incoming, **own)  # what is wrong with the formula itself is an error
        for name, law in asked.items():
            for array in arrays:
                try:
                    law(mode, prototype, array, incoming, own)
                except AssertionError as error:
                    found.setdefault(name, str(error))
                except (TypeError, ValueError) as error:  # of the formula, on what the law made of the array
                    found.setdefault(name, _claim(mode, prototype, f"the formula fails: {error}"))
    return found


def _y(mode: str, one: Prototype, x: Array, given: Given) -> Array:
    return results(mode, one, x, np.ones_like(x), **given)["y"]


def _claim(mode: str, one: Prototype, what: str) -> str:
    """What is promised, by whom: the first line of every message."""
    return f"{mode}, {one.name}: {what}"
