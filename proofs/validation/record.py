"""A torch model, run once: every operation, and which values each of its modules was given and gave."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ...core.requirements import explaining

with explaining(__name__):
    import torch
    from torch import Tensor, nn
    from torch.nn.attention import SDPBackend, sdpa_kernel

from .results import ValidationError
from .tape import Recorder, Tape


@dataclass
class Call:
    """One call of a module: numbers of values on the tape."""

    path: str
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...] = ()
    steps: tuple[int, int] = (0, 0)  # of the tape, from, to
    parts: list["Call"] = field(default_factory=list)  # of modules inside that are followed


@dataclass
class Recording:
    """The tape of a run, and its calls, by path and in order; the call of the model itself is that of ""."""

    tape: Tape
    calls: dict[str, list[Call]]

    @property
    def root(self) -> Call:
        """The call of the model."""
        return self.calls[""][0]

    def value(self, number: int) -> Tensor:
        """Of the tape."""
        return self.tape.values[number]


def record(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], followed: Sequence[str]
) -> Recording:
    """Runs a model under a tape.

    Attention that torch would compute by one fused kernel is computed step by step, so that its steps can be seen.

    Args:
        model: a module, or a function.
        followed: paths of the modules whose calls are noted.
    Raises:
        ValidationError: the model raises an exception.
    """
    recorder, stack, calls = Recorder(), list[Call](), dict[str, list[Call]]()
    tape = recorder.tape
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    if isinstance(model, nn.Module):
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        tape.names = {tape.number(tensor): name for name, tensor in reversed(named)}

    def begins(path: str, kind: str, given: Any) -> Call:
        call = Call(path, kind, tuple(tape.number(leaf) for leaf in tensors_of(given)), steps=(len(tape.steps), 0))
        calls.setdefault(path, []).append(call)
        if stack:
            stack[-1].parts.append(call)
        stack.append(call)
        return call

    def ends(given: Any) -> None:
        call = stack.pop()
        call.outputs = tuple(tape.number(leaf) for leaf in tensors_of(given))
        call.steps = (call.steps[0], len(tape.steps))

    with ExitStack() as open_hooks:
        for path in followed:
            if path and path in modules:
                _watch(open_hooks, modules[path], path, begins, ends)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        open_hooks.callback(torch.backends.mha.set_fastpath_enabled, fast)
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), recorder:
                begins("", type(model).__name__, (args, kwargs))
                ends(model(*args, **kwargs))
        except Exception as error:
            where = stack[-1].path if stack and stack[-1].path else "the model"
            raise ValidationError(f"the torch model failed in {where}: {one_line(error)}") from error
    return Recording(tape, calls)


def _watch(
    open_hooks: ExitStack, module: nn.Module, path: str, begins: Callable[..., Any], ends: Callable[..., Any]
) -> None:
    before = module.register_forward_pre_hook(
        lambda m, args, kwargs: begins(path, type(m).__name__, (args, kwargs)) and None, with_kwargs=True
    )
    after = module.register_forward_hook(lambda m, args, out: ends(out))
    open_hooks.callback(before.remove)
    open_hooks.callback(after.remove)


def tensors_of(value: Any) -> list[Tensor]:
    """Tensors in tuples, lists and mappings, in order; of mappings in that of their keys, as JAX has it."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [leaf for key in sorted(value, key=str) for leaf in tensors_of(value[key])]
    if isinstance(value, tuple | list):
        return [leaf for one in value for leaf in tensors_of(one)]
    return []


def one_line(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
