"""What a program gives on a device that takes every liberty at once, and each time the worst one.

`strict` tries changes one by one to explain a mode; here all that devices and their compilers are known to do is done
to every operation, on the CPU: so it can be tested without a GPU that a program keeps its bits on one. A program that
does not, such as the textbook formula, is seen to lose them.

That says something of a program only if nothing else in it may part: `unexamined` names the operations that give
floats, and of which nothing is known here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.bits import is_float
from .graph import KNOWN, Graph, Operation
from .hostile_operations import (
    BITS,
    CONTRACTIONS,
    ELEMENTARY,
    EXACT,
    SHAPES,
    SUMS,
    contracted,
    elementary,
    flushed,
    half_away,
    is_one_of,
    moved,
    other_zero,
    summed,
)
from .strict import _changed, _is_half, _known, outputs

Array = NDArray[Any]
LIBERTIES: Mapping[str, str] = {
    "division": "a float32 quotient is off by up to four units in the last place; that of 0, infinities and NaN is not",
    "elementary": "so are reciprocals, exponentials, roots (but those of float64) and other such functions",
    "contraction": "a product is added without being rounded before, also behind a reshaping or a change of sign",
    "narrowing": "16-bit numbers are not rounded, also in front of a barrier, nor is float32 that is widened again",
    "conversion": "what does not fit an integer becomes any, and every conversion to 8-bit floats something else",
    "sums": "a sum that is not exact in every order is off by up to four units in the last place",
    "zeros": "the larger or smaller one of two zeros is the one of the other sign",
    "tensor cores": "float32 operands of contractions are rounded to 8 bits",
    "transforms": "a float32 convolution is off by up to three, as computed by Winograd's or Fourier's transform",
    "subnormals": "subnormal operands and results of arithmetic are zero, which XLA may do and Triton does not",
    "ties": "halves are rounded away from zero",
}


def on_hostile_device(
    graph: Graph, arguments: Sequence[Array], liberties: Sequence[str] = tuple(LIBERTIES)
) -> list[Array]:
    """The results of the program, where devices take these of the `LIBERTIES`.

    Loops of a jaxpr are single operations, in which nothing is taken; so are branches, unless they are written out
    (`graph_jax.trace_jax`).

    Raises:
        ValueError: a liberty that is none of `LIBERTIES`.
    """
    if unknown := sorted(set(liberties) - set(LIBERTIES)):
        raise ValueError(f"`liberties` must be among {', '.join(LIBERTIES)}; got {', '.join(unknown)}")
    given = iter(arguments)
    values = [np.asarray(next(given) if value is None else value) for value in graph.inputs]
    with np.errstate(all="ignore"):
        for index in range(len(graph.operations)):
            values.append(_result(graph, index, values, frozenset(liberties)))
    return outputs(graph, values)


def unexamined(graph: Graph) -> list[str]:
    """Operations that give floats and are evaluated as they are, though nothing says that devices agree on them."""
    given = [None if value is None else value.dtype for value in graph.inputs]
    dtypes = [*given, *(operation.dtype for operation in graph.operations)]
    found = []
    for operation in graph.operations:
        floats = is_float(operation.dtype) or any(d is not None and is_float(d) for d in _of(dtypes, operation))
        known = operation.name in KNOWN or any(
            is_one_of(operation.name, kind) for kind in (EXACT, SHAPES, BITS, CONTRACTIONS, ELEMENTARY, SUMS)
        )
        if floats and not known:
            found.append(operation.text)
    return found


def _of(dtypes: Sequence[np.dtype[Any] | None], operation: Operation) -> list[np.dtype[Any] | None]:
    return [dtypes[place] for place in operation.operands]


def _result(graph: Graph, index: int, values: list[Array], taken: frozenset[str]) -> Array:
    operation = graph.operations[index]
    operands = _alike([values[place] for place in operation.operands])
    name, dtype = operation.name, operation.dtype
    if is_one_of(name, BITS):  # a barrier to no liberty but this: bits are those of the dtype
        return operation.native(*(_settled(graph, p, values[p]) for p in operation.operands))
    if "optimization_barrier" in name:
        return operands[0]
    if name == "convert":
        return _converted(graph, operation, values, taken)
    if is_one_of(name, CONTRACTIONS):
        return contracted(operation, operands, taken)
    if is_one_of(name, SUMS) and is_float(dtype):
        return summed(operation, operands, index) if "sums" in taken else operation.native(*operands)
    if is_one_of(name, ELEMENTARY) and is_float(dtype):
        return elementary(operation, operands, index) if "elementary" in taken else operation.native(*operands)
    if name in ("add", "sub") and is_float(dtype) and "contraction" in taken:
        fused = _fused(graph, index, values)
        if fused is not None:
            return fused
    if name in KNOWN and is_float(dtype):
        return _arithmetic(operation, operands, index, taken)
    if name in KNOWN and dtype.kind != "b":
        return _known(name, [o.astype(dtype) for o in operands]).astype(dtype)
    return operation.native(*operands)


def _arithmetic(operation: Operation, operands: list[Array], index: int, taken: frozenset[str]) -> Array:
    """One of `KNOWN`, in float32 if it has 16 bits; which stays float32 where conversions are left out."""
    half = _is_half(operation.dtype)
    work = np.dtype(np.float32) if half else operation.dtype
    given = [o.astype(work) for o in operands]
    flushes = "subnormals" in taken
    given = [flushed(o) for o in given] if flushes else given
    away = operation.name == "round" and "ties" in taken
    found = half_away(given[0]) if away else _known(operation.name, given)
    if operation.name == "div" and work == np.float32 and "division" in taken:
        found = moved(found, index)
    if operation.name in ("max", "min", "clamp") and "zeros" in taken:
        found = other_zero(found, given)
    found = flushed(found) if flushes else found
    return found if half and "narrowing" in taken else found.astype(operation.dtype)


def _alike(operands: list[Array]) -> list[Array]:
    """What has 16 bits as float32, if another operand was not rounded to them."""
    if not any(o.dtype == np.float32 for o in operands):
        return operands
    return [o.astype(np.float32) if _is_half(o.dtype) else o for o in operands]


def _settled(graph: Graph, place: int, value: Array) -> Array:
    """A value in the dtype that it has in the program."""
    return value if place < len(graph.inputs) else value.astype(graph.operations[place - len(graph.inputs)].dtype)


def _fused(graph: Graph, index: int, values: list[Array]) -> Array | None:
    """The sum with a product in it that was not rounded; None where there is none.

    Where both operands are products, either one, whichever changes an element.
    """
    operation = graph.operations[index]
    found: Array | None = None
    work = np.dtype(np.float64) if operation.dtype == np.float64 else np.dtype(np.float32)
    plain = _known(operation.name, [values[p].astype(work) for p in operation.operands]).astype(operation.dtype)
    for position, place in enumerate(operation.operands):
        product = _product_behind(graph, place, operation.dtype)
        if product is None:
            continue
        inner, through = product
        shape = values[inner + len(graph.inputs)].shape
        factors = [np.broadcast_to(values[p].astype(work), shape) for p in graph.operations[inner].operands]
        shaped = [_through(through, factors[0], sign=True), _through(through, factors[1], sign=False)]
        other = values[operation.operands[1 - position]].astype(work)
        one = _sum_of(operation, position, shaped, other, work)
        found = one if found is None else np.where(found == plain, one, found)
    return found


def _product_behind(graph: Graph, place: int, dtype: np.dtype[Any]) -> tuple[int, list[Operation]] | None:
    """The product that stands there, or behind reshapings and changes of sign, and these; None for anything else."""
    inner, through = place - len(graph.inputs), []
    while inner >= 0 and (graph.operations[inner].name == "neg" or is_one_of(graph.operations[inner].name, SHAPES)):
        through.append(graph.operations[inner])
        inner = graph.operations[inner].operands[0] - len(graph.inputs)
    if inner < 0 or graph.operations[inner].name != "mul" or graph.operations[inner].dtype != dtype:
        return None
    return inner, through


def _through(operations: Sequence[Operation], value: Array, *, sign: bool) -> Array:
    """A factor as the product goes on; one of both changes its sign with it."""
    for operation in reversed(operations):
        if operation.name != "neg":
            value = operation.native(value)
        elif sign:
            value = -value
    return value


def _sum_of(operation: Operation, position: int, factors: list[Array], other: Array, work: np.dtype[Any]) -> Array:
    """``a * b + c`` by `strict`, as a graph of two operations."""
    product = Operation("mul", (0, 1), work, "", operation.native)
    order = (3, 2) if position == 0 else (2, 3)
    total = Operation(operation.name, order, work, "", operation.native)
    graph = Graph((None, None, None), (product, total), (4,))
    rounded = np.asarray(factors[0] * factors[1])
    found = _changed(graph, 1, total, [*factors, other, rounded], "fused", work, False)
    assert found is not None
    return found.astype(operation.dtype)


def _converted(graph: Graph, operation: Operation, values: list[Array], taken: frozenset[str]) -> Array:
    x = values[operation.operands[0]]
    if "narrowing" in taken:
        if _is_half(operation.dtype) and x.dtype.itemsize > 2:
            return x.astype(np.float32)
        if operation.dtype == np.float64 and x.dtype == np.float32:
            return _before(graph, operation.operands[0], values)
    loose = "conversion" in taken
    if is_float(operation.dtype) and operation.dtype.itemsize == 1 and loose:
        return np.zeros_like(x).astype(operation.dtype)
    if operation.dtype.kind in "iu" and is_float(x.dtype) and loose:
        info = np.iinfo(operation.dtype)
        number = x.astype(np.float64)
        fits = (number > info.min - 1.0) & (number < info.max + 1.0)
        return np.where(fits, np.where(fits, number, 0).astype(operation.dtype), operation.dtype.type(77))
    return x.astype(operation.dtype)


def _before(graph: Graph, place: int, values: list[Array]) -> Array:
    """A float32 as float64; if it was one, as it was then."""
    inner = place - len(graph.inputs)
    while inner >= 0 and "optimization_barrier" in graph.operations[inner].name:
        inner = graph.operations[inner].operands[0] - len(graph.inputs)
    if inner >= 0 and graph.operations[inner].name == "convert":
        before = values[graph.operations[inner].operands[0]]
        if before.dtype == np.float64:
            return before
    return values[place].astype(np.float64)
