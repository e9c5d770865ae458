"""Formulas that nobody wrote have the bits of core in all modes, their values and all gradients.

Each is drawn from a seed, over all primitives, and asked about ordinary, special and arbitrary numbers. In compiled
modes several are parts of one program.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from numpy.typing import NDArray

from samebits.core.prototype import Prototype
from samebits.core.prototypes import updated, vjp
from samebits.jax_backend import prototypes as in_jax
from samebits.jax_backend.primitives.operands import COMPUTE
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.proofs.modes.programs import jax_types
from samebits.torch_frontend import primitives as torch_primitives
from samebits.torch_frontend import prototypes as in_torch

from ..exact import DTYPES
from ..pieces import counted_pieces
from ..random_formulas import Inputs, Line, drawn, formula, inputs, source

Array = NDArray[Any]
Found = dict[str, Array]  # "y", and gradients by the name of what they are of
Program = Callable[[Inputs], Sequence[Found]]  # of all formulas
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def parameters(one: Prototype, given: Inputs) -> dict[str, Array]:
    return {name: getattr(given, name) for name in one.parameters}


def specified(one: Prototype, given: Inputs) -> Found:
    arrays = parameters(one, given)
    return {"y": updated(one, given.x, **arrays)[0], **vjp(one, given.x, given.g, **arrays)}


def of_jax(formulas: Sequence[Prototype], jit: bool = True) -> Program:
    def one(each: Prototype, given: Any) -> Any:
        y, pull = jax.vjp(lambda x, arrays: in_jax.apply(each, x, **arrays), given.x, parameters(each, given))
        of_x, others = pull(given.g)
        return {"y": y, "x": of_x, **others}

    def program(given: Any) -> Any:
        return [one(each, given) for each in formulas]

    def called(given: Inputs) -> Any:
        return jax.device_get((compiled if jit else program)(Inputs(*map(to_jax, given))))

    compiled = jax.jit(program)
    return called


def of_torch(formulas: Sequence[Prototype], compiled: bool = False, only_x: bool = False) -> Program:
    """With the gradients of all, or of ``x`` alone."""

    def forward(leaves: Any) -> Any:
        return [
            in_torch.apply(one, given["x"], **{name: given[name] for name in one.parameters})
            for one, given in zip(formulas, leaves, strict=True)
        ]

    chosen = torch.compile(forward, fullgraph=True, dynamic=False) if compiled else forward

    def program(given: Inputs) -> Any:
        arrays = [{"x": given.x, **parameters(one, given)} for one in formulas]
        leaves = [{name: to_torch(a.copy()) for name, a in one.items()} for one in arrays]
        moved = [leaf.requires_grad_() for one in leaves for name, leaf in one.items() if name == "x" or not only_x]
        results = chosen(leaves)
        gradients = iter(torch.autograd.grad(results, moved, [to_torch(given.g.copy()) for _ in results]))
        return [
            {"y": to_numpy(y), **{name: to_numpy(next(gradients)) for name, v in one.items() if v.requires_grad}}
            for y, one in zip(results, leaves, strict=True)
        ]

    return program


def check(lines: Sequence[list[Line]], make: Callable[[Sequence[Prototype]], Program], dtype: str, count: int) -> None:
    """That a mode has the bits of core, for so many inputs."""
    formulas = [formula(one) for one in lines]
    program = make(formulas)
    for seed in range(count):
        given = inputs(seed, dtype)
        for text, one, found in zip(map(source, lines), formulas, program(given), strict=True):
            wanted = specified(one, given)
            for name, got in found.items():
                assert_same_bits(
                    wanted[name], got, call=f"{name} of inputs {seed} in {dtype} of\n{text}", inputs=given.x
                )


def several(seed: int, count: int, dtype: str, **options: Any) -> list[list[Line]]:
    return [drawn(seed + i, dtype, **options) for i in range(count)]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """So that drawn arrays go by pieces; how many were computed."""
    return counted_pieces(monkeypatch, 40)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_eager(dtype: str) -> None:
    check(several(100, 12, dtype), of_torch, dtype, 3)


def test_torch_by_pieces(small_pieces: list[int]) -> None:
    check(several(200, 12, "float32", elementwise=True), partial(of_torch, only_x=True), "float32", 3)
    assert len(small_pieces) > 12 * 3 * 4  # three pieces of the values, and of some gradients


def test_jax_jit() -> None:
    """Seeds at which faults that there were are found: a comparison that flushes, ``0.0 + x`` that is no sum."""
    check([drawn(seed, functions=False) for seed in (317, 359)], of_jax, "float32", 25)


def test_jax_by_primitives() -> None:
    """Outside of `jax.jit`, where each primitive is a program."""
    check(several(60_000, 2, "float32", functions=False), partial(of_jax, jit=False), "float32", 5)


def test_what_is_planted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch a quotient by the reciprocal, in JAX a sum that flushes."""
    right = torch_primitives.divide

    def by_reciprocal(a: Any, b: Any) -> Any:
        return torch_primitives.multiply(a, right(1.0, b)) if isinstance(b, torch.Tensor) else right(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(torch_primitives, "divide", by_reciprocal)
        with pytest.raises(AssertionError, match=r"of inputs \d in float32 of\ndef drawn"):
            check(several(100, 12, "float32"), of_torch, "float32", 3)
    monkeypatch.setitem(COMPUTE, "add", jnp.add)
    with pytest.raises(AssertionError, match=r"of inputs \d+ in float32 of\ndef drawn"):
        check([drawn(359, functions=False)], of_jax, "float32", 25)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_eager_at_length(dtype: str) -> None:
    check(several(10_000, 150, dtype), of_torch, dtype, 6)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_by_pieces_at_length(dtype: str, small_pieces: list[int]) -> None:
    check(several(20_000, 150, dtype, elementwise=True), partial(of_torch, only_x=True), dtype, 6)
    assert small_pieces


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_compiled(dtype: str) -> None:
    check(several(30_000, 2, dtype, functions=False), partial(of_torch, compiled=True), dtype, 40)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES)
def test_jax_jit_at_length(dtype: str) -> None:
    with jax_types(wide=dtype == "float64"):
        for seed in range(40_000, 40_040, 10):
            check(several(seed, 10, dtype), of_jax, dtype, 40)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES)
def test_jax_by_primitives_at_length(dtype: str) -> None:
    with jax_types(wide=dtype == "float64"):
        check(several(60_000, 10, dtype), partial(of_jax, jit=False), dtype, 10)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax_eager(dtype: str) -> None:
    with jax.disable_jit():
        check(several(50_000, 10, dtype), partial(of_jax, jit=False), dtype, 3)
