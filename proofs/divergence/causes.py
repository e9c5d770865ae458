"""Why a mode has other bits: the changes of the program that reproduce them, found by experiment.

A program is traced (`trace`), and evaluated with every operation rounded once, which is what it says. Where a mode
gives other bits, changes that compilers make (`strict.CHANGES`) are tried, one more at a time, until the evaluation has
the bits of the mode: `explain`. What no change explains is narrowed down to the first operation that gives, on the
operands that the mode itself had, other bits than by itself: `first_difference`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.compare import describe, differences
from ..modes.arrays import to_jax, to_numpy, to_torch
from ..modes.execution import unavailable
from .graph import KNOWN, Graph
from .strict import CHANGES, Change, candidates, evaluate, outputs

Array = NDArray[Any]
Function = Callable[..., Any]
MODES = ("torch eager", "torch compiled", "jax eager", "jax jit")


@dataclass(frozen=True)
class Program:
    """A formula, written in one framework or in both.

    Args:
        name: what it is called.
        arguments: NumPy arrays; on them the modes are compared.
        in_torch, in_jax: over tensors and over arrays; None if it is not written there.
    """

    name: str
    arguments: tuple[Array, ...]
    in_torch: Function | None = None
    in_jax: Function | None = None


@dataclass(frozen=True)
class Cause:
    """A change, the operation that is changed, and how many elements differ if only this change is left out."""

    change: Change
    operation: str
    without: int

    def __str__(self) -> str:
        where = self.operation or "all of the program"
        return f"{where}: {CHANGES[self.change.kind]}"


@dataclass(frozen=True)
class Explanation:
    """What a mode computes.

    Args:
        compared, differing: elements, and those that differ from the program as it is written.
        causes: the changes that are needed to come closest to what the mode gives; none if nothing differs.
        unexplained: elements that differ in spite of them.
        first: the first operation that gives other bits on its own operands, where something is unexplained.
        example: the differing element of smallest first argument: argument, as written, by the mode.
    """

    program: str
    mode: str
    compared: int
    differing: int
    causes: tuple[Cause, ...]
    unexplained: int
    first: str | None
    example: str | None


def trace(program: Program, framework: str) -> Graph:
    """The graph of the program in ``torch`` or ``jax``."""
    if framework == "torch":
        from .graph_torch import trace_torch

        return trace_torch(function_of(program, framework), *program.arguments)
    from .graph_jax import trace_jax

    return trace_jax(function_of(program, framework), *program.arguments)


def run(program: Program, mode: str, function: Function | None = None) -> list[Array]:
    """The results in one mode, flat."""
    called = function or function_of(program, mode.split()[0])
    if mode.startswith("torch"):
        import torch

        torch.compiler.reset()
        call = torch.compile(called, fullgraph=True) if mode == "torch compiled" else called
        with torch.no_grad():
            return flat(call(*map(to_torch, program.arguments)))
    import jax

    call = jax.jit(called) if mode == "jax jit" else called
    return flat(call(*map(to_jax, program.arguments)))


def explain(program: Program, mode: str) -> Explanation:
    """Why the mode has the bits that it has.

    Raises:
        ValueError: a mode not of `MODES`, or that cannot run here; a program not written in its framework.
    """
    _check(program, mode)
    graph, got = trace(program, mode.split()[0]), run(program, mode)
    found = explained(program, mode, graph, got)
    return replace(found, first=first_difference(program, mode)) if found.unexplained else found


def explained(program: Program, mode: str, graph: Graph, got: list[Array]) -> Explanation:
    """Which changes of the graph make of the arguments what the mode ``got``; without the first operation."""
    written = outputs(graph, evaluate(graph, program.arguments))
    differing = _count(written, got)
    chosen = _search(graph, program, got, differing)
    causes = tuple(
        Cause(c, "" if c.index is None else graph.operations[c.index].text, _left_out(graph, program, got, chosen, c))
        for c in sorted(chosen, key=lambda c: -1 if c.index is None else c.index)
    )
    unexplained = _count(_outputs(graph, program, chosen), got)
    example = _example(program, written, got) if differing else None
    return Explanation(program.name, mode, sum(a.size for a in got), differing, causes, unexplained, None, example)


def explain_all(program: Program) -> list[Explanation]:
    """`explain` in every mode that the program is written for and that can run here."""
    written = {"torch": program.in_torch, "jax": program.in_jax}
    return [explain(program, m) for m in MODES if written[m.split()[0]] is not None and not unavailable(m)]


def first_difference(program: Program, mode: str) -> str | None:
    """The first operation whose result differs from what it gives by itself, on the operands that it has in the mode.

    All values of the program are made results for that, which may keep a compiler from some of its changes. Operations
    by themselves are those of `strict`, or of their framework, run alone.
    """
    framework = mode.split()[0]
    graph = trace(program, framework)
    if framework == "torch":
        from .graph_torch import with_all_values
    else:
        from .graph_jax import with_all_values
    found = run(program, mode, with_all_values(function_of(program, framework), *program.arguments))
    given = iter(program.arguments)
    values = [next(given) if value is None else value for value in graph.inputs] + found
    for index, operation in enumerate(graph.operations):
        alone = _alone(graph, index, [values[p] for p in operation.operands])
        if not differences(alone, values[graph.place(index)]).same:
            return operation.text
    return None


def _alone(graph: Graph, index: int, operands: Sequence[Array]) -> Array:
    operation = graph.operations[index]
    if operation.name not in KNOWN:
        return operation.native(*operands)
    single = Graph(tuple(operands), (replace(operation, operands=tuple(range(len(operands)))),), (len(operands),))
    return outputs(single, evaluate(single, ()))[0]


def _search(graph: Graph, program: Program, got: list[Array], differing: int) -> frozenset[Change]:
    """One change more at a time, the one that leaves the fewest elements; in the end those that do nothing go."""
    chosen, left, tried = frozenset[Change](), differing, candidates(graph)
    while left:
        counts = {c: _count(_outputs(graph, program, chosen | {c}), got) for c in tried if c not in chosen}
        best = min(counts, key=lambda c: counts[c], default=None)
        if best is None or counts[best] >= left:
            break
        chosen, left = chosen | {best}, counts[best]
    for change in sorted(chosen, key=str):
        if _count(_outputs(graph, program, chosen - {change}), got) <= left:
            chosen -= {change}
    return chosen


def _left_out(graph: Graph, program: Program, got: list[Array], chosen: frozenset[Change], change: Change) -> int:
    return _count(_outputs(graph, program, chosen - {change}), got)


def _outputs(graph: Graph, program: Program, changes: frozenset[Change]) -> list[Array]:
    return outputs(graph, evaluate(graph, program.arguments, changes))


def _count(expected: Sequence[Array], got: Sequence[Array]) -> int:
    return sum(differences(a, b).differing for a, b in zip(expected, got, strict=True))


def _example(program: Program, written: list[Array], got: list[Array]) -> str | None:
    for a, b in zip(written, got, strict=True):
        x = program.arguments[0]
        found = differences(a, b, inputs=x if x.shape == a.shape else None)
        if found.differing and found.index is not None:
            at = f"{describe(x[found.index])}: " if x.shape == a.shape else ""
            return f"{at}{describe(found.expected)} as it is written, {describe(found.got)} by the mode"
    return None


def flat(results: Any) -> list[Array]:
    """Arrays of nested tuples, lists and dictionaries, in order."""
    if isinstance(results, Mapping):
        return [a for key in sorted(results) for a in flat(results[key])]
    if isinstance(results, (tuple, list)):
        return [a for one in results if one is not None for a in flat(one)]
    return [np.asarray(to_numpy(results))]


def function_of(program: Program, framework: str) -> Function:
    """The program as it is written in ``torch`` or ``jax``; ValueError if it is not."""
    found = program.in_torch if framework == "torch" else program.in_jax
    if found is None:
        raise ValueError(f"`program` {program.name!r} is not written in {framework}")
    return found


def _check(program: Program, mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {', '.join(map(repr, MODES))}; got {mode!r}")
    function_of(program, mode.split()[0])
    if reason := unavailable(mode):
        raise ValueError(f"`mode` {mode!r} cannot run here: {reason}")
