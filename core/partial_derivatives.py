"""The derivatives of primitives, as formulas over primitives: every room reads them with its own.

A rule takes ``p`` (what offers the primitives of a room), the value and the operands, of one shape unless it says so.
For each operand it gives a `Linear` map, or None where the derivative is 0: a tangent goes through ``push``, a gradient
through ``pull``, its transpose; elementwise they are the same. The tangents of several operands are added in the order
of the operands. Functions that are not here have the derivative 0.
"""

from collections.abc import Callable, Mapping
from operator import or_
from types import MappingProxyType
from typing import Any, NamedTuple

from .coefficients import LN2, TWO_OVER_ROOT_PI


class Linear(NamedTuple):
    """A linear map and its transpose."""

    push: Callable[[Any], Any]
    pull: Callable[[Any], Any]


def _same(*maps: Callable[[Any], Any] | None) -> tuple[Linear | None, ...]:
    return tuple(None if one is None else Linear(one, one) for one in maps)


def _add(p: Any, value: Any, a: Any, b: Any) -> Any:
    return _same(lambda g: g, lambda g: g)


def _subtract(p: Any, value: Any, a: Any, b: Any) -> Any:
    return _same(lambda g: g, p.negative)


def _multiply(p: Any, value: Any, a: Any, b: Any) -> Any:
    return _same(lambda g: p.multiply(g, b), lambda g: p.multiply(g, a))


def _divide(p: Any, value: Any, a: Any, b: Any) -> Any:
    return _same(lambda g: p.divide(g, b), lambda g: p.negative(p.divide(p.multiply(g, value), b)))


def _sqrt(p: Any, value: Any, x: Any) -> Any:
    return _same(lambda g: p.divide(p.multiply(g, 0.5), value))


def _fused_multiply_add(p: Any, value: Any, a: Any, b: Any, c: Any) -> Any:
    return _same(lambda g: p.multiply(g, b), lambda g: p.multiply(g, a), lambda g: g)


def _minimum(p: Any, value: Any, a: Any, b: Any) -> Any:
    return _chosen(p, p.less(a, b), a, b)


def _maximum(p: Any, value: Any, a: Any, b: Any) -> Any:
    return _chosen(p, p.greater(a, b), a, b)


def _chosen(p: Any, first: Any, a: Any, b: Any) -> Any:
    """To the one that was chosen; halves to equal ones, and to both if one is NaN."""
    both = ~(p.less(a, b) | p.greater(a, b))
    return _same(
        lambda g: p.where(both, p.multiply(g, 0.5), p.where(first, g, 0.0)),
        lambda g: p.where(both, p.multiply(g, 0.5), p.where(first, 0.0, g)),
    )


def _clamp(p: Any, value: Any, x: Any, lo: Any, hi: Any) -> Any:
    """To x inside and at the bounds, and where one is NaN; else to the bound that was taken."""
    below = p.less(x, lo)
    above = p.greater(p.where(below, lo, x), hi)
    outside = getattr(p, "logical_or", or_)(below, above)
    return _same(
        lambda g: p.where(outside, 0.0, g),
        lambda g: p.where(above, 0.0, p.where(below, g, 0.0)),
        lambda g: p.where(above, g, 0.0),
    )


def _absolute(p: Any, value: Any, x: Any) -> Any:
    return _same(lambda g: p.multiply(g, p.sign(x)))


def _negative(p: Any, value: Any, x: Any) -> Any:
    return _same(p.negative)


def _copysign(p: Any, value: Any, x: Any, of: Any) -> Any:
    """1 where the sign stayed, else -1."""
    return _same(lambda g: p.multiply(g, p.copysign(p.copysign(1.0, x), p.multiply(p.copysign(1.0, x), of))), None)


def _where(p: Any, value: Any, condition: Any, a: Any, b: Any) -> Any:
    return _same(None, lambda g: p.where(condition, g, 0.0), lambda g: p.where(condition, 0.0, g))


def _significand(p: Any, value: Any, x: Any) -> Any:
    """Where x is finite and not 0; elsewhere as the limits say."""
    return _same(lambda g: p.scale_by_power(g, p.negative(p.exponent(x))))


def _scale_by_power(p: Any, value: Any, x: Any, n: Any) -> Any:
    return _same(lambda g: p.scale_by_power(g, n), None)


def _exp(p: Any, value: Any, x: Any) -> Any:
    return _same(lambda g: p.multiply(g, value))


