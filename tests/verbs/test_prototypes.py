"""Prototypes in all rooms: what a formula may say, its errors with their lines, states, gradients, modules and layers.

Expected values: formulas in NumPy, where every operation is rounded once; the differentiation of the frameworks,
through the primitives one by one, of which each has a rule of its own.
"""

import subprocess
import sys
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx

import samebits.jax_backend.nn as flax_layers
import samebits.torch_frontend.nn as torch_layers
from samebits.core import formula as p
from samebits.core import primitives
from samebits.core.formula_values import OPERANDS, Run
from samebits.core.prototypes import updated, vjp
from samebits.jax_backend import prototypes as in_jax
from samebits.proofs import MODES, assert_same_bits, prototype
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.proofs.prototypes.agreement import differing
from samebits.proofs.prototypes.steps import explain
from samebits.torch_frontend import primitives as torch_primitives
from samebits.torch_frontend import prototypes as in_torch

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
G = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)


@prototype
def plain(x: Any, *, s: Any = p.learned(0.3), bits: int = 4) -> Any:
    v = x / s
    q = p.clamp(p.round(v), -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
    return p.straight_through(q, v) * s + x * 0.125


@prototype
def drawing(x: Any, *, peak: Any = p.state(0.0), draw: Any = p.seed(3), training: bool = True) -> Any:
    y = p.round(x * 4, "stochastic", noise=p.random_bits(draw, x)) / 4
    return p.straight_through(y, x), {"peak": p.maximum(peak, p.absmax(x)) if training else peak}


@prototype
def whole(x: Any, *, a: Any = p.learned(0.75)) -> Any:
    """Every derivative that is no other primitive's."""
    rows = x.reshape(2, 12)
    m = p.mean(rows, axis=1, keepdims=True) + p.amin(rows, 1, True) * 0.5 + p.percentile(rows, 60, axis=0)[None, :1]
    y = (rows * m / p.absmax(rows)).reshape(x.shape).transpose(1, 0)
    t = p.take(p.constant((0.5, -1.0, 2.0), x) * a, p.floor(abs(x) * 2).transpose())
    z = (y + t * p.broadcast_to(p.sum(x[1:3, ::2]) + a, y.shape)).transpose()
    w = p.where((x < 0) | (x <= -1) & (x != 2), z, p.cast(p.cast(x, "bfloat16"), "float32")) - a
    return p.minimum(w, p.exp(-x)) + 2.0 ** (x * a) + p.stop_gradient(x) + p.amax(w[..., 1]) - 1 / (x**2 + 1) + -(x**3)


def test_a_seed_begins_somewhere_in_training_too() -> None:
    x = torch.from_numpy(X).requires_grad_()
    y = in_torch.apply(drawing, x)
    assert_same_bits(drawing.numpy(X), y.detach().numpy())
    y.sum().backward()


def test_the_language_has_every_primitive() -> None:
    names = {name for name in vars(primitives) if callable(getattr(primitives, name)) and not name.startswith("_")}
    assert names - {"random_bits"} == OPERANDS.keys()
    with pytest.raises(AttributeError, match="`expm1` is no primitive; there are absmax, absolute, add"):
        p.expm1  # noqa: B018


def test_operators_are_primitives() -> None:
    s, x = np.float32(0.3), X
    q = np.clip(np.rint(x / s), np.float32(-8), np.float32(7))
    assert_same_bits(q * s + x * np.float32(0.125), plain.numpy(x))
    assert_same_bits(np.rint(x) + np.float32(0.1), prototype(lambda x: round(x) + 0.1).numpy(x))


def test_modes_agree() -> None:
    """Values, gradients, new states; the sum of the gradient of a scale as well."""
    for one, given in ((plain, {"bits": 3}), (drawing, {"draw": 5, "peak": np.float32(1)}), (whole, {})):
        assert differing(one, X, G, ("torch eager",), **given) == {"torch eager": 0}, one
    assert differing(drawing, X, G, ("jax jit",)) == {"jax jit": 0}


def test_dynamo_follows_every_step() -> None:
    """Without a break, with lengths that vary too; what it makes of it is compared elsewhere."""
    moving = prototype(
        lambda x: (x.reshape(-1, 2)[..., ::2][:, 0].reshape(4, 3)[:, None, 0] * x).transpose(1, 0).transpose()
    )
    for dynamic in (False, True):
        compiled = torch.compile(moving.torch, fullgraph=True, backend="eager", dynamic=dynamic)
        assert compiled(to_torch(X).requires_grad_()).shape == X.shape


def test_the_opposite_of_a_condition() -> None:
    """In eager torch and JAX; dynamo does not follow ``~`` of what is no tensor."""
    one = prototype(lambda x: p.where(~(x > -1) | (x == 0), x, x * 2))
    assert_same_bits(np.where(X > -1, X * np.float32(2), X), one.numpy(X))
    assert differing(one, X, G, ("torch eager", "jax jit")) == {"torch eager": 0, "jax jit": 0}


@pytest.mark.thorough
def test_modes_agree_about_all_derivatives() -> None:
    for one in (plain, drawing, whole):
        assert differing(one, X, G) == dict.fromkeys(MODES, 0)


@prototype
def small(x: Any, *, s: Any = p.learned(0.3)) -> Any:
    """Where a product and a sum, a quotient and a product would merge."""
    v = x / s
    return p.straight_through(p.round(v), v) * s + x * 0.125


def special(dtype: Any) -> Any:
    tiny = (
        np.finfo(np.float32).smallest_subnormal if dtype == ml_dtypes.bfloat16 else np.finfo(dtype).smallest_subnormal
    )
    return np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -3 * tiny, 1e4]]).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.float32])
