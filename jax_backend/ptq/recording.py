"""What layers of a flax model see: batches run through it, inputs handed on one by one, nothing kept.

While inputs are recorded, a layer is an instance of a class made for that, whose call hands on its input. Models are
run as they are, not under ``jit``: what a program under ``jit`` sees has no values.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import jax
from flax import nnx

from ..arrays import is_concrete

Array = jax.Array
Filter = Callable[[nnx.Module, str], bool]
Take = Callable[[str, Array], None]
Batches = Iterable[Any]
Kind = TypeVar("Kind", bound=nnx.Module)


def named_modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """Modules by name, parts joined by dots, each once."""
    return {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}


def chosen_layers(model: nnx.Module, filter_fn: Filter | None, kind: type[Kind]) -> dict[str, Kind]:
    """Layers of a kind by name, each once, for which ``filter_fn(layer, name)`` is true; None: all of them.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    present = {name: layer for name, layer in named_modules(model).items() if isinstance(layer, kind)}
    chosen = {name: layer for name, layer in present.items() if filter_fn is None or filter_fn(layer, name)}
    if not chosen:
        names = ", ".join(f"'{name}'" for name in present) or "none"
        raise ValueError(f"`filter_fn` chooses no layer; layers of kind {kind.__name__} are {names}")
    return chosen


def check_batches(batches: object) -> None:
    """TypeError unless batches can be run through more than once."""
    if not isinstance(batches, Iterable) or isinstance(batches, Iterator | jax.Array | Mapping):
        raise TypeError(
            f"`batches` must be a list or another iterable that can be run through again, got {type(batches).__name__}"
        )


def run(model: nnx.Module, batch: Any) -> Any:
    """The model's output for a batch: its only argument, or a sequence of arguments, or keywords."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, Sequence) else model(batch)


class _Done(Exception):
    """All that a pass looks for was seen."""


def record(model: nnx.Module, layers: Mapping[str, nnx.Linear], batches: Iterable[Any], take: Take) -> None:
    """Runs batches through a model, and calls ``take(name, x)`` with each input of these layers.

    Raises:
        ValueError: there is no batch, or a layer is called under ``jit``. What ``take`` or the model raises.
    """

    def before(name: str) -> Callable[[Array], None]:
        def seen(x: Array) -> None:
            if not is_concrete(x):
                raise ValueError(f"'{name}': is called under jit, where inputs have no values: give the plain model")
            take(name, x)

        return seen

    count = 0
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(_watched(layer, before(name), None))
        for batch in batches:
            count += 1
            try:
                run(model, batch)
            except _Done:
                continue
    if not count:
        raise ValueError("`batches` is empty: calibration never run")


def stages(model: nnx.Module, layers: Mapping[str, nnx.Linear], batches: Iterable[Any]) -> list[dict[str, int]]:
    """The layers in the order in which they run on the first batch: those that see the same input together.

    Returns:
        For each stage, its layers with how often each is called. Layers that are never called are in none.
    Raises:
        ValueError: there is no batch.
    """
    calls: dict[str, list[int]] = {}
    seen: list[Any] = [None, 0]  # the last input, and how many there were

    def take(name: str, x: Array) -> None:
        if x is not seen[0]:
            seen[:] = [x, seen[1] + 1]
        calls.setdefault(name, []).append(seen[1])

    record(model, layers, _first(batches), take)
    grouped: dict[tuple[int, ...], dict[str, int]] = {}
    for name, inputs in calls.items():
        grouped.setdefault(tuple(inputs), {})[name] = len(inputs)
    return list(grouped.values())


def record_stage(
    model: nnx.Module, layers: Mapping[str, nnx.Linear], stage: Mapping[str, int], batches: Iterable[Any], take: Take
) -> None:
    """As `record` for the layers of a stage, of which the first stands for all; a batch goes no further than needed."""
    first, calls = next(iter(stage.items()))

    def seen(name: str, x: Array) -> None:
        take(name, x)
        if calls == 1:
            raise _Done

    record(model, {first: layers[first]}, batches, seen)


@contextmanager
def weights_of_codes(layers: Mapping[str, nnx.Linear], found: Mapping[str, Callable[[], Array]]) -> Iterator[None]:
    """While it lasts, layers for which there are kernels have those, each only during its own calls."""
    with ExitStack() as stack:
        for name, kernel in found.items():
            stack.enter_context(_watched(layers[name], None, kernel))
        yield


@contextmanager
def handed_on(modules: Mapping[str, nnx.Module], before: Take, after: Callable[[str, Array], None]) -> Iterator[None]:
    """While it lasts, calls of these modules hand on their input first, and then what they give."""
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(_watched(module, partial(before, name), None, partial(after, name)))
        yield


@contextmanager
def _watched(
    layer: nnx.Module,
    before: Callable[[Array], None] | None,
    kernel: Callable[[], Array] | None,
    after: Callable[[Array], None] | None = None,
) -> Iterator[None]:
    """While it lasts, calls of a layer hand on their input and what they give, and have another kernel."""
    own: Any = type(layer)

    def call(self: Any, inputs: Array, *args: Any, **keywords: Any) -> Array:
        if before is not None:
            before(inputs)
        if kernel is None:
            given: Array = own.__call__(self, inputs, *args, **keywords)
        else:
            old = self.kernel[...]
            self.kernel[...] = kernel()
            try:
                given = own.__call__(self, inputs, *args, **keywords)
            finally:
                self.kernel[...] = old
        if after is not None:
            after(given)
        return given

    object.__setattr__(layer, "__class__", type(own.__name__, (own,), {"__call__": call}))
    try:
        yield
    finally:
        object.__setattr__(layer, "__class__", own)


def _first(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        yield batch
        return


def rows_of(x: Array) -> Array:
    """An input of a linear layer as a matrix of rows."""
    return x.reshape(-1, x.shape[-1])
