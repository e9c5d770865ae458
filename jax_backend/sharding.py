"""Arrays on a mesh with explicit axes, where every operation has to say how its result lies on the devices.

Functions of this package are computed with such axes left to the compiler (`jax.sharding.auto_axes`), which changes no
bit; their results lie as their arguments do. So everything else here is written as if there were no mesh.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from math import prod
from typing import Any, TypeVar, cast

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ..core.descriptions import Quantizer
from ..core.granularity import qparams_shape

Array = jax.Array
Function = TypeVar("Function", bound=Callable[..., Any])
EVERYWHERE = PartitionSpec()  # type: ignore[no-untyped-call]  # the whole array on each device


def laid_out_by(specs: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorator of ``function(static, *arrays)``, of nested tuples of arrays and None.

    Args:
        specs: ``specs(static, *arrays)``, a `PartitionSpec` for each result, None for None.
    """

    def decorator(function: Function) -> Function:
        @wraps(function)
        def anyhow(static: Any, *arrays: Any) -> Any:
            mesh = _explicit_mesh(jax.tree.leaves(arrays))
            if mesh is None:
                return function(static, *arrays)
            out = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(static, *arrays))
            names = tuple(n for n, t in zip(mesh.axis_names, mesh.axis_types, strict=True) if t is AxisType.Explicit)
            return jax.sharding.auto_axes(lambda *a: function(static, *a), axes=names, out_sharding=out)(*arrays)

        return cast(Function, anyhow)

    return decorator


def spec_of(x: Array) -> PartitionSpec:
    """How an array lies, one entry for each axis; the explicit axes of a mesh alone."""
    sharding = jax.typeof(x).sharding
    entries = tuple(getattr(sharding, "spec", ()))
    return _spec(*entries, *[None] * (x.ndim - len(entries)))


def spec_of_qparams(q: Quantizer, x: Array) -> PartitionSpec:
    """How parameters chosen from ``x`` lie: as ``x``, along axes that have whole blocks on each device."""
    mesh, entries = jax.typeof(x).sharding.mesh, []
    for count, names in zip(qparams_shape(q.granularity, x.shape), spec_of(x), strict=False):
        parts = prod(mesh.shape[name] for name in _names(names))
        entries.append(names if count > 1 and count % parts == 0 else None)
    return _spec(*entries)


def like_first(_: Any, x: Array, *others: Any) -> PartitionSpec:
    """Of a result that lies as the first array."""
    return spec_of(x)


def lying_as(x: Array, other: Array) -> Array:
    """``x`` moved to where ``other``, of the same shape, lies."""
    if _explicit_mesh([x, other]) is None or spec_of(x) == spec_of(other):
        return x
    moved: Array = jax.sharding.reshard(x, spec_of(other))  # type: ignore[no-untyped-call]
    return moved


def joined(first: Iterable[Any], last: Any) -> PartitionSpec:
    """Of a product: axes of one operand, then one of the other.

    Raises:
        ValueError: an axis of the mesh in both.
    """
    first = tuple(first)
    both = {name for entry in first for name in _names(entry)} & set(_names(last))
    if both:
        axes = ", ".join(map(repr, sorted(both)))
        raise ValueError(
            f"`x` and `w` must not both be split along {axes} of the mesh, `x` by its rows and `w` by its outputs: the "
            "result could be split by either; move one of them with jax.sharding.reshard"
        )
    return _spec(*first, last)


def _spec(*entries: Any) -> PartitionSpec:
    return PartitionSpec(*entries)  # type: ignore[no-untyped-call]


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _explicit_mesh(arrays: Iterable[Array]) -> Any:
    """The mesh with explicit axes that an array lies on, or None."""
    for array in arrays:
        mesh = getattr(jax.typeof(array).sharding, "mesh", None)
        if mesh is not None and AxisType.Explicit in mesh.axis_types:
            return mesh
    return None
