"""What becomes of each layer and function of torch in ONNX, and whether its bits are those of torch.

Exact are those that select, move or round once: ReLU, clamps, maxima over windows, sums and products of two tensors,
reshapes. Means, sigmoids and the like have bits of their own everywhere.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..nn import activation as quant_activations
from ..nn import conv, linear, pooling
from .onnx_graph import Graph
from .onnx_layers import activation, array, emit, layer_of

Module = Callable[[Graph, Any, str, str, str], str]  # graph, layer, input, name of the result, form
LINEAR = (nn.Linear, linear.QuantLinear)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, conv.QuantConv1d, conv.QuantConv2d, conv.QuantConv3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, pooling.QuantMaxPool1d, pooling.QuantMaxPool2d)
MEANS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
GLOBAL_MEANS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def _linear(graph: Graph, layer: Any, x: str, name: str, form: str) -> str:
    return emit(graph, x, layer_of(layer, dynamic=form == "integer"), name, None, form)


def _conv(graph: Graph, layer: Any, x: str, name: str, form: str) -> str:
    n = len(layer.kernel_size)
    if layer.padding_mode != "zeros" or graph.ranks[x] != n + 2:
        raise ValueError(f"padding must be of zeros and the input a batch, got {layer.padding_mode!r}")
    around = layer._reversed_padding_repeated_twice
    sides = [(around[2 * i], around[2 * i + 1]) for i in reversed(range(n))]
    pads = [before for before, _ in sides] + [after for _, after in sides]
    sizes = {"strides": list(layer.stride), "dilations": list(layer.dilation), "group": layer.groups, "pads": pads}
    return emit(graph, x, layer_of(layer, dynamic=False), name, sizes, form)


def _windows(graph: Graph, layer: Any, x: str) -> int:
    """In how many axes a layer pools. ValueError unless its input is a batch."""
    n = int(type(layer).__name__[-2])
    if graph.ranks[x] != n + 2:
        raise ValueError(f"its input must be a batch, of {n + 2} axes, got {graph.ranks[x]}")
    return n


def _max_pool(graph: Graph, layer: Any, x: str, name: str, _: str) -> str:
    n = _windows(graph, layer, x)
    if layer.return_indices or (layer.ceil_mode and layer.padding not in (0, (0,) * n)):
        raise ValueError("`return_indices` must be False, and `ceil_mode` where there is padding")
    sizes = _sizes(n, layer.kernel_size, layer.stride, layer.padding)
    dilations = [layer.dilation] * n if isinstance(layer.dilation, int) else list(layer.dilation)
    return graph.add("MaxPool", x, name=name, dilations=dilations, ceil_mode=int(layer.ceil_mode), **sizes)


def _mean(graph: Graph, layer: Any, x: str, name: str, _: str) -> str:
    if getattr(layer, "divisor_override", None) is not None or layer.ceil_mode:
        raise ValueError("`divisor_override` and `ceil_mode` must not be given")
    sizes = _sizes(_windows(graph, layer, x), layer.kernel_size, layer.stride, layer.padding)
    graph.note(name, "a mean")
    return graph.add("AveragePool", x, name=name, count_include_pad=int(layer.count_include_pad), **sizes)


def _global_mean(graph: Graph, layer: Any, x: str, name: str, _: str) -> str:
    sizes = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,)
    _windows(graph, layer, x)
    if set(sizes) != {1}:
        raise ValueError(f"`output_size` must be 1, got {layer.output_size}")
    graph.note(name, "a mean")
    return graph.add("GlobalAveragePool", x, name=name)


def _norm(graph: Graph, layer: Any, x: str, name: str, _: str) -> str:
    if layer.running_mean is None or layer.weight is None:
        raise ValueError("a batch normalization must have running statistics and a weight")
    parts = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    own = [graph.constant(array(part), f"{name}_{i}") for i, part in enumerate(parts)]
    graph.note(name, "a batch normalization of floats")
    return graph.add("BatchNormalization", x, *own, name=name, epsilon=layer.eps)


def _sizes(n: int, kernel: Any, stride: Any, padding: Any) -> dict[str, Any]:
    kernel, stride, padding = ([v] * n if isinstance(v, int) else list(v) for v in (kernel, stride, padding))
    return {"kernel_shape": kernel, "strides": stride, "pads": padding * 2}


def _clamp(graph: Graph, layer: Any, x: str, name: str, _: str) -> str:
    return graph.add("Clip", x, graph.number(layer.min_val), graph.number(layer.max_val), name=name)


def _flatten(graph: Graph, layer: Any, x: str, name: str, _: str) -> str:
    return flattened(graph, x, name, layer.start_dim, layer.end_dim)


def flattened(graph: Graph, x: str, name: str, start: int = 0, end: int = -1) -> str:
    """All axes behind the first in one. ValueError for others."""
    if start != 1 or end not in (-1, graph.ranks[x] - 1):
        raise ValueError(f"a flattening must keep axis 0 and take all others, got axes {start} to {end}")
    return graph.add("Flatten", x, name=name, axis=1)


def _of_function(kind: str, note: str | None = None, **attributes: Any) -> Module:
    """A layer that is an operator of this kind."""

    def made(graph: Graph, layer: Any, x: str, name: str, _: str) -> str:
        if note is not None:
            graph.note(name, note)
        return graph.add(kind, x, name=name, **attributes)

    return made


def _gelu(graph: Graph, layer: Any, x: str, name: str, _: str) -> str:
    graph.note(name, "an elementary function")
    return graph.add("Gelu", x, name=name, approximate=layer.approximate)


def _softmax(graph: Graph, layer: Any, x: str, name: str, _: str) -> str:
    if layer.dim is None:
        raise ValueError("`dim` must be given")
    graph.note(name, "an elementary function")
    return graph.add("Softmax", x, name=name, axis=layer.dim)


def _quantized(before: Module | None) -> Module:
    """A layer of samebits that quantizes what this function gives."""

    def made(graph: Graph, layer: Any, x: str, name: str, form: str) -> str:
        if getattr(layer, "return_quant_tensor", False):
            raise ValueError("`return_quant_tensor` must be False: between layers there are floats")
        given = activation(getattr(layer, "input_quant", None), dynamic=form == "integer")
        x = x if given is None else graph.dequantize(graph.quantize(x, given))
        held = layer.act_quant if hasattr(layer, "act_quant") else layer
        act = activation(held, dynamic=form == "integer")
        if act is None:
            return graph.add("Identity", x, name=name) if before is None else before(graph, layer, x, name, form)
        y = x if before is None else before(graph, layer, x, f"{name}_float", form)
        return graph.dequantize(graph.quantize(y, act), name)

    return made


SIGMOID, TANH = (_of_function(kind, "an elementary function") for kind in ("Sigmoid", "Tanh"))
RELU, SAME = _of_function("Relu"), _of_function("Identity")
MODULES: Mapping[type[nn.Module], Module] = {
    **dict.fromkeys(LINEAR, _linear),
    **dict.fromkeys(CONVOLUTIONS, _conv),
    **dict.fromkeys(MAX_POOLS, _max_pool),
    **dict.fromkeys(MEANS, _mean),
    **dict.fromkeys(GLOBAL_MEANS, _global_mean),
    **dict.fromkeys(NORMS, _norm),
    **dict.fromkeys(NOTHING, SAME),
    nn.Flatten: _flatten,
    nn.ReLU: RELU,
    nn.ReLU6: _clamp,
    nn.Hardtanh: _clamp,
    nn.Sigmoid: SIGMOID,
    nn.Tanh: TANH,
    nn.GELU: _gelu,
    nn.Softmax: _softmax,
    quant_activations.QuantIdentity: _quantized(None),
    quant_activations.QuantReLU: _quantized(RELU),
    quant_activations.QuantHardTanh: _quantized(_clamp),
    quant_activations.QuantSigmoid: _quantized(SIGMOID),
    quant_activations.QuantTanh: _quantized(TANH),
    quant_activations.QuantGELU: _quantized(_gelu),
}
QUANTIZES = _quantized(None)  # of what is itself such a quantizer, or a stub that holds one

TWO: Mapping[Any, str] = {  # functions of two tensors or numbers
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add"), "Add"),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), "Sub"),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), "Mul"),
    **dict.fromkeys((operator.matmul, torch.matmul, "matmul"), "MatMul"),
}
ONE: Mapping[Any, tuple[str, str | None]] = {
    **dict.fromkeys((torch.relu, F.relu, "relu"), ("Relu", None)),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), ("Sigmoid", "an elementary function")),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), ("Tanh", "an elementary function")),
}


def function(graph: Graph, node: fx.Node, named: Callable[[Any], Any]) -> str:
    """The nodes of a function or method of torch; ``named`` gives the value of an argument.

    Raises:
        ValueError: one that has no form here, or arguments that have none.
    """
    target, name, args = node.target, node.name, node.args
    if target in TWO:
        if node.kwargs:
            raise ValueError(f"it must have no keywords, got {sorted(node.kwargs)}")
        a, b = (named(one) if isinstance(one, fx.Node) else graph.number(_number(one)) for one in args)
        matrices = TWO[target] == "MatMul"
        if matrices:
            graph.note(name, "a sum of products of floats")
        return graph.add(TWO[target], a, b, name=name, clean=matrices)
    if target in ONE:
        kind, note = ONE[target]
        return _of_function(kind, note)(graph, None, named(args[0]), name, "")
    if target in (torch.flatten, "flatten"):
        given = {"start": node.kwargs.get("start_dim", 0), "end": node.kwargs.get("end_dim", -1)}
        axes = dict(zip(("start", "end"), args[1:], strict=False))
        return flattened(graph, named(args[0]), name, **{**given, **axes})  # type: ignore[arg-type]
    if target in (torch.reshape, "reshape", "view"):
        kept = _length(node) == _length(args[0])
        return _reshaped(graph, named(args[0]), name, args[1:], kept)
    if target == F.dropout and node.kwargs.get("training", args[2] if len(args) > 2 else True) is not False:
        raise ValueError("`training` must be False")
    if target in ("contiguous", "detach", F.dropout):
        return graph.add("Identity", named(args[0]), name=name)
    if target in (torch.permute, "permute"):
        axes_ = args[1] if isinstance(args[1], tuple | list) else args[1:]
        return graph.add("Transpose", named(args[0]), name=name, perm=[int(a) % len(axes_) for a in axes_])  # type: ignore[arg-type]
    raise ValueError(f"{getattr(target, '__name__', target)} has no form in this export")


def _length(node: Any) -> int:
    """Of axis 0, in the example."""
    length: int = node.meta["shape"][0]
    return length


def _is_batch(size: Any) -> bool:
    """Whether a size is ``x.shape[0]`` or ``x.size(0)``."""
    if not isinstance(size, fx.Node):
        return False
    if size.op == "call_method" and size.target == "size":
        return tuple(size.args[1:]) == (0,)
    whole = size.args[0] if size.target is operator.getitem and size.args[1] == 0 else None
    return isinstance(whole, fx.Node) and (
        (whole.target is getattr and whole.args[1] == "shape") or (whole.target == "size" and len(whole.args) == 1)
    )


def _reshaped(graph: Graph, x: str, name: str, sizes: Any, kept: bool) -> str:
    """A reshape that keeps axis 0, whatever the batch is, and has numbers for the others."""
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
    first, *rest = sizes
    if not all(isinstance(size, int) for size in rest) or not (first == -1 or (_is_batch(first) and kept)):
        raise ValueError(f"a reshape must keep axis 0 (x.shape[0], or -1) and have numbers behind, got {tuple(sizes)}")
    return graph.add("Reshape", x, graph.integers([-1 if first == -1 else 0, *rest]), name=name)


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise ValueError(f"its arguments must be tensors of the graph or numbers, got {value!r}")
    return float(value)
