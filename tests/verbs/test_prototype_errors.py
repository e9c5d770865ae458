"""What a formula may not say: errors with file and line, and what to say instead, in every mode and under gradients.

A product and a sum of arrays that go round the primitives (cases 27 to 32) are fused by luck or not: that is reported.
"""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import samebits.jax_backend.nn as flax_layers
import samebits.torch_frontend.nn as torch_layers
from samebits.core import formula as p
from samebits.proofs import prototype
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
HELD = {"numpy": X, "torch": to_torch(X), "jax": to_jax(X)}


def helping(x: Any) -> Any:
    return torch.exp(x)


def unknown(x: Any, *, how: int = 0) -> Any:
    """What is no primitive, each on a line of its own."""
    match how:
        case 0:
            return torch.exp(x)
        case 1:
            return jnp.where(x > 0, x, 0)
        case 2:
            return np.exp(x)
        case 3:
            return math.floor(x)
        case 4:
            return x if x > 0 else -x
        case 5:
            return float(x)
        case 6:
            return x.numpy()
        case 7:
            return x * np.ones(6, np.float32)
        case 8:
            return torch.ones(6) + x
        case 9:
            return p.amax(x)
        case 10:
            return p.cast(x, "float16")
        case 11:
            return x + p.cast(x, "float16")
        case 12:
            return max(x, 0)
        case 13:
            return x // 2
        case 14:
            return np.where(x > 0, x, 0)
        case 15:
            return [v * 2 for v in x]
        case 16:
            return x + jnp.ones(6)
        case 17:
            return 3
        case 18:
            return p.exp(3.0)
        case 19:
            return x[p.floor(x)]
        case 20:
            return p.expm1(x)
        case 21:
            return x.reshape(5, 5)
        case 22:
            return torch.clip(x, 0, 1)
        case 23:
            return x & (x > 0)
        case 24:
            return np.float32(2) * x
        case 25:
            return np.float64(2) * x
        case 26:
            return x * True
        case 27:
            return x.torch_tensor * 2 + 1
        case 28:
            return x.array * 2 + 1
        case 29:
            return x._array * 2 + 1
        case 30:
            return p.clamp(x._array * 2 + 1, 0.0, 1.0)
        case 31:
            return HELD[x.run.room.name] * 2 + x
        case 32:
            return p.round(x, "stochastic", noise=x._array * 0)
        case 33:
            return helping(x)
        case 34:
            return x + x[4]
        case 35:
            return x + x.transpose(1, 1)
        case _:
            raise AssertionError


FIRST = unknown.__code__.co_firstlineno + 4
ERRORS: list[tuple[type[Exception], str]] = [
    (TypeError, r"in `torch.exp\(x\)`: `torch.exp` is no primitive; use exp "),
    (TypeError, r"`jnp.where` is no primitive; use where "),
    (TypeError, r"`np.exp` is no primitive; use exp "),
    (TypeError, r"`math.floor` is no primitive; use floor "),
    (TypeError, r"in `x > 0`: a formula has no `if`.*: use where"),
    (TypeError, r"`float` is no primitive; a value has no number"),
    (TypeError, r"`x.numpy` is no primitive; a value has no number"),
    (TypeError, r"`multiply` takes values of the formula and numbers of Python, got numpy.ndarray"),
    (TypeError, r"`add` takes .* got torch.Tensor"),
    (ValueError, r"`unknown`: must return a value of shape \(4, 6\) and dtype float32, as `x` has, got \(\), float32"),
    (TypeError, r"`unknown`: must return .* got \(4, 6\), float16"),
    (TypeError, r"`b` must have the dtype of `a`, float32, got float16: cast one of them"),
    (TypeError, r"in `max\(x, 0\)`: a formula has no `if`"),
    (TypeError, r"in `x // 2`: this is no primitive"),
    (TypeError, r"`np.where` is no primitive; use where "),
    (TypeError, r"'Value' object is not iterable"),
    (TypeError, r"`add` takes .* got jax"),
    (TypeError, r"`unknown`: must return a value .* got int"),
    (TypeError, r"`exp` must be given a value of the formula, got numbers only"),
    (TypeError, r"an index must be of numbers, slices, None and `...`: use take"),
    (TypeError, r"`p.expm1` is no primitive; use those of samebits.core.formula"),
    (ValueError, r"`reshape` must keep the 24 elements of shape \(4, 6\), got \(5, 5\)"),
    (TypeError, r"`torch.clip` is no primitive; use clamp "),
    (TypeError, r"are of truth values, as comparisons give them"),
    (TypeError, r"in `np.float32\(2\) \* x`: `multiply` takes .* got numpy.float32: .*, numbers of NumPy by float"),
    (TypeError, r"`multiply` takes .* got numpy.float64"),
    (TypeError, r"`multiply` takes .* got builtins.bool"),
    (TypeError, r"`x.torch_tensor` is no primitive; use those of samebits.core.formula"),
    (TypeError, r"`x.array` is no primitive; a value has no number while a formula runs, and its array is not for"),
    (TypeError, r"must return a value .* got \w+: what is computed on arrays themselves is no primitive"),
    (TypeError, r"`clamp` takes values of the formula and numbers of Python, got "),
    (TypeError, r"`add` takes values of the formula and numbers of Python, got "),
    (TypeError, r"`round` takes values of the formula and numbers of Python, got "),
    (TypeError, r"in `torch.exp\(x\)`: `torch.exp` is no primitive; use exp "),
    (ValueError, r"an index must be within shape \(4, 6\), got 4"),
    (ValueError, r"`transpose` must name every axis of shape \(4, 6\) once, from 0, got \(1, 1\)"),
]  # fmt: skip


