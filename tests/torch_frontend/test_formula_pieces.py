"""Elementwise formulas go piece by piece in eager mode, with the bits of core; others, and few elements, go whole."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from samebits.core import formula as p
from samebits.core.prototype import Prototype
from samebits.core.prototypes import updated, vjp
from samebits.proofs import prototype
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy, to_torch
from samebits.torch_frontend import prototypes as in_torch

from ..pieces import counted_pieces

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
PIECE, SHAPE = 100, (11, 23)  # the last piece is a shorter one


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many elements each piece had that was computed."""
    return counted_pieces(monkeypatch, PIECE)


@prototype
def int8(x: Any, *, s: Any = p.learned(0.03)) -> Any:
    steps = x / s
    return p.clamp(p.straight_through(p.round(steps), steps), -128, 127) * s


@prototype
def every(x: Any, *, s: Any = p.learned(0.3), z: Any = p.learned(-0.0)) -> Any:
    """Operators of torch and other primitives, numbers and parameters; limits that are zeros; results used twice."""
    u = p.cast(x, x.dtype) / s + z
    a = p.maximum(p.stop_gradient(abs(u)), 0.0) - s * 2
    v = p.where(u < a, p.round(u, "toward_zero"), p.where(u >= 2.0, p.negative(u), p.minimum(a, s)))
    v = p.clamp(v, -0.0, 7.0) - p.clamp(u, -1e-46, s) * u
    v = p.where(p.is_nan(v), p.tanh(x), p.copysign(v, a)) + p.where(u == a, s, -0.0)
    return v + p.cast(p.cast(u, "float64"), x.dtype)


@prototype
def casting(x: Any) -> Any:
    """Numbers are rounded to the dtype that they meet."""
    narrow, wide = p.cast(x, "float16"), p.cast(x, "float64")
    y = p.cast(p.clamp(narrow * 0.3, -0.7, 0.3) + p.where(narrow > 1.0, narrow, 0.1), x.dtype)
    return p.where(wide <= 0.3, p.where(wide < 0.1, y, 1.0 - y), p.cast(0.7 / wide, x.dtype))


@prototype
def unchanged(x: Any) -> Any:
    return p.straight_through(p.stop_gradient(x), x)


@prototype
def halved(x: Any) -> Any:
    return x * (1.0 / len(x.shape))


@prototype
def centred(x: Any) -> Any:
    return x - p.amax(x)


@prototype
def rows(x: Any) -> Any:
    return (x.reshape(-1, 11) * 0.1).reshape(x.shape)


@prototype
def masked(x: Any) -> Any:
    return p.where((x < -1) | (x > 1), x, 0.0)


def numbers(dtype: Any) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, *SHAPE))
    x[0], g[1] = x[0] * 1e-41, g[1] * 1e-40
    x[3] = rng.choice([0.3, 0.1, -0.7], SHAPE[1])
    x[2] = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan, 1e38, 1e-38], SHAPE[1])
    return x.astype(dtype), g.astype(dtype)


def check(one: Prototype, x: Any, g: Any) -> None:
    want, gradients = updated(one, x)[0], vjp(one, x, g)
    assert_same_bits(want, to_numpy(in_torch.apply(one, to_torch(x))), call=one.name)
    leaf = to_torch(x).requires_grad_()
    value = in_torch.apply(one, leaf)
    value.backward(to_torch(g))
    assert_same_bits(want, to_numpy(value.detach()), call=one.name)
    assert leaf.grad is not None
    assert_same_bits(gradients["x"], to_numpy(leaf.grad), call=f"d x of {one.name}")
    for name, got in in_torch.vjp(one, to_torch(x), to_torch(g)).items():
        assert_same_bits(gradients[name], to_numpy(got), call=f"d {name} of {one.name}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("one", [int8, every, casting, unchanged])
def test_elementwise_formulas_go_by_pieces(one: Prototype, dtype: Any, pieces: list[int]) -> None:
    x, g = numbers(dtype)
    check(one, x, g)
    assert pieces[:3] == [100, 100, 53]
    assert len(pieces) == 9  # of two values and a gradient


@pytest.mark.parametrize("one", [halved, centred, rows, masked])
def test_others_go_whole(one: Prototype, pieces: list[int]) -> None:
    """What asks for a shape, reduces, moves elements, or does what the pieces do not write down."""
    check(one, *numbers(np.float32))
    assert not pieces


def test_what_goes_whole_otherwise(pieces: list[int]) -> None:
    """Few elements, memory that is not in order, a parameter for each row."""
    x = torch.randn(SHAPE)
    in_torch.apply(int8, x[:2])
    in_torch.apply(int8, x.T)
    in_torch.apply(int8, x, s=torch.full((11, 1), 0.1))
    assert not pieces


def test_operands_stay(pieces: list[int]) -> None:
    """What is written in place belongs to the call."""
    x, s = torch.randn(SHAPE), torch.tensor(0.3)
    kept, scale = x.clone(), s.clone()
    in_torch.apply(every, x, s=s)
    in_torch.apply(unchanged, x).zero_()
    assert len(pieces) == 6
    assert torch.equal(x, kept)
    assert torch.equal(s, scale)
