"""What torch did, operation by operation, and doing parts of it again: with error bounds, or with one step changed.

A `Tape` holds the calls that reach torch's dispatcher and every tensor they gave. A part of it runs from `sources`,
values that are given, to a target. Modules do not matter here: a step is a step.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from ...core.requirements import explaining

with explaining(__name__):
    import torch
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map
    from torch.utils.weak import WeakIdKeyDictionary

from .bounds import error_of


class Ref(NamedTuple):
    """Stands for a value of the tape in the arguments of a step."""

    number: int


@dataclass(frozen=True, eq=False)
class Step:
    """One operation: what was called, with which arguments, and the numbers of its results."""

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int | None, ...]

    @property
    def name(self) -> str:
        """Of the operation, without namespace, overload and the mark of operations in place: ``add``."""
        return (
            str(self.op.overloadpacket.__name__).rstrip("_") if self.inplace else str(self.op.overloadpacket.__name__)
        )

    @property
    def inplace(self) -> bool:
        """Whether it changes its first argument."""
        return bool(self.op._schema.is_mutable)

    @cached_property
    def inputs(self) -> list[int]:
        """Numbers of the values that it takes."""
        return [leaf.number for leaf in tree_leaves([self.args, dict(self.kwargs)], is_leaf=_is_ref) if _is_ref(leaf)]


class Approximation(NamedTuple):
    """A value and how far each element may lie from what exact arithmetic gives: float64, or None with the reason."""

    value: Tensor
    error: Tensor | None
    reason: str = ""


Change = Callable[[Step, Sequence[Any], Mapping[str, Any]], Any]  # what a step is to give instead, from its arguments


@dataclass
class Tape:
    """Steps in order, and the values by number; those without a step are given."""

    steps: list[Step] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    makers: dict[int, int] = field(default_factory=dict)  # value to step
    names: dict[int, str] = field(default_factory=dict)  # of parameters and buffers
    numbers: Any = field(default_factory=WeakIdKeyDictionary)

    def number(self, tensor: Tensor) -> int:
        """Of a tensor; one that no step made becomes a given value."""
        if tensor not in self.numbers:
            self.keep(tensor)
        return int(self.numbers[tensor])

    def keep(self, tensor: Tensor) -> int:
        """A new number for a tensor, whatever it was before."""
        self.values.append(tensor.detach() if tensor.requires_grad else tensor)
        self.numbers[tensor] = len(self.values) - 1
        return len(self.values) - 1

    def steps_between(self, target: int, sources: Collection[int]) -> list[int]:
        """Numbers of the steps that make a value from the sources and from what is given, in order."""
        wanted, found, open_values = set(sources), set[int](), [target]
        while open_values:
            value = open_values.pop()
            if value in wanted or value not in self.makers:
                continue
            wanted.add(value)
            if self.makers[value] not in found:
                found.add(self.makers[value])
                open_values += self.steps[self.makers[value]].inputs
        return sorted(found)

    def again(
        self, target: int, sources: Collection[int], changes: Mapping[int, Change] | None = None, *, bound: bool = True
    ) -> Approximation:
        """The target made again from the sources, with some steps changed, and its error bound.

        Args:
            sources: values that are given, exact; a mapping says how exact each is.
            changes: of steps, by their number; what they do is bounded as what was recorded.
        Whatever the operations raise on changed arguments is raised.
        """
        changes = changes or {}
        known: dict[int, Approximation] = dict(sources) if isinstance(sources, Mapping) else {}

        def get(leaf: Any) -> Any:
            return known[leaf.number] if isinstance(leaf, Ref) and leaf.number in known else leaf

        for number in self.steps_between(target, sources):
            step = self.steps[number]
            if not bound and number not in changes and not any(ref in known for ref in step.inputs):
                continue  # gives what was recorded
            plain = tree_map(get, [step.args, dict(step.kwargs)], is_leaf=_is_ref)
            args, kwargs = tree_map(self._exact, plain, is_leaf=_is_leaf)
            anew = number in changes or any(
                ref in known and known[ref].value is not self.values[ref] for ref in step.inputs
            )
            if number in changes:
                results = _changed(changes[number], step, args, kwargs, bound=bound)
            else:
                results = _run(step, args, kwargs, self._recorded(step), bound=bound, anew=anew)
            known |= {out: one for out, one in zip(step.outputs, results, strict=False) if out is not None}
        return known[target] if target in known else _exact(self.values[target])

    def _exact(self, leaf: Any) -> Any:
        return _exact(self.values[leaf.number]) if isinstance(leaf, Ref) else leaf

    def _recorded(self, step: Step) -> list[Tensor | None]:
        return [None if out is None else self.values[out] for out in step.outputs]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, every operation goes onto its tape."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation: its arguments are noted before it, its results after it."""
        tape, kwargs = self.tape, kwargs or {}
        noted = tree_map(
            lambda leaf: Ref(tape.number(leaf)) if isinstance(leaf, Tensor) else leaf, [tuple(args), kwargs]
        )
        inplace = func._schema.is_mutable and bool(args) and isinstance(args[0], Tensor)
        if inplace:
            tape.values[noted[0][0].number] = args[0].clone()
        out = func(*args, **kwargs)
        given = out if isinstance(out, tuple | list) else (out,)
        outputs = tuple(
            (tape.keep(one) if inplace or one not in tape.numbers else None) if isinstance(one, Tensor) else None
            for one in given
        )
        if any(number is not None for number in outputs):
            tape.makers |= {number: len(tape.steps) for number in outputs if number is not None}
            tape.steps.append(Step(func, noted[0], noted[1], outputs))
        return out


