"""Formulas in XLA's own float32 arithmetic, where bounds and the operands show that it has the bits of the primitives.

Primitives go by way of float64, since XLA on CPU takes subnormal numbers for zero and contracts products with sums. A
formula is known as a whole: what its operations do to small numbers is followed (`plain_numbers`), and what has to be
true of scales and inputs for that is asked when the program runs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..core.formula_values import Room
from ..core.granularity import Shape
from .arrays import is_concrete
from .operations import FLOAT32
from .plain_numbers import Number, made_apart
from .plain_primitives import SMALL, Plain

Array = jax.Array
Results = dict[str, Array]
Formula = Callable[[Room, dict[str, Any]], dict[str, Any]]  # results by name, of arrays (or numbers) by name
GRADIENT = ""  # its name among operands
# Whose elements are looked at, and whether everywhere: the first that costs nothing is taken
WATCHED = (((), False), ((GRADIENT,), False), (("x", GRADIENT), False), (("x", GRADIENT), True))


def computed(formula: Formula, arrays: Mapping[str, Array], present: Callable[[], Results]) -> Results:
    """The results of a formula: in plain arithmetic, where that has the same bits, else those of ``present``.

    Args:
        formula: what it computes of `Number`, in the room that it is given.
        arrays: the operands; "x", and in backward passes `GRADIENT`, are those whose elements may be looked at.
        present: computes the same with primitives.
    """
    x = arrays["x"]
    if x.dtype != FLOAT32 or is_concrete(x) or not x.size:
        return present()
    plans: list[Plan] = []
    try:
        for watched, everywhere in WATCHED:
            if set(watched) - {"x"} <= arrays.keys() and (not plans or plans[-1].costs):
                plans.append(_plan(formula, arrays, watched, everywhere))
    except Exception:  # of what is no primitive: it comes again, and says where
        return present()
    plan = min(plans, key=lambda one: len(one.costs))
    if not plan.saves:
        return present()
    holds = plan.holds()
    if holds is None:
        return plan.make()
    chosen: Results = lax.cond(holds, plan.make, present)
    return chosen


class Plan(NamedTuple):
    """How a formula is computed: if it ``holds``, by ``make``, with so many operations by way of float64."""

    make: Callable[[], Results]
    holds: Callable[[], Array | None]
    costs: frozenset[int]
    saves: bool  # whether there is an operation that is plain


def _plan(formula: Formula, arrays: Mapping[str, Array], watched: tuple[str, ...], everywhere: bool) -> Plan:
    arithmetic = Plain(arrays["x"], everywhere)
    operands = {name: arithmetic.operand(array, name in watched) for name, array in arrays.items()}
    with made_apart({}) as made:
        found = formula(room(arithmetic), operands)
    small = {name: array for name, array in made.items() if array.size * SMALL <= arrays["x"].size}
    costs = frozenset[int]().union(*(one.costs for one in found.values()))

    def make() -> Results:
        with made_apart(small):
            return {name: one.exact() for name, one in found.items()}

    def holds() -> Array | None:
        with made_apart(small):
            return _everywhere([condition() for condition in arithmetic.conditions])

    return Plan(make, holds, costs, len(costs) < arithmetic.operations)


def _everywhere(conditions: list[Array]) -> Array | None:
    """Whether all are true of all elements; those of one shape are looked at together. None if there are none."""
    together: dict[Shape, Array] = {}
    for one in conditions:
        together[one.shape] = together[one.shape] & one if one.shape in together else one
    return jnp.all(jnp.stack([jnp.all(one) for one in together.values()])) if together else None


def room(arithmetic: "Plain") -> Room:
    """The room in which formulas compute with `Number`."""

    def put(g: Number, index: Any, like: Number) -> Number:
        """Among zeros that are no constants to compilers: what lies among constant ones XLA adds at its place only.

        Elsewhere -0.0 would be left as it is.
        """
        zero = arithmetic._number(0.0).exact if g.dtype == FLOAT32 else lambda: jnp.zeros((), g.dtype)

        def among_zeros(v: Array) -> Array:
            return jnp.broadcast_to(zero(), like.shape).at[index].set(v)

        exact = None if g.exact is g.plain else lambda: among_zeros(g.exact())
        bounds = g.bounds._replace(nonzero=False)
        return Number(like.shape, g.dtype, bounds, lambda: among_zeros(g.plain()), exact, g.plain_costs, g.costs)

    return Room(
        "jax",
        arithmetic,
        arithmetic.constants,
        lambda x, index: x[index],
        put,
        lambda x, axes: x.transpose(axes),
    )
