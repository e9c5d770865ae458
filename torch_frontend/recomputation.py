"""Forward passes that a backward pass repeats (``torch.utils.checkpoint``): what each call used, to use it again.

What is repeated is a *region*. Its calls come in the same order each time it runs, so the k-th call of an owner in a
repetition is the k-th of when the region first ran. Regions without reentrance are the frames of torch's checkpoints,
found by the hooks for saved tensors that they install; those with it are the contexts of an ``autograd.Function``
whose ``forward`` runs the region without gradients and whose ``backward`` runs it again. What a region used is
forgotten with it, that is, with its graph. A region within another is kept in both, and so is a repetition within one.
"""

import sys
from collections.abc import Callable
from inspect import unwrap
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils import checkpoint


class _Region:
    """What the calls within a region used, and how far each repetition of it has come."""

    def __init__(self) -> None:
        self.used: dict[object, list[Any]] = {}
        self.repeated: dict[object, tuple[object, int]] = {}


_REGIONS: WeakKeyDictionary[object, _Region] = WeakKeyDictionary()


def repeated(owner: object, *, ends: bool) -> Any:
    """What this call of ``owner`` used when it first ran, or None if it runs for the first time.

    Args:
        ends: whether the next call of ``owner`` is another one.
    Raises:
        RuntimeError: inside a backward pass, but it is not known what is repeated.
    """
    if torch._C._current_graph_task_id() == -1:
        return None
    found = _repetition()
    region, repetition = found if found is not None else (None, None)
    of_owner = [] if region is None else region.used.get(owner, [])
    if region is not None:
        last, count = region.repeated.get(owner, (None, 0))
        count = count if last == repetition else 0
        if count < len(of_owner):
            region.repeated[owner] = (repetition, count + ends)
            return of_owner[count]
    raise RuntimeError(
        "a quantizer whose state changes with every tensor of training is called inside a backward pass, and not to "
        "repeat what torch.utils.checkpoint ran before: what to use here is unknown; use torch.utils.checkpoint, or "
        "put the module into evaluation mode (module.eval()) before both forward passes"
    )


def lists_of(owner: object) -> list[list[Any]]:
    """Where to add what this call of ``owner`` used: a list for each of the regions that it runs in."""
    frames = _frames()
    repeating = {frame for frame, _, repeats in frames if repeats}  # perhaps while they still run for the first time
    regions: list[object] = [frame for frame, *_ in frames if frame not in repeating]
    if not torch.is_grad_enabled():
        regions += _contexts()
    return [_REGIONS.setdefault(region, _Region()).used.setdefault(owner, []) for region in regions]


def refuse_repetition(mark: Tensor) -> None:
    """Has compiled code, which cannot tell what it repeats, refuse to run inside a backward pass.

    Args:
        mark: a tensor that nothing else reads or writes. An operator whose result only goes there is not run again by
            checkpoints that are part of the compiled program, which need no refusal.
    Raises:
        RuntimeError: when the compiled code runs there. Nothing in eager and exported code.
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        mark.copy_(torch.ops.samebits.first_run(mark))


def _repetition() -> tuple[_Region, object] | None:
    """The region that is repeated, as far as it is known, and which repetition of it this is."""
    for frame, hook, repeats in reversed(_frames()):  # what runs within a repetition was kept in it, too
        if repeats and frame in _REGIONS:
            return _REGIONS[frame], hook
    node = torch._C._current_autograd_node()
    if isinstance(node, BackwardCFunction) and node in _REGIONS:
        return _REGIONS[node], torch._C._current_graph_task_id()
    return None


def _frames() -> list[tuple[object, Callable[..., object], bool]]:
    """Frames of checkpoints without reentrance, the innermost first; what packs their tensors; which are repeated."""
    top, hooks = torch._C._autograd._top_saved_tensors_default_hooks(True), []
    while top is not None:
        hooks.append(top)
        torch._C._autograd._pop_saved_tensors_default_hooks()
        top = torch._C._autograd._top_saved_tensors_default_hooks(True)
    for pair in reversed(hooks):
        torch._C._autograd._push_saved_tensors_default_hooks(*pair)
    found = []
    for pack in (unwrap(pack) for pack, _ in hooks):
        if getattr(pack, "__module__", None) != checkpoint.__name__:
            continue
        for held in (cell.cell_contents for cell in pack.__closure__ or ()):
            repeats = isinstance(held, ReferenceType)
            frame = held() if repeats else held
            if isinstance(frame, checkpoint._CheckpointFrame):
                found.append((frame, pack, repeats))
    return found


def _contexts() -> list[object]:
    """Contexts of every ``autograd.Function`` whose ``forward`` is at work."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount and code.co_varnames[0] != "self":
            first = frame.f_locals.get(code.co_varnames[0])
            if isinstance(first, BackwardCFunction):
                found.append(first)
        frame = frame.f_back  # type: ignore[assignment]
    return found
