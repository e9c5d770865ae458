"""The primitives on `plain_numbers.Number`: with XLA's own float32 arithmetic, where bounds allow it.

Products and quotients get a -0.0 added that compilers do not know, numbers are no constants to them, and quotients are
those of `arrays.divide`: so there is nothing to contract, and nothing that algebra could move.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.choice import choice
from ..core.directions import Rounding
from ..core.granularity import Shape
from . import primitives
from .arrays import bit_pattern, constant_pattern, divide, from_pattern, layout, magnitude
from .ieee_any import is_zero
from .operations import FLOAT32
from .plain_numbers import (
    NORMAL,
    Bounds,
    Make,
    Number,
    after_product,
    after_quotient,
    after_sum,
    bounds_of_number,
    joined,
    once,
)
from .primitives.operands import COMPUTE, is_number, number

Array = jax.Array
LOW, HIGH = 2.0**-24, 2.0**24  # between which scales must lie
FLOOR = 2.0**-64  # magnitudes below it must be 0, where all elements of an input are looked at
WATCHED = 2.0**-100  # the same of results that are looked at: sums of them are not subnormal
SMALL = 8  # arrays are computed with as primitives do where they have so many times fewer elements than the input
QUIET = np.int32(0x7FA2545F)  # a NaN that nobody makes
NEAREST = (Rounding.TIES_TO_EVEN, Rounding.TIES_TO_AWAY, Rounding.TOWARD_ZERO)  # whose result for small numbers is 0


def _is_zero_or_within(x: Array, low: float, high: float | None) -> Array:
    """Whether each magnitude is 0, or at least ``low``, and at most ``high`` if there is such a limit."""
    place = (magnitude(x) - 1).astype(np.uint32)  # 0 is the largest
    fits = place >= np.uint32(constant_pattern(low, FLOAT32) - 1)
    if high is not None:
        fits &= (place == np.uint32(0xFFFFFFFF)) | (place < np.uint32(constant_pattern(high, FLOAT32)))
    return fits


class Plain:
    """The primitives on numbers of one formula. Those that are not among its methods compute as they do elsewhere.

    Attributes:
        conditions: make truth values that the bounds rest on.
        everywhere: whether results may be looked at, too.
        operations: how many sums, products and quotients there were of as many elements as ``x`` has.
    """

    def __init__(self, x: Array, everywhere: bool) -> None:
        self.size, self.everywhere = x.size, everywhere
        self.conditions: list[Make] = []
        self.operations = 0
        self._names = count()
        self._asked: dict[tuple[int, bool], Bounds] = {}
        self._kept: list[Number] = []
        self._hidden = once(lambda: (bit_pattern(x[(0,) * x.ndim]) == QUIET).astype(np.int32))

    def __getattr__(self, name: str) -> Callable[..., Number]:
        return lambda *given, **options: self._exactly(name, *given, **options)

    def operand(self, array: Array, watched: bool) -> Number:
        """What comes into the formula; if it is ``watched``, on the condition that no magnitude but 0 is small."""
        bounds = Bounds()
        if watched and array.dtype == FLOAT32:
            bounds = Bounds(least=FLOOR, quantum=FLOOR * 2.0**-24)
            self.conditions.append(lambda: _is_zero_or_within(array, FLOOR, None))
        return Number(array.shape, array.dtype, bounds, lambda: array)

    def constants(self, numbers: tuple[float, ...], like: Number) -> Number:
        """An array of numbers of Python."""
        return Number(
            (len(numbers),), like.dtype, Bounds(), lambda: jnp.stack([number(n, like.dtype) for n in numbers])
        )

    def add(self, a: Any, b: Any) -> Number:
        """As the primitive."""
        return self._arithmetic("add", a, b, after_sum, jnp.add)

    def subtract(self, a: Any, b: Any) -> Number:
        """As the primitive."""
        return self._arithmetic("subtract", a, b, after_sum, lambda x, y: x + COMPUTE["negative"](y))

    def multiply(self, a: Any, b: Any) -> Number:
        """As the primitive."""
        return self._arithmetic("multiply", a, b, after_product, lambda x, y: x * y + self._zero())

    def divide(self, a: Any, b: Any) -> Number:
        """As the primitive."""

        def quotient(x: Array, y: Array) -> Array:
            shape = jnp.broadcast_shapes(x.shape, y.shape)
            x, y = jnp.broadcast_to(x, shape), jnp.broadcast_to(y, shape)
            return divide(x, y, subnormals=False) + self._zero()

        return self._arithmetic("divide", a, b, after_quotient, quotient)

    def round(self, x: Any, direction: Any = Rounding.TIES_TO_EVEN, noise: Any = None) -> Number:
        """As the primitive."""
        plain = isinstance(x, Number) and x.dtype == FLOAT32 and noise is None and x.bounds.fuzz <= 0.25
        if plain and choice("direction", direction, Rounding) in NEAREST:
            bounds = Bounds(0.0, 1.0, x.bounds.most + 1, 1.0)
            return self._elementwise(lambda v: COMPUTE["round"](v, direction), (x,), bounds)
        return self._exactly("round", x, direction=direction, **({} if noise is None else {"noise": noise}))

    def trunc(self, x: Any) -> Number:
        """As the primitive."""
        if isinstance(x, Number) and x.dtype == FLOAT32 and x.bounds.fuzz <= 0.25:
            return self._elementwise(COMPUTE["trunc"], (x,), Bounds(0.0, 1.0, x.bounds.most, 1.0))
        return self._exactly("trunc", x)

    def negative(self, x: Any) -> Number:
        """As the primitive."""
        return self._signs("negative", x)

    def absolute(self, x: Any) -> Number:
        """As the primitive."""
        return self._signs("absolute", x)

    def maximum(self, a: Any, b: Any) -> Number:
        """As the primitive."""
        return self._extreme("maximum", a, b)

    def minimum(self, a: Any, b: Any) -> Number:
        """As the primitive."""
        return self._extreme("minimum", a, b)

    def clamp(self, x: Any, lo: Any, hi: Any) -> Number:
        """As the primitive."""
        above = self._limited("maximum", x, lo)
        inside = None if above is None else self._limited("minimum", above, hi)
        if inside is None:
            return self._exactly("clamp", x, lo, hi)
        ends = [self._bounds(v, zero=True).most for v in (lo, hi)]
        inside.bounds = inside.bounds._replace(most=min(inside.bounds.most, max(ends)))
        return inside

    def where(self, condition: Any, a: Any, b: Any) -> Number:
        """As the primitive."""
        pair = self._pair(a, b)
        if pair is None or not isinstance(condition, Number) or condition.dtype != bool:
            return self._exactly("where", condition, a, b)
        shape = np.broadcast_shapes(condition.shape, *(v.shape for v in pair))

        def chosen(of: Callable[[Number], Make]) -> Make:
            return lambda: jnp.broadcast_to(jnp.where(condition.exact(), of(pair[0])(), of(pair[1])()), shape)

        bounds = joined(*(v.bounds for v in pair))
        exact = chosen(lambda v: v.exact) if bounds.fuzz else None
        costs = [condition.costs | frozenset[int]().union(*many) for many in zip(*map(_costs, pair), strict=True)]
        return Number(shape, FLOAT32, bounds, chosen(lambda v: v.plain), exact, *costs)

    def straight_through(self, forward: Any, surrogate: Any) -> Number:
        """As the primitive."""
        kind = _kind(self._pair(forward, surrogate), FLOAT32)
        if isinstance(forward, Number) and kind is not None and kind.shape == forward.shape:
            return forward
        return self._exactly("straight_through", forward, surrogate)

    def stop_gradient(self, x: Any) -> Number:
        """As the primitive."""
        return x if isinstance(x, Number) else self._exactly("stop_gradient", x)

    def broadcast_to(self, x: Any, shape: tuple[int, ...]) -> Number:
        """As the primitive."""
        if isinstance(x, Number):
            return x.moved(lambda v: jnp.broadcast_to(v, shape))
        return self._exactly("broadcast_to", x, shape)

    def sum(self, x: Any, axis: Any = None, keepdims: bool = False) -> Number:
        """As the primitive."""
        exact = self._exactly("sum", x, axis, keepdims)
        if not isinstance(x, Number) or x.dtype != FLOAT32 or x.size * SMALL <= self.size:
            return exact
        self.operations += 1
        if x.bounds.read or x.bounds.quantum < 2 * NORMAL:
            return _with_cost(exact, next(self._names))
        bounds = Bounds(0.0, x.bounds.quantum, quantum=x.bounds.quantum)
        plain = lambda: primitives.reductions.plain_sum(x.plain(), axis, keepdims)  # noqa: E731
        return Number(exact.shape, FLOAT32, bounds, plain, None, x.plain_costs)

    def less(self, a: Any, b: Any) -> Number:
        """As the primitive."""
        return self._compared("less", a, b, jnp.less)

    def less_equal(self, a: Any, b: Any) -> Number:
        """As the primitive."""
        return self._compared("less_equal", a, b, jnp.less_equal)

    def greater(self, a: Any, b: Any) -> Number:
        """As the primitive."""
        return self._compared("greater", a, b, jnp.greater)

    def greater_equal(self, a: Any, b: Any) -> Number:
        """As the primitive."""
        return self._compared("greater_equal", a, b, jnp.greater_equal)

    def equal(self, a: Any, b: Any) -> Number:
        """As the primitive."""
        return self._compared("equal", a, b, jnp.equal)

    def not_equal(self, a: Any, b: Any) -> Number:
        """As the primitive."""
        return self._compared("not_equal", a, b, jnp.not_equal)

    def logical_or(self, a: Number, b: Number) -> Number:
        """Whether one of two is true."""
        return a | b

    def _extreme(self, name: str, a: Any, b: Any) -> Number:
        for v, limit in ((a, b), (b, a)):
            found = self._limited(name, v, limit)
            if found is not None:
                return found
        return self._exactly(name, a, b)

    def _arithmetic(self, name: str, a: Any, b: Any, after: Any, operation: Callable[[Array, Array], Array]) -> Number:
        """A sum, product or quotient: plain, and as the primitive where that has other bits."""
        pair = self._pair(a, b)
        exact = self._exactly(name, a, b, kind=_kind(pair, FLOAT32))
        if pair is None or exact.size * SMALL <= self.size:
            return exact
        self.operations += 1
        exact = _with_cost(exact, next(self._names))
        x, y = pair
        apart = after is after_sum and any(v.bounds.read for v in pair if v.size * SMALL > self.size)
        of_x, of_y = self._bounds(x, zero=not apart), self._bounds(y, zero=not apart and name != "divide")
        bounds = after(of_x, of_y)
        if bounds is None:
            return exact
        plain_costs = x.plain_costs | y.plain_costs
        plain = once(lambda: operation(x.plain(), y.plain()))
        if self.everywhere and bounds.quantum < 2 * NORMAL and not (of_x.read or of_y.read):
            self.conditions.append(lambda: _is_zero_or_within(plain(), WATCHED, None) & ~_is_lost(name, x, y, plain))
            bounds = Bounds(0.0, WATCHED, bounds.most, WATCHED * 2.0**-24)
        if bounds.fuzz == 0:
            return Number(exact.shape, FLOAT32, bounds, plain, None, plain_costs)
        return Number(exact.shape, FLOAT32, bounds, plain, exact.exact, plain_costs, exact.costs)

    def _compared(self, name: str, a: Any, b: Any, operation: Callable[[Array, Array], Array]) -> Number:
        pair = self._pair(a, b)
        exact = self._exactly(name, a, b, kind=_kind(pair, np.dtype(bool)))
        if pair is None or exact.size * SMALL <= self.size:
            return exact
        if any(v.bounds.read for v in pair):  # not even where they lie apart: see `_limited`
            return exact
        costs = pair[0].plain_costs | pair[1].plain_costs
        return Number(exact.shape, bool, Bounds(), lambda: operation(pair[0].plain(), pair[1].plain()), None, costs)

    def _limited(self, name: str, v: Any, limit: Any) -> Number | None:
        """The larger or smaller one of an array and a limit of fewer elements; None if it is another."""
        pair = self._pair(v, limit)
        if pair is None or not isinstance(v, Number) or v.size * SMALL <= self.size or pair[1].size > v.size // SMALL:
            return None
        x, end = pair
        whole = np.broadcast_shapes(x.shape, end.shape) == x.shape
        known = is_number(limit) and limit == 0
        bounds = end.bounds if known else self._bounds(end, zero=False)
        if not whole or (not known and not (bounds.nonzero and not bounds.read and bounds.least >= 2 * x.bounds.read)):
            return None

        def chosen(x: Array, end: Array) -> Array:
            """By the primitive: of a comparison of floats and a select, LLVM makes an instruction that flushes."""
            return COMPUTE[name](x, jnp.broadcast_to(end, x.shape))

        joint = joined(x.bounds, bounds)._replace(nonzero=False)
        return self._elementwise(chosen, (x, end), joint)

    def _signs(self, name: str, x: Any) -> Number:
        if not isinstance(x, Number) or x.dtype != FLOAT32:
            return self._exactly(name, x)
        return self._elementwise(COMPUTE[name], (x,), x.bounds)

    def _elementwise(self, function: Callable[..., Array], operands: tuple[Number, ...], bounds: Bounds) -> Number:
        """What does the same to the plain arrays as to the exact ones, in the shape of the first."""
        exact = (lambda: function(*(v.exact() for v in operands))) if bounds.fuzz else None
        costs = [frozenset[int]().union(*many) for many in zip(*map(_costs, operands), strict=True)]
        return Number(
            operands[0].shape, FLOAT32, bounds, lambda: function(*(v.plain() for v in operands)), exact, *costs
        )

    def _exactly(self, name: str, *given: Any, kind: Any = None, **options: Any) -> Number:
        """The primitive itself, of exact arrays.

        Args:
            kind: shape and dtype, if they are known.
        """
        function = getattr(primitives, name)
        everything = (*given, *options.values())
        numbers = [v for v in everything if isinstance(v, Number)]

        def made(*arrays: Array) -> Array:
            left = iter(arrays)
            values = [next(left) if isinstance(v, Number) else v for v in everything]
            named = dict(zip(options, values[len(given) :], strict=True))
            result: Array = function(*values[: len(given)], **named)
            return result

        if kind is None:
            kind = jax.eval_shape(made, *(_like(v.shape, v.dtype) for v in numbers))
        costs = frozenset[int]().union(*(v.costs for v in numbers))
        return Number(kind.shape, kind.dtype, Bounds(), lambda: made(*(v.exact() for v in numbers)), None, costs)

    def _pair(self, a: Any, b: Any) -> tuple[Number, Number] | None:
        """Both as float32 numbers, if that is what they are, and their shapes fit."""
        found = []
        for v in (a, b):
            if is_number(v) and np.isfinite(np.float64(v)) and abs(v) <= np.finfo(np.float32).max:
                found.append(self._number(float(v)))
            elif isinstance(v, Number) and v.dtype == FLOAT32:
                found.append(v)
            else:
                return None
        return found[0], found[1]

    def _number(self, value: float) -> Number:
        """A number of Python that is no constant to compilers."""
        pattern = constant_pattern(value, FLOAT32)
        exact = lambda: from_pattern(pattern | self._hidden(), FLOAT32)  # noqa: E731
        return Number((), FLOAT32, bounds_of_number(value), exact)

    def _zero(self) -> Array:
        """-0.0, which compilers do not know."""
        return from_pattern(layout(FLOAT32).sign | self._hidden(), FLOAT32)

    def _bounds(self, x: Any, zero: bool) -> Bounds:
        """Of an array of few elements as of scales, on a condition; of others as they are known.

        Args:
            zero: whether elements may be 0.
        """
        if not isinstance(x, Number):
            return bounds_of_number(x)
        if x.size * SMALL > self.size or x.bounds.most < np.inf:
            return x.bounds
        if (id(x), zero) not in self._asked:
            self._kept.append(x)
            array = x.exact()
            self.conditions.append(lambda: _is_zero_or_within(array, LOW, HIGH))
            if not zero:
                self.conditions.append(lambda: ~is_zero(array))
            self._asked[id(x), zero] = Bounds(0.0, LOW, HIGH, LOW * 2.0**-24, not zero)
        return self._asked[id(x), zero]


def _is_lost(name: str, x: Number, y: Number, plain: Make) -> Array:
    """Whether a result is 0 that should not be, of operands that are not subnormal."""
    a, b = x.plain(), y.plain()
    match name:
        case "multiply":
            right = (a == 0) | (b == 0)
        case "divide":
            right = (a == 0) | jnp.isinf(b)
        case _:
            right = a == (b if name == "subtract" else -b)
    return is_zero(plain()) & ~right


def _costs(x: Number) -> tuple[frozenset[int], frozenset[int]]:
    return x.plain_costs, x.costs


def _kind(pair: tuple[Number, Number] | None, dtype: Any) -> Any:
    """Shape and dtype of what comes of two; None if they do not fit, which the primitive says in its words."""
    try:
        if pair is None:
            return None
        return _like(np.broadcast_shapes(pair[0].shape, pair[1].shape), dtype)
    except ValueError:
        return None


def _like(shape: Shape, dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _with_cost(x: Number, name: int) -> Number:
    costs = x.costs | {name}
    return Number(x.shape, x.dtype, x.bounds, x.exact, None, costs)