def _exp2(p: Any, value: Any, x: Any) -> Any:
    return _same(lambda g: p.multiply(g, p.multiply(value, LN2)))


def _log(p: Any, value: Any, x: Any) -> Any:
    return _same(lambda g: p.divide(g, x))


def _log2(p: Any, value: Any, x: Any) -> Any:
    return _same(lambda g: p.divide(g, p.multiply(x, LN2)))


def _power(p: Any, value: Any, x: Any, y: Any) -> Any:
    """``y * x**(y - 1)``, and ``x**y * log(x)``, which is 0 where ``x = 0`` and ``y >= 0``."""
    vanishes = p.equal(x, 0.0) & p.greater_equal(y, 0.0)
    return _same(
        lambda g: p.multiply(g, p.multiply(y, p.power(x, p.subtract(y, 1.0)))),
        lambda g: p.where(vanishes, 0.0, p.multiply(g, p.multiply(value, p.log(x)))),
    )


def _tanh(p: Any, value: Any, x: Any) -> Any:
    return _same(lambda g: p.multiply(g, p.subtract(1.0, p.multiply(value, value))))


def _sigmoid(p: Any, value: Any, x: Any) -> Any:
    return _same(lambda g: p.multiply(g, p.multiply(value, p.subtract(1.0, value))))


def _erf(p: Any, value: Any, x: Any) -> Any:
    return _same(lambda g: p.multiply(g, p.multiply(p.exp(p.negative(p.multiply(x, x))), TWO_OVER_ROOT_PI)))


def _straight_through(p: Any, value: Any, forward: Any, surrogate: Any) -> Any:
    return _same(None, lambda g: g)


def _cast(p: Any, value: Any, x: Any) -> Any:
    to, back = (str(v.dtype).removeprefix("torch.") for v in (value, x))
    return (Linear(lambda t: p.cast(t, to), lambda g: p.cast(g, back)),)


def _spread(p: Any, value: Any, x: Any) -> Any:
    """Of ``x`` repeated along a new last axis."""
    return (Linear(lambda t: p.broadcast_to(t[..., None], value.shape), lambda g: p.sum(g, -1)),)


def _added(p: Any, value: Any, x: Any) -> Any:
    """Of the sum over the last axis."""
    return (Linear(lambda t: p.sum(t, -1), lambda g: p.broadcast_to(g[..., None], x.shape)),)


def _nth(p: Any, value: Any, x: Any) -> Any:
    """Of one element along the last axis: those that equal it share evenly. 0 where it is NaN."""
    taken = p.equal(x, value[..., None])
    count = p.sum(p.where(taken, p.where(taken, 1.0, x), 0.0), -1)  # of ones, in the dtype of x
    return (
        Linear(
            lambda t: p.sum(p.where(taken, p.divide(t, count[..., None]), 0.0), -1),
            lambda g: p.where(taken, p.divide(g, count)[..., None], 0.0),
        ),
    )


def _looked_up(p: Any, value: Any, table: Any, index: Any, places: Any) -> Any:
    """Of the entries of a table at each index. ``places`` count the entries, in the wide dtype."""
    last = float(len(table) - 1)

    def pull(g: Any) -> Any:
        at = p.clamp(p.trunc(p.cast(index, str(places.dtype).removeprefix("torch."))), 0.0, last)
        taken = p.equal(places[:, None], at.reshape(-1)[None, :])
        return p.sum(p.where(taken, g.reshape(-1)[None, :], 0.0), 1)

    return Linear(lambda t: p.take(t, index), pull), None, None


RULES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "add": _add,
        "subtract": _subtract,
        "multiply": _multiply,
        "divide": _divide,
        "sqrt": _sqrt,
        "fused_multiply_add": _fused_multiply_add,
        "minimum": _minimum,
        "maximum": _maximum,
        "clamp": _clamp,
        "absolute": _absolute,
        "negative": _negative,
        "copysign": _copysign,
        "where": _where,
        "significand": _significand,
        "scale_by_power": _scale_by_power,
        "exp": _exp,
        "exp2": _exp2,
        "log": _log,
        "log2": _log2,
        "power": _power,
        "tanh": _tanh,
        "sigmoid": _sigmoid,
        "erf": _erf,
        "straight_through": _straight_through,
        "cast": _cast,
        "spread": _spread,
        "added": _added,
        "nth": _nth,
        "looked_up": _looked_up,
    }
)
