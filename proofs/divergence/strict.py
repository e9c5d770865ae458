"""What a program gives if every operation rounds once, and if a compiler changes some of them.

A `Change` is one thing that compilers of the field do. Evaluating a graph with a set of them tells whether it is what a
mode computes: bit for bit, or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..inputs.bits import is_float
from .graph import KNOWN, Graph, Operation

Array = NDArray[Any]
CHANGES: Mapping[str, str] = {
    "reciprocal": "x / s is computed as x * (1 / s), both rounded",
    "fused": "the product is added without being rounded before: a fused multiply-add",
    "wide": "the 16-bit result is not rounded: what comes next takes it as float32",
    "flushed": "subnormal operands and results are zero",
    "regrouped": "(a * b) * c is computed as a * (b * c)",
    "folded": "(a * b) / c is computed as a * (b * (1 / c))",
    "cancelled": "(a + b) - b is taken for a",
}


@dataclass(frozen=True, order=True)
class Change:
    """One thing a compiler does to the operation with this index; None: to all of the program."""

    kind: str
    index: int | None = None


def evaluate(graph: Graph, arguments: Sequence[Array], changes: frozenset[Change] = frozenset()) -> list[Array]:
    """Every value of the program: inputs, then results of operations; an operation that is "wide" has float32 ones."""
    given = iter(arguments)
    values = [np.asarray(next(given) if value is None else value) for value in graph.inputs]
    flushed = Change("flushed") in changes
    with np.errstate(all="ignore"):
        for index, operation in enumerate(graph.operations):
            values.append(_result(graph, index, operation, values, changes, flushed))
    return values


def outputs(graph: Graph, values: Sequence[Array]) -> list[Array]:
    """The results of the program in their own dtypes."""
    dtypes = {graph.place(i): operation.dtype for i, operation in enumerate(graph.operations)}
    return [_rounded(values[place], dtypes.get(place, values[place].dtype)) for place in graph.outputs]


def candidates(graph: Graph) -> list[Change]:
    """The changes that there is a place for. Those of one operation, then those of all."""
    found = []
    for index, operation in enumerate(graph.operations):
        taken = [graph.operations[p - len(graph.inputs)] for p in operation.operands if p >= len(graph.inputs)]
        makes = {one.name for one in taken}
        if operation.name == "div" and is_float(operation.dtype):
            found.append(Change("reciprocal", index))
            if "mul" in makes:
                found.append(Change("folded", index))
        if operation.name in ("add", "sub") and "mul" in makes:
            found.append(Change("fused", index))
        if operation.name == "mul" and "mul" in makes:
            found.append(Change("regrouped", index))
        if operation.name == "sub" and "add" in makes:
            found.append(Change("cancelled", index))
        if _is_half(operation.dtype) and graph.users(graph.place(index)):
            found.append(Change("wide", index))
    whole = [Change("flushed")]
    if sum(change.kind == "wide" for change in found) > 1:
        whole.append(Change("wide"))
    return found + whole


def _result(
    graph: Graph, index: int, operation: Operation, values: list[Array], changes: frozenset[Change], flushed: bool
) -> Array:
    taken = [values[place] for place in operation.operands]
    wide = Change("wide") in changes or Change("wide", index) in changes
    dtype = np.dtype(np.float32) if wide and _is_half(operation.dtype) else operation.dtype
    if operation.name not in KNOWN:
        return _rounded(operation.native(*taken), dtype)
    if not is_float(operation.dtype):
        return operation.native(*taken) if operation.name != "convert" else taken[0].astype(operation.dtype)
    work = np.dtype(np.float64) if operation.dtype == np.float64 else np.dtype(np.float32)
    operands = [_flush(v.astype(work), flushed) for v in taken]
    changed = next((c.kind for c in changes if c.index == index and c.kind != "wide"), None)
    result = _changed(graph, index, operation, values, changed, work, flushed) if changed else None
    if result is None:
        result = _known(operation.name, operands)
    return _flush(_rounded(result, dtype), flushed)


def _known(name: str, operands: list[Array]) -> Array:
    """The operation in the dtype of its operands; NumPy rounds each once."""
    a = operands[0]
    match name, operands[1:]:
        case "add", [b]:
            return np.asarray(a + b)
        case "sub", [b]:
            return np.asarray(a - b)
        case "mul", [b]:
            return np.asarray(a * b)
        case "div", [b]:
            return np.asarray(a / b)
        case "max", [b]:
            return np.maximum(a, b)
        case "min", [b]:
            return np.minimum(a, b)
        case "clamp", [low, high]:
            return np.minimum(np.maximum(a, low), high)
        case "neg", []:
            return np.asarray(-a)
        case "abs", []:
            return np.abs(a)
        case "round", []:
            return np.rint(a)
        case "floor", []:
            return np.floor(a)
        case _:
            return a


def _changed(
    graph: Graph,
    index: int,
    operation: Operation,
    values: list[Array],
    kind: str,
    work: np.dtype[Any],
    flushed: bool,
) -> Array | None:
    """The operation as a compiler that changes it computes it; None where there is nothing to change."""
    first, second = (_flush(values[p].astype(work), flushed) for p in operation.operands)
    if kind == "reciprocal":
        return np.asarray(first * _flush(np.asarray(np.ones((), work) / second), flushed))
    for position, other in ((0, second), (1, first)):
        place = operation.operands[position] - len(graph.inputs)
        if place < 0:
            continue
        inner = graph.operations[place]
        if inner.name not in ("mul", "add") or len(inner.operands) != 2:
            continue
        a, b = (_flush(values[p].astype(work), flushed) for p in inner.operands)
        if kind == "folded" and inner.name == "mul" and position == 0:
            a, b = (a, b) if b.ndim == 0 else (b, a)
            inverse = _flush(np.asarray(np.ones((), work) / other), flushed)
            return np.asarray(a * _flush(np.asarray(b * inverse), flushed))
        if kind == "regrouped" and inner.name == "mul":
            return np.asarray(a * _flush(np.asarray(b * other), flushed))
        if kind == "fused" and inner.name == "mul":
            sign = -1 if operation.name == "sub" else 1
            return _fused(a, b, sign * other) if position == 0 else _fused(sign * a, b, other)
        if kind == "cancelled" and inner.name == "add" and position == 0:
            same = np.broadcast_to(b, other.shape) if b.ndim < other.ndim else b
            return np.where(same == other, a, first - second)
    return None


def _fused(a: Array, b: Array, c: Array) -> Array:
    """``a * b + c`` rounded once. Of float32: the product is exact in float64, the sum is rounded to odd."""
    if a.dtype == np.float64:
        return np.asarray(np.frompyfunc(_exactly, 3, 1)(a, b, c), np.float64)
    product, c64 = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + c64
    left = total - product  # two-sum: what the addition lost, exactly
    lost = (product - (total - left)) + (c64 - left)
    inexact = np.isfinite(total) & np.isfinite(lost) & (lost != 0)
    even = total.view(np.uint64) % np.uint64(2) == 0
    toward = np.where(lost > 0, np.inf, -np.inf)
    odd = np.where(inexact & even, np.nextafter(total, toward), total)
    return np.asarray(odd.astype(np.float32))


def _exactly(a: float, b: float, c: float) -> float:
    if not (np.isfinite(a) and np.isfinite(b) and np.isfinite(c)) or a == 0 or b == 0:
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    try:
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def _rounded(x: Array, dtype: np.dtype[Any]) -> Array:
    return x if x.dtype == dtype else x.astype(dtype)


def _flush(x: Array, flushed: bool) -> Array:
    if not flushed or not is_float(x.dtype):
        return x
    info: Any = ml_dtypes.finfo(x.dtype)  # type: ignore[no-untyped-call]
    return np.where(np.abs(x) < info.smallest_normal, np.copysign(np.zeros_like(x), x), x)


def _is_half(dtype: np.dtype[Any]) -> bool:
    return dtype.name in ("bfloat16", "float16")
