"""What layers of a model see: batches run through it, inputs handed on one by one, nothing kept."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Filter = Callable[[nn.Module, str], bool]
Take = Callable[[str, Tensor], None]
Kind = TypeVar("Kind", bound=nn.Module)


def chosen_layers(model: nn.Module, filter_fn: Filter | None, kind: type[Kind]) -> dict[str, Kind]:
    """Layers of a kind by name, each once, for which ``filter_fn(layer, name)`` is true; None: all of them.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    present = {name: layer for name, layer in model.named_modules() if isinstance(layer, kind)}
    chosen = {name: layer for name, layer in present.items() if filter_fn is None or filter_fn(layer, name)}
    if not chosen:
        names = ", ".join(f"'{name}'" for name in present) or "none"
        raise ValueError(f"`filter_fn` chooses no layer; layers of kind {kind.__name__} are {names}")
    return chosen


def check_batches(batches: object) -> None:
    """TypeError unless batches can be run through more than once."""
    if not isinstance(batches, Iterable) or isinstance(batches, Iterator | Tensor | Mapping):
        raise TypeError(
            "`batches` must be a list, a DataLoader or another iterable that can be run through again, "
            f"got {type(batches).__name__}"
        )


def run(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch: its only argument, or a sequence of arguments, or keywords."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, Sequence) else model(batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, and evaluation mode; afterwards every module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Done(Exception):
    """All that a pass looks for was seen."""


def record(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any], take: Take) -> None:
    """Runs batches through a model, and calls ``take(name, x)`` with each input of these layers.

    Raises:
        ValueError: there is no batch. What ``take`` or the model raises.
    """

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: take(name, args[0] if args else kwargs["input"])

    count = 0
    handles = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        for batch in batches:
            count += 1
            try:
                run(model, batch)
            except _Done:
                continue
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise ValueError("`batches` is empty: calibration never run")


def stages(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any]) -> list[dict[str, int]]:
    """The layers in the order in which they run on the first batch: those that see the same input together.

    Returns:
        For each stage, its layers with how often each is called. Layers that are never called are in none.
    Raises:
        ValueError: there is no batch.
    """
    calls: dict[str, list[int]] = {}
    seen: list[Any] = [None, 0, 0]  # the last input, its version, how many there were

    def take(name: str, x: Tensor) -> None:
        if x is not seen[0] or x._version != seen[1]:
            seen[:] = [x, x._version, seen[2] + 1]
        calls.setdefault(name, []).append(seen[2])

    record(model, layers, _first(batches), take)
    grouped: dict[tuple[int, ...], dict[str, int]] = {}
    for name, inputs in calls.items():
        grouped.setdefault(tuple(inputs), {})[name] = len(inputs)
    return list(grouped.values())


def record_stage(
    model: nn.Module, layers: Mapping[str, nn.Module], stage: Mapping[str, int], batches: Iterable[Any], take: Take
) -> None:
    """As `record` for the layers of a stage, of which the first stands for all; a batch goes no further than needed."""
    first, calls = next(iter(stage.items()))

    def seen(name: str, x: Tensor) -> None:
        take(name, x)
        if calls == 1:
            raise _Done

    record(model, {first: layers[first]}, batches, seen)


@contextmanager
def weights_of_codes(layers: Mapping[str, nn.Module], found: Mapping[str, Callable[[], Tensor]]) -> Iterator[None]:
    """While it lasts, layers for which there are weights have those, each only during its own calls."""
    handles = []
    for name, weight in found.items():
        layer, old = layers[name], layers[name].weight

        def begin(module: nn.Module, args: Any, weight: Callable[[], Tensor] = weight) -> None:
            module._parameters["weight"] = weight()  # type: ignore[assignment]

        def end(module: nn.Module, args: Any, output: Any, old: Any = old) -> None:
            module._parameters["weight"] = old

        handles.append(layer.register_forward_pre_hook(begin))
        handles.append(layer.register_forward_hook(end, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        yield batch
        return


def rows_of(x: Tensor) -> Tensor:
    """An input of a linear layer as a matrix of rows."""
    return x.reshape(-1, x.shape[-1])
