"""Numbers of a formula, made in one of two ways: as primitives compute, or with XLA's own float32 arithmetic.

XLA on CPU reads and writes subnormal numbers as zero. What that changes is known by bounds (`Bounds`), from which
`plain_formulas` tells where a later operation, such as a rounding, has the same result either way.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.granularity import Shape

Array = jax.Array
Make = Callable[[], Array]
NORMAL, SMALLEST = 2.0**-126, 2.0**-149  # the smallest normal and the smallest number of float32
_MADE: ContextVar[dict[int, Array]] = ContextVar("_MADE", default={})  # noqa: B039


class Bounds(NamedTuple):
    """What is known of every element. NaN may be among them, whatever they say.

    Attributes:
        fuzz: elements smaller than this may be other such numbers of the same sign in the plain array, such as zero;
            with 0 it has the right bits.
        least: of magnitudes other than 0.
        most: of magnitudes; infinite ones are beyond.
        quantum: a power of two of which all are multiples.
        nonzero: whether none is 0.
    """

    fuzz: float = 0.0
    least: float = SMALLEST
    most: float = math.inf
    quantum: float = SMALLEST
    nonzero: bool = False

    @property
    def read(self) -> float:
        """`fuzz` of the plain array as XLA's arithmetic reads it."""
        return max(self.fuzz, NORMAL) if self.least < NORMAL else self.fuzz


class Number:
    """An array of a formula, made when it is asked for; its elements move as those of an array do.

    Attributes:
        exact: makes it as the primitives do, every bit of it; ``plain`` with XLA's arithmetic: see `Bounds.fuzz`.
        costs: which operations of float32 by way of float64 the exact array needs; ``plain_costs`` the plain one.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: Any,
        bounds: Bounds,
        plain: Make,
        exact: Make | None = None,
        plain_costs: frozenset[int] = frozenset(),
        costs: frozenset[int] = frozenset(),
    ) -> None:
        self.shape, self.dtype, self.bounds = tuple(shape), np.dtype(dtype), bounds
        self.plain = once(plain)
        self.exact = self.plain if exact is None else once(exact)
        self.plain_costs, self.costs = plain_costs, plain_costs if exact is None else costs

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def moved(self, move: Callable[[Array], Array], **bounds: Any) -> "Number":
        """The elements in other places."""
        kind = jax.ShapeDtypeStruct(self.shape, self.dtype)  # type: ignore[no-untyped-call]
        shape = jax.eval_shape(move, kind).shape
        exact = None if self.exact is self.plain else lambda: move(self.exact())
        changed = self.bounds._replace(**bounds)
        return Number(shape, self.dtype, changed, lambda: move(self.plain()), exact, self.plain_costs, self.costs)

    def reshape(self, *shape: Any) -> "Number":
        """As of an array."""
        return self.moved(lambda v: v.reshape(*shape))

    def transpose(self, *axes: Any) -> "Number":
        """As of an array."""
        return self.moved(lambda v: v.transpose(*axes))

    def __getitem__(self, index: Any) -> "Number":
        return self.moved(lambda v: v[index])

    def __and__(self, other: "Number") -> "Number":
        return _of_truths(jnp.logical_and, self, other)

    def __or__(self, other: "Number") -> "Number":
        return _of_truths(jnp.logical_or, self, other)

    def __invert__(self) -> "Number":
        return _of_truths(jnp.logical_not, self)


def _of_truths(function: Callable[..., Array], *truths: Number) -> Number:
    costs = frozenset[int]().union(*(v.costs for v in truths))
    shape = np.broadcast_shapes(*(v.shape for v in truths))
    return Number(shape, bool, Bounds(), lambda: function(*(v.exact() for v in truths)), plain_costs=costs)


def once(make: Make) -> Make:
    """``make``, which runs once among what is `made_apart`."""

    def kept() -> Array:
        made = _MADE.get()
        if id(make) not in made:
            made[id(make)] = make()
        return made[id(make)]

    return kept


@contextmanager
def made_apart(made: dict[int, Array]) -> Iterator[dict[int, Array]]:
    """A context in which arrays are made anew, but for those that are given: in another function that is traced."""
    token = _MADE.set(dict(made))
    try:
        yield _MADE.get()
    finally:
        _MADE.reset(token)


def bounds_of_number(value: float) -> Bounds:
    """Of a number of Python, rounded to float32, that is finite."""
    single = float(np.float32(value))
    if single == 0:
        return Bounds(most=0.0, least=1.0, quantum=1.0)
    numerator, denominator = abs(single).as_integer_ratio()
    return Bounds(0.0, abs(single), abs(single), (numerator & -numerator) / denominator, True)


def after_quotient(a: Bounds, b: Bounds) -> Bounds | None:
    """Of ``a / b``; None where XLA's division may give another number than a small one of the same sign."""
    if b.read or (a.read and not b.nonzero):
        return None
    fuzz = a.read / b.least if a.read else 0.0
    most = a.most / b.least if b.nonzero else math.inf
    return _rounded(fuzz, a.least / b.most if b.most < math.inf else 0.0, most)


def after_product(a: Bounds, b: Bounds) -> Bounds | None:
    """Of ``a * b``; None as of `after_quotient`."""
    if (a.read and b.most == math.inf) or (b.read and a.most == math.inf):
        return None
    fuzz = max(a.read * b.most if a.read else 0.0, b.read * a.most if b.read else 0.0)
    return _rounded(fuzz, a.least * b.least, a.most * b.most if a.most and b.most else 0.0)


def _rounded(fuzz: float, least: float, most: float) -> Bounds:
    """Of results that are not rounded yet, with room for the roundings."""
    if least < 2 * NORMAL:
        return Bounds(max(2 * fuzz, 2 * NORMAL), SMALLEST, _limit(most))
    least = _power_below(least / 2)
    return Bounds(2 * fuzz, least, _limit(most), max(least * 2.0**-24, SMALLEST))


def after_sum(a: Bounds, b: Bounds) -> Bounds | None:
    """Of ``a + b``; None as of `after_quotient`.

    What is less than ``2**-26`` of the other one does not change it; else sums are 0 or a quantum at least.
    """
    for v, other in ((a, b), (b, a)):
        if v.read:
            if other.read or not (other.nonzero and other.least >= v.read * 2.0**26 and other.least >= NORMAL * 2**27):
                return None
            least = _power_below(other.least * 2.0**-26)
            return Bounds(0.0, least, _limit(a.most + b.most), max(least * 2.0**-24, SMALLEST))
    quantum = min(a.quantum, b.quantum)
    fuzz = 0.0 if quantum >= 2 * NORMAL else 2 * NORMAL
    return Bounds(fuzz, quantum, _limit(a.most + b.most), quantum)


def _power_below(value: float) -> float:
    return 2.0 ** math.floor(math.log2(value))


def _limit(most: float) -> float:
    """With room for a rounding; infinite where that may be."""
    return 2 * most if most < 2.0**126 else math.inf


def joined(*several: Bounds) -> Bounds:
    """Of arrays that hold elements of several."""
    return Bounds(
        max(v.fuzz for v in several),
        min(v.least for v in several),
        max(v.most for v in several),
        min(v.quantum for v in several),
        all(v.nonzero for v in several),
    )