def _is_ref(leaf: Any) -> bool:
    return isinstance(leaf, Ref)


def _is_leaf(leaf: Any) -> bool:
    return isinstance(leaf, Ref | Approximation)


def _exact(value: Tensor) -> Approximation:
    return Approximation(value, torch.zeros((), dtype=torch.float64).expand(value.shape))


def _run(
    step: Step,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    recorded: Sequence[Tensor | None],
    *,
    bound: bool,
    anew: bool,
) -> list[Approximation]:
    """The results of a step: as recorded unless something before it has changed."""
    outputs: Iterable[Any] = recorded
    if anew:
        plain_args, plain_kwargs = tree_map(_value, [list(args), dict(kwargs)], is_leaf=_is_leaf)
        if step.inplace:
            plain_args[0] = plain_args[0].clone()
        out = step.op(*plain_args, **plain_kwargs)
        outputs = out if isinstance(out, tuple | list) else (out,)
    found = []
    for position, out in enumerate(outputs):
        if not isinstance(out, Tensor):
            found.append(Approximation(torch.zeros(()), None, "no tensor"))
            continue
        error, reason = error_of(step.name, args, kwargs, out, position) if bound else (None, "not asked for")
        found.append(Approximation(out, error, reason))
    return found


def _changed(
    change: Change, step: Step, args: Sequence[Any], kwargs: Mapping[str, Any], *, bound: bool
) -> list[Approximation]:
    """What a change gives: recorded in its turn, and bounded from the bounds of its arguments."""
    plain_args, plain_kwargs = tree_map(_value, [list(args), dict(kwargs)], is_leaf=_is_leaf)
    with torch.no_grad(), Recorder() as recorder:
        out = change(step, plain_args, plain_kwargs)
    tape, given = recorder.tape, dict[int, Approximation]()

    def give(leaf: Any) -> None:
        if isinstance(leaf, Approximation):
            given[tape.number(leaf.value)] = leaf

    tree_map(give, [list(args), dict(kwargs)], is_leaf=_is_leaf)
    results = out if isinstance(out, tuple | list) else (out,)
    return [tape.again(tape.number(one), given, bound=bound) for one in results if isinstance(one, Tensor)]


def _value(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Approximation) else leaf
