"""Functions with one derivative for both directions: elementwise forward, and in reverse the gradients of this package.

`jax.custom_vjp` has no forward mode. `jax.custom_jvp` has both, and makes reverse mode by transposing the forward rule;
but the sums over blocks that this would give have another order, and what the forward rule computes would be kept in
memory. So the forward rule is one operation, linear in the tangents, that brings its transpose with it.
(`jax.custom_derivatives.linear_call` is such an operation too; it has no rule for `vmap`.)

Coefficients of the derivative count as constants when it is differentiated again: straight-through rounding is
linear wherever it is differentiable. Those of `differentiable_again` do not.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = jax.Array
Tangents = tuple[Array | None, ...]  # None where an operand has none: an integer, or one that does not move
Rule = Callable[..., Any]


def differentiable(function: Rule, tangent: Rule, gradient: Rule) -> Any:
    """``function(static, *operands)``, differentiable in both directions.

    Args:
        function: of something hashable and of arrays or None, with one array as result.
        tangent: ``tangent(static, operands, tangents)``, of the result; linear in `Tangents`.
        gradient: ``gradient(static, operands, g)``, the transpose: one for each operand, of its shape and dtype; None
            (or anything) for integers and for None.
    """
    whole = jax.custom_jvp(function, nondiff_argnums=(0,))

    def rule(static: Any, operands: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
        value = whole(static, *operands)
        fixed = tuple(None if operand is None else lax.stop_gradient(operand) for operand in operands)
        moving = tuple(None if _stays(t) else t for t in tangents)
        return value, _linear(partial(tangent, static), partial(gradient, static), fixed, moving, jax.typeof(value))

    whole.defjvp(rule, symbolic_zeros=True)
    return whole


@jax.custom_jvp
def replaced(value: Array, used: Array) -> Array:
    """What is used in the place of ``value``, with the derivative of the identity towards that."""
    return used


@replaced.defjvp
def _replaced_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    used = replaced(*primals)
    return used, varying_as(tangents[0], jax.typeof(used))


def differentiable_again(function: Rule, maps: Rule, add: Rule) -> Any:
    """``function(static, *operands)``, differentiable in both directions, as often as ``maps`` are.

    Args:
        function: of something hashable and of arrays, with one array as result.
        maps: ``maps(static, value, *operands)``: for each operand a linear map with its transpose
            (`samebits.core.partial_derivatives.Linear`), or None for 0.
        add: the sum of a list of arrays.
    """
    whole = jax.custom_jvp(function, nondiff_argnums=(0,))

    def rule(static: Any, operands: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
        value = whole(static, *operands)
        moving = tuple(None if _stays(t) else t for t in tangents)
        wanted = [t is not None for t in moving]

        def push(arrays: Tangents, moves: Tangents) -> Array:
            pairs = zip(maps(static, *arrays), moves[1:], strict=True)
            pushed = [one.push(t) for one, t in pairs if one is not None and t is not None]
            return add(pushed) if pushed else jnp.zeros_like(value)

        def pull(arrays: Tangents, g: Array) -> Tangents:
            pairs = zip(maps(static, *arrays), wanted, strict=True)
            zero = jnp.zeros_like(g)
            return None, *(
                one.pull(g) if one and ask else zero for one, ask in pairs
            )  # elementwise, where there is none

        return value, _linear(push, pull, (value, *operands), (None, *moving), jax.typeof(value))

    whole.defjvp(rule, symbolic_zeros=True)
    return whole


def differentiable_beside(function: Rule, tangent: Rule, gradient: Rule) -> Any:
    """``function(static, *operands)``, as `differentiable`, with a tree of arrays beside its result, which do not move.

    Operands count in further derivatives, as those of `differentiable_again` do.

    Args:
        function: of something hashable and of arrays, with a pair of an array and the tree as result.
        tangent: as of `differentiable`. gradient: too, of ``(static, moves, operands, g)``: those that move are asked.
    """
    whole = jax.custom_jvp(function, nondiff_argnums=(0,))

    def rule(static: Any, operands: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
        value, beside = whole(static, *operands)
        moving = tuple(None if _stays(t) else t for t in tangents)
        pull = partial(gradient, static, tuple(t is not None for t in moving))
        moved = _linear(partial(tangent, static), pull, tuple(operands), moving, jax.typeof(value))
        return (value, beside), (moved, jax.tree.map(jnp.zeros_like, beside))

    whole.defjvp(rule, symbolic_zeros=True)
    return whole


def varying_as(x: Array, *kinds: Any) -> Array:
    """``x``, counted as different on all devices along the axes of `jax.shard_map` on which one of the types is.

    Transposed, that is the sum over these axes.
    """
    axes = frozenset[str]().union(*map(_varying, kinds)) - _varying(jax.typeof(x))
    return lax.pcast(x, tuple(sorted(axes)), to="varying") if axes else x


def _varying(kind: Any) -> frozenset[str]:
    """Axes on which an array of this type may differ between devices; where that stands depends on the release."""
    axes: Any = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
    return frozenset(axes)


def _stays(tangent: Any) -> bool:
    return tangent is None or isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0


def _linear(tangent: Rule, gradient: Rule, operands: Tangents, tangents: Tangents, kind: Any) -> Array:
    """``tangent(operands, tangents)``, of the type ``kind``, whose transpose is ``gradient(operands, g)``."""
    there = [i for i, operand in enumerate(operands) if operand is not None]
    moving = [i for i, t in enumerate(tangents) if t is not None]
    if not moving:
        return varying_as(jnp.zeros(kind.shape, kind.dtype), kind)

    def among(places: list[int], arrays: Sequence[Array]) -> Tangents:
        found = dict(zip(places, arrays, strict=True))
        return tuple(found.get(i) for i in range(len(operands)))

    def forward(*arrays: Array) -> Array:
        result: Array = tangent(among(there, arrays[: len(there)]), among(moving, arrays[len(there) :]))
        return varying_as(result, jax.typeof(arrays[-1]))

    def transposed(*arrays: Array) -> tuple[Array, ...]:
        kind = jax.typeof(arrays[-1])
        fixed = [varying_as(a, kind) for a in arrays[:-1]]  # else `jax.vjp` in a gradient would sum over devices too
        gradients = gradient(among(there, fixed), arrays[-1])
        return tuple(varying_as(gradients[i], kind) for i in moving)

    arrays = [operands[i] for i in there] + [varying_as(tangents[i], kind) for i in moving]  # type: ignore[arg-type]
    result: Array = _linear_p.bind(*arrays, forward=forward, transposed=transposed, count=len(there), kind=kind)  # type: ignore[no-untyped-call]
    return result


_linear_p = Primitive("straight_through")


def _compute(*arrays: Array, forward: Rule, **_: Any) -> Array:
    result: Array = forward(*arrays)
    return result


def _differentiated(arrays: Sequence[Array], moves: Sequence[Any], *, count: int, **rules: Any) -> tuple[Array, Any]:
    """Linear in the tangents; the operands move too, unless `differentiable` has fixed them."""
    bind = partial(_linear_p.bind, *arrays[:count], count=count, **rules)
    value, tangent = bind(*arrays[count:]), bind(*map(ad.instantiate_zeros, moves[count:]))
    movers = [i for i in range(count) if not isinstance(moves[i], ad.Zero)]
    if not movers:
        return value, tangent

    def forward(*moved: Array) -> Any:
        operands = dict(enumerate(arrays)) | dict(zip(movers, moved, strict=True))
        return rules["forward"](*operands.values())

    more = jax.jvp(forward, [arrays[i] for i in movers], [moves[i] for i in movers])[1]
    return value, lax.add(tangent, more)


def _transposed(g: Any, *arrays: Any, transposed: Rule, count: int, **_: Any) -> list[Any]:
    asked = [isinstance(a, ad.UndefinedPrimal) for a in arrays]
    if isinstance(g, ad.Zero):
        return [ad.Zero(a.aval) if ask else None for a, ask in zip(arrays, asked, strict=True)]
    gradients = transposed(*arrays[:count], g)
    return [None] * count + [d if ask else None for d, ask in zip(gradients, asked[count:], strict=True)]


def _batched(
    arrays: Sequence[Array], axes: Sequence[int | None], *, forward: Rule, transposed: Rule, count: int, kind: Any
) -> tuple[Array, int]:
    """Of all tangents one for each of the batch, since their gradients are."""
    del kind
    size = next(a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None)
    moved = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True)]
    for i in range(count, len(arrays)):
        moved[i] = moved[i] if axes[i] is not None else jnp.broadcast_to(moved[i][None], (size, *moved[i].shape))
    places = [None if axis is None else 0 for axis in axes[:count]]
    rules = {
        "forward": jax.vmap(forward, (*places, *[0] * (len(arrays) - count))),
        "transposed": jax.vmap(transposed, (*places, 0)),
    }
    kind = jax.make_jaxpr(rules["forward"])(*moved).out_avals[0]
    return _linear_p.bind(*moved, **rules, count=count, kind=kind), 0  # type: ignore[no-untyped-call]


_linear_p.def_impl(_compute)  # type: ignore[no-untyped-call]
_linear_p.def_abstract_eval(lambda *_, kind, **__: kind)  # type: ignore[no-untyped-call]
ad.primitive_jvps[_linear_p] = _differentiated
ad.primitive_transposes[_linear_p] = _transposed
batching.primitive_batchers[_linear_p] = _batched
mlir.register_lowering(_linear_p, mlir.lower_fun(_compute, multiple_results=False))
