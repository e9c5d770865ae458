"""Cross-layer equalization of a whole model."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...core.choice import check_count
from ...core.layerwise import LayerReport, ModelReport
from .equalization import equalization_factors
from .pairs import LAYERS, Changes, Pair, checked_pairs, fold, put_into, value_of
from .recording import named_modules

Array = jax.Array
ENOUGH = 1e-3  # how near to 1 factors are when nothing is left to do


def equalize_(model: nnx.Module, pairs: Sequence[Pair], sweeps: int = 20) -> ModelReport:
    """Makes ranges of channels equal between linear or convolution layers with ReLU between them, in place.

    The model computes what it did, up to roundings of weights, if nothing but the readers of a pair reads what its
    first layer gives, and that through nothing but ReLU, pooling and dropout.

    Args:
        pairs: such as ``[("conv1", ["conv2"])]``.
        sweeps: how often all pairs are gone through at most; less where no factor moves by a thousandth.
    Returns:
        For each pair, before and after, the largest over the smallest range of a channel, in that of the two layers
        where they lie further apart.
    Raises:
        ValueError: no pairs, or wrong ones; weights that are not finite. TypeError: an argument of the wrong kind. The
            model is then as it was.
    """
    check_count("sweeps", sweeps, 1)
    found = checked_pairs(model, pairs, LAYERS, LAYERS)
    if not found:
        raise ValueError("no layer can be equalized: `pairs` is empty")
    modules = named_modules(model)
    changes: Changes = {}

    def current(name: str) -> Array:
        value = changes[name, "weight"] if (name, "weight") in changes else value_of(modules[name], "weight")
        return jnp.abs(value.astype(np.float32))

    def ranges(pair: Pair) -> tuple[Array, Array]:
        rows = jnp.max(current(pair[0]).reshape(len(current(pair[0])), -1), 1)
        columns = [jnp.moveaxis(current(name), 1, 0) for name in pair[1]]
        return rows, jnp.stack([one.reshape(len(one), -1).max(1) for one in columns]).max(0)

    before = [_spread(*ranges(pair)) for pair in found]
    for _ in range(sweeps):
        moved = 0.0
        for pair in found:
            factors = equalization_factors(*ranges(pair))
            fold(modules, changes, *pair, factors)
            moved = max(moved, float(jnp.abs(factors - 1).max()))
        if moved < ENOUGH:
            break
    after = [_spread(*ranges(pair)) for pair in found]
    put_into(model, changes, None)
    names = [f"{producer} -> {', '.join(readers)}" for producer, readers in found]
    return ModelReport(tuple(LayerReport(*one, "equalized") for one in zip(names, before, after, strict=True)))


def _spread(*ranges: Array) -> float:
    """The largest over the smallest range that is not 0, where they lie further apart."""
    used = [np.asarray(one)[np.asarray(one) > 0] for one in ranges]
    return max(float(one.max() / one.min()) if one.size else 1.0 for one in used)
