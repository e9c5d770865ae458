"""Derivatives of primitives: the same bits in both autodiffs, forward and reverse, and those of the formulas of core.

The oracle of bits is `samebits.core.partial_derivatives` over the primitives of core; that of the formulas, differences
of neighbouring values in float64.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits.core import primitives as of_core
from samebits.core.partial_derivatives import RULES
from samebits.jax_backend import primitives as of_jax
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import primitives as of_torch

from ..exact import DTYPES
from ..primitive_cases import moving, operands

Array = NDArray[Any]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
thorough = pytest.mark.thorough
SOME = ("multiply", "divide", "maximum", "clamp", "sqrt", "straight_through", "exp")


def names(*, everything: bool) -> dict[str, int]:
    return {n: k for n, k in moving().items() if everything or n in SOME}


def incoming(dtype: str) -> Array:
    g = np.random.default_rng(3).standard_normal(operands(dtype)[0].size)
    return g.astype(DTYPES[dtype])


def wanted(dtype: str, name: str, count: int) -> list[Array]:
    given, g = operands(dtype)[:count], incoming(dtype)
    maps = RULES[name](of_core, getattr(of_core, name)(*given), *given)
    return [np.zeros_like(g) if one is None else one.pull(g) for one in maps]


def check(dtype: str, chosen: dict[str, int], got: Any, mode: str) -> None:
    for name, count in chosen.items():
        for place, (want, given) in enumerate(zip(wanted(dtype, name, count), got[name], strict=True)):
            given = np.zeros_like(want) if given is None else to_numpy(given)
            assert_same_bits(want, given, call=f"operand {place} of {name}, {dtype}, {mode}", inputs=operands(dtype)[0])


def run_torch(dtype: str, chosen: dict[str, int], *, compiled: bool) -> dict[str, Any]:
    leaves = {n: [to_torch(v.copy()).requires_grad_() for v in operands(dtype)[:k]] for n, k in chosen.items()}

    def program(leaves: Any) -> Any:
        return [getattr(of_torch, n)(*leaves[n]) for n in chosen]

    values = (torch.compile(program, fullgraph=True) if compiled else program)(leaves)
    flat = [v for n in chosen for v in leaves[n]]
    g = to_torch(incoming(dtype))
    found = iter(torch.autograd.grad(values, flat, [g.clone() for _ in values], allow_unused=True))
    return {n: [next(found) for _ in leaves[n]] for n in chosen}


def run_jax(dtype: str, chosen: dict[str, int], *, jit: bool) -> Any:
    def program(g: Any, *given: Any) -> Any:
        return {n: jax.vjp(getattr(of_jax, n), *given[:k])[1](g) for n, k in chosen.items()}

    with jax.enable_x64(dtype == "float64"):
        numbers = [to_jax(v) for v in (incoming(dtype), *operands(dtype))]
        if jit:
            return jax.jit(program)(*numbers)
        with jax.disable_jit():
            return program(*numbers)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_eager(dtype: str) -> None:
    check(dtype, names(everything=True), run_torch(dtype, names(everything=True), compiled=False), "torch eager")


@pytest.mark.parametrize(
    ("dtype", "everything"), [("float32", False), *(pytest.param(d, True, marks=thorough) for d in DTYPES)]
)
def test_jax_jit(dtype: str, everything: bool) -> None:
    chosen = names(everything=everything)
    check(dtype, chosen, run_jax(dtype, chosen, jit=True), "jax jit")


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_compiled_and_jax_eager(dtype: str) -> None:
    every = list(moving())
    for start in range(0, len(every), 8):
        part = {n: moving()[n] for n in every[start : start + 8]}
        check(dtype, part, run_torch(dtype, part, compiled=True), "torch compiled")
        torch._dynamo.reset()
    chosen = names(everything=False)
    check(dtype, chosen, run_jax(dtype, chosen, jit=False), "jax eager")


def block(p: Any, x: Any, s: Any) -> Any:
    """An operand that is broadcast, sums, a largest element that several equal, a table, a selection."""
    scale = p.divide(p.absmax(x, 1, keepdims=True), s)
    code = p.clamp(p.straight_through(p.round(p.divide(x, scale)), p.divide(x, scale)), -8.0, 7.0)
    looked_up = p.take(s, p.add(p.clamp(p.trunc(x), -1.0, 1.0), 1.0))
    chosen = p.where(p.less(x, 0.0), p.multiply(code, scale), looked_up)
    return p.add(chosen, p.add(p.mean(x, 0), p.cast(p.cast(p.percentile(x, 50.0), "bfloat16"), "float32")))


def block_and_gradients(x: Any, s: Any, g: Any) -> Any:
    value, pull = jax.vjp(lambda x, s: block(of_jax, x, s), x, s)
    return value, pull(g)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=thorough)])
def test_of_a_formula_over_blocks(compiled: bool) -> None:
    """Sums over what was broadcast have a stated order, so these gradients have the same bits, too."""
    random = np.random.default_rng(0)
    x, s, g = random.standard_normal((5, 3)), np.float32([7, 3, 5]), random.standard_normal((5, 3)).astype(np.float32)
    x = x.astype(np.float32)
    x[2] = [1.5, -1.5, 1.5]
    a, b = to_torch(x.copy()).requires_grad_(), to_torch(s.copy()).requires_grad_()
    program = torch.compile(lambda a, b: block(of_torch, a, b), fullgraph=True) if compiled else None
    value = block(of_torch, a, b) if program is None else program(a, b)
    in_torch = torch.autograd.grad(value, (a, b), to_torch(g))
    in_jax_value, in_jax = jax.jit(block_and_gradients)(x, s, g)
    assert_same_bits(block(of_core, x, s), to_numpy(value))
    assert_same_bits(block(of_core, x, s), to_numpy(in_jax_value))
    for one, other in zip(in_torch, in_jax, strict=True):
        assert np.abs(to_numpy(one)).sum() > 0
        assert_same_bits(to_numpy(one), to_numpy(other))


def test_forward_mode_has_the_bits_of_reverse_mode() -> None:
    given, g = operands("float32")[:2], incoming("float32")
    for name in ("multiply", "divide"):
        for place, want in enumerate(wanted("float32", name, 2)):

            def along(room: Any, v: Any, to: Any, name: str = name, place: int = place) -> Any:
                held = [to(one.copy()) for one in given]
                return getattr(room, name)(*held[:place], v, *held[place + 1 :])

            move = jax.jit(lambda v, t, f=along: jax.jvp(lambda v: f(of_jax, v, to_jax), (v,), (t,))[1])
            assert_same_bits(want, to_numpy(move(given[place], g)), call=f"{name}, jax")
            pair: Any = torch.func.jvp(
                lambda v, f=along: f(of_torch, v, to_torch), (to_torch(given[place].copy()),), (to_torch(g),)
            )
            assert_same_bits(want, to_numpy(pair[1]), call=f"{name}, torch")


@pytest.mark.parametrize("name", [n for n in moving() if n not in ("straight_through", "minimum", "maximum", "clamp")])
def test_formulas_are_the_derivatives(name: str) -> None:
    """Against central differences in float64, at points where nothing bends."""
    random, count = np.random.default_rng(1), moving()[name]
    given = [random.uniform(0.6, 1.9, 50), random.uniform(2.1, 2.9, 50), random.uniform(-2, 2, 50)][:count]
    if name == "scale_by_power":
        given[1] = np.trunc(given[1])
    step = 1e-6
    function = getattr(of_core, name)
    for place, one in enumerate(RULES[name](of_core, function(*given), *given)):
        if name == "scale_by_power" and place == 1:
            continue
        up, down = ([v + sign * step * (i == place) for i, v in enumerate(given)] for sign in (1, -1))
        slope = (function(*up) - function(*down)) / (2 * step)
        claimed = 0 if one is None else one.pull(np.ones(50))
        away = given[0] if name != "significand" else np.where(np.abs(given[0] - 1) < 1e-3, np.nan, given[0])
        assert np.abs(slope - claimed)[~np.isnan(away)].max() < 1e-7


def test_second_derivatives() -> None:
    """Coefficients are differentiated again: 6 x for x**3, in both, and exp is its own."""
    cube = {"torch": of_torch, "jax": of_jax}
    x = torch.tensor([0.5, 2.0], requires_grad=True)
    (first,) = torch.autograd.grad(cube["torch"].power(x, 3.0).sum(), x, create_graph=True)
    assert torch.autograd.grad(first.sum(), x)[0].tolist() == [3.0, 12.0]
    for function, want in ((lambda v: of_jax.power(v, 3.0), [3.0, 12.0]), (of_jax.exp, np.exp([0.5, 2.0]))):
        second = jax.jit(jax.vmap(jax.grad(jax.grad(lambda v, f=function: f(v)))))(jnp.asarray([0.5, 2.0]))
        assert np.allclose(second, want, rtol=1e-6)
    hessian = jax.jit(jax.hessian(lambda v: of_jax.sum(of_jax.multiply(v, v))))
    assert hessian(jnp.ones(2)).tolist() == [[2, 0], [0, 2]]


@pytest.mark.parametrize("name", ["round", "floor", "ceil", "trunc", "sign", "exponent", "stop_gradient"])
def test_what_is_constant_almost_everywhere_has_the_derivative_zero(name: str) -> None:
    x = torch.linspace(-2, 2, 9, requires_grad=True)
    (getattr(of_torch, name)(x) + 0 * x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0] * 9
    slope = jax.jit(jax.grad(lambda v: getattr(of_jax, name)(v).sum()))
    assert slope(np.linspace(-2, 2, 9, dtype=np.float32)).tolist() == [0] * 9


def test_a_wrong_coefficient_is_seen() -> None:
    """Fault: the derivative of a quotient by way of the reciprocal."""
    s = operands("float32")[1]
    g = incoming("float32")
    faulty = of_core.multiply(g, of_core.divide(1.0, s))
    with pytest.raises(AssertionError):
        assert_same_bits(wanted("float32", "divide", 2)[0], faulty)
