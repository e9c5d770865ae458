"""A function of JAX inside a torch program, with gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import Tensor

from .tensors import array_to_tensor, check_leaf, tensor_to_array


def torch_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of JAX as one of torch tensors, compiled by ``jax.jit``, that ``torch.autograd`` differentiates.

    Gradients are those of ``jax.vjp``, of any order: a backward pass computes the function again inside its program,
    and arguments alone are kept. Where a graph of ``torch.compile`` meets it, the graph breaks. Memory is shared as
    `tensor_to_array` and `array_to_tensor` say, and results are finished when it returns.

    Args:
        function: of arrays in pytrees; jit-able. What it closes over has no gradient.
    Returns:
        The function of the same pytrees with tensors for arrays; numbers may be among them, which are not constants,
        and arrays of NumPy and JAX. Tensors of integers and bool have no gradient. Results are tensors.
    Raises:
        TypeError: when called: an argument of another type, or a tensor that JAX cannot hold, as `tensor_to_array`.
    """
    programs: dict[Any, _Program] = {}

    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        for leaf in leaves:
            check_leaf(leaf, Tensor)

        def over_leaves(leaves: Sequence[Any]) -> Any:
            args, kwargs = jax.tree.unflatten(structure, leaves)
            return function(*args, **kwargs)

        program = programs.setdefault(structure, _Program(over_leaves))
        results: list[Any] = []  # their structure
        found = _Call.apply(program, results, *leaves)  # type: ignore[no-untyped-call]
        return jax.tree.unflatten(results[0], found)

    disabled: Callable[..., Any] = torch.compiler.disable(call)  # type: ignore[no-untyped-call]
    return disabled


class _Program:
    """A compiled function of a list of arrays, and what pulls cotangents of its results back."""

    def __init__(self, function: Callable[[Sequence[Any]], Any]) -> None:
        self.function = function
        self.compiled = jax.jit(function)
        self.pullbacks: dict[tuple[int, ...], _Program] = {}

    def pullback(self, wanted: tuple[int, ...], count: int) -> "_Program":
        """The program of gradients of the arguments ``wanted``, of ``count``; it takes them all, then cotangents.

        A gradient of torch is the conjugate of a cotangent of JAX, which matters to complex numbers alone.
        """

        def pull(leaves: Sequence[Any]) -> list[Any]:
            def of_wanted(*some: Any) -> list[Any]:
                own = list(leaves[:count])
                for index, value in zip(wanted, some, strict=True):
                    own[index] = value
                return [y for y in jax.tree.leaves(self.function(own)) if jnp.issubdtype(y.dtype, jnp.inexact)]

            _, back = jax.vjp(of_wanted, *(leaves[index] for index in wanted))
            return [jnp.conj(gradient) for gradient in back([jnp.conj(g) for g in leaves[count:]])]

        if wanted not in self.pullbacks:
            self.pullbacks[wanted] = _Program(pull)
        return self.pullbacks[wanted]


class _Call(torch.autograd.Function):
    """A program as a step of autograd; tensors and other values in, tensors out."""

    @staticmethod
    def forward(ctx: Any, program: _Program, structure: list[Any], *values: Any) -> tuple[Tensor, ...]:
        tensors = [value for value in values if isinstance(value, Tensor)]
        arrays = [tensor_to_array(value) if isinstance(value, Tensor) else value for value in values]
        # tensors may be written to as soon as this returns
        found = jax.block_until_ready(program.compiled(arrays))  # type: ignore[no-untyped-call]
        leaves, tree = jax.tree.flatten(found)
        structure.append(tree)
        given = {tensor.data_ptr() for tensor in tensors}
        results = [array_to_tensor(jnp.asarray(leaf)) for leaf in leaves]
        results = [y.clone() if y.data_ptr() in given and y.numel() else y for y in results]
        ctx.program, ctx.others = program, [None if isinstance(v, Tensor) else v for v in values]
        ctx.places = [index for index, value in enumerate(values) if isinstance(value, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.differentiable = [y.is_floating_point() or y.is_complex() for y in results]
        ctx.mark_non_differentiable(*(y for y, can in zip(results, ctx.differentiable, strict=True) if not can))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            values[place] = tensor
        wanted = tuple(index for index, needs in enumerate(ctx.needs_input_grad[2:]) if needs)
        cotangents = [g for g, can in zip(gradients, ctx.differentiable, strict=True) if can]
        program = ctx.program.pullback(wanted, len(values))
        found: list[Tensor | None] = [None] * len(values)
        for index, gradient in zip(wanted, _Call.apply(program, [], *values, *cotangents), strict=True):  # type: ignore[no-untyped-call]
            found[index] = gradient
        return None, None, *found
