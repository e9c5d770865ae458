"""A JAX model, followed beside the recording of a torch model: every module is given what torch gave its partner.

A module that has a partner is called with the inputs of torch, and what it returns is replaced by the outputs of torch.
So no difference reaches another module, and what is compared is what a module adds to it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.requirements import explaining
from ..modes.arrays import to_jax, to_numpy

with explaining(__name__):
    import jax
    from flax import nnx

from .record import Call, Recording, one_line
from .results import ValidationError

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How an array of JAX lies beside one of torch: axes of torch's array in JAX's order, or None for the same."""

    name: str
    axes: Callable[[int], tuple[int, ...]] | None = None

    def to_jax(self, x: Array) -> Array:
        """An array of torch, laid out as JAX has it."""
        return x if self.axes is None else x.transpose(self.axes(x.ndim))

    def to_torch(self, x: Array) -> Array:
        """An array of JAX, laid out as torch has it."""
        return x if self.axes is None else x.transpose(np.argsort(self.axes(x.ndim)))


SAME = Layout("the same")
LAYOUTS = (
    SAME,
    Layout("channels last", lambda ndim: (0, *range(2, ndim), 1)),
    Layout("first two axes swapped", lambda ndim: (1, 0, *range(2, ndim))),
)


@dataclass(frozen=True)
class Observation:
    """A value of JAX beside one of torch.

    Attributes:
        parent, call: of torch; ``parent`` is the call that computed an input.
        jax_path: the module in JAX.
        what: "output" or "input"; ``position`` among these.
        value: number of torch's value on the tape.
        got: what JAX computed, in torch's layout where its shape allows.
    """

    parent: Call | None
    call: Call
    jax_path: str
    what: str
    position: int
    value: int
    got: Array


@dataclass
class Following:
    """What came of following a model."""

    observations: list[Observation] = field(default_factory=list)
    order: dict[int, list[str]] = field(default_factory=dict)  # by id of torch's call: its parts as JAX calls them
    reached: set[str] = field(default_factory=set)  # paths in torch
    hidden: bool = False  # whether modules ran that cannot be followed: traced, or copies such as nnx.jit makes
    results: str = ""  # of the model, where it does not give as many as torch
    stopped: str = ""


def follow(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    recording: Recording,
    watched: Mapping[str, nnx.Module],
    pairs: Mapping[str, str],
) -> Following:
    """Runs a JAX model, op by op, module by module beside the recording.

    Args:
        watched: modules of the JAX model by their paths; ``pairs`` names those that have a partner.
        pairs: path in torch to path in JAX.
    Raises:
        ValidationError: the model raises an exception before anything differs.
    """
    found, stack, counts = Following(), list[Call](), dict[str, int]()
    partners = {id(watched[there]): (here, there) for here, there in pairs.items() if here and there in watched}
    active, known = set[int](), {id(module) for module in watched.values()}

    def intercepted(module: Any, original: Callable[..., Any], a: Any, k: Any) -> Any:
        followed = id(module) in known and not _traced((a, k))
        found.hidden |= not followed
        if id(module) not in partners or id(module) in active or not followed:
            return original(module, *a, **k)
        path, there = partners[id(module)]
        number = counts[path] = counts.get(path, -1) + 1
        calls = recording.calls.get(path, ())
        if number >= len(calls):
            return original(module, *a, **k)
        found.reached.add(path)
        active.add(id(module))
        try:
            return _beside(
                found, stack, recording, calls[number], there, lambda *x, **y: original(module, *x, **y), a, k
            )
        finally:
            active.discard(id(module))

    kinds = {type(watched[there]) for there in pairs.values() if there in watched}
    try:
        with _patched(kinds, intercepted):
            active.add(id(model))
            _beside(found, stack, recording, recording.root, "", model, tuple(args), dict(kwargs))
    except Exception as error:
        where = next((f" in {pairs.get(c.path) or 'the model'}" for c in reversed(stack)), "")
        found.stopped = f"the JAX model failed{where}: {one_line(error)}"
    return found


def _beside(
    found: Following,
    stack: list[Call],
    recording: Recording,
    call: Call,
    there: str,
    run: Callable[..., Any],
    args: Any,
    kwargs: Any,
) -> Any:
    """One call: its inputs are noted and replaced, it runs, its outputs are noted and replaced."""
    parent = stack[-1] if stack else None
    leaves, tree = jax.tree.flatten((args, kwargs))
    partners = _matched([to_numpy(recording.value(i)) for i in call.inputs], leaves)
    for position, (leaf, layout) in sorted(partners.items()):
        number, at = call.inputs[position], leaf
        if parent is not None:
            got = to_numpy(leaves[at])
            found.observations.append(
                Observation(
                    parent, call, there, "input", position, number, layout.to_torch(got) if _fits(layout, got) else got
                )
            )
        leaves[at] = _given(recording.value(number), leaves[at], layout)
    if parent is not None:
        found.order.setdefault(id(parent), []).append(call.path)
    stack.append(call)
    args, kwargs = jax.tree.unflatten(tree, leaves)
    with jax.disable_jit(bool(call.parts)):  # what holds no parts runs as its users run it
        y = run(*args, **kwargs)
    stack.pop()
    return _replaced(found, recording, call, parent, there, y)


