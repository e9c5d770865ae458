"""Layers as pure functions over pytrees, for programs that use neither API of flax.

    model = functional.init(lambda rngs: nn.QuantLinear(64, 10, input_quant="uint8_per_tensor", rngs=rngs), key)
    y, state = functional.apply(model.definition, model.params, model.state, x)

``params`` is what is trained: kernels, biases, learned scales and widths, as a nested dict of arrays. ``state`` is
everything else: running statistics, counters and seeds. Both are ordinary pytrees, for ``jax.grad``, ``jax.jit``,
``jax.vmap``, optax and any library of checkpoints; ``definition`` is hashable and static.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
Tree = Any  # a nested dict of arrays


class Definition(NamedTuple):
    """A module without its arrays; hashable.

    Attributes:
        graph: what flax knows of it.
        params, state: the structures of its arrays, and their shapes.
    """

    graph: Any
    params: "Arrays"
    state: "Arrays"


class Arrays(NamedTuple):
    """A pytree without its values; hashable.

    Attributes:
        structure: of the pytree. shapes: of its leaves.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]


class Model(NamedTuple):
    """A module taken apart.

    Attributes:
        definition: everything but arrays.
        params: arrays that are trained. state: all others.
    """

    definition: Definition
    params: Tree
    state: Tree


def init(make: Callable[[nnx.Rngs], nnx.Module], key: Array | int) -> Model:
    """A module, taken apart.

    Args:
        make: makes it, with keys for its parameters.
        key: of ``jax.random``, or a seed.
    Raises:
        TypeError: a module itself, or what is made is none.
    """
    if isinstance(make, nnx.Module):
        raise TypeError(
            f"`make` must be a function that makes a module, got a {type(make).__name__}; see `taken_apart`"
        )
    module = make(nnx.Rngs(key))
    if not isinstance(module, nnx.Module):
        raise TypeError(f"`make` must give an nnx.Module, gave {module!r}")
    return taken_apart(module)


def taken_apart(module: nnx.Module) -> Model:
    """The arrays of a module apart from it; changes of them do not change it."""
    graph, *parts = nnx.split(module, nnx.Param, ...)
    params, state = (nnx.to_pure_dict(part) for part in parts)
    return Model(Definition(graph, _arrays(params), _arrays(state)), params, state)


def apply(
    definition: Definition,
    params: Tree,
    state: Tree,
    *args: Any,
    train: bool = True,
    method: str = "__call__",
    **kwargs: Any,
) -> tuple[Any, Tree]:
    """What the module gives, and its state after that. Pure: nothing that is given changes.

    Args:
        definition: static under ``jax.jit``; the others may be traced.
        args, kwargs: of the method.
        train: whether statistics learn (``module.train()``), or stay as they are (``module.eval()``).
        method: which one is called.
    Raises:
        TypeError: what is no `Definition`, as a whole `Model`.
        ValueError: arrays that are missing, that the module does not have, or of other shapes than its own, unless
            those are empty: a scale that is not set yet; and what the module raises.
    """
    if not isinstance(definition, Definition):
        raise TypeError(f"`definition` must be that of a Model, got {type(definition).__name__}")
    _check("params", definition.params, params)
    _check("state", definition.state, state)
    module: Any = nnx.merge(definition.graph, params, state)
    module.train() if train else module.eval()
    y = getattr(module, method)(*args, **kwargs)
    return y, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))


def _arrays(tree: Tree) -> Arrays:
    leaves, structure = jax.tree.flatten(tree)
    return Arrays(structure, tuple(tuple(leaf.shape) for leaf in leaves))


def _check(name: str, wanted: Arrays, given: Tree) -> None:
    """ValueError unless a pytree has this structure and these shapes."""
    own = _paths(jax.tree.unflatten(wanted.structure, range(wanted.structure.num_leaves)))
    others = _paths(given)
    if jax.tree.structure(given) != wanted.structure:
        kinds = (("missing", {*own} - {*others}), ("unexpected", {*others} - {*own}))
        found = "; ".join(f"{kind} {', '.join(sorted(some))}" for kind, some in kinds if some) or "another kind of node"
        raise ValueError(f"`{name}` must hold what the module holds, got {found}")
    for path, shape, leaf in zip(own, wanted.shapes, jax.tree.leaves(given), strict=True):
        if 0 not in shape and tuple(jnp.shape(leaf)) != shape:
            raise ValueError(f"`{name}`: {path} must have shape {shape}, got {tuple(jnp.shape(leaf))}")


def _paths(tree: Tree) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