def test_special_values(dtype: Any) -> None:
    x, given = special(dtype), {"s": np.asarray(0.3, dtype)}
    for array in (x, np.asfortranarray(np.tile(x, (3, 1)))[:, ::2], x[:, :0], x[0, 3], np.zeros_like(x)):
        assert differing(plain, array, np.ones_like(array), ("torch eager",), **given) == {"torch eager": 0}
    if dtype in (np.float16, np.float32):
        assert differing(small, x, np.ones_like(x), ("jax jit",), **given) == {"jax jit": 0}


@pytest.mark.thorough
def test_special_values_everywhere() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64, np.float32):
        x, given = special(dtype), {"s": np.asarray(0.3, dtype)}
        for array in (x, x[:, :0], x[0, 3]):
            assert differing(plain, array, np.ones_like(array), MODES, **given) == dict.fromkeys(MODES, 0)


def test_inside_a_compiled_program() -> None:
    """No operation merges with those around it: with ``fullgraph``, and the gradient too."""

    def around(x: Any, apply: Any) -> Any:
        return apply(small, x * 1.7) * 3 + x

    a, b = (to_torch(X).requires_grad_() for _ in range(2))
    eager, compiled = around(a, in_torch.apply), torch.compile(around, fullgraph=True)(b, in_torch.apply)
    eager.backward(to_torch(G))
    compiled.backward(to_torch(G))
    assert_same_bits(eager, compiled)
    assert_same_bits(a.grad, b.grad)
    value = jax.jit(lambda x: in_jax.apply(small, x) + x)(to_jax(X))
    assert_same_bits(small.numpy(X) + X, value)


def test_gradients_are_those_of_the_primitives() -> None:
    """Those of autograd and of JAX, through one primitive after the other, up to the order of three terms or more."""
    x, a = to_torch(X).requires_grad_(), torch.tensor(0.75, requires_grad=True)
    y, _, _ = whole.run(Run(in_torch.ROOM), x, {"a": a}, {})
    ours = vjp(whole, X, G)
    for name, one in zip(("x", "a"), torch.autograd.grad(y._array, (x, a), to_torch(G)), strict=True):
        np.testing.assert_allclose(ours[name], one.numpy(), rtol=2e-5, atol=2e-6)
    # where at most two terms meet there is no order
    for formula in (
        lambda x: x * p.absmax(x, axis=1, keepdims=True),
        lambda x: p.mean(x * x, axis=0, keepdims=True) * 2 + p.stop_gradient(x),
        lambda x: x[1:, 0:1].reshape(3)[0] * x,
        lambda x: p.exp(x).transpose().reshape(4, 6) / 3,
        lambda x: p.take(p.sum(x, 0), p.round(p.stop_gradient(x))),
        lambda x: x + p.percentile(x, 30),
    ):
        simple = prototype(formula)
        y, _, _ = simple.run(Run(in_torch.ROOM), x, {}, {})
        (expected,) = torch.autograd.grad(y._array, x, to_torch(G))
        assert_same_bits(expected, vjp(simple, X, G)["x"])