LINES = {how: FIRST + 2 * how for how in range(len(ERRORS))} | {33: helping.__code__.co_firstlineno + 1}


def program(how: int, mode: str) -> Callable[[], Any]:
    """The formula in a mode."""
    one = prototype(unknown)
    of_torch, of_jax = to_torch(X), to_jax(X)
    compiled = torch.compile(lambda x: one.torch(x, how=how), fullgraph=True)
    return {
        "numpy": lambda: one.numpy(X, how=how),
        "torch eager": lambda: one.torch(of_torch, how=how),
        "torch eager, gradient": lambda: one.torch(of_torch.clone().requires_grad_(), how=how),
        "torch func": lambda: torch.func.grad(lambda x: one.torch(x, how=how).sum())(of_torch),
        "torch compiled": lambda: compiled(of_torch),
        "torch compiled, gradient": lambda: compiled(of_torch.clone().requires_grad_()),
        "jax eager": lambda: one.jax(of_jax, how=how),
        "jax jit": lambda: jax.jit(lambda x: one.jax(x, how=how))(of_jax),
        "jax jit, gradient": lambda: jax.jit(jax.grad(lambda x: one.jax(x, how=how).sum()))(of_jax),
    }[mode]


MODES = (
    "numpy",
    "torch eager",
    "torch eager, gradient",
    "torch func",
    pytest.param("torch compiled", marks=pytest.mark.thorough),
    "torch compiled, gradient",
    pytest.param("jax eager", marks=pytest.mark.thorough),
    "jax jit",
    "jax jit, gradient",
)


@pytest.fixture(autouse=True)
def _without_logs() -> Any:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # of dynamo, which says where it stopped
    yield
    logging.disable(before)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_no_primitive(mode: str) -> None:
    """File and line, what was called, and what to call instead; the same class of error everywhere."""
    for how, (kind, message) in enumerate(ERRORS):
        with pytest.raises(kind, match=rf"^test_prototype_errors.py:{LINES[how]}, .*{message}"):
            program(how, mode)()


def test_what_is_no_primitive_where_dynamo_may_leave_a_frame_to_python() -> None:
    one = prototype(unknown)
    for how in (0, 9):
        with pytest.raises(ERRORS[how][0], match=rf"^test_prototype_errors.py:{LINES[how]}, "):
            torch.compile(lambda x, how: one.torch(x, how=how))(to_torch(X), how)


