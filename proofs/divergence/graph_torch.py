"""The graph of a function of torch: its ATen operations, as `make_fx` records them."""

import operator
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses import FakeTensorMode
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from ..modes.arrays import to_numpy, to_torch
from .graph import Builder, Graph, Place

Array = NDArray[Any]
aten = torch.ops.aten
NAMES: dict[Any, str] = {
    aten.add.Tensor: "add",
    aten.add.Scalar: "add",
    aten.sub.Tensor: "sub",
    aten.sub.Scalar: "sub",
    aten.rsub.Scalar: "sub",
    aten.mul.Tensor: "mul",
    aten.mul.Scalar: "mul",
    aten.div.Tensor: "div",
    aten.div.Scalar: "div",
    aten.neg.default: "neg",
    aten.abs.default: "abs",
    aten.round.default: "round",
    aten.floor.default: "floor",
    aten.maximum.default: "max",
    aten.minimum.default: "min",
    aten.clamp.default: "clamp",
    aten._to_copy.default: "convert",
    torch.ops.prims.convert_element_type.default: "convert",
}


def trace_torch(function: Callable[..., Any], *arguments: Array, device: str = "cpu") -> Graph:
    """The operations that ``function`` has for arguments of these shapes and dtypes.

    Tensors that it closes over are constants of the graph.

    Args:
        device: that of the arguments. Where it is no cpu it need not be there; the function may hold no tensors, and is
            told that it is compiled.
    """
    if device == "cpu":
        traced = make_fx(function)(*map(to_torch, arguments))
    else:
        compiling = mock.patch.object(torch.compiler, "is_compiling", return_value=True)
        with FakeTensorMode(), torch.no_grad(), compiling, _WithoutDevice():
            given = [torch.empty(a.shape, dtype=to_torch(a).dtype, device=device) for a in arguments]
            traced = make_fx(function)(*given)
    builder, known = Builder(), {}
    outputs: list[Place] = []
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            known[node] = [builder.input(None)]
        elif node.op == "get_attr":
            known[node] = [builder.input(to_numpy(getattr(traced, node.target).detach()))]
        elif node.op == "output":
            results = node.args[0] if isinstance(node.args[0], (tuple, list)) else [node.args[0]]
            outputs = [known[result][0] for result in results if result is not None]
        elif node.target.__name__ == "getitem":
            known[node] = [known[node.args[0]][node.args[1]]]
        else:
            known[node] = _operations(builder, node, known)
    return builder.graph(outputs)


class _WithoutDevice(TorchFunctionMode):
    """What looks for the device of its tensor, which is not there, by operations that do not."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.__getitem__:
            return _indexed(*args)
        return (torch.bitwise_not if function is torch.Tensor.__invert__ else function)(*args, **(kwargs or {}))


def _indexed(x: torch.Tensor, index: Any) -> Any:
    """``x[index]`` of slices, integers, None, an ellipsis, and one tensor that selects along the first axis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if len(parts) == 1 and isinstance(parts[0], torch.Tensor):
        return aten.index.Tensor(x, [parts[0]])
    if Ellipsis not in parts:
        parts.append(Ellipsis)
    at = parts.index(Ellipsis)
    parts[at : at + 1] = [slice(None)] * (x.ndim - sum(part is not None for part in parts) + 1)
    axis = 0
    for part in parts:
        if isinstance(part, int):
            x = aten.select.int(x, axis, part)
            continue
        x = aten.unsqueeze.default(x, axis) if part is None else _sliced(x, axis, part)
        axis += 1
    return x


def _sliced(x: torch.Tensor, axis: int, part: slice) -> torch.Tensor:
    if part == slice(None):
        return x
    start, stop, step = part.indices(x.shape[axis])
    sliced: torch.Tensor = aten.slice.Tensor(x, axis, start, stop, step)
    return sliced


def with_all_values(function: Callable[..., Any], *arguments: Array) -> Callable[..., Any]:
    """The same program, which gives the results of all its operations in the order of `trace_torch`."""
    traced = make_fx(function)(*map(to_torch, arguments))
    graph = traced.graph
    results: list[Any] = []
    for node in list(graph.nodes):
        if node.op == "output":
            graph.erase_node(node)
        elif node.op == "call_function" and node.target.__name__ != "getitem":
            value = node.meta["val"]
            if isinstance(value, (tuple, list)):
                with graph.inserting_after(node):
                    results += [graph.call_function(operator.getitem, (node, i)) for i in range(len(value))]
            else:
                results.append(node)
    graph.output(tuple(results))
    traced.recompile()
    return traced


def _operations(builder: Builder, node: Node, known: dict[Node, list[Place]]) -> list[Place]:
    """One for each result. Numbers among the operands are constants; with other options an operation is not known."""
    value = node.meta["val"]
    name = NAMES.get(node.target)
    if name and not (set(node.kwargs) - {"dtype", "device"} if name == "convert" else node.kwargs):
        limits = name == "clamp"
        taken = node.args[:1] if name == "convert" else node.args
        taken = taken[::-1] if node.target == aten.rsub.Scalar else taken
        if not (limits and (len(taken) < 3 or None in taken)):
            operands = [_operand(builder, operand, known) for operand in taken]
            return [builder.add(name, operands, _dtype(value), _text(node), _native(node, None))]
    nodes = node.all_input_nodes
    operands = [known[own][0] for own in nodes]
    several = isinstance(value, (tuple, list))
    values = list(value) if several else [value]
    return [
        builder.add(str(node.target), operands, _dtype(one), _text(node), _native(node, index if several else None))
        for index, one in enumerate(values)
    ]


def _operand(builder: Builder, operand: Any, known: dict[Node, list[Place]]) -> Place:
    if isinstance(operand, Node):
        return known[operand][0]
    return builder.input(np.asarray(operand, np.float64 if isinstance(operand, float) else None))


def _native(node: Node, index: int | None) -> Callable[..., Array]:
    own = node.all_input_nodes

    def native(*arrays: Array) -> Array:
        given = {one: _as_in(one, to_torch(np.array(a))) for one, a in zip(own, arrays, strict=True)}
        arguments, keywords = torch.fx.map_arg((node.args, node.kwargs), lambda one: given[one])
        keywords = {name: torch.device("cpu") if name == "device" else k for name, k in keywords.items()}
        assert callable(node.target)
        result = node.target(*arguments, **keywords)
        return to_numpy(result if index is None else result[index])

    return native


def _as_in(node: Node, value: torch.Tensor) -> torch.Tensor:
    """In the dtype that it has there; what was not rounded to its 16 bits stays float32."""
    dtype = node.meta["val"].dtype
    return value if dtype in (torch.bfloat16, torch.float16) else value.to(dtype)


def _dtype(value: Any) -> np.dtype[Any]:
    return to_numpy(torch.empty((), dtype=value.dtype)).dtype


def _name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]


def _text(node: Node) -> str:
    """Such as ``div: float32[1000], float32[] -> float32[1000]``."""
    taken = [_short(own.meta["val"]) if isinstance(own, Node) else repr(own) for own in node.args]
    return f"{_name(node)}: {', '.join(taken)} -> {_short(node.meta['val'])}"


def _short(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_short, value))
    return f"{str(value.dtype).removeprefix('torch.')}[{','.join(map(str, value.shape))}]"
