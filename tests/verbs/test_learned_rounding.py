"""Learned rounding: the sigmoid against exact numbers, the same bits in all rooms and modes, and training.

The oracle of the bits is `samebits.core`; `oracles/test_gradients.py` compares with Brevitas.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import LearnedRounding, QParams, Quantizer, Relaxation, catalog, learned_rounding
from samebits.jax_backend import learned_rounding as in_jax
from samebits.proofs.inputs.bits import neighbours
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import special_values
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import learned_rounding as in_torch

from ..exact import DTYPES, round_fraction

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN is meant

Array = NDArray[Any]
RULES = [
    LearnedRounding(),
    LearnedRounding(soft=True),
    LearnedRounding(relaxation="sigmoid", temperature=0.3),
    LearnedRounding(relaxation="sigmoid", temperature=7.7, soft=True),
]
FUNCTIONS = ("rounding_share", "rounding_slope", "rounding_offset")


def learning(name: str, **changes: Any) -> Quantizer:
    return catalog[name].replace(rounding="learned", **changes)


HARD, SOFT = learning("int8_per_channel"), learning("int8_per_channel", soft=True)
AFFINE = learning("uint4_affine_per_group32", soft=True, relaxation="sigmoid", temperature=0.5)
CASES: dict[str, tuple[Quantizer, str]] = {
    "hard": (HARD, "float32"),
    "soft": (SOFT, "float32"),
    "soft, passing": (SOFT.replace(gradient="pass_through"), "float32"),
    "affine": (AFFINE, "float32"),
    "affine, decided": (AFFINE.replace(soft=False), "float32"),
    "affine, bfloat16": (AFFINE, "bfloat16"),
    "float16": (SOFT, "float16"),
    "float64": (AFFINE, "float64"),
}


def parameters() -> Array:
    """Where the sigmoid and the relaxations bend, their limits, and special values."""
    limit = math.log(1.1 / 0.1)
    few = np.array([0, 1e-7, 2e-7, limit, 5, 16, 31.999, 32, 40, 0.3466, 0.6931, 1.0397], np.float32)
    around = neighbours(np.concatenate([few, -few]), 3)
    return np.concatenate([around, special_values(DTYPES["float32"]), np.linspace(-33, 33, 4001, dtype=np.float32)])


def data(name: str) -> tuple[Array, QParams, Array]:
    """Elements inside, outside and at the ends, special values, scales of every size; v; an incoming gradient."""
    q, dtype = CASES[name]
    random, d = np.random.default_rng(list(map(ord, name))), DTYPES[dtype]
    x = (random.standard_normal((16, 64)) * 3).astype(d)
    qparams = core.choose_qparams(q, x)
    scale = qparams.scale * np.resize(np.array([0.8, 0.8, 1.1, 2.0**-100, 2.0**40], scale_dtype(d)), (16, 1))
    scale[5] = 2.0**-126
    few = special_values(d)
    x[:, 3:6], x[6] = np.resize(few, (16, 3)), np.resize(few, 64)
    zero = qparams.zero_point
    half = None if zero is None else zero[..., :1]
    x[7] = ((np.arange(64) / 4 - (0 if half is None else half[7])) * scale[7, 0]).astype(d)
    x[8] = (np.arange(64) - 32).astype(d) * np.asarray(2.0**-126, np.float64)
    g = random.standard_normal((16, 64)).astype(d)
    g[:, 9], g[9] = np.resize(few, 16), np.resize(few, 64)
    v = random.standard_normal((16, 64)).astype(scale.dtype) * 2
    v[10:14] = np.resize(parameters(), (4, 64))
    return x, QParams(scale, zero, rounding=v), g


def scale_dtype(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    return np.float64 if dtype == np.float64 else np.float32


def numbers(x: Array) -> Array:
    """``x`` with 0 for NaN, which `quantize` refuses."""
    return np.where(np.isnan(x), np.zeros_like(x), x)


def wanted(name: str) -> tuple[Array, ...]:
    """Codes, values, gradients of x and of the parameter."""
    q, (x, qparams, g) = CASES[name][0], data(name)
    d = core.fake_quantize_vjp(q, x, qparams, g)
    return core.quantize(q, numbers(x), qparams), core.fake_quantize(q, x, qparams), d.x, d.rounding


# --- the relaxation ---------------------------------------------------------------------------------------------------


def exact_sigmoid(t: float) -> float:
    e = math.exp(-abs(t))
    return e / (1 + e) if t < 0 else 1 / (1 + e)


def test_the_sigmoid_is_within_its_bound() -> None:
    rule = LearnedRounding(relaxation=Relaxation.SIGMOID)
    t = np.concatenate([parameters(), np.random.default_rng(0).standard_normal(20000).astype(np.float32) * 4])
    t = t[np.abs(t) <= 32]
    want = np.array([exact_sigmoid(float(v)) for v in t])
    slope = want * np.array([exact_sigmoid(-float(v)) for v in t])
    assert (np.abs(learned_rounding.rounding_share(rule, t) - want) < want * 2.0**-22).all()
    assert (np.abs(learned_rounding.rounding_slope(rule, t) - slope) < slope * 2.0**-21).all()


def test_the_sigmoid_by_rationals() -> None:
    """The stated sequence of operations, each an exact fraction rounded to float32."""

    def rounded(value: Fraction) -> Fraction:
        return Fraction(round_fraction(value, "float32"))

    for t in (0.0, 0.5, 1.75, -2.5, 13.0):
        a = Fraction(abs(t))
        n = round(rounded(a * Fraction(float(learned_rounding.LOG2_E))))
        high, low = (Fraction(float(c)) for c in (learned_rounding.LN2_HIGH, learned_rounding.LN2_LOW))
        y = rounded(rounded(n * high - a) + rounded(n * low))
        p = Fraction(0)
        for c in learned_rounding.POLYNOMIAL:
            p = rounded(rounded(p * y) + Fraction(float(c)))
        e = rounded(rounded(rounded(p * rounded(y * y)) + y) + 1) / 2**n
        sigmoid = rounded((e if t < 0 else 1) / rounded(1 + e))
        got = learned_rounding.rounding_share(LearnedRounding(relaxation=Relaxation.SIGMOID), np.array([t], np.float32))
        assert Fraction(float(got[0])) == sigmoid


def test_shares_by_hand() -> None:
    v = np.array([0, -0.0, np.inf, -np.inf, 3, -3, np.nan, 1e-9, 1e-6], np.float32)
    hard, soft = LearnedRounding(), LearnedRounding(soft=True)
    sigmoid = LearnedRounding(relaxation=Relaxation.SIGMOID)
    assert learned_rounding.rounding_share(hard, v)[:6].tolist() == [0.5, 0.5, 1, 0, 1, 0]
    assert learned_rounding.rounding_offset(hard, v).tolist() == [0, 0, 1, 0, 1, 0, 0, 0, 1]  # 1/2 is not above 1/2
    assert learned_rounding.rounding_offset(sigmoid, v).tolist() == [0, 0, 1, 0, 1, 0, 0, 1, 1]
    assert np.isnan(learned_rounding.rounding_offset(soft, v)[6])
    assert learned_rounding.rounding_slope(hard, v)[:6].tolist() == [np.float32(0.3), np.float32(0.3), 0, 0, 0, 0]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_shares_have_the_same_bits(rule: LearnedRounding) -> None:
    v = parameters()
    for name in FUNCTIONS:
        want, there, here = (getattr(m, name) for m in (learned_rounding, in_torch, in_jax))
        expected = want(rule, v)
        assert_same_bits(expected, there(rule, to_torch(v)), call=name, inputs=v)
        assert_same_bits(expected, jax.jit(partial(here, rule))(to_jax(v)), call=name, inputs=v)
        if rule.soft:
            with jax.disable_jit():
                assert_same_bits(expected, here(rule, to_jax(v)), call=name, inputs=v)
        wide = v.astype(np.float64) * (1 + 1e-12)
        assert_same_bits(want(rule, wide), there(rule, to_torch(wide)), call=name, inputs=wide)
    leaf = to_torch(v).requires_grad_()
    in_torch.rounding_share(rule, leaf).sum().backward()
    assert_same_bits(learned_rounding.rounding_slope(rule, v), leaf.grad)
    assert_same_bits(leaf.grad, jax.grad(lambda v: in_jax.rounding_share(rule, v).sum())(to_jax(v)))


@pytest.mark.parametrize("q", [SOFT, AFFINE], ids=["hard_sigmoid", "sigmoid"])
def test_it_begins_with_rounding_to_nearest(q: Quantizer) -> None:
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    qparams = core.choose_qparams(q, x)
    v = learned_rounding.initial_rounding(q, x, qparams)
    soft = core.fake_quantize(q, x, qparams._replace(rounding=v))
    inside = core.fake_quantize_vjp(q, x, qparams, np.ones_like(x)).x == 1
    assert inside.mean() > 0.9
    assert (np.abs(soft - x)[inside] < np.broadcast_to(2.0**-19 * np.abs(x).max(), x.shape)[inside]).all()
    nearest = core.quantize(q.replace(rounding="ties_to_even"), x, qparams)
    assert_same_bits(nearest, core.quantize(q, x, qparams._replace(rounding=v)))
    whole = learned_rounding.rounding_offset(
        q.decided.learned_rounding, learned_rounding.initial_rounding(q, np.zeros_like(x), qparams)
    )
    assert not whole.any()
    assert_same_bits(v, in_torch.initial_rounding(q, to_torch(x), QParams(*map(tensor, qparams))))
    assert_same_bits(v, in_jax.initial_rounding(q, to_jax(x), QParams(*map(array, qparams))))


def test_where_it_begins_with_special_values() -> None:
    x = np.resize(np.concatenate([special_values(DTYPES["float32"]), [0.5, -0.5, 1 - 2.0**-24]]), (8, 64))
    x = x.astype(np.float32)
    qparams = QParams(np.resize(np.array([1, 2.0**-126, 3e30, 0.1], np.float32), (8, 1)))
    v = learned_rounding.initial_rounding(SOFT, x, qparams)
    assert_same_bits(v, in_torch.initial_rounding(SOFT, to_torch(x), QParams(tensor(qparams.scale))), inputs=x)
    assert_same_bits(v, in_jax.initial_rounding(SOFT, to_jax(x), QParams(array(qparams.scale))), inputs=x)


# --- the same bits ----------------------------------------------------------------------------------------------------


def tensor(p: Any) -> Any:
    return None if p is None else to_torch(np.asarray(p))


def array(p: Any) -> Any:
    return None if p is None else to_jax(np.asarray(p))


def torch_program(q: Quantizer, x: Any, scale: Any, zero: Any, v: Any, number: Any) -> Any:
    qparams = QParams(scale, zero, rounding=v)
    return torch_frontend.quantize(q, number, qparams), torch_frontend.fake_quantize(q, x, qparams)


def run_torch(program: Callable[..., Any], name: str) -> tuple[Any, ...]:
    q, (x, qparams, g) = CASES[name][0], data(name)
    leaf, v = (to_torch(a).requires_grad_() for a in (x, qparams.rounding))
    number = to_torch(numbers(x))
    *codes, fake = program(q, leaf, tensor(qparams.scale), tensor(qparams.zero_point), v, number)
    return *codes, fake, *torch.autograd.grad(fake, (leaf, v), to_torch(g))


@pytest.mark.parametrize("name", CASES)
def test_torch_eager(name: str) -> None:
    assert_same_bits(wanted(name), run_torch(torch_program, name), call=name)
    q, (x, qparams, g) = CASES[name][0], data(name)
    d = torch_frontend.fake_quantize_vjp(q, to_torch(x), QParams(*map(tensor, qparams)), to_torch(g))
    assert_same_bits(wanted(name)[2:], (d.x, d.rounding))
    plain = torch_frontend.fake_quantize(q, to_torch(x), QParams(*map(tensor, qparams)))
    assert_same_bits(wanted(name)[1], plain)


@pytest.mark.parametrize("name", ["soft", "affine, bfloat16"])
def test_torch_compiled(name: str) -> None:
    def fake_quantize(*arguments: Any) -> Any:
        return torch_program(*arguments)[1:]

    program = torch_program if name == "soft" else fake_quantize
    got = run_torch(torch.compile(program, fullgraph=True), name)
    assert_same_bits(wanted(name)[-len(got) :], got, call=name)


def jax_program(q: Quantizer, x: Any, scale: Any, zero: Any, v: Any, g: Any, number: Any) -> Any:
    def fake(x: Any, v: Any) -> Any:
        return jax_backend.fake_quantize(q, x, QParams(scale, zero, rounding=v))

    value, pull = jax.vjp(fake, x, v)
    codes = jax_backend.quantize(q, number, QParams(scale, zero, rounding=v))
    return codes, value, *pull(g)


def jax_operands(name: str) -> list[Any]:
    x, qparams, g = data(name)
    return [array(a) for a in (x, qparams.scale, qparams.zero_point, qparams.rounding, g, numbers(x))]


def test_constants_are_not_merged_with_what_follows() -> None:
    """The one number of 96 million normal ones whose share shows the first product merged with the first sum in XLA."""
    v = np.full(64, -1100746017, np.int32).view(np.float32)
    rule = LearnedRounding(relaxation="sigmoid")
    want = learned_rounding.rounding_share(rule, v)
    assert_same_bits(want, jax.jit(partial(in_jax.rounding_share, rule))(to_jax(v)))


@pytest.mark.parametrize("name", CASES)
def test_jax_jit(name: str) -> None:
    with jax.enable_x64(name == "float64"):
        got = jax.jit(jax_program, static_argnums=0)(CASES[name][0], *jax_operands(name))
        assert_same_bits(wanted(name), got, call=name)


@pytest.mark.parametrize("name", ["affine, bfloat16"])
def test_jax_eager(name: str) -> None:
    with jax.disable_jit():
        assert_same_bits(wanted(name), jax_program(CASES[name][0], *jax_operands(name)), call=name)


def test_other_gradients_are_those_of_the_formula() -> None:
    """d scale = sum(g * (code - x / s)) over what is not clamped, with codes that lie between whole ones."""
    q, x, v = SOFT, np.array([[0.3, -1.2, 2.6]], np.float32), np.array([[0.5, -0.25, 1]], np.float32)
    qparams, g = QParams(np.ones((1, 1), np.float32), rounding=v), np.array([[1, 2, -3]], np.float32)
    d = core.fake_quantize_vjp(q, x, qparams, g)
    share, slope = (
        learned_rounding.rounding_share(q.learned_rounding, v),
        learned_rounding.rounding_slope(q.learned_rounding, v),
    )
    codes = np.floor(x) + share
    assert_same_bits(codes, core.fake_quantize(q, x, qparams))
    assert_same_bits(g * slope, d.rounding)
    assert d.scale.item() == float(np.float32(math.fsum((g * (codes - x)).ravel().tolist())))
    assert core.fake_quantize_vjp(q, x, qparams._replace(rounding=None), g).rounding is None


@pytest.mark.parametrize("room", [core, torch_frontend, jax_backend], ids=lambda room: room.__name__)
def test_without_a_parameter_it_rounds_down(room: Any) -> None:
    make = {core: np.asarray, torch_frontend: to_torch, jax_backend: to_jax}[room]
    x, one = make(np.array([[1.9, -0.1, -3, 300]], np.float32)), QParams(make(np.ones((1, 1), np.float32)))
    assert to_numpy(room.quantize(HARD, x, one)).tolist() == [[1, -1, -3, 127]]
    assert to_numpy(room.fake_quantize(SOFT, x, one)).tolist() == [[1.5, -0.5, -2.5, 127]]
    assert to_numpy(room.quantize(SOFT, x, one)).tolist() == [[1, -1, -3, 127]]


@pytest.mark.parametrize("room", [core, torch_frontend, jax_backend], ids=lambda room: room.__name__)
def test_wrong_parameters_are_named(room: Any) -> None:
    make = {core: np.asarray, torch_frontend: to_torch, jax_backend: to_jax}[room]
    x, s = make(np.ones((1, 4), np.float32)), make(np.ones((1, 1), np.float32))
    with pytest.raises(ValueError, match=r"`qparams.rounding` must have the shape of x, \(1, 4\), got \(1, 1\)"):
        room.fake_quantize(HARD, x, QParams(s, rounding=s))
    with pytest.raises(TypeError, match=r"`qparams.rounding` must have the dtype of the scale, float32, got float16"):
        room.fake_quantize(HARD, x, QParams(s, rounding=make(np.ones((1, 4), np.float16))))


def test_wrong_descriptions_are_named() -> None:
    with pytest.raises(ValueError, match="`rounding` must not be 'learned' for"):
        learning("float8_e4m3fn_per_tensor")
    with pytest.raises(ValueError, match="`relaxation` must be one of 'hard_sigmoid', 'sigmoid'; got 'cosine'"):
        SOFT.replace(relaxation="cosine")
    with pytest.raises(ValueError, match=r"`temperature` must be in \[2\*\*-10, 2\*\*10\], got 0"):
        SOFT.replace(temperature=0)
    with pytest.raises(TypeError, match="`soft` must be a bool, got 1"):
        SOFT.replace(soft=1)


def test_while_it_is_soft_layers_contract_values() -> None:
    x, w = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    q_x, q_w = catalog["int8_per_tensor"], SOFT
    x_qparams, w_qparams = core.choose_qparams(q_x, x), core.choose_qparams(q_w, w)
    w_qparams = w_qparams._replace(rounding=learned_rounding.initial_rounding(q_w, w, w_qparams) + np.float32(0.3))
    y = core.linear(q_x, x, x_qparams, q_w, w, w_qparams)
    want = core.fake_quantize(q_x, x, x_qparams) @ core.fake_quantize(q_w, w, w_qparams).T
    assert np.allclose(y, want, rtol=1e-5, atol=1e-5)
    for q in (SOFT, HARD):
        expected = core.linear(q_x, x, x_qparams, q, w, w_qparams)
        for room, make in ((torch_frontend, tensor), (jax_backend, array)):
            given = (QParams(*map(make, p)) for p in (x_qparams, w_qparams))
            got = to_numpy(room.linear(q_x, make(x), next(given), q, make(w), next(given)))
            assert np.allclose(expected, got, rtol=1e-5, atol=1e-5) if q.relaxed else (expected == got).all()


def test_layers_train_the_parameter_while_it_is_soft() -> None:
    x, w = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    q_x, x_qparams, w_qparams = catalog["int8_per_tensor"], QParams(np.float32(0.1)), core.choose_qparams(SOFT, w)
    v = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)
    dw = np.ones((4, 4), np.float32).T @ core.fake_quantize(q_x, x, x_qparams)
    want = core.fake_quantize_vjp(SOFT, w, w_qparams._replace(rounding=v), dw).rounding
    leaf = to_torch(v).requires_grad_()
    given = QParams(tensor(w_qparams.scale), rounding=leaf)
    torch_frontend.linear(q_x, to_torch(x), QParams(torch.tensor(0.1)), SOFT, to_torch(w), given).sum().backward()
    assert np.allclose(want, to_numpy(leaf.grad), rtol=1e-5)

    def total(v: Any) -> Any:
        parameters = QParams(array(w_qparams.scale), rounding=v)
        return jax_backend.linear(q_x, to_jax(x), QParams(jnp.float32(0.1)), SOFT, to_jax(w), parameters).sum()

    assert np.allclose(want, jax.grad(total)(to_jax(v)), rtol=1e-5)