def _replaced(found: Following, recording: Recording, call: Call, parent: Call | None, there: str, y: Any) -> Any:
    """The outputs of a call, noted, as torch has them."""
    leaves, tree = jax.tree.flatten(y)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
    if parent is None and len(places) != len(call.outputs):
        found.results = f"{len(places)} results instead of {len(call.outputs)}"
    for position, (at, number) in enumerate(zip(places, call.outputs, strict=False)):
        got, expected = to_numpy(leaves[at]), to_numpy(recording.value(number))
        layout = _layout(expected, got)
        shown = got if layout is None else layout.to_torch(got)
        found.observations.append(Observation(parent, call, there, "output", position, number, shown))
        if layout is not None:
            leaves[at] = _given(recording.value(number), leaves[at], layout)
    return jax.tree.unflatten(tree, leaves)


def _matched(expected: Sequence[Array], leaves: Sequence[Any]) -> dict[int, tuple[int, Layout]]:
    """Which argument of JAX is which of torch's, and its layout: the next of that kind, of a fitting shape first."""
    free = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
    found: dict[int, tuple[int, Layout]] = {}
    for strict in (True, False):
        for position, x in enumerate(expected):
            for i in free if position not in found else ():
                y = to_numpy(leaves[i])
                layout = _layout(x, y)
                alike = layout is not None if strict else x.ndim == y.ndim and x.size == y.size
                if _kind(x) == _kind(y) and alike:
                    found[position] = i, layout or SAME
                    free.remove(i)
                    break
    return found


def _kind(x: Array) -> str:
    return "b" if x.dtype == np.bool_ else "i" if np.issubdtype(x.dtype, np.integer) else "f"


def _layout(expected: Array, got: Array) -> Layout | None:
    """The layout in which shapes fit; of several the one in which the numbers are nearest."""
    fitting = [
        layout
        for layout in LAYOUTS
        if expected.ndim == got.ndim
        and (layout is SAME or expected.ndim >= 2 + (layout.name == "channels last"))
        and layout.to_jax(expected).shape == got.shape
    ]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    a = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        far = [float(np.nanmean(np.abs(a - layout.to_torch(got).astype(np.float64)))) for layout in fitting]
    # another layout only if it makes the numbers agree: swapped axes are a mistake
    best = int(np.argmin(far))
    return fitting[best] if far[best] < far[0] * 1e-3 else fitting[0]


def _fits(layout: Layout, got: Array) -> bool:
    return layout is SAME or got.ndim >= 2


def _given(value: Any, like: Any, layout: Layout) -> jax.Array:
    """A value of torch for JAX: its layout, and its width where JAX has no 64 bits."""
    array = layout.to_jax(to_numpy(value))
    if array.dtype != like.dtype and _kind(array) == _kind(np.asarray(like)):
        array = array.astype(like.dtype)
    return to_jax(np.ascontiguousarray(array))


def _traced(value: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


@contextmanager
def _patched(kinds: set[type], intercepted: Callable[..., Any]) -> Iterator[None]:
    """While open, calls of modules of these classes are intercepted."""
    kept: list[tuple[type, Any]] = []
    try:
        for kind in kinds:
            original = kind.__call__

            def call(self: Any, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
                return intercepted(self, _original, args, kwargs)

            kept.append((kind, vars(kind).get("__call__")))
            kind.__call__ = call  # type: ignore[method-assign]
        yield
    finally:
        for kind, own in kept:
            if own is None:
                del kind.__call__
            else:
                kind.__call__ = own  # type: ignore[method-assign]


def alone(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], leaves: Sequence[Any]
) -> list[Array]:
    """Results of a JAX model by itself, run as `follow` runs it: ``leaves``, its innermost modules, each as one piece.

    Raises:
        ValidationError: the model raises an exception.
    """
    known = {id(module) for module in leaves}

    def whole(module: Any, original: Callable[..., Any], a: Any, k: Any) -> Any:
        with jax.disable_jit(id(module) not in known):
            return original(module, *a, **k)

    try:
        with jax.disable_jit(bool(leaves)), _patched({type(module) for module in leaves}, whole):
            return [to_numpy(leaf) for leaf in jax.tree.leaves(model(*args, **kwargs))]
    except Exception as error:
        raise ValidationError(f"the JAX model failed: {one_line(error)}") from error


def order_of_calls(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], watched: Mapping[str, Any]
) -> list[str]:
    """Paths of the modules of a JAX model in the order in which it calls them; those that it does not call last.

    Raises:
        ValidationError: the model raises an exception.
    """
    paths, seen, turn = {id(module): path for path, module in watched.items()}, dict[str, int](), count()

    def noted(module: Any, original: Callable[..., Any], a: Any, k: Any) -> Any:
        if id(module) in paths:
            seen.setdefault(paths[id(module)], next(turn))
        return original(module, *a, **k)

    try:
        with jax.disable_jit(), _patched({type(module) for module in watched.values()}, noted):
            model(*args, **kwargs)
    except Exception as error:
        raise ValidationError(f"the JAX model failed: {one_line(error)}") from error
    return sorted(watched, key=lambda path: seen.get(path, len(seen)))