def test_a_gradient_that_is_wrong() -> None:
    """While the forward pass is compiled, and not before the backward pass elsewhere."""
    one = prototype(lambda x: p.round(x))

    @one.gradient
    def wrong(g: Any, x: Any) -> Any:
        return torch.where(x > 0, g, 0)

    line = wrong.__code__.co_firstlineno + 2
    x = to_torch(X).requires_grad_()
    message = rf"^test_prototype_errors.py:{line}, in .*`torch.where` is no primitive; use where "
    with pytest.raises(TypeError, match=message):
        torch.compile(one.torch, fullgraph=True)(x)
    y = one.torch(x)
    with pytest.raises(TypeError, match=message):
        y.sum().backward()
    with pytest.raises(TypeError, match=message):
        jax.jit(jax.grad(lambda x: one.jax(x).sum()))(to_jax(X))
    torch.compile(one.torch, fullgraph=True, backend="eager")(x.detach())


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64])
def test_dtypes_that_are_no_floats(dtype: Any) -> None:
    one = prototype(lambda x: p.round(x) * 2)
    line = one.function.__code__.co_firstlineno
    x = np.ones(3, dtype)
    of_torch = torch.from_numpy(x)
    for call in (
        lambda: one.numpy(x),
        lambda: one.torch(of_torch),
        lambda: torch.compile(one.torch, fullgraph=True)(of_torch),
        lambda: one.jax(jnp.asarray(x)),
        lambda: jax.jit(one.jax)(jnp.asarray(x)),
    ):
        with pytest.raises(
            TypeError, match=rf"^test_prototype_errors.py:{line}, in `p.round\(x\)`: .* must have dtype"
        ):
            call()


def test_arrays_of_two_libraries() -> None:
    one = prototype(lambda x, *, s=p.learned(2.0): p.round(x / s) * s)
    of_torch, of_jax = torch.tensor(2.0), jnp.float32(2.0)
    for given in (of_torch, np.float32(2)):
        kind = "`<lambda>` takes arrays of one library, got `x` of jax, `s` of torch"
        if isinstance(given, torch.Tensor):
            with pytest.raises(TypeError, match=kind):
                one.jax(to_jax(X), s=given)
            with pytest.raises(TypeError, match=kind):
                jax.jit(lambda x: one.jax(x, s=of_torch))(X)
        else:
            one.jax(to_jax(X), s=given)
    for wrong, library in ((of_torch, "torch"), (of_jax, "jax")):
        with pytest.raises(TypeError, match=f"got `x` of numpy, `s` of {library}"):
            one.numpy(X, s=wrong)
    for strange in (of_jax, np.float32(2)):
        with pytest.raises(TypeError, match=r"`s` must be a torch.Tensor, got "):
            one.torch(to_torch(X), s=strange)


def test_where_a_parameter_begins() -> None:
    """By a formula of the user: its line; by a function that has none of his: the parameter."""
    line = test_where_a_parameter_begins.__code__.co_firstlineno + 4
    starts: tuple[tuple[Any, str], ...] = (
        (lambda x: torch.amax(x), rf"test_prototype_errors.py:{line}, in `torch.amax\(x\)`: `torch.amax` is no "),
        (p.absmax, "`s` of `<lambda>`, where it begins: `x` must have elements along `axis`, got none"),
        (partial(p.amin, axis=0), "`s` of `<lambda>`, where it begins: `x` must have elements along `axis`, got none"),
        (torch.amax, "`s` of `<lambda>`, where it begins: amax.*must be Tensor, not Value"),
    )  # fmt: skip
    for begins, message in starts:
        one = prototype(lambda x, *, s=p.learned(begins): x / s)
        compiled: Any = torch.compile(one.torch, fullgraph=True, backend="eager")
        programs: list[tuple[Any, Any]] = [
            (one.numpy, X[:0]),
            (one.torch, to_torch(X[:0])),
            (jax.jit(one.jax), X[:0]),
            (one.torch_module, to_torch(X[:0])),
            (compiled, to_torch(X[:0])),
        ]
        for call, x in programs[: 4 if begins is torch.amax else 5]:
            with pytest.raises((TypeError, ValueError), match=f"^{message}"):
                call(x)
    for wrong in ("absmax", None, [1.0], np.ones(3)):
        with pytest.raises(TypeError, match=f"must be a number, or a formula .*, got {type(wrong).__name__}"):
            p.learned(wrong)


