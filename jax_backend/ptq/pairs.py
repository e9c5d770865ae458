"""Which layers of a flax model read what another layer gives, seen while it runs; and parameters of both changed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .folding import divide_rows, multiply_columns
from .recording import Batches, handed_on, named_modules, run
from .storing import check_floats

Array = jax.Array
Pair = tuple[str, Sequence[str]]  # a layer, and those that alone read what it gives
Changes = dict[tuple[str, str], Array]  # of parameters as torch has them: (out, in), kernels last

NORMS = (nnx.LayerNorm, nnx.RMSNorm)
LAYERS = (nnx.Linear, nnx.Conv)


def find_pairs(model: nnx.Module, batches: Batches) -> list[Pair]:
    """Linear layers that get the very array that a norm or a linear layer gave, when the first batch runs.

    Whether something else reads it too is not seen. ValueError: there is no batch.
    """
    modules = {
        name: module for name, module in named_modules(model).items() if isinstance(module, (*NORMS, nnx.Linear))
    }
    given: dict[str, Array] = {}
    pairs: dict[str, list[str]] = {}

    def before(name: str, x: Array) -> None:
        if isinstance(modules[name], nnx.Linear):
            for producer in [producer for producer, y in given.items() if y is x]:
                pairs.setdefault(producer, []).append(name)

    with handed_on(modules, before, given.__setitem__):
        for batch in batches:
            run(model, batch)
            break
        else:
            raise ValueError("`batches` is empty: calibration never run")
    return [(producer, tuple(dict.fromkeys(readers))) for producer, readers in pairs.items()]


def checked_pairs(model: nnx.Module, pairs: Sequence[Pair], producers: tuple[Any, ...], readers: Any) -> list[Pair]:
    """Pairs, if they are layers of these kinds, of the same number of channels, each reader in one of them.

    Raises:
        TypeError: pairs of another form. ValueError: a name that is no layer, another kind, other channels, a name
            twice, a layer that is quantized already.
    """
    modules, seen, checked = named_modules(model), set[str](), list[Pair]()
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and not isinstance(pair[1], str)):
            raise TypeError(f"`pairs` must be of the form [('norm', ['q', 'k', 'v'])], got {pair!r}")
        for name, allowed in ((pair[0], producers), *((reader, readers) for reader in pair[1])):
            if not isinstance(modules.get(name), allowed) or parameter(modules[name], "weight") is None:
                names = ", ".join(kind.__name__ for kind in allowed)
                raise ValueError(f"`pairs`: '{name}' must be a layer with a weight, of kind {names}")
        check_floats({name: modules[name] for name in (pair[0], *pair[1])})
        if not pair[1] or len({pair[0], *pair[1]}) != 1 + len(pair[1]) or seen & {*pair[1]}:
            raise ValueError(f"`pairs`: every reader must be in one pair, once, and no pair empty, got {pair!r}")
        seen |= {*pair[1]}
        weights = [value_of(modules[name], "weight") for name in (pair[0], *pair[1])]
        channels = [weights[0].shape[0], *(weight.shape[1] for weight in weights[1:])]
        if len(set(channels)) != 1:
            raise ValueError(f"`pairs`: all of {pair!r} must have the same channels, got {channels}")
        checked.append((pair[0], tuple(pair[1])))
    return checked


def parameter(module: nnx.Module, name: str) -> Any:
    """The variable of a layer's weight or bias, under the name that torch has for it; None where it has none."""
    if name == "weight":
        name = "scale" if isinstance(module, NORMS) else "kernel"
    return getattr(module, name, None)


def value_of(module: nnx.Module, name: str) -> Array:
    """A parameter as torch lays it out: out, in, then the lengths of a kernel."""
    value: Array = parameter(module, name)[...]
    return jnp.moveaxis(value, (-1, -2), (0, 1)) if value.ndim > 1 else value


def fold(
    modules: Mapping[str, nnx.Module], changes: Changes, producer: str, readers: Iterable[str], factors: Array
) -> None:
    """Adds to ``changes`` what factors make of the parameters of a pair, or of those that are there already."""

    def current(layer: str, name: str) -> Array:
        return changes[layer, name] if (layer, name) in changes else value_of(modules[layer], name)

    for name in ("weight", "bias"):
        if parameter(modules[producer], name) is not None:
            changes[producer, name] = divide_rows(current(producer, name), factors)
    for reader in readers:
        changes[reader, "weight"] = multiply_columns(current(reader, "weight"), factors)


def put_into(model: nnx.Module, changes: Changes, batch: Any) -> None:
    """Puts new parameters into a model, if it computes the same with them for a batch; None: that is not looked at.

    Raises:
        ValueError: parameters that are not finite, or outputs that move by more than roundings explain: then the pairs
            are none. The model is then as it was.
    """
    modules = named_modules(model)
    for (layer, name), value in changes.items():
        if not bool(jnp.isfinite(value).all()):
            raise ValueError(f"'{layer}': the {name} overflows")
    before = [] if batch is None else _outputs(model, batch)
    olds = {key: parameter(modules[key[0]], key[1])[...] for key in changes}
    try:
        for (layer, name), value in changes.items():
            laid = jnp.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value
            parameter(modules[layer], name)[...] = laid
        for one, other in zip(before, [] if batch is None else _outputs(model, batch), strict=True):
            eps = float(jnp.finfo(one.dtype).eps)  # type: ignore[no-untyped-call]
            allowed = min(2.0**12 * eps, 0.1)
            wide, moved = (np.asarray(value, np.float32) for value in (one, other))
            if wide.size and not abs(wide - moved).max() <= allowed * abs(wide).max():
                raise ValueError("`pairs` must not change what the model computes: something else reads those outputs")
    except BaseException:
        for (layer, name), old in olds.items():
            parameter(modules[layer], name)[...] = old
        raise


def _outputs(model: nnx.Module, batch: Any) -> list[Array]:
    """The floating-point arrays among what a model gives."""
    leaves = jax.tree_util.tree_leaves(run(model, batch))
    return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
