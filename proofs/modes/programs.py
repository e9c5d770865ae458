"""The five functions as programs over the arrays of one framework, compiled once for each quantizer and dtype.

A program takes flat arguments (arrays or None) and returns nested tuples of arrays; the quantizer and the dtype of the
result are fixed in it.
"""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from ...core.descriptions import QParams, Quantizer

Program = Callable[..., Any]


def missing_compiler() -> str | None:
    """Why inductor cannot compile for the CPU here, or None: asked of inductor's own search for a C++ compiler."""
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:  # inductor raises its own kinds, from modules that move between releases
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"inductor finds no C++ compiler ({reason}); install g++ or clang, or name one in CXX"
    return None


@cache
def torch_program(function: str, q: Quantizer, dtype: str, *, compiled: bool) -> Program:
    """A function of `_torch_functions`, eager or compiled with dynamic shapes as one graph."""
    import torch

    if compiled and function == "gradients":
        return partial(_torch_gradients, torch_program("fake_quantize", q, dtype, compiled=True))
    plain: Program = _torch_functions(q, getattr(torch, dtype))[function]
    if not compiled:
        return plain
    return _compiled(plain, f"{function}_{dtype}_{abs(hash(q))}")


@cache
def torch_compiled_together(quantizers: tuple[Quantizer, ...], dtype: str) -> Program:
    """Everything of several quantizers in one compiled program, whose gradients come by autograd through it.

    It takes ``(x, scale, zero, g)`` and gives ``(fake, qparams, codes, values, gradients)`` for each of them. (Not with
    ``torch.func.vjp`` inside it: there torch 2.13 differentiates the operations of an ``autograd.Function`` instead of
    calling its backward, without a word, and the straight-through gradient comes out as 0.)
    """
    import torch

    functions = [_torch_functions(q, getattr(torch, dtype))["forward"] for q in quantizers]

    def forward(*arguments: Any) -> Any:
        return tuple(function(*own) for function, own in zip(functions, arguments, strict=True))

    whole = _compiled(forward, f"together_{dtype}_{abs(hash(quantizers))}")

    def program(*arguments: Any) -> Any:
        leaves = [_leaves(x, scale, zero) for x, scale, zero, _ in arguments]
        own = [(x, scale, zero, *leaf) for (x, scale, zero, _), leaf in zip(arguments, leaves, strict=True)]
        results = whole(*own)
        fakes, others = [result[0] for result in results], [result[1:] for result in results]
        gradients = _derivatives(fakes, leaves, [g for _, _, _, g in arguments])
        return tuple((f.detach(), *other, d) for f, other, d in zip(fakes, others, gradients, strict=True))

    return program


def _compiled(plain: Program, name: str) -> Program:
    """One graph under a name of its own; it is compiled anew for ranks, sizes 0 and 1, small and large arrays."""
    import torch

    whole = torch.compile(own_code(plain, name), fullgraph=True)

    def program(*arrays: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=64):
            return whole(*arrays)

    return program


def own_code(function: Any, name: str) -> Program:
    """The function with a code object of its own, by which dynamo counts recompilations and keeps its guesses."""
    return types.FunctionType(
        function.__code__.replace(co_name=name), function.__globals__, name, function.__defaults__, function.__closure__
    )


def _torch_functions(q: Quantizer, dtype: Any) -> dict[str, Any]:
    import torch

    from ... import torch_frontend as room

    def choose_qparams(x: Any) -> Any:
        return tuple(room.choose_qparams(q, x)[:2])

    def quantize(x: Any, scale: Any, zero: Any) -> Any:
        return room.quantize(q, x, QParams(scale, zero))

    def dequantize(codes: Any, scale: Any, zero: Any) -> Any:
        return room.dequantize(q, codes, QParams(scale, zero), dtype)

    def fake_quantize(x: Any, scale: Any, zero: Any) -> Any:
        return room.fake_quantize(q, x, None if scale is None else QParams(scale, zero))

    def gradients(x: Any, scale: Any, zero: Any, g: Any) -> Any:
        return _torch_gradients(fake_quantize, x, scale, zero, g)

    def all_five(x: Any, number: Any, g: Any, scale: Any, zero: Any) -> Any:
        used = choose_qparams(x) if scale is None else (scale, zero)
        codes = quantize(number, *used)
        fake = fake_quantize(x, scale, zero)
        leaf = x.detach().requires_grad_()
        alone = torch.autograd.grad(fake_quantize(leaf, *used), leaf, g)[0]
        return used, codes, dequantize(codes, *used), fake, gradients(x, used[0], used[1], g), alone

    def forward(x: Any, scale: Any, zero: Any, leaf: Any, leaf_scale: Any, leaf_zero: Any) -> Any:
        codes = quantize(x, scale, zero)
        fake = fake_quantize(leaf, leaf_scale, leaf_zero)
        return fake, choose_qparams(x), codes, dequantize(codes, scale, zero)

    return {f.__name__: f for f in (choose_qparams, quantize, dequantize, fake_quantize, gradients, all_five, forward)}


