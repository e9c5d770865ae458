"""A function of torch inside a JAX program, with gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ...core.checks import keeps_subnormals
from .tensors import check_bits, check_leaf, dtype_in_numpy, numpy_to_tensor, tensor_to_numpy

Results = Any  # a pytree of `jax.ShapeDtypeStruct`


def jax_function(
    function: Callable[..., Any], result_shape_dtypes: Any = None, *, vmap_method: str = "sequential"
) -> Callable[..., Any]:
    """A function of torch as a function of JAX arrays, also under ``jax.jit``, that ``jax.vjp`` differentiates.

    It is called on the host, by ``jax.pure_callback``, with tensors of its own on the CPU. Gradients are those of
    ``torch.autograd``, of any order, by calling it again; no forward mode. What it closes over has no gradient.

    Args:
        function: of tensors in pytrees, without effects: it may be called more than once, or not at all.
        result_shape_dtypes: pytree of ``jax.ShapeDtypeStruct`` of its results; None to find them by a trial with
            tensors without values, once for each program.
        vmap_method: of ``jax.pure_callback``: what becomes of it under ``jax.vmap``. ``sequential``: a call for
            each element.
    Returns:
        The function of the same pytrees with arrays for tensors; numbers become arrays. Arrays of integers and bool
        have no gradient. Results are arrays.
    Raises:
        TypeError: when called: arguments of a dtype that torch does not have, shapes of the results that cannot be
            found, results that are no tensors or have 64 bits without ``jax_enable_x64``.
        ValueError: results of other shapes or dtypes than ``result_shape_dtypes``; where it is compiled, JAX raises
            its own error with that message.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        for leaf in leaves:
            check_leaf(leaf)

        def over_leaves(tensors: Sequence[Tensor]) -> Any:
            args, kwargs = jax.tree.unflatten(structure, tensors)
            return function(*args, **kwargs)

        name = getattr(function, "__name__", type(function).__name__)
        return _call(_Host(over_leaves, name, result_shape_dtypes, vmap_method), [jnp.asarray(leaf) for leaf in leaves])

    return call


@contextmanager
def keeping_subnormals() -> Iterator[None]:
    """Computes with subnormal numbers, as torch does elsewhere: threads of XLA take them for zero, and go on to."""
    flushes = not keeps_subnormals()
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushes)


class _Host:
    """A function of a list of tensors that JAX calls, and what pulls cotangents of its results back."""

    def __init__(
        self, function: Callable[[Sequence[Tensor]], Any], name: str, results: Results, vmap_method: str
    ) -> None:
        self.function, self.name, self.results, self.vmap_method = function, name, results, vmap_method

    def shapes(self, leaves: Sequence[Any]) -> Results:
        """Shapes and dtypes of the results, given or by a trial."""
        if self.results is not None:
            return self.results
        dtypes = [_dtype_in_torch(leaf.dtype) for leaf in leaves]
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                tensors = [torch.empty(leaf.shape, dtype=dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]
                found = self.function(tensors)
        except Exception as error:
            raise TypeError(
                f"`result_shape_dtypes` must be given: `{self.name}` cannot be tried without values: {error}"
            ) from error
        return jax.tree.map(self._shape, found)

    def _shape(self, result: Any) -> jax.ShapeDtypeStruct:
        if not isinstance(result, Tensor):
            raise TypeError(f"results of `{self.name}` must be tensors, got {result!r}")
        dtype = dtype_in_numpy(result.dtype)
        check_bits(f"the result of {self.name}", dtype)
        return _shaped(tuple(result.shape), dtype)

    def run(self, expected: Results, leaves: Sequence[Any]) -> Any:
        """The results as NumPy arrays, of tensors that are copies of these."""
        with torch.no_grad(), keeping_subnormals():
            found = self.function([numpy_to_tensor(np.array(leaf)) for leaf in leaves])
        return jax.tree.map(self._checked, expected, found)

    def _checked(self, expected: jax.ShapeDtypeStruct, result: Any) -> Any:
        if not isinstance(result, Tensor):
            raise TypeError(f"results of `{self.name}` must be tensors, got {result!r}")
        array = tensor_to_numpy(result)
        if (
            array.shape[max(array.ndim - len(expected.shape), 0) :] != tuple(expected.shape)
            or array.dtype != expected.dtype
        ):
            raise ValueError(
                f"`{self.name}` must give shape {tuple(expected.shape)} and dtype {expected.dtype}, as "
                f"`result_shape_dtypes` says, got shape {array.shape} and dtype {array.dtype}"
            )
        return array

    def pullback(self, leaves: Sequence[Any]) -> "_Host":
        """The function of gradients of all arguments that have one; it takes all arguments, then cotangents.

        A gradient of torch is the conjugate of a cotangent of JAX, which matters to complex numbers alone.
        """
        count, wanted = len(leaves), _inexact(leaves)
        results = [_shaped(leaves[index].shape, leaves[index].dtype) for index in wanted]

        def pull(tensors: Sequence[Tensor]) -> list[Tensor]:
            keeps = torch.is_grad_enabled()  # where this is differentiated itself
            with torch.enable_grad():
                own = list(tensors[:count])
                for index in wanted:
                    own[index] = own[index] if own[index].requires_grad else own[index].detach().requires_grad_()
                copies = [x.clone() if x.requires_grad else x for x in own]  # it may write into its arguments
                outputs = [y for y in jax.tree.leaves(self.function(copies)) if y.is_floating_point() or y.is_complex()]
                pairs = [(y, g.conj()) for y, g in zip(outputs, tensors[count:], strict=True) if y.requires_grad]
                inputs = [own[index] for index in wanted]
                if not pairs:
                    return [torch.zeros_like(x) for x in inputs]
                ys, cotangents = zip(*pairs, strict=True)
                options = {"create_graph": keeps, "allow_unused": True, "materialize_grads": True}
                return [g.conj() for g in torch.autograd.grad(ys, inputs, cotangents, **options)]

        return _Host(pull, f"the gradient of {self.name}", results, self.vmap_method)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _call(host: _Host, leaves: list[jax.Array]) -> Any:
    shapes = host.shapes(leaves)
    return jax.pure_callback(partial(host.run, shapes), shapes, leaves, vmap_method=host.vmap_method)


def _call_forward(host: _Host, leaves: list[jax.Array]) -> Any:
    return _call(host, leaves), leaves


def _call_backward(host: _Host, leaves: list[jax.Array], cotangents: Any) -> tuple[list[Any]]:
    given = [g for g in jax.tree.leaves(cotangents) if g.dtype != jax.dtypes.float0]
    found: list[Any] = [np.zeros(leaf.shape, jax.dtypes.float0) for leaf in leaves]
    for index, gradient in zip(_inexact(leaves), _call(host.pullback(leaves), [*leaves, *given]), strict=True):
        found[index] = gradient
    return (found,)


_call.defvjp(_call_forward, _call_backward)


def _inexact(leaves: Sequence[Any]) -> list[int]:
    """Which of these have gradients."""
    return [index for index, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _dtype_in_torch(dtype: Any) -> torch.dtype:
    """TypeError where torch has none, as for PRNG keys and int4."""
    try:
        return numpy_to_tensor(np.empty(0, dtype)).dtype
    except TypeError as error:
        raise TypeError(f"arguments must be of a dtype that torch has, got {dtype}") from error


def _shaped(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]
