"""What a `QuantTensor` needs where programs begin and end: gradients that compiled ones take, and what tracers see."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

IN_GRAPH: list[Callable[..., Any]] = []  # functions that look at a tensor's parts, which dynamo does not trace
STATES: list[tuple[Any, Any]] = []  # of dispatch, outside the operators that `past_tracing` calls


class GradientOfQuantTensor(Tensor):
    """The gradient of a `QuantTensor` that a compiled program returns: the program wants one that is no plain tensor.

    A plain tensor to every operator.
    """

    gradient: Tensor

    @staticmethod
    def __new__(cls: Any, gradient: Tensor) -> "GradientOfQuantTensor":
        """Of a plain tensor."""
        made: GradientOfQuantTensor = Tensor._make_wrapper_subclass(
            cls, gradient.shape, strides=gradient.stride(), dtype=gradient.dtype, device=gradient.device
        )
        made.gradient = gradient
        return made

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"GradientOfQuantTensor({self.gradient})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["gradient"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], *_: Any) -> "GradientOfQuantTensor":
        return GradientOfQuantTensor(inner["gradient"])

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        plain, named = pytree.tree_map_only(GradientOfQuantTensor, lambda g: g.gradient, (args, kwargs or {}))
        result = func(*plain, **named)
        aten = torch.ops.aten
        kept = (aten.detach.default, aten.alias.default, aten.clone.default, aten.view.default)
        return GradientOfQuantTensor(result) if func in kept else result


class _Gate(torch.autograd.Function):
    """The same tensor behind a compiled program, whose gradient is one that the program takes."""

    @staticmethod
    def forward(ctx: Any, t: Any) -> Any:
        return t.with_codes(t.codes)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return GradientOfQuantTensor(g.contiguous())


def past_tracing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``func`` without the tracer of ``torch.export``, which takes no subclass; it sees what is done to codes."""
    STATES.append((torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()))
    try:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.PreDispatch)):
            return func(*args, **kwargs)
    finally:
        STATES.pop()


def gated(argument: Any) -> Any:
    """An argument of an operator; in eager mode, results of compiled programs behind their `_Gate`, each the same."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return argument
    if isinstance(argument, list | tuple):
        return type(argument)(map(gated, argument)) if type(argument) in (list, tuple) else argument
    if not hasattr(argument, "with_codes"):
        return argument
    with torch._C.DisableTorchFunctionSubclass():
        if type(argument.grad_fn).__name__ != "CompiledFunctionBackward":
            return argument
        gate = argument.__dict__.get("_gate")
        if gate is None:
            gate = argument.__dict__["_gate"] = _Gate.apply(argument)  # type: ignore[no-untyped-call]
        return gate


def marked() -> bool:
    """Leaves `IN_GRAPH` in compiled graphs as they are. Dynamo, loaded then, runs this for real while it traces."""
    for function in IN_GRAPH:
        torch.compiler.allow_in_graph(function)  # type: ignore[no-untyped-call]
    return True


marked._dynamo_marked_constant = True  # type: ignore[attr-defined]