def test_the_index_of_a_table_has_no_derivative() -> None:
    """Neither where what moves is the index, nor where the table does too."""
    own = prototype(lambda x, *, s=p.learned(0.5): p.take(x[:, 1] * s, x))
    fixed = prototype(lambda x, *, s=p.learned(0.5): p.take(x[:, 1] * s, p.stop_gradient(x)))
    index = prototype(lambda x: p.take(p.constant((1.0, 2.0), x), x) + x)
    for one, other in ((own, fixed), (index, prototype(lambda x: x))):
        expected = vjp(other, X, G)
        for name, found in vjp(one, X, G).items():
            assert_same_bits(expected[name], found)
    assert differing(own, X, G, ("torch eager", "jax jit")) == {"torch eager": 0, "jax jit": 0}


def test_a_gradient_of_its_own() -> None:
    one = prototype(lambda x, *, s=p.learned(2.0), t=p.learned(1.0), k=3: p.round(x / s) * s * t)

    @one.gradient
    def own(g: Any, x: Any, *, s: Any, k: int) -> Any:
        return p.where(abs(x) < s, g * k, 0.0), {"s": p.sum(g * x)}

    found = vjp(one, X, G)
    assert_same_bits(np.where(abs(X) < 2, G * np.float32(3), np.float32(0)), found["x"])
    assert_same_bits(np.float32(0), found["t"])
    assert differing(one, X, G, ("torch eager",)) == {"torch eager": 0}
    with pytest.raises(TypeError, match="has a gradient already"):
        one.gradient(own)


