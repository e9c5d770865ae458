"""How a layer of torch and one of flax are made from each other: what all kinds of layers share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

ZEROS = nnx.initializers.zeros_init()  # weights that are not drawn, since they are replaced
Axes = frozenset[int]
Arguments = dict[str, Any]
ROWS: Axes = frozenset({0})
ANY: Axes = frozenset({0, 1, 2, 3})
IMAGES: Axes = ANY - ROWS


class Refused(Exception):
    """A layer that has no partner, and why."""


class Translation(NamedTuple):
    """Arguments for flax of a layer of torch, and for torch of a layer of flax, or of the keywords of a function."""

    to_flax: Callable[[Any, Axes], Arguments]
    to_torch: Callable[[Any, Axes], Arguments]


def require(condition: bool, reason: str) -> None:
    """`Refused`, unless it holds."""
    if not condition:
        raise Refused(reason)


def plain(layer: Any) -> None:
    """`Refused` for a flax layer that computes in another dtype than that of its parameters."""
    dtype = getattr(layer, "dtype", None)
    if dtype is not None and jnp.dtype(dtype) != jnp.dtype(layer.param_dtype):
        raise Refused(f"computes in {jnp.dtype(dtype)}, its parameters are {jnp.dtype(layer.param_dtype)}")


def each(value: Any, n: int) -> tuple[int, ...]:
    """A number for each of n axes."""
    value = 1 if value is None else value
    return (value,) * n if isinstance(value, int) else tuple(value)


def margins(padding: Any, size: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Any:
    """Padding as torch has it: the same on both sides of an axis, or ``same``."""
    if padding == "VALID":
        return (0,) * len(size)
    totals = [d * (k - 1) for k, d in zip(size, dilation, strict=True)]
    same = [(total // 2, total - total // 2) for total in totals]
    if padding == "SAME":
        require(set(strides) == {1}, f"padding='SAME' with strides {tuple(strides)}, which depends on the image")
        pairs = same
    else:
        require(not isinstance(padding, str), f"padding={padding!r}")
        axes = (padding,) * len(size) if isinstance(padding, int) else padding
        pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in axes]
    if all(before == after for before, after in pairs):
        return tuple(before for before, _ in pairs)
    require(pairs == same and set(strides) == {1}, f"padding={pairs}; torch has the same on both sides of an axis")
    return "same"


def renamed(**names: tuple[str, Any]) -> Translation:
    """Of a function: its keywords by their names in torch, with the default of flax; no others."""

    def to_flax(layer: Any, axes: Axes) -> Arguments:
        return {ours: getattr(layer, theirs) for ours, (theirs, _) in names.items()}

    def to_torch(keywords: Any, axes: Axes) -> Arguments:
        return {theirs: keywords.get(ours, default) for ours, (theirs, default) in names.items()}

    return Translation(to_flax, to_torch)


def same(*names: str) -> Translation:
    """Of layers whose arguments have the same names and values in both."""

    def arguments(layer: Any, axes: Axes) -> Arguments:
        return {name: getattr(layer, name) for name in names}

    return Translation(arguments, arguments)


def only(**values: Any) -> Translation:
    """Of a function without these keywords, for layers of torch where they have these values alone."""

    def to_flax(layer: Any, axes: Axes) -> Arguments:
        for name, value in values.items():
            require(getattr(layer, name) == value, f"{name}={getattr(layer, name)}; flax has {value} alone")
        return {}

    return Translation(to_flax, lambda layer, axes: {})
