"""Prototypes differentiated otherwise than once in reverse: forward mode, twice, by element of a batch.

Expected values: derivatives of the textbook, the transpose of the reverse mode, and that both frameworks agree.
"""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from samebits.core import formula as p
from samebits.core.prototypes import vjp
from samebits.proofs import assert_same_bits, prototype
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.proofs.modes.programs import jax_types

X, G, T = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)


@prototype
def plain(x: Any, *, s: Any = p.learned(0.3)) -> Any:
    v = x / s
    return p.straight_through(p.clamp(p.round(v), -4.0, 3.0), p.clamp(v, -4.0, 3.0)) * s + x * 0.125


@prototype
def smooth(x: Any, *, s: Any = p.learned(0.7), peak: Any = p.state(0.0)) -> Any:
    """Reductions, indexes and tables among its steps."""
    rows = x.reshape(2, 12)
    m = p.mean(rows, axis=1, keepdims=True) + p.amax(rows, 1, True) * 0.5
    t = p.take(p.constant((0.5, -1.0, 2.0), x) * s, p.floor(abs(x) * 2))
    y = p.exp(p.tanh(x) * s) * t + (rows / m).reshape(x.shape) ** 2 + p.sum(x[1:3, ::2])
    return y.transpose().transpose(), {"peak": p.maximum(peak, p.absmax(x))}


@prototype
def own(x: Any, *, s: Any = p.learned(2.0)) -> Any:
    return p.round(x / s) * s


@own.gradient
def own_gradient(g: Any, x: Any, *, s: Any) -> Any:
    return g * x * x / s


def dual(function: Any, x: Any, t: Any) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, t))).tangent


def test_forward_mode_has_the_same_bits() -> None:
    x, t = to_torch(X), to_torch(T)
    expected = torch.func.jvp(plain.torch, (x,), (t,))[1]
    assert_same_bits(
        np.where(abs(X / np.float32(0.3) + 0.5) <= 3.5, T / np.float32(0.3), 0) * np.float32(0.3) + T / 8, expected
    )
    assert_same_bits(expected, dual(plain.torch, x, t))
    assert_same_bits(expected, dual(plain.torch, x.clone().requires_grad_(), t).detach())
    for one in (plain, smooth):
        of_torch: Any = torch.func.jvp(one.torch, (x,), (t,))
        assert_same_bits(of_torch, jax.jit(lambda x, t, one=one: jax.jvp(one.jax, (x,), (t,)))(X, T))


@pytest.mark.thorough
def test_forward_mode_is_the_transpose_of_reverse_mode() -> None:
    x, g, t = (a.astype(np.float64) for a in (X, G, T))
    with jax_types(wide=True):
        of_jax = jax.jit(lambda x, s, t, d: jax.jvp(lambda x, s: smooth.jax(x, s=s), (x, s), (t, d))[1])
        pushed = np.asarray(of_jax(x, 0.7, t, 0.25))
    gradients = vjp(smooth, x, g, s=0.7)
    assert float((pushed * g).sum()) == pytest.approx(
        float((gradients["x"] * t).sum() + gradients["s"] * 0.25), rel=1e-13
    )
    along: Any = torch.func.jvp(
        lambda x, s: smooth.torch(x, s=s),
        (to_torch(x), torch.tensor(0.7, dtype=torch.float64)),
        (to_torch(t), torch.tensor(0.25, dtype=torch.float64)),
    )[1]
    assert_same_bits(pushed, along)


def test_second_derivatives() -> None:
    """Of a polynomial, on numbers without rounding; by ``create_graph``, torch.func and JAX."""
    cubed = prototype(lambda x, *, s=p.learned(2.0): x * x * x * s)
    x = np.rint(X * 8) / np.float32(8)
    expected = 12 * x * T.round(2)
    t, of_torch = to_torch(T.round(2)), to_torch(x).requires_grad_()
    (first,) = torch.autograd.grad(cubed.torch(of_torch).sum(), of_torch, create_graph=True)
    (second,) = torch.autograd.grad(first, of_torch, t)
    np.testing.assert_allclose(second.numpy(), expected, rtol=3e-7)

    def summed(x: torch.Tensor) -> torch.Tensor:
        return cubed.torch(x).sum()

    assert_same_bits(second, torch.func.vjp(torch.func.grad(summed), to_torch(x))[1](t)[0])
    np.testing.assert_allclose(torch.func.jvp(torch.func.grad(summed), (to_torch(x),), (t,))[1], expected, rtol=3e-7)
    of_jax = jax.grad(lambda x: cubed.jax(x).sum())
    assert_same_bits(second, jax.jit(lambda x, t: jax.vjp(of_jax, x)[1](t)[0])(x, t.numpy()))
    np.testing.assert_allclose(jax.jit(lambda x, t: jax.jvp(of_jax, (x,), (t,))[1])(x, t.numpy()), expected, rtol=3e-7)
    towards_s = jax.jit(jax.grad(lambda s: jax.grad(lambda x: cubed.jax(x, s=s).sum())(to_jax(x)).sum()))(2.0)
    assert float(towards_s) == pytest.approx(float((3 * x.astype(float) ** 2).sum()), rel=1e-6)


def test_a_gradient_of_its_own_has_no_forward_mode() -> None:
    """And is differentiated as it stands."""
    x, t = to_torch(X), to_torch(T)
    message = "`own` has a gradient of its own, `own_gradient`, and so no forward mode "
    for call in (
        lambda: torch.func.jvp(own.torch, (x,), (t,)),
        lambda: dual(own.torch, x, t),
        lambda: jax.jit(lambda x, t: jax.jvp(own.jax, (x,), (t,)))(X, T),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    of_torch = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(own.torch(of_torch), of_torch, torch.ones(4, 6), create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), of_torch)
    np.testing.assert_allclose(second, X, rtol=3e-7)
    assert_same_bits(second, jax.jit(jax.grad(lambda x: jax.grad(lambda x: own.jax(x).sum())(x).sum()))(X))


@pytest.mark.thorough
def test_batches() -> None:
    """Every element of a batch has statistics of its own, as if it came alone."""
    expected = np.stack([smooth.numpy(np.tile(row, (4, 1))) for row in X])
    rows = np.stack([np.tile(row, (4, 1)) for row in X])
    assert_same_bits(
        (expected, expected), (torch.func.vmap(smooth.torch)(to_torch(rows)), jax.jit(jax.vmap(smooth.jax))(rows))
    )
    of_torch = torch.func.vmap(torch.func.grad(lambda x: smooth.torch(x).sum()))(to_torch(rows))
    of_jax = jax.jit(jax.vmap(jax.grad(lambda x: smooth.jax(x).sum())))(to_jax(rows))
    alone = np.stack([torch.func.grad(lambda x: smooth.torch(x).sum())(to_torch(row)).numpy() for row in rows])
    assert_same_bits((alone, alone), (of_torch, of_jax))


def test_compiled_around_func_is_refused() -> None:
    """Dynamo would differentiate the forward pass there."""
    with pytest.raises(RuntimeError, match=r"torch.compile around torch.func .* would give wrong gradients"):
        torch.compile(torch.func.grad(lambda x: plain.torch(x).sum()), fullgraph=True)(to_torch(X))