def test_the_first_step_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quotient by way of a reciprocal, planted; with nothing planted there is no step."""
    assert explain(plain, X, "torch eager") == ""
    right = torch_primitives.divide
    monkeypatch.setattr(torch_primitives, "divide", lambda a, b: a * right(1.0, b))
    told = explain(plain, X, "torch eager")
    line = plain.function.__code__.co_firstlineno + 2
    parted = X[X / np.float32(0.3) != X * (np.float32(1) / np.float32(0.3))]
    value = parted[0]
    assert f"{parted.size} of 24 elements differ" in told
    assert told.startswith(f"{__file__}:{line}: `divide` of plain: ")
    assert f"operand 0       {value!s} = {value.item().hex()[:6]}" in told
    assert "operand 1       0.3 = 0x1.333334p-2 (float32 bits 0x3e99999a)" in told
    assert f"  numpy           {value / np.float32(0.3)!s} = " in told
    assert f"  torch eager     {value * (np.float32(1) / np.float32(0.3))!s} = " in told


def test_modules() -> None:
    """States and seeds step by step in training, and none in evaluation; learned parameters begin as a formula."""
    in_module, in_flax = drawing.torch_module(), drawing.flax_module()
    peak, seed = np.float32(0), 3
    for scale in (1.0, 0.5):
        x = X * np.float32(scale)
        y, states = updated(drawing, x, peak=peak, draw=np.asarray(seed))
        peak, seed = states["peak"], seed + 1
        assert_same_bits((y, y), (in_module(to_torch(x)), in_flax(to_jax(x))))
        assert_same_bits((peak, peak), (in_module.peak, in_flax.peak[...]))  # type: ignore[attr-defined]
        assert int(in_module.draw) == int(in_flax.draw[...]) == seed  # type: ignore[attr-defined]
    in_module.eval()
    in_flax.eval()
    twice = [in_module(to_torch(X)) for _ in range(2)]
    assert_same_bits((twice[0], twice[0]), (twice[1], in_flax(to_jax(X))))
    began = prototype(lambda x, *, s=p.learned(lambda x, n: p.absmax(x, 1, True) / n), n=7.0: p.round(x / s) * s)
    module = began.torch_module(to_torch(X), n=3.0)
    assert_same_bits(abs(X).max(1, keepdims=True) / np.float32(3), module.s)
    assert_same_bits(module(to_torch(X)), began.numpy(X, n=3.0))
    assert [n for n, _ in module.named_parameters()] == ["s"]
    assert [n for n, _ in in_module.named_buffers()] == ["peak", "draw"]


def test_layers() -> None:
    """A layer contracts what the prototypes make of weight and input, and trains their parameters."""
    weight = np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32)
    in_torch = torch_layers.QuantLinear(6, 3, bias=False, weight_quant=plain, input_quant=plain, input_bits=5)
    in_flax = flax_layers.QuantLinear(
        6, 3, use_bias=False, weight_quant=plain, input_quant=plain.flax_module(bits=5), rngs=nnx.Rngs(0)
    )
    in_torch.weight.data = to_torch(weight)
    in_flax.kernel.set_value(to_jax(weight.T))
    y = in_torch(to_torch(X))
    quantized = to_torch(plain.numpy(X, bits=5)), to_torch(plain.numpy(weight))
    assert_same_bits(torch.nn.functional.linear(*quantized), y)
    assert_same_bits(plain.numpy(weight).T, in_flax.weight_quant(to_jax(weight.T), None, (1, 0)))
    # values are contracted, in any order: the sums have no promised bits, nor have gradients that are sums of them
    exact = plain.numpy(X, bits=5).astype(np.float64) @ plain.numpy(weight).astype(np.float64).T
    np.testing.assert_allclose(nnx.jit(lambda layer: layer(to_jax(X)))(in_flax), exact, rtol=1e-5, atol=1e-6)
    y.sum().backward()
    gradients = nnx.jit(nnx.grad(lambda layer: layer(to_jax(X)).sum()))(in_flax)
    for name in ("weight_quant", "input_quant"):
        ours, theirs = getattr(in_torch, name).s.grad, gradients[name]["s"][...]
        assert ours is not None
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
        assert float(ours) != 0
    assert_same_bits(plain.numpy(np.maximum(X, 0)), torch_layers.QuantReLU(act_quant=plain)(to_torch(X)))


@prototype
def rows(x: Any, *, scale: Any = p.learned(lambda x: p.absmax(x, axis=1, keepdims=True) / 7), bits: int = 4) -> Any:
    return p.clamp(p.round(x / scale), -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) * scale


def test_parameters_of_weights_begin_as_a_formula_of_them() -> None:
    first: Any = torch_layers.QuantLinear(6, 3, weight_quant=rows, weight_bits=3)
    weight = first.weight.detach().numpy()
    arguments: Any = {"rngs": nnx.Rngs(0), "kernel_init": lambda *_: to_jax(weight.T)}
    second: Any = flax_layers.QuantLinear(6, 3, weight_quant=rows, weight_bits=3, **arguments)
    assert second.weight_quant.scale.shape == (3, 1)
    assert_same_bits(first.weight_quant.scale.detach(), second.weight_quant.scale[...])
    quantized = second.weight_quant(second.kernel[...], None, (1, 0))
    assert_same_bits(first.weight_quant(first.weight).detach(), quantized.T)
    assert_same_bits(rows.numpy(weight, bits=3), quantized.T)
    for layer, options in ((torch_layers.QuantLinear, {}), (flax_layers.QuantLinear, arguments)):
        with pytest.raises(TypeError, match="QuantLinear, `bias_quant`: must not be a prototype"):
            layer(6, 3, bias_quant=rows, **options)


def test_declaring_imports_no_framework() -> None:
    code = (
        "import sys, numpy\nfrom samebits.core import formula as p\nfrom samebits.proofs import prototype\n"
        "one = prototype(lambda x, *, s=p.learned(2.0): p.round(x / s) * s)\none.numpy(numpy.ones(3, 'f'))\n"
        "print({'torch', 'jax', 'flax'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
