"""What a program gives on a device that takes every liberty at once, and each time the worst one.

`strict` tries changes one by one to explain a mode; here all that devices and their compilers are known to do is done
to every operation, on the CPU: so it can be tested without a GPU that a program keeps its bits on one. A program that
does not, such as the textbook formula, is seen to lose them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.bits import is_float
from .graph import KNOWN, Graph, Operation
from .strict import _changed, _is_half, _known, outputs

Array = NDArray[Any]
LIBERTIES: Mapping[str, str] = {
    "division": "a float32 quotient is off by up to four units in the last place; that of 0, infinities and NaN is not",
    "contraction": "a product is added without being rounded before, also behind a reshaping",
    "narrowing": "a conversion to 16 bits is left out, also in front of a barrier",
    "conversion": "what does not fit an integer becomes any, and every conversion to 8-bit floats something else",
    "tensor cores": "float32 operands of contractions are rounded to 8 bits",
    "transforms": "a float32 convolution is off by parts of a unit, as computed by Winograd's or Fourier's transform",
    "ties": "halves are rounded away from zero",
}
ULPS = 4
SHAPES = (
    "view.default",
    "_unsafe_view",
    "detach",
    "alias",
    "expand",
    "reshape",
    "broadcast_in_dim",
    "squeeze",
    "clone",
)
BITS = ("view.dtype", "bitcast")
CONTRACTIONS = ("dot_general", "aten.mm", "aten.bmm", "aten.addmm", "aten.linear", "conv")


def on_hostile_device(
    graph: Graph, arguments: Sequence[Array], liberties: Sequence[str] = tuple(LIBERTIES)
) -> list[Array]:
    """The results of the program, where devices take these of the `LIBERTIES`.

    Loops and branches of a jaxpr are single operations, in which nothing is taken.
    """
    given = iter(arguments)
    values = [np.asarray(next(given) if value is None else value) for value in graph.inputs]
    with np.errstate(all="ignore"):
        for index in range(len(graph.operations)):
            values.append(_result(graph, index, values, frozenset(liberties)))
    return outputs(graph, values)


def _result(graph: Graph, index: int, values: list[Array], taken: frozenset[str]) -> Array:
    operation = graph.operations[index]
    operands = [values[place] for place in operation.operands]
    single = operation.dtype == np.float32 or _is_half(operation.dtype)
    if any(name in operation.name for name in BITS):  # a barrier to no liberty but this: bits are those of the dtype
        return operation.native(*(_settled(graph, p, v) for p, v in zip(operation.operands, operands, strict=True)))
    if "optimization_barrier" in operation.name:
        return operands[0]
    if operation.name == "convert":
        return _converted(operation, operands[0], "conversion" in taken, "narrowing" in taken)
    if any(name in operation.name for name in CONTRACTIONS):
        return _contracted(operation, operands, taken)
    if operation.name in ("add", "sub") and is_float(operation.dtype) and "contraction" in taken:
        fused = _fused(graph, index, values)
        if fused is not None:
            return fused
    if operation.name == "div" and single and "division" in taken:
        return _divided(operands, index).astype(operation.dtype)
    if operation.name == "round" and is_float(operation.dtype) and "ties" in taken:
        return _half_away(operands[0])
    if operation.name in KNOWN and operation.dtype != bool:
        wide = np.float32 if _is_half(operation.dtype) else operation.dtype
        return _known(operation.name, [o.astype(wide) for o in operands]).astype(operation.dtype)
    return operation.native(*operands)


def _settled(graph: Graph, place: int, value: Array) -> Array:
    """A value in the dtype that it has in the program."""
    return value if place < len(graph.inputs) else value.astype(graph.operations[place - len(graph.inputs)].dtype)


def _divided(operands: Sequence[Array], index: int) -> Array:
    """Quotients off by 4 units, one way or the other, or by fewer: which, no two places have in common."""
    a, b = (o.astype(np.float32) for o in operands)
    q = np.asarray(a / b)
    bits = q.view(np.int32).astype(np.int64)
    draw = np.random.default_rng(index).integers(-ULPS, ULPS + 1, q.shape)
    size = np.clip((bits & 0x7FFFFFFF) + draw, 0, 0x7F800000)
    moved = (size | (bits & 0x80000000)).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(q) & (q != 0), moved, q)


def _fused(graph: Graph, index: int, values: list[Array]) -> Array | None:
    """The sum with a product in it that was not rounded; None where there is none."""
    operation, seen = graph.operations[index], list(values)
    work = np.dtype(np.float64) if operation.dtype == np.float64 else np.dtype(np.float32)
    for position, place in enumerate(operation.operands):
        inner, shaping = place - len(graph.inputs), []
        while inner >= 0 and any(name in graph.operations[inner].name for name in SHAPES):
            shaping.append(graph.operations[inner].native)
            inner = graph.operations[inner].operands[0] - len(graph.inputs)
        if inner < 0 or graph.operations[inner].name != "mul" or graph.operations[inner].dtype != operation.dtype:
            continue
        factors = [values[p].astype(work) for p in graph.operations[inner].operands]
        shaped = [_through(shaping, np.broadcast_to(f, values[inner + len(graph.inputs)].shape)) for f in factors]
        return _sum_of(operation, position, shaped, seen[operation.operands[1 - position]].astype(work), work)
    return None


def _through(shaping: Sequence[Callable[..., Array]], value: Array) -> Array:
    for native in reversed(shaping):
        value = native(value)
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


def _converted(operation: Operation, x: Array, loose: bool, wide: bool) -> Array:
    if _is_half(operation.dtype) and wide and x.dtype.itemsize > 2:
        return x.astype(np.float32)
    if is_float(operation.dtype) and operation.dtype.itemsize == 1 and loose:
        return np.zeros_like(x).astype(operation.dtype)
    if operation.dtype.kind in "iu" and is_float(x.dtype) and loose:
        info = np.iinfo(operation.dtype)
        number = x.astype(np.float64)
        fits = (number > info.min - 1.0) & (number < info.max + 1.0)
        return np.where(fits, np.where(fits, number, 0).astype(operation.dtype), operation.dtype.type(77))
    return x.astype(operation.dtype)


def _half_away(x: Array) -> Array:
    return np.where(np.abs(x - np.trunc(x)) == 0.5, np.trunc(x) + np.sign(x), np.rint(x)).astype(x.dtype)


def _contracted(operation: Operation, operands: Sequence[Array], taken: frozenset[str]) -> Array:
    """Contractions whose operands lose bits, and convolutions whose results do."""
    single = [o.dtype == np.float32 for o in operands]
    if "tensor cores" in taken:
        operands = [_of_8_bits(o) if one else o for o, one in zip(operands, single, strict=True)]
    found = operation.native(*operands)
    if "conv" in operation.name and found.dtype == np.float32 and "transforms" in taken:
        draw = np.random.default_rng(0).uniform(-0.4, 0.4, found.shape)
        found = (found + draw).astype(np.float32)
    return found


def _of_8_bits(x: Array) -> Array:
    """Rounded to the significand of bfloat16, which has fewer bits than that of TensorFloat-32."""
    bits = x.view(np.int32)
    near = ((bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF).view(np.float32)
    return np.where(np.isfinite(x), near, x)