def _torch_gradients(fake_quantize: Program, x: Any, scale: Any, zero: Any, g: Any) -> Any:
    """By autograd."""
    leaves = _leaves(x, scale, zero)
    return _derivatives([fake_quantize(*leaves)], [leaves], [g])[0]


def _leaves(x: Any, scale: Any, zero: Any) -> tuple[Any, Any, Any]:
    """Variables to differentiate by. The zero point is one in the dtype of the scale."""
    wide = None if zero is None else zero.detach().to(scale.dtype).requires_grad_()
    return x.detach().requires_grad_(), scale.detach().requires_grad_(), wide


def _derivatives(y: Any, leaves: Any, g: Any) -> list[tuple[Any, ...]]:
    """Of each ``y`` to its leaves, all in one backward pass; None where a leaf is."""
    import torch

    found = iter(torch.autograd.grad(y, [leaf for own in leaves for leaf in own if leaf is not None], g))
    return [tuple(None if leaf is None else next(found) for leaf in own) for own in leaves]


@cache
def jax_program(function: str, q: Quantizer, dtype: str, *, jit: bool) -> Program:
    """A function of `_jax_functions`, under ``jax.disable_jit()`` or as one jitted program."""
    import jax

    plain = _jax_functions(q, dtype, jit)[function]
    if jit:
        whole: Program = jax.jit(plain)
        return whole

    def eager(*arrays: Any) -> Any:
        with jax.disable_jit():
            return plain(*arrays)

    return eager


def _jax_functions(q: Quantizer, dtype: str, jit: bool) -> dict[str, Any]:
    import jax

    from ... import jax_backend as room

    def choose_qparams(x: Any) -> Any:
        return tuple(room.choose_qparams(q, x)[:2])

    def quantize(x: Any, scale: Any, zero: Any) -> Any:
        return room.quantize(q, x, QParams(scale, zero))

    def dequantize(codes: Any, scale: Any, zero: Any) -> Any:
        return room.dequantize(q, codes, QParams(scale, zero), dtype)

    def fake_quantize(x: Any, scale: Any, zero: Any) -> Any:
        return room.fake_quantize(q, x, None if scale is None else QParams(scale, zero))

    def gradients(x: Any, scale: Any, zero: Any, g: Any) -> Any:
        if zero is None:
            return (*jax.vjp(lambda x, s: fake_quantize(x, s, None), x, scale)[1](g), None)
        return jax.vjp(fake_quantize, x, scale, zero.astype(scale.dtype))[1](g)

    def all_five(x: Any, number: Any, g: Any, scale: Any, zero: Any) -> Any:
        used = choose_qparams(x) if scale is None else (scale, zero)
        codes = quantize(number, *used)
        fake = fake_quantize(x, scale, zero)
        alone = jax.vjp(lambda x: fake_quantize(x, *used), x)[1](g)[0] if jit else None  # the same calls as `gradients`
        return used, codes, dequantize(codes, *used), fake, gradients(x, used[0], used[1], g), alone

    return {f.__name__: f for f in (choose_qparams, quantize, dequantize, fake_quantize, gradients, all_five)}


@contextmanager
def jax_types(*, wide: bool) -> Iterator[None]:
    """64-bit types in JAX for the time of a call, when it needs them."""
    import jax

    if wide:
        with jax.enable_x64(True):
            yield
    else:
        yield