def test_what_is_returned_and_what_it_is_like() -> None:
    """At the line of the formula, whatever is there instead of a pair, or of a value."""
    line = test_what_is_returned_and_what_it_is_like.__code__.co_firstlineno + 4
    formulas: tuple[tuple[Callable[..., Any], str], ...] = (
        (lambda x, *, peak=p.state(0.0): (x, peak), r"must return a value, or a pair .*, got \(Value, Value\)"),
        (lambda x: (x, {}, x), r"must return a value, or a pair of it and a dict .*, got \(Value, dict, Value\)"),
        (lambda x: p.random_bits(0, x.shape), "in `p.random_bits.*: `like` must be a value of the formula, got tuple"),
        (lambda x: p.constant([1.0], X), "in `p.constant.*: `like` must be a value of the formula, got ndarray"),
        (lambda x: sum(x), r"in `sum\(x\)`: `sum` is no primitive; use sum of samebits.core.formula "),
    )
    for formula, message in formulas:
        with pytest.raises(TypeError, match=rf"^test_prototype_errors.py:{line}, .*{message}"):
            prototype(formula).numpy(X)
        line += 1


def test_states_of_another_shape() -> None:
    one = prototype(lambda x, *, peak=p.state(0.0): (x, {"peak": p.absmax(x, axis=0)}))
    with pytest.raises(
        ValueError, match=r"must return a value of shape \(\) and dtype float32, as `peak` has, got \(6,\)"
    ):
        one.numpy(X)


def test_declarations_and_arguments_that_are_refused() -> None:
    for function in (lambda x, y: x, lambda *, x=1: x, lambda x, **k: x, lambda x, *, bits: x):
        with pytest.raises(TypeError, match="must take one array, then keywords with defaults"):
            prototype(function)
    plain = prototype(lambda x, *, s=p.learned(0.3), bits=4: p.round(x / s) * s)
    with pytest.raises(TypeError, match="`<lambda>` has no parameter width; it has s, bits"):
        plain.numpy(X, width=3)
    with pytest.raises(TypeError, match="`<lambda>` has no parameter k; it has s, bits"):
        plain.gradient(lambda g, x, *, k: g)
    with pytest.raises(TypeError, match="`s` of `<lambda>` must begin as a value of a formula, got float"):
        prototype(lambda x, *, s=p.learned(lambda x: 1.0): x * s).numpy(X)
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got ndarray"):
        plain.torch(X)
    with pytest.raises(TypeError, match=r"states \['mean'\], declared are \[\]"):
        prototype(lambda x: (x, {"mean": x})).numpy(X)
    with pytest.raises(TypeError, match="`s` of `<lambda>` begins as a formula of the array: give `like`"):
        prototype(lambda x, *, s=p.learned(p.absmax): x / s).torch_module()
    begun = prototype(lambda x, *, s=p.learned(p.absmax): x / s)
    with pytest.raises(TypeError, match=r"`like` must be a torch\.Tensor, got ndarray"):
        begun.torch_module(like=X)
    for layer in (torch_layers.QuantLinear, partial(flax_layers.QuantLinear, rngs=nnx.Rngs(0))):
        with pytest.raises(TypeError, match=r"to a layer with the prefix of its tensor, as in input_like, input_s\)"):
            layer(6, 6, input_quant=begun)
        held = to_torch(X) if layer is torch_layers.QuantLinear else to_jax(X)
        held_by: Any = layer(6, 6, input_quant=begun, input_like=held)
        assert to_numpy(held_by.input_quant.s) == np.abs(X).max()
    with pytest.raises(TypeError, match="`s` of `<lambda>` must be a number or an array, got '2'"):
        plain.torch_module(s="2")
    with pytest.raises(TypeError, match=r"`<lambda>` is called as <lambda>.numpy\(x\), <lambda>.torch\(x\) or "):
        plain(X)
    with pytest.raises(TypeError, match="must not be a prototype"):
        torch_layers.QuantLinear(3, 3, bias_quant=plain)
