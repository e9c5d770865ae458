"""Error bounds of operations: no float32 result of torch or JAX lies outside, and a mistake does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from samebits.core import contraction_bound
from samebits.proofs.modes.arrays import to_numpy
from samebits.proofs.validation.record import record

RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(6, 5, 32)).astype(np.float32) * 3 for _ in range(2))
IMAGES = RNG.normal(size=(2, 4, 8, 8)).astype(np.float32)
W, B = (
    torch.from_numpy(RNG.normal(size=(16, 32)).astype(np.float32)),
    torch.from_numpy(RNG.normal(size=16).astype(np.float32)),
)
torch.manual_seed(0)
NORM, CONV = nn.LayerNorm(32), nn.Conv2d(4, 6, 3, stride=2, padding=1)
GROUPS, BATCH = nn.GroupNorm(2, 4), nn.BatchNorm2d(4).eval()

# in torch and, where it is another program, in JAX
PROGRAMS: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None, tuple[Any, ...]]] = {
    "linear": (lambda x: F.linear(x, W, B), lambda x: x @ W.numpy().T + B.numpy(), (X,)),
    "two contractions": (lambda x: F.linear(x, W, B) @ W, lambda x: (x @ W.numpy().T + B.numpy()) @ W.numpy(), (X,)),
    "sums": (lambda x, y: (x - y * 3).sum(-1) / x.mean(-1), lambda x, y: (x - y * 3).sum(-1) / x.mean(-1), (X, Y)),
    "softmax": (lambda x: x.softmax(-1), lambda x: jax.nn.softmax(x, -1), (X * 10,)),
    "log softmax": (lambda x: x.log_softmax(-1), lambda x: jax.nn.log_softmax(x, -1), (X * 10,)),
    "softmax of a sum": (lambda x, y: (x + y).softmax(1), lambda x, y: jax.nn.softmax(x + y, 1), (X, Y)),
    "gelu": (F.gelu, lambda x: jax.nn.gelu(x, approximate=False), (X,)),
    "tanh gelu": (lambda x: F.gelu(x, approximate="tanh"), lambda x: jax.nn.gelu(x, approximate=True), (X,)),
    "silu": (F.silu, jax.nn.silu, (X,)),
    "elementary": (
        lambda x: x.tanh() + x.sigmoid() * x.exp(),
        lambda x: jnp.tanh(x) + jax.nn.sigmoid(x) * jnp.exp(x),
        (X,),
    ),
    "roots": (lambda x: (x.square() + 1).sqrt() * (x * x + 1).rsqrt(), None, (X,)),
    "logarithm": (lambda x: (x.abs() + 1).log(), lambda x: jnp.log(jnp.abs(x) + 1), (X,)),
    "layer norm": (NORM, None, (X + 5,)),
    "group norm": (GROUPS, None, (IMAGES,)),
    "batch norm": (BATCH, None, (IMAGES,)),
    "convolution": (CONV, None, (IMAGES,)),
    "pools": (lambda x: F.avg_pool2d(x, 2) + F.max_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 1), None, (IMAGES,)),
    "spread": (lambda x: x.std(-1) + x.var(-1, correction=0), lambda x: x.std(-1, ddof=1) + x.var(-1), (X,)),
    "attention": (
        lambda x, y: F.scaled_dot_product_attention(x[:, None], y[:, None], x[:, None]),
        lambda x, y: jax.nn.softmax(x @ y.swapaxes(-1, -2) / np.float32(32**0.5), -1)[:, None] @ x[:, None],
        (X, Y),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_rounding_stays_within_the_bound(name: str) -> None:
    """The exact value is that of torch in float64, whose own error is 2**-29 of that of float32."""
    function, port, arrays = PROGRAMS[name]
    run = record(function, [torch.from_numpy(x) for x in arrays], {}, [])
    made = run.tape.again(run.root.outputs[0], run.root.inputs)
    assert made.error is not None, made.reason
    bound = to_numpy(made.error)
    exact = exactly(function, arrays)
    scale = np.abs(exact).max()
    values = [to_numpy(made.value), *([] if port is None else [np.asarray(port(*map(jnp.asarray, arrays)))])]
    for value in values:
        off = np.abs(value.astype(np.float64) - exact)
        assert (off <= bound).all()
        assert off.max() > bound.max() * 1e-6, "a bound that nothing comes near says nothing"
    assert bound.max() < 2e-2 * scale


def exactly(function: Callable[..., Any], arrays: tuple[Any, ...]) -> Any:
    """In float64, weights and all."""
    global W, B
    kept = W, B
    try:
        W, B = W.double(), B.double()
        wide = function.double() if isinstance(function, nn.Module) else function
        with torch.no_grad():
            return to_numpy(wide(*(torch.from_numpy(x.astype(np.float64)) for x in arrays)))
    finally:
        W, B = kept
        if isinstance(function, nn.Module):
            function.float()


def test_the_bound_of_a_linear_layer_is_that_of_its_contraction() -> None:
    run = record(lambda x: F.linear(x, W, B), [torch.from_numpy(X)], {}, [])
    made = run.tape.again(run.root.outputs[0], run.root.inputs)
    np.testing.assert_allclose(to_numpy(made.error), contraction_bound(X, W.numpy(), B.numpy()), rtol=1e-12)


def test_operations_in_place_are_new_values() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        z = y + 1
        y.relu_()
        return y + z

    x = torch.tensor([-1.0, 3.0])
    run = record(function, [x], {}, [])
    made = run.tape.again(run.root.outputs[0], run.root.inputs, bound=False)
    assert made.value.tolist() == [-1.0, 13.0]
    (number,) = [i for i, step in enumerate(run.tape.steps) if step.name == "relu"]
    other = run.tape.again(run.root.outputs[0], run.root.inputs, {number: lambda s, a, k: a[0] * 10}, bound=False)
    assert other.value.tolist() == [-21.0, 67.0]


def test_what_hangs_on_rounded_numbers_has_no_bound() -> None:
    run = record(lambda x: (x * 0.1).argmax(-1), [torch.from_numpy(X)], {}, [])
    made = run.tape.again(run.root.outputs[0], run.root.inputs)
    assert made.error is None
    assert made.reason == "argmax decides by numbers that are not exact"
