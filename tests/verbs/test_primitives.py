"""Primitives have the same bits in all modes, by themselves and among other operations of a program.

The oracle is `samebits.core.primitives`, which `tests/core/test_primitives.py` compares with exact numbers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits.core import primitives as of_core
from samebits.jax_backend import primitives as of_jax
from samebits.jax_backend.arrays import layout
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import primitives as of_torch

from ..exact import DTYPES
from ..primitive_cases import SOME, Call, calls, operands

Array = NDArray[Any]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
ROOMS: dict[str, tuple[Any, Callable[[Array], Any]]] = {
    "core": (of_core, np.asarray),
    "torch": (of_torch, to_torch),
    "jax": (of_jax, to_jax),
}
each_room = pytest.mark.parametrize(("room", "to"), ROOMS.values(), ids=ROOMS)
thorough = pytest.mark.thorough


def some(dtype: str, *, everything: bool) -> Mapping[str, Call]:
    """The calls, without those for which JAX has no dtype."""
    known = {n: call for n, call in calls().items() if dtype == "float64" or n != "cast float64"}
    return {n: call for n, call in known.items() if everything or n in SOME}


def check(dtype: str, chosen: Mapping[str, Call], got: Mapping[str, Any]) -> None:
    numbers = operands(dtype)
    for name, call in chosen.items():
        want = call(of_core, *numbers)
        inputs = numbers[0] if want.shape == numbers[0].shape else None
        assert_same_bits(want, to_numpy(got[name]), call=f"{name}, {dtype}", inputs=inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_eager(dtype: str) -> None:
    numbers = [to_torch(v.copy()) for v in operands(dtype)]
    check(dtype, calls(), {n: call(of_torch, *numbers) for n, call in calls().items()})


@pytest.mark.parametrize(
    ("dtype", "everything"),
    [("float32", False), *(pytest.param(d, True, marks=thorough) for d in DTYPES)],
)
def test_jax_jit(dtype: str, everything: bool) -> None:
    chosen = some(dtype, everything=everything)
    with jax.enable_x64(dtype == "float64"):
        numbers = [to_jax(v) for v in operands(dtype)]
        check(dtype, chosen, jax.jit(lambda *n: {k: call(of_jax, *n) for k, call in chosen.items()})(*numbers))


@pytest.mark.parametrize(
    ("dtype", "everything"),
    [("bfloat16", False), *(pytest.param(d, True, marks=thorough) for d in ("float32", "float16"))],
)
def test_jax_eager(dtype: str, everything: bool) -> None:
    chosen = some(dtype, everything=everything)
    if not everything:  # every operation is compiled by itself
        chosen = {n: chosen[n] for n in ("multiply", "less", "where", "cast float16")}
    with jax.disable_jit():
        numbers = [to_jax(v) for v in operands(dtype)]
        check(dtype, chosen, {k: call(of_jax, *numbers) for k, call in chosen.items()})


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_compiled(dtype: str) -> None:
    names = list(calls())
    for start in range(0, len(names), 12):
        chosen = {n: calls()[n] for n in names[start : start + 12]}
        program = torch.compile(lambda *n, c=chosen: {k: call(of_torch, *n) for k, call in c.items()}, fullgraph=True)
        with torch.no_grad():
            check(dtype, chosen, program(*(to_torch(v.copy()) for v in operands(dtype))))
        torch._dynamo.reset()


def among_others(p: Any, x: Any, y: Any, s: Any) -> Any:
    """A textbook operation before or after: a product that may not be contracted, a narrowing that may not be left out,
    a division by one number that may not become a product.
    """
    return p.multiply(x, y) + y, p.divide(x * y, s)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_among_other_operations(dtype: str) -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 4000)).astype(DTYPES[dtype])
    numbers = (x, y, np.array(0.1, DTYPES[dtype]))
    with torch.no_grad():
        program = torch.compile(lambda *v: among_others(of_torch, *v), fullgraph=True)
        in_torch = program(*map(to_torch, numbers))
    in_jax = jax.jit(lambda *v: among_others(of_jax, *v))(*map(to_jax, numbers))
    for place, want in enumerate(among_others(of_core, *numbers)):
        assert_same_bits(want, to_numpy(in_torch[place]), call=f"{place}, {dtype}, torch compiled")
        assert_same_bits(want, to_numpy(in_jax[place]), call=f"{place}, {dtype}, jax jit")


def test_what_compilers_do_without_primitives_is_seen() -> None:
    """The same formula in textbook operations has other bits: in JAX the contraction, in torch the lost narrowing."""
    x, y = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    contracted = jax.jit(lambda x, y: x * y + y)(to_jax(x), to_jax(y))
    assert (to_numpy(contracted) != x * y + y).any()
    a, b = x.astype(DTYPES["bfloat16"]), y.astype(DTYPES["bfloat16"])
    unrounded = torch.compile(lambda x, y: x * y + y, fullgraph=True)(to_torch(a), to_torch(b))
    assert (to_numpy(unrounded) != a * b + b).any()


@each_room
def test_random_bits_are_those_of_threefry(room: Any, to: Any) -> None:
    bits = to_numpy(room.random_bits(7, (3, 4)))
    assert_same_bits(of_core.random_bits(7, (3, 4)), bits)
    assert 0 <= bits.min() <= bits.max() < 2**24
    assert len(set(bits.ravel().tolist())) == 12


@each_room
def test_stochastic_rounding_takes_the_bits_as_noise(room: Any, to: Any) -> None:
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    got = room.round(to(x), "stochastic", room.random_bits(7, (3, 4)))
    assert_same_bits(of_core.round(x, "stochastic", of_core.random_bits(7, (3, 4))), to_numpy(got))
    with pytest.raises(ValueError, match="`noise` must be given"):
        room.round(to(x), "stochastic")


@each_room
def test_wrong_operands_are_named(room: Any, to: Any) -> None:
    x, half, whole = to(np.ones(3, np.float32)), to(np.ones(3, np.float16)), to(np.ones(3, np.int32))
    with pytest.raises(TypeError, match="`b` must have the dtype of `a`, float32, got float16: cast one of them"):
        room.add(x, half)
    with pytest.raises(TypeError, match=r"`x` must have dtype float32, .*; got int32"):
        room.sqrt(whole)
    with pytest.raises(TypeError, match="`a` must be an array, got a number"):
        room.multiply(2.0, 3.0)
    with pytest.raises(ValueError, match=r"`a`, `b` must have shapes that broadcast, got \(3,\), \(2,\)"):
        room.add(x, x[:2])
    with pytest.raises(TypeError, match="`condition` must have dtype bool, as comparisons give, got float32"):
        room.where(x, x, x)
    with pytest.raises(ValueError, match="`axis` must be within an array of shape \\(3,\\), got 1"):
        room.sum(x, 1)
    with pytest.raises(ValueError, match="`x` must have elements along `axis`, got none"):
        room.amax(x[:0])
    with pytest.raises(ValueError, match=r"`percent` must be in \[0, 100\], got 101"):
        room.percentile(x, 101)
    with pytest.raises(ValueError, match="`direction` must be one of"):
        room.round(x, "up")
    with pytest.raises(TypeError, match=r"`format` must be a format of samebits\.core\.formats, got 'int8'"):
        room.to_format(x, "int8")
    with pytest.raises(TypeError, match=r"`dtype` must have dtype float32, .*; got int8"):
        room.cast(x, "int8")
    with pytest.raises(ValueError, match=r"`table` must have one axis and at least one entry, got shape \(1, 3\)"):
        room.take(x[None], x)


class jitted:  # in the place of a module
    """The primitives of JAX, compiled: op by op every operation would be compiled by itself."""

    def __init__(self, room: Any) -> None:
        self.room = room

    def __getattr__(self, name: str) -> Any:
        return lambda x, *rest, **options: jax.jit(lambda v: getattr(self.room, name)(v, *rest, **options))(x)


@each_room
def test_shapes(room: Any, to: Any) -> None:
    """0-d, empty and non-contiguous arrays."""
    if room is of_jax:
        room = jitted(of_jax)
    x = to(np.arange(12, dtype=np.float32).reshape(3, 4))
    column = to(np.arange(24, dtype=np.float32).reshape(3, 8))[:, ::2]
    assert to_numpy(room.sum(x, 0)).tolist() == [12, 15, 18, 21]
    assert to_numpy(room.add(x, room.amax(x))).shape == (3, 4)
    assert to_numpy(room.amax(x)).shape == ()
    for whole in (room.sum(x[1, 2], keepdims=True), room.absmax(x[1, 2])):
        assert (to_numpy(whole).shape, to_numpy(whole)) == ((), 6)
    assert to_numpy(room.exp(x[:0])).shape == (0, 4)
    assert to_numpy(room.sum(x[:0], 0)).tolist() == [0, 0, 0, 0]
    assert to_numpy(room.mean(x, keepdims=True)).shape == (1, 1)
    assert_same_bits(to_numpy(room.add(column, x)), (to_numpy(column) + to_numpy(x)))


@pytest.mark.parametrize("name", ["add", "subtract"])
def test_a_constant_zero_keeps_its_sign_in_a_sum(name: str) -> None:
    """XLA takes ``0.0 + x`` for ``x``, which for -0.0 it is not."""
    x = np.array([0.0, -0.0, 1.5, -1e-45, np.inf], np.float32)
    for zero in (0.0, -0.0):
        for first in (True, False):
            given = (lambda v, z=zero: (z, v)) if first else (lambda v, z=zero: (v, z))
            want = getattr(of_core, name)(*given(x))
            got = jax.jit(lambda v, g=given: getattr(of_jax, name)(*g(v)))(x)
            assert_same_bits(want, got)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_that_are_subnormal(dtype: str) -> None:
    """Their zeros are told by integers, of which LLVM makes comparisons of floats that flush, if it can."""
    form = layout(DTYPES[dtype])
    steps = np.random.default_rng(0).integers(0, 3 << form.mantissa, (2, 50, 12))  # from zero on
    a, b = (v.astype(form.integer).view(DTYPES[dtype]) for v in steps)
    with jax.enable_x64(dtype == "float64"):
        for name, other in (("add", -b), ("subtract", b)):
            got = jax.jit(getattr(of_jax, name))(to_jax(a), to_jax(other))
            assert_same_bits(getattr(of_core, name)(a, other), to_numpy(got), call=name, inputs={"a": a, "b": other})
