"""Quantized torch models as ONNX files, which onnxruntime runs with the bits of samebits where its operators allow it.

In the form ``"integer"`` layers over codes are `MatMulInteger` and `ConvInteger`: exact sums, scaled once, so the same
bits as the model, at every level of optimization. In the form ``"qdq"`` every layer is one of floats between pairs of
`QuantizeLinear` and `DequantizeLinear`, as other tools take it; its codes and values are ours, its sums have an order
of their own, within `contraction_bound`. What else has bits of its own is listed in the result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...core.requirements import lacking
from ..nn.given import GivenQuantizer
from ..nn.proxy import HELD
from .observer_modules import ObserverModule
from .onnx_graph import IR_VERSION, OPSET, Graph
from .onnx_operators import MODULES, QUANTIZES, function
from .static import DeQuantStub, QuantStub

FORMS = ("integer", "qdq")
QUANTIZERS = (*HELD, GivenQuantizer, QuantStub, DeQuantStub)


@dataclass(frozen=True)
class OnnxExport:
    """An exported model.

    Args:
        model: the ``onnx.ModelProto``.
        inexact: values whose bits are those of onnxruntime, and what they are; without any the outputs have the bits of
            the model, for inputs without NaN.
    """

    model: Any
    inexact: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        if not self.inexact:
            return "the same bits as the model"
        return "\n".join(f"{name}: {what}, whose bits are those of onnxruntime" for name, what in self.inexact)


def export_onnx(
    model: nn.Module, args: Tensor | tuple[Tensor, ...], path: str | PathLike[str] | None = None, form: str = "integer"
) -> OnnxExport:
    """A quantized model as ONNX.

    Args:
        model: float32, in evaluation, that torch.fx can trace. Linear layers and convolutions of torch and samebits,
            with floats, `QuantWeight`, or codes of `convert` as weights; inputs with constant or calibrated scales, or
            in the form ``"integer"`` scales of the tensor or its tokens; and what `onnx_operators` lists.
        args: inputs, for their shapes; axis 0 is the batch and may have any length later.
        path: where the file is written; None for nowhere.
        form: ``"integer"`` or ``"qdq"``; see the module.
    Raises:
        ImportError: without onnx (``pip install 'samebits[onnx]'``).
        TypeError: inputs that are no float32 tensors. ValueError: another form, a model in training, one that cannot be
            traced, hooks (so a model of `quantize`, whose activations hooks quantize), a layer, function or quantizer
            without a form in ONNX. They name it. Nothing is written then.
    """
    if line := lacking("onnx", "export_onnx"):
        raise ImportError(line)
    if form not in FORMS:
        raise ValueError(f"`form` must be one of {', '.join(FORMS)}, got {form!r}")
    given = args if isinstance(args, tuple) else (args,)
    for x in given:
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            raise TypeError(f"`args` must be float32 tensors, got {x.dtype if isinstance(x, Tensor) else x!r}")
    if any(part.training for part in model.modules() if not isinstance(part, GivenQuantizer)):  # it has no modes
        raise ValueError("`model` must be in evaluation: call model.eval()")
    traced = _traced(model)
    with torch.no_grad():
        _Shapes(traced).run(*given)
    graph = Graph()
    ends = _converted(traced, graph, form)
    made = _model(traced, graph, given, ends)
    if path is not None:
        import onnx

        onnx.save(made, path)
    return OnnxExport(made, tuple(graph.inexact))


class _Shapes(fx.Interpreter):
    """Runs a graph, and keeps the shapes. ValueError where that fails, or is not in float32."""

    def run_node(self, n: fx.Node) -> Any:
        name = n.target if n.op == "call_module" else n.name
        try:
            y = super().run_node(n)
        except Exception as error:
            raise ValueError(f"'{name}': {str(error).partition(chr(10))[0]}") from error
        if isinstance(y, Tensor):
            if y.dtype != torch.float32:
                raise ValueError(f"'{name}': must give float32, got {y.dtype}")
            n.meta["shape"] = tuple(y.shape)
        return y


def _traced(model: nn.Module) -> fx.GraphModule:
    """The graph of a model, layers whole. ValueError where there is none."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return type(m) in MODULES or isinstance(m, QUANTIZERS) or super().is_leaf_module(m, module_qualified_name)

    for name, part in model.named_modules():
        if isinstance(part, ObserverModule):
            raise ValueError(f"`model` must be converted: '{name}' observes; call convert")
        if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):  # as `quantize` sets them
            raise ValueError(f"`model` must have no hooks and no forward of an instance, which are not seen: '{name}'")
    root = model if type(model) not in MODULES else nn.Sequential(model).eval()  # a layer alone has no parts to trace
    try:
        return fx.GraphModule(root, Tracer().trace(root))
    except Exception as error:  # whatever the model raises when it meets a proxy
        reason = str(error).partition("\n")[0]
        raise ValueError(f"`model` must be one that torch.fx can trace: {reason}") from error


def _converted(traced: fx.GraphModule, graph: Graph, form: str) -> list[str]:
    """Fills the graph; the names of the outputs."""
    values: dict[fx.Node, str] = {}
    for node in traced.graph.nodes:
        if node.op == "output":
            outputs = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
            return [values[one] for one in outputs]
        if node.op == "placeholder":
            values[node] = node.name
        elif node.op == "get_attr":
            values[node] = graph.constant(_attribute(traced, str(node.target)).detach().numpy(), node.name)
        elif "shape" not in node.meta:
            continue  # a length, as a reshape takes it
        else:
            values[node] = _value(traced, graph, node, values.__getitem__, form)
        graph.ranks[values[node]] = len(node.meta["shape"])
    raise ValueError("`model` must give something")


def _value(traced: fx.GraphModule, graph: Graph, node: fx.Node, named: Callable[[Any], str], form: str) -> str:
    """The value of a call."""
    try:
        if node.op != "call_module":
            return function(graph, node, named)
        if len(node.args) != 1 or node.kwargs:
            raise ValueError("it must be called with one argument, by position")
        layer = traced.get_submodule(str(node.target))
        if isinstance(layer, DeQuantStub):
            return named(node.args[0])
        emits = QUANTIZES if isinstance(layer, QUANTIZERS) else MODULES.get(type(layer))
        if emits is None:
            raise ValueError(f"{type(layer).__name__} has no form in this export")
        return emits(graph, layer, named(node.args[0]), node.name, form)
    except (ValueError, IndexError) as error:
        reason = "it must have its arguments by position" if isinstance(error, IndexError) else error.args[0]
        raise ValueError(f"'{node.target if node.op == 'call_module' else node.name}': {reason}") from error


def _attribute(traced: fx.GraphModule, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    found: Tensor = getattr(traced.get_submodule(owner), name)
    return found


def _model(traced: fx.GraphModule, graph: Graph, given: tuple[Tensor, ...], ends: list[str]) -> Any:
    """The checked ``ModelProto``."""
    import onnx
    from onnx import TensorProto, helper

    places = [node.name for node in traced.graph.nodes if node.op == "placeholder"]
    ins = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *x.shape[1:]])
        for name, x in zip(places, given, strict=True)
    ]
    outs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}_{i}" for i in range(graph.ranks[name])])
        for name in ends
    ]
    made = helper.make_model(
        helper.make_graph(graph.nodes, "samebits", ins, outs, list(graph.constants.values())),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="samebits",
    )
    onnx.checker.check_model(made)
    return made
