"""The named straight-through rules: the same bits in all rooms and modes, forward and gradient, on special values.

The oracle is `samebits.core.straight_through`, which `oracles/test_gradients.py` compares with Brevitas.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits.core import Rounding, straight_through
from samebits.jax_backend import straight_through as in_jax
from samebits.proofs.inputs.bits import neighbours
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import special_values
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.torch_frontend import straight_through as in_torch

from ..exact import DTYPES

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN is meant

Array = NDArray[Any]
Rule = Callable[..., Any]  # of (room, x, lo, hi)
PLAIN = [r for r in Rounding if r is not Rounding.STOCHASTIC]
RULES: dict[str, Rule] = {
    **{str(r): lambda m, x, lo, hi, r=r: m.round_ste(x, r) for r in PLAIN},
    "tensor_clamp": lambda m, x, lo, hi: m.tensor_clamp(x, lo, hi),
    "tensor_clamp_ste": lambda m, x, lo, hi: m.tensor_clamp_ste(x, lo, hi),
    "scalar_clamp_ste": lambda m, x, lo, hi: m.scalar_clamp_ste(x, -1.3, 0.7),
    "scalar_clamp_ste at zeros": lambda m, x, lo, hi: m.scalar_clamp_ste(x, 0.0, 1e-39),
    "scalar_clamp_min_ste": lambda m, x, lo, hi: m.scalar_clamp_min_ste(x, -0.0),
    "binary_sign_ste": lambda m, x, lo, hi: m.binary_sign_ste(x),
    "ternary_sign_ste": lambda m, x, lo, hi: m.ternary_sign_ste(x),
    "abs_binary_sign_grad": lambda m, x, lo, hi: m.abs_binary_sign_grad(x),
    "signed_clamp_min_ste": lambda m, x, lo, hi: m.signed_clamp_min_ste(x, 1e-10),
}
SOME = ("dpu", "tensor_clamp", "signed_clamp_min_ste")  # where a mode takes long
BOUNDS = [
    (-1, 1),
    (1, -1),
    (0.0, -0.0),
    (-0.0, 0.0),
    (np.nan, 1),
    (-1, np.nan),
    (1e-40, 2e-40),
    (-np.inf, np.inf),
    (6, 6),
]


def data(dtype: str) -> tuple[Array, Array, Array, Array]:
    """Special values, halves, bounds and their neighbours, against every pair of bounds; and an incoming gradient."""
    d, halves = DTYPES[dtype], np.arange(-4.5, 5, 0.5)
    # fmt: off
    sizes = np.array([1e-45, 1e-40, 2e-40, 1e-39, 1e-10, 6e-8, 0.7, 1.3, 2**8 + 0.5, 2**22 + 0.5, 2**23 + 1, 1e9])
    # fmt: on
    few = np.concatenate([halves, sizes, -sizes, np.abs(special_values(d)[:8])]).astype(d)
    values = np.unique(
        np.concatenate([neighbours(few[np.isfinite(few)], 2), special_values(d), few]).view(f"u{d.itemsize}")
    )
    x = np.repeat(values.view(d), len(BOUNDS))
    bounds = np.resize(np.array(BOUNDS, np.float32).astype(d), (x.size, 2))
    g = np.random.default_rng(0).standard_normal(x.size).astype(d)
    g[::7] = np.resize(special_values(d), g[::7].size)
    return x, bounds[:, 0].copy(), bounds[:, 1].copy(), g


def rules(dtype: str) -> dict[str, Rule]:
    """All of them for float32; for the 16-bit dtypes, which all take in the same way, some."""
    return {name: rule for name, rule in RULES.items() if dtype in ("float32", "float64") or name in SOME}


def wanted(dtype: str) -> Iterator[tuple[str, Array, tuple[Array, ...]]]:
    """By name: the value, and the gradients of x and, where they have one, of the bounds."""
    x, lo, hi, g = data(dtype)
    for name, rule in rules(dtype).items():
        gradients: tuple[Array, ...] = (straight_through.pass_through_vjp(g),)
        if name == "tensor_clamp":
            gradients = straight_through.tensor_clamp_vjp(x, lo, hi, g)
        elif name == "abs_binary_sign_grad":
            gradients = (straight_through.abs_binary_sign_grad_vjp(x, g),)
        yield name, rule(straight_through, x, lo, hi), gradients


def check(dtype: str, values: Any, gradients: Any, mode: str) -> None:
    x = data(dtype)[0]
    for (name, value, d), got, got_d in zip(wanted(dtype), values, gradients, strict=True):
        assert_same_bits(value, got, call=f"{name}, {dtype}, {mode}", inputs=x)
        for want, given in zip(d, got_d, strict=False):
            assert_same_bits(want, given, call=f"gradient of {name}, {dtype}, {mode}", inputs=x)


def run_torch(dtype: str, *, compiled: bool = False) -> tuple[Any, Any]:
    def program(leaves: Any, lo: Any, hi: Any) -> Any:
        pairs = zip(rules(dtype).values(), leaves, strict=True)
        return tuple(rule(in_torch, *leaf, *(() if len(leaf) == 3 else (lo, hi))) for rule, leaf in pairs)

    x, lo, hi, g = (to_torch(v) for v in data(dtype))
    leaves = [
        [v.clone().requires_grad_() for v in ((x, lo, hi) if name == "tensor_clamp" else (x,))] for name in rules(dtype)
    ]
    values = (torch.compile(program, fullgraph=True) if compiled else program)(leaves, lo, hi)
    flat = torch.autograd.grad(values, [v for leaf in leaves for v in leaf], [g.clone() for _ in values])
    rest = iter(flat)
    return values, [[next(rest) for _ in leaf] for leaf in leaves]


def jax_program(dtype: str) -> Callable[..., Any]:
    def program(x: Any, lo: Any, hi: Any, g: Any) -> Any:
        values, gradients = [], []
        for name, rule in rules(dtype).items():
            if name == "tensor_clamp":
                value, pull = jax.vjp(lambda x, lo, hi, rule=rule: rule(in_jax, x, lo, hi), x, lo, hi)
            else:
                value, pull = jax.vjp(lambda x, rule=rule: rule(in_jax, x, lo, hi), x)
            values.append(value)
            gradients.append(pull(g))
        return values, gradients

    return program


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_eager(dtype: str) -> None:
    check(dtype, *run_torch(dtype), "torch eager")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_compiled(dtype: str) -> None:
    check(dtype, *run_torch(dtype, compiled=True), "torch compiled")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax_eager(dtype: str) -> None:
    with jax.disable_jit():
        check(dtype, *jax_program(dtype)(*(to_jax(v) for v in data(dtype))), "jax eager")


@pytest.mark.parametrize("dtype", DTYPES)
def test_jax_jit(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        check(dtype, *jax.jit(jax_program(dtype))(*(to_jax(v) for v in data(dtype))), "jax jit")


def test_inside_a_larger_program() -> None:
    """bfloat16, which compilers leave unrounded: the product before a rule, and in JAX the sum after it."""
    x, w = np.random.default_rng(0).standard_normal((2, 4096)).astype(DTYPES["bfloat16"]) * 8
    want = straight_through.round_ste(x * w, "ties_to_away") + straight_through.scalar_clamp_ste(x * w, -0.3, 0.7) * w

    def program(m: Any, x: Any, w: Any) -> Any:
        return m.round_ste(x * w, "ties_to_away") + m.scalar_clamp_ste(x * w, -0.3, 0.7) * w

    rule_alone = torch.compile(lambda x, w: in_torch.round_ste(x * w, "ties_to_away"), fullgraph=True)
    assert_same_bits(straight_through.round_ste(x * w, "ties_to_away"), rule_alone(to_torch(x), to_torch(w)))
    assert_same_bits(want, jax.jit(lambda x, w: program(in_jax, x, w))(to_jax(x), to_jax(w)))


def test_transforms_of_torch() -> None:
    x, lo, hi, g = (to_torch(v[:48].reshape(6, 8).copy()) for v in data("float32"))
    for name, rule in RULES.items():
        if name in map(str, Rounding) and name not in SOME:
            continue
        each = torch.func.vmap(partial(rule, in_torch))
        pair: Any = torch.func.vjp(each, x, lo, hi)
        value, pull = pair
        leaf = x.clone().requires_grad_()
        eager = rule(in_torch, leaf, lo, hi)
        assert_same_bits(eager, value, call=name)
        assert_same_bits(torch.autograd.grad(eager, leaf, g)[0], pull(g)[0], call=name)


def test_bounds_that_broadcast_get_the_sum() -> None:
    x = np.array([[-3, 0, 5], [7, -9, 1]], np.float32)
    lo, hi = to_torch(np.array([[-1], [-2]], np.float32)), torch.tensor(4.0)
    leaves = [to_torch(x).requires_grad_(), lo.requires_grad_(), hi.requires_grad_()]
    in_torch.tensor_clamp(*leaves).sum().backward()
    assert [v.grad.tolist() for v in leaves if v.grad is not None] == [[[0, 1, 0], [0, 0, 1]], [[1], [1]], 2]
    total = jax.grad(lambda lo, hi: in_jax.tensor_clamp(jnp.asarray(x), lo, hi).sum(), (0, 1))(
        jnp.asarray([[-1.0], [-2.0]]), jnp.asarray(4.0)
    )
    assert (total[0].tolist(), float(total[1])) == ([[1], [1]], 2)


@pytest.mark.parametrize("room", [straight_through, in_torch, in_jax], ids=["core", "torch", "jax"])
def test_wrong_arguments_are_named(room: Any) -> None:
    make: Any = {straight_through: np.asarray, in_torch: to_torch, in_jax: to_jax}[room]
    x, integers, g = make(np.ones(3, np.float32)), make(np.ones(3, np.int32)), make(np.ones(2, np.float32))
    with pytest.raises(TypeError, match=r"`x` must have dtype float32, .* got int32"):
        room.round_ste(integers)
    with pytest.raises(ValueError, match=r"`rounding` must be one of .* got 'up'"):
        room.round_ste(x, "up")
    with pytest.raises(ValueError, match=r"`noise` must be given"):
        room.round_ste(x, "stochastic")
    with pytest.raises(ValueError, match=r"`lo` must be at most `hi`, got 2.0 and 1.0"):
        room.scalar_clamp_ste(x, 2.0, 1.0)
    with pytest.raises(ValueError, match=r"`lo` must be at most `hi`, got nan"):
        room.scalar_clamp_min_ste(x, float("nan"))
    with pytest.raises(ValueError, match=r"`lo` must be positive, got 0.0"):
        room.signed_clamp_min_ste(x, 0.0)
    for vjp in (lambda: room.tensor_clamp_vjp(x, 0, 1, g), lambda: room.abs_binary_sign_grad_vjp(x, g)):
        with pytest.raises(ValueError, match=r"`g` must have the shape of x, \(3,\), got \(2,\)"):
            vjp()
