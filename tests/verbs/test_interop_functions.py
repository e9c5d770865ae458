"""Functions of one framework inside the other: the bits of calling them directly, and gradients of any order.

Gradients are judged by the finite differences of ``torch.autograd.gradcheck`` and ``jax.test_util.check_grads``.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from samebits import jax_backend, torch_frontend
from samebits.core import QParams, catalog
from samebits.jax_backend import interop
from samebits.proofs import assert_same_bits

Q = catalog["int8_per_tensor"]
# zeros, halves between codes, both ends and beyond, a subnormal, what is no number
SPECIAL = np.array([0.0, -0.0, 0.05, 0.15, -0.25, 12.75, 13, -13, 1e-40, np.inf, -np.inf, np.nan], np.float32)
COTANGENT = np.arange(1, 1 + SPECIAL.size, dtype=np.float32)


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


# --- of JAX in torch --------------------------------------------------------------------------------------------------


def of_jax(inputs: dict[str, Any], factor: Any) -> dict[str, Any]:
    """A pytree of arrays of several dtypes, in and out."""
    x, index = inputs["x"], inputs["index"]
    return {"y": jnp.sin(x)[index] * factor, "more": [x.sum(), index + 1, x > 0]}


def test_a_function_of_jax_in_torch() -> None:
    x, index = (
        torch.tensor(random(5), dtype=torch.float32, requires_grad=True),
        torch.tensor([0, 3, 3], dtype=torch.int32),
    )
    y = interop.torch_function(of_jax)({"x": x, "index": index}, factor=2.0)
    want = jax.jit(of_jax)({"x": x.detach().numpy(), "index": index.numpy()}, 2.0)
    assert jax.tree.structure(want) == jax.tree.structure(y)
    for mine, theirs in zip(jax.tree.leaves(y), jax.tree.leaves(want), strict=True):
        assert_same_bits(theirs, mine.detach())
    assert [leaf.requires_grad for leaf in jax.tree.leaves(y)] == [True, False, False, True]
    loss = (y["y"] * torch.arange(3)).sum() + 3 * y["more"][0]
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)

    def in_jax(x: Any) -> Any:
        y = of_jax({"x": x, "index": index.numpy()}, 2.0)
        return (y["y"] * jnp.arange(3)).sum() + 3 * y["more"][0]

    assert_same_bits(jax.jit(jax.grad(in_jax))(x.detach().numpy()), first)
    assert_same_bits(first, second)


def test_it_is_called_twice_in_a_graph_and_for_other_shapes_and_numbers() -> None:
    traced = []

    def scaled(x: Any, factor: Any) -> Any:
        traced.append(x.shape)
        return x * x * factor

    function, x = interop.torch_function(scaled), torch.tensor([1.0, 2.0], requires_grad=True)
    y = function(function(x, 3.0), 0.5)  # 4.5 x ** 4
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [18.0, 144.0]
    with torch.no_grad():
        assert not function(x, 2.0).requires_grad
    assert traced.count((2,)) == 2  # once forward, once backward: numbers are no constants
    assert function(torch.ones(3), 1.0).tolist() == [1.0, 1.0, 1.0]


def test_gradients_of_a_function_of_jax_are_those_of_finite_differences() -> None:
    with jax.enable_x64(True):
        x = torch.tensor(random(2, 3), requires_grad=True)
        y = torch.tensor(random(3, 2, seed=1), requires_grad=True)
        function = interop.torch_function(lambda x, y: (jnp.sin(x) @ y, jnp.exp(x)))
        assert torch.autograd.gradcheck(function, (x, y))
        assert torch.autograd.gradgradcheck(function, (x, y))
        z = torch.tensor(random(3) + 1j * random(3, seed=1), requires_grad=True)
        assert torch.autograd.gradcheck(interop.torch_function(lambda z: z * z * jnp.abs(z)), (z,))
    with pytest.raises(TypeError, match="`tensor` of dtype float64 needs 64-bit types"):
        function(x, y)


def test_a_tensor_that_is_written_to_is_seen() -> None:
    """Before the backward pass torch refuses it; results of before are those of before; none is an argument."""
    function, x = interop.torch_function(lambda x: (x, x * x)), torch.ones(1000, requires_grad=True)
    held = x.detach().clone().requires_grad_()
    same, y = function(held)
    assert same.data_ptr() != held.data_ptr()
    with torch.no_grad():
        held.fill_(5)
    assert (same.sum().item(), y.sum().item()) == (1000, 1000)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_wrong_arguments_of_functions_are_refused() -> None:
    for function in (interop.torch_function(lambda x: x), interop.jax_function(lambda x: x)):
        with pytest.raises(TypeError, match="arguments must be pytrees of arrays and numbers, got 'text'"):
            function({"x": "text"})
        with pytest.raises(TypeError, match="`an argument` of dtype float64 needs 64-bit types"):
            function(np.zeros(2))
    with pytest.raises(TypeError, match="got tensor"):
        interop.jax_function(lambda x: x)(torch.zeros(2))


# --- of torch in JAX --------------------------------------------------------------------------------------------------


def of_torch(inputs: dict[str, Any], factor: Any) -> dict[str, Any]:
    x, index = inputs["x"], inputs["index"]
    return {"y": torch.sin(x)[index] * factor, "more": [x.sum(), index + 1, x > 0]}


def test_a_function_of_torch_in_jax() -> None:
    """Compiled, inside a larger program, with gradients; the bits of torch."""
    inputs = {"x": random(5).astype(np.float32), "index": np.array([0, 3, 3], np.int32)}
    function = interop.jax_function(of_torch)
    y = jax.jit(function)(inputs, 2.0)
    leaf = torch.from_numpy(inputs["x"]).requires_grad_()
    want = of_torch({"x": leaf, "index": torch.from_numpy(inputs["index"])}, torch.tensor(2.0))
    assert jax.tree.structure(want) == jax.tree.structure(y)
    for mine, theirs in zip(jax.tree.leaves(y), jax.tree.leaves(want), strict=True):
        assert_same_bits(theirs.detach(), mine)

    def loss(x: Any) -> Any:
        y = function({"x": x * 1, "index": inputs["index"]}, 2.0)
        return (y["y"] * jnp.arange(3)).sum() + 3 * y["more"][0]

    ((want["y"] * torch.arange(3)).sum() + 3 * want["more"][0]).backward()
    assert_same_bits(leaf.grad, jax.jit(jax.grad(loss))(inputs["x"]))


def test_gradients_of_a_function_of_torch_are_those_of_finite_differences() -> None:
    with jax.enable_x64(True):
        weight = torch.tensor(random(3, 4, seed=2))
        function = interop.jax_function(lambda x, y: (torch.tanh(x @ weight) * y).sum(0))
        check_grads(function, (random(2, 3), random(2, 4, seed=1)), order=2, modes=["rev"])
        z = random(3) + 1j * random(3, seed=1)
        check_grads(interop.jax_function(lambda z: z * z * z.abs()), (z,), order=1, modes=["rev"])


def test_a_function_of_torch_that_writes_into_its_arguments_has_gradients() -> None:
    function = interop.jax_function(torch.nn.ReLU(inplace=True))
    x = jnp.array([-1.0, 2.0])
    assert jax.grad(lambda x: (3 * function(x)).sum())(x).tolist() == [0, 3]
    assert x.tolist() == [-1, 2]


def test_arguments_that_torch_cannot_have_are_refused() -> None:
    for x in (jax.random.key(0), jnp.zeros(2, jnp.int4)):
        with pytest.raises(TypeError, match=r"arguments must be of a dtype that torch has, got (key|int4)"):
            interop.jax_function(lambda x: x)(x)


def test_functions_of_torch_without_gradients() -> None:
    x = jnp.ones(3)
    constant = interop.jax_function(lambda x: torch.ones(2))
    assert_same_bits(np.zeros(3, np.float32), jax.grad(lambda x: constant(x).sum())(x))
    count = interop.jax_function(lambda x: (x > 0).sum(dtype=torch.int32))
    assert jax.jit(lambda x: count(x) + 1)(x) == 4
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(constant, (x,), (x,))


@pytest.mark.parametrize("method", ["sequential", "expand_dims", "broadcast_all"])
def test_vmap_by_every_method(method: str) -> None:
    x, calls = jnp.asarray(random(4, 3), jnp.float32), []

    def doubled(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return 2 * x

    function = interop.jax_function(doubled, jax.ShapeDtypeStruct((3,), jnp.float32), vmap_method=method)
    assert_same_bits(2 * x, jax.vmap(function)(x))
    assert calls == ([(3,)] * 4 if method == "sequential" else [(4, 3)])


WRONG = {
    "64 bits": (lambda x: x.double(), "`the result of <lambda>` of dtype float64 needs 64-bit types"),
    "indices": (lambda x: x.argmax(), "`the result of <lambda>` of dtype int64 needs 64-bit types"),
    "shapes that depend on values": (
        lambda x: x[x > 0],
        "`result_shape_dtypes` must be given: `<lambda>` cannot be tried",
    ),
    "no tensor": (lambda x: 3, "results of `<lambda>` must be tensors, got 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_results_that_jax_cannot_have_are_refused(name: str) -> None:
    function, message = WRONG[name]
    with pytest.raises(TypeError, match=message):
        jax.jit(interop.jax_function(function))(jnp.ones(3))


def test_results_that_are_not_as_said_are_refused() -> None:
    said = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert interop.jax_function(lambda x: x[x > 0], said)(jnp.ones(3)).tolist() == [1, 1, 1]
    for wrong in (lambda x: x[:2], lambda x: x.half()):
        with pytest.raises(Exception, match=r"`<lambda>` must give shape \(3,\) and dtype float32, as `result_shape_"):
            jax.block_until_ready(interop.jax_function(wrong, said)(jnp.ones(3)))


def test_subnormal_numbers_and_large_arrays() -> None:
    """Threads of XLA flush subnormals: torch must not see that, and XLA must find it again. A call takes megabytes."""
    tiny = jnp.full(3, 1e-40, jnp.float32)
    halved = jax.jit(lambda x: interop.jax_function(lambda x: x / 2)(x))(tiny)
    assert_same_bits(torch.full((3,), 1e-40) / 2, halved)
    assert float(halved[0]) > 0
    large = jnp.ones((1500, 1500))
    assert jax.jit(lambda x: interop.jax_function(lambda x: x @ x)(x * 2).max())(large) == 6000


# --- quantizers of either inside the other ----------------------------------------------------------------------------


def test_fake_quantize_of_jax_in_torch() -> None:
    x, scale = torch.from_numpy(SPECIAL).requires_grad_(), torch.tensor(0.1, requires_grad=True)
    inside = interop.torch_function(lambda x, scale: jax_backend.fake_quantize(Q, x, QParams(scale)))
    mine, direct = inside(x, scale), torch_frontend.fake_quantize(Q, x, QParams(scale))
    assert_same_bits(direct.detach(), mine.detach())
    for one, other in zip(
        *(torch.autograd.grad(y, (x, scale), torch.from_numpy(COTANGENT)) for y in (direct, mine)), strict=True
    ):
        assert_same_bits(one, other)


def test_fake_quantize_of_torch_in_jax() -> None:
    def of(function: Any) -> tuple[Any, Any]:
        y, back = jax.vjp(function, jnp.asarray(SPECIAL), jnp.float32(0.1))
        return y, back(jnp.asarray(COTANGENT))

    inside = interop.jax_function(lambda x, scale: torch_frontend.fake_quantize(Q, x, QParams(scale)))
    mine, direct = jax.jit(partial(of, inside))(), of(lambda x, scale: jax_backend.fake_quantize(Q, x, QParams(scale)))
    for one, other in zip(jax.tree.leaves(direct), jax.tree.leaves(mine), strict=True):
        assert_same_bits(one, other)


def test_a_function_of_jax_where_torch_compiles() -> None:
    """The graph breaks there; the values are those without a compiler."""
    function = interop.torch_function(lambda x: jnp.square(x))
    x = torch.arange(3.0, requires_grad=True)
    y = torch.compile(lambda x: function(x + 1) * 2, backend="eager")(x)
    y.sum().backward()
    assert x.grad is not None
    assert (y.tolist(), x.grad.tolist()) == ([2.0, 8.0, 18.0], [4.0, 8.0, 12.0])
