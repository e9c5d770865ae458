"""Arrays of codes taken apart, turned, reshaped, stacked and multiplied: no value changes a bit, or it is refused."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax import lax
from numpy.typing import NDArray
from torch.nn import functional as F

from samebits import core
from samebits.core import PerAxis, PerBlock, PerGroup, QParams, Quantizer, catalog
from samebits.core import packing as by_definition
from samebits.core.configs import config_of
from samebits.core.granularity import qparams_shape
from samebits.jax_backend.ptq import QArray, dot_general, quant_array, quantize_
from samebits.jax_backend.ptq.qarray import codes_of, linear
from samebits.proofs.inputs.compare import assert_same_bits

torch_weights = importlib.import_module("samebits.torch_frontend.ptq.quant_weight")
INT8, INT4 = catalog["int8_per_tensor"], catalog["int8_per_tensor"].replace(bits=4)
KINDS: dict[str, Quantizer] = {
    "per tensor": catalog["uint8_affine_per_tensor"],
    "per axis 0": catalog["uint8_affine_per_channel"],
    "per axis 1": INT8.replace(granularity=PerAxis(1)),
    "per token": catalog["int8_affine_per_token"],
    "per group": INT4.replace(granularity=PerGroup(4)),
    "per group along axis 0": INT8.replace(granularity=PerGroup(2, 0)),
    "per block": INT8.replace(granularity=PerBlock((2, 4))),
    "float zeros": catalog["uint4_affine_float_zero_per_group64"].replace(granularity=PerGroup(4)),
}
SHAPE = (6, 8)
PACKED = ("per group", "float zeros")


def numbers(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def made(name: str, *shape: int) -> QArray:
    layout = "packed" if name in PACKED else "plain"
    return quant_array(KINDS[name], jnp.asarray(numbers(*(shape or SHAPE))), None, None, layout)


def same(values: Any, held: Any) -> None:
    """A `QArray` of these values, by core, whose scales have the shape that its description says."""
    assert isinstance(held, QArray)
    assert held.shape == values.shape
    q, codes = held.quantizer, np.asarray(held.codes)
    if held.code_layout == "packed":
        codes = by_definition.unpack(codes, 4, held.length, signed=q.format.lo < 0).astype(q.format.storage)
    assert held.scale.shape == qparams_shape(q.granularity, codes.shape)
    zero = None if held.zero_point is None else np.asarray(held.zero_point)
    zero = zero.astype(np.int32) if zero is not None and zero.dtype != np.float32 else zero
    known = core.dequantize(q, codes, QParams(np.asarray(held.scale), zero))
    assert_same_bits(values, known.T if held.transposed else known)


SLOW = ("per axis 1", "per group along axis 0", "float zeros")  # in what the others have too
EVERY = [pytest.param(name, marks=pytest.mark.thorough if name in SLOW else ()) for name in KINDS]
ROWS, MORE, NONE = np.array([3, 0, 3]), np.array([[1, 0], [5, -1]]), np.array([], np.int32)
MASK = np.array([True, False, True, False, False, True])
INDICES: list[Any] = [
    np.s_[2:4], np.s_[1:5:3], np.s_[4:4], np.s_[::-1], np.s_[..., 4:8], np.s_[2:4, 4:], np.s_[:, 1:3], np.s_[1:3, 2:7],
    ROWS, NONE, MASK, MORE, (slice(None), ROWS), (slice(2, 6), ROWS), (slice(None), MORE),
    np.s_[:, 3:8], np.s_[3:6],
]  # fmt: skip
KEPT = {  # how many of these stay codes
    "per tensor": 17, "per axis 0": 16, "per axis 1": 15, "per token": 16, "per group": 11,
    "per group along axis 0": 9, "per block": 4, "float zeros": 11,
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_parts_are_codes_where_scales_stay_together(name: str) -> None:
    held = made(name)
    values, kept = np.asarray(held.dequantize()), 0
    for index in INDICES:
        part = held[index]
        if isinstance(part, QArray):
            same(values[index], part)
            kept += 1
        else:
            assert_same_bits(values[index], part)
    assert kept == KEPT[name]
    for index in (3, np.s_[1, 2], np.s_[:, 0], None, (ROWS, ROWS), np.s_[..., 0]):
        assert_same_bits(values[index], held[index])
    turned = held.T
    same(values.T[:, 2:4], turned[:, 2:4])
    same(values.T[4:], turned[4:])
    assert_same_bits(values.T[MORE], turned[MORE])


@pytest.mark.parametrize("name", EVERY)
def test_transpositions_and_shapes(name: str) -> None:
    shape = (4, 6, 8)
    held = made(name, *shape)
    values = np.asarray(held.dequantize())
    for order in ((0, 1, 2), (1, 0, 2), (2, 0, 1), (0, -1, 1)):
        if name == "per token" and order[-1] != 2:
            with pytest.raises(ValueError, match="a QArray per token must keep its last axis"):
                held.transpose(order)
            continue
        same(values.transpose(order), held.transpose(order))
    if name != "per token":
        same(values.T, held.transpose())
    flat = made(name)
    assert flat.transpose().transposed
    assert flat.transpose(0, 1) is flat
    same(np.asarray(flat.dequantize()).T, flat.transpose(1, 0))
    shapes = {"per tensor": [(8, -1), (192,)], "per axis 0": [(4, 48), (4, 2, 3, 8)]}
    last = [(24, 8), (2, 2, 6, -1)] if name in ("per token", *PACKED) else []
    for other in [*shapes.get(name, last), ()]:
        if other:
            same(values.reshape(other), held.reshape(*other))
            same(values.reshape(other), held.reshape(other))
    if name not in shapes:
        with pytest.raises(ValueError, match=f"a QArray {KINDS[name].granularity} of shape"):
            held.reshape(4, 48)
    with pytest.raises(ValueError, match="in another order"):
        flat.T.reshape(48)
    for wrong in ((0, 1), (0, 1, 1), (0, 1, 3)):
        with pytest.raises(ValueError, match="`axes` must be a permutation of 3 axes"):
            held.transpose(wrong)


def test_arithmetic_that_would_round_is_refused() -> None:
    held, x = made("per axis 1"), jnp.ones(SHAPE)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: held + 1, r"sum \(\+\)"),
        (lambda: x + held, r"sum \(\+\)"),
        (lambda: np.ones(SHAPE) - held, r"difference \(-\)"),
        (lambda: 2 / held, r"quotient \(/\)"),
        (lambda: held * 3.0, r"product \(\*\) with 3.0"),
        (lambda: held / 0, r"product \(\*\) with 0"),
        (lambda: held * -2, r"product \(\*\) with -2"),
        (lambda: held * True, r"product \(\*\) with True"),
        (lambda: held * jnp.float32(2), r"product \(\*\) with "),
        (lambda: x * held, r"product \(\*\) with "),
        (lambda: held * float("inf"), r"product \(\*\) with inf"),
        (lambda: held * float("nan"), r"product \(\*\) with nan"),
        (lambda: held**2, r"power \(\*\*\)"),
        (lambda: held == held, r"comparison \(==\)"),
        (lambda: held != x, r"comparison \(!=\)"),
        (lambda: held > 0, r"comparison \(>\)"),
        (lambda: bool(held), r"truth value \(bool\)"),
        (lambda: abs(-held), r"negation \(-\)"),
        (lambda: made("float zeros") * 2, r"product \(\*\)"),
        (lambda: jax.jit(lambda v: v * 2)(held), r"not at hand has no product \(\*\)"),
        (lambda: hash(held), "unhashable"),
    ]
    for call, words in calls:
        with pytest.raises(TypeError, match=words) as raised:
            call()
        assert words == "unhashable" or ".dequantize()" in str(raised.value)


def test_positive_powers_of_two_keep_codes_while_scales_are_normal() -> None:
    for name in ("per axis 0", "per group"):
        held = made(name)
        values = np.asarray(held.dequantize())
        for factor in (2, 0.5, 2.0**-100, 2.0**100, 1):
            same(values * np.float32(factor), factor * held)
            same(values / np.float32(factor), held / factor)
            assert_same_bits(held.codes, (held * factor).codes)
        for factor in (2.0**-125, 2.0**127):
            with pytest.raises(ValueError, match="no normal numbers"):
                held * factor
    halves = made("per axis 1").astype(np.float16)
    for factor in (2.0**-12, 2.0**17):
        with pytest.raises(ValueError, match="no normal numbers"):
            halves * factor
    assert len(halves) == 6
    assert_same_bits(np.asarray(halves)[2], list(halves)[2])


PRODUCTS: list[tuple[str, tuple[int, ...], str, tuple[int, ...], Any]] = [
    ("per axis 0", (6, 8), "per token", (5, 8), (((1,), (1,)), ((), ()))),
    ("per tensor", (2, 6, 8), "per tensor", (8, 2, 3), (((2,), (0,)), ((0,), (1,)))),
    ("per axis 1", (2, 6, 8), "per axis 0", (3, 8, 2), (((2, 0), (1, 2)), ((), ()))),
    ("per token", (2, 3, 8), "per token", (2, 5, 8), (((2,), (2,)), ((0,), (0,)))),
    ("per axis 0", (2, 3, 0), "per tensor", (2, 0), (((2,), (1,)), ((0,), (0,)))),
]


@pytest.mark.parametrize(
    ("left", "shape", "right", "other", "numbers_"),
    [pytest.param(*row, marks=pytest.mark.thorough if i in (2, 4) else ()) for i, row in enumerate(PRODUCTS)],
)
def test_products_over_codes(left: str, shape: Any, right: str, other: Any, numbers_: Any) -> None:
    """Sums beside int64; outputs beside the formula, with every product rounded."""
    a, b = made(left, *shape), quant_array(KINDS[right], jnp.asarray(numbers(*other)[::-1].copy()))
    centred, scales = [], []
    for side in (a, b):
        zero = 0 if side.zero_point is None else np.asarray(side.zero_point).astype(np.int64)
        centred.append(np.asarray(codes_of(side)).astype(np.int64) - zero)
        scales.append(np.broadcast_to(np.asarray(side.scale), side.shape))
    letters = [list("abcdef"[: len(shape)]), list("uvwxyz"[: len(other)])]
    (of_a, of_b), (batch_a, batch_b) = numbers_
    for i, j in [*zip(of_a, of_b, strict=True), *zip(batch_a, batch_b, strict=True)]:
        letters[1][j] = letters[0][i]
    free = [
        [letter for i, letter in enumerate(names) if i not in used]
        for names, used in ((letters[0], (*of_a, *batch_a)), (letters[1], (*of_b, *batch_b)))
    ]
    out = "".join([letters[0][i] for i in batch_a] + free[0] + free[1])
    terms = ",".join("".join(names) for names in letters) + "->" + out
    want = np.einsum(terms, *centred)
    got = jax.jit(lambda a, b: dot_general(a, b, numbers_, preferred_element_type=jnp.int32))(a, b)
    assert_same_bits(want.astype(np.int32), got)
    rest, one = [], []
    for names, used, each in zip(letters, (of_a, of_b), scales, strict=True):
        rest.append("".join(letter for i, letter in enumerate(names) if i not in used))
        one.append(each.max(tuple(used), initial=1e-9))  # all the same along these axes
    scale = np.einsum(",".join(rest) + "->" + out, *one)
    y = jax.jit(dot_general, static_argnums=2)(a, b, numbers_)
    assert_same_bits(want.astype(np.float32) * scale + np.float32(0), y)


def test_float_operands_are_quantized_at_every_call() -> None:
    """The bits of `linear`, and of torch; from the other side, and with gradients."""
    act, w, x = catalog["int8_affine_per_token"], numbers(6, 8), numbers(5, 8)[::-1].copy()
    held = quant_array(catalog["int8_per_channel"], jnp.asarray(w), None, act)
    rows, columns = (((1,), (1,)), ((), ())), (((1,), (0,)), ((), ()))
    y = dot_general(jnp.asarray(x), held, rows)
    in_torch = torch_weights.quant_weight(catalog["int8_per_channel"], torch.from_numpy(w), None, act)
    assert_same_bits(in_torch.codes, held.codes)
    for other in (
        F.linear(torch.from_numpy(x), in_torch),
        linear(jnp.asarray(x), held),
        dot_general(jnp.asarray(x), held.T, columns),
        dot_general(held, jnp.asarray(x), rows).T,
    ):
        assert_same_bits(y, other)
    d, plain = (
        jax.grad(lambda v, f=f: (f(v) ** 2).sum())(jnp.asarray(x))
        for f in (lambda v: dot_general(v, held, rows), lambda v: linear(v, held))
    )
    assert np.allclose(d, plain, rtol=1e-5, atol=1e-4)
    alone = quant_array(catalog["int8_per_channel"], jnp.asarray(w))
    assert np.allclose(dot_general(jnp.asarray(x), alone, rows), x @ np.asarray(alone).T, atol=1e-5), "of floats"
    group = made("per group")
    assert np.allclose(dot_general(group, group, rows), np.asarray(group) @ np.asarray(group).T, atol=1e-5), "of floats"


def test_products_that_do_not_fit() -> None:
    x, held, rows = jnp.ones((5, 8)), made("per axis 0"), (((1,), (1,)), ((), ()))
    wide = quant_array(INT8.replace(bits=16), jnp.ones((3, 8)))
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: dot_general(x, x, rows), TypeError, "`lhs` or `rhs` must be a QArray"),
        (lambda: dot_general(x.astype(jnp.float16), held, rows), TypeError, "one dtype, got float16, float32"),
        (lambda: dot_general(x, held, rows, preferred_element_type=jnp.int8), TypeError, "None, int32 or float32"),
        (lambda: dot_general(x, held, rows, preferred_element_type=jnp.int32), ValueError, "has no `act_quant`"),
        (
            lambda: dot_general(made("per group"), held, rows, preferred_element_type=jnp.int32),
            ValueError,
            "scales of `lhs`, per group of 4, vary along contracted axes",
        ),
        (
            lambda: dot_general(made("float zeros"), held, rows, preferred_element_type=jnp.int32),
            ValueError,
            "do not have codes that are integers",
        ),
        (
            lambda: dot_general(wide, wide, rows, preferred_element_type=jnp.int32),
            ValueError,
            "sums of up to 8589934592",
        ),
        (lambda: dot_general(held, held, (((1,), (0,)), ((), ()))), ValueError, r"of one length, got \[8\] and \[6\]"),
        (lambda: dot_general(held, held, (((2,), (1,)), ((), ()))), ValueError, r"must name axes of `lhs`.*got \[2\]"),
        (lambda: dot_general(held, held, (((1,), (1,)), ((1,), (1,)))), ValueError, "once"),
    ]
    for call, error, words in calls:
        with pytest.raises(error, match=words):
            call()


def test_stacked_layers_under_scan_and_vmap() -> None:
    act = catalog["int8_per_token"]
    layers = [quant_array(catalog["int8_per_channel"], jnp.asarray(numbers(8, 8) + i), None, act) for i in range(3)]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *layers)
    x = jnp.asarray(numbers(5, 8))
    want = [linear(x, layer) for layer in layers]
    assert_same_bits(jnp.stack(want), jax.vmap(linear, (None, 0))(x, stacked))
    last, _ = lax.scan(lambda x, layer: (linear(x, layer), None), x, stacked)
    y = x
    for layer in layers:
        y = linear(y, layer)
    assert_same_bits(y, last)
    looked = jax.vmap(lambda layer: layer[1:3].dequantize())(stacked)
    assert_same_bits(jnp.stack([layer.dequantize()[1:3] for layer in layers]), looked)


def test_what_jax_does_with_arrays(tmp_path: Path) -> None:
    held = made("per group")
    assert_same_bits(held.dequantize(), jnp.asarray(held))
    shape = jax.eval_shape(lambda v: v[2:4].T.dequantize(), held)
    assert (shape.shape, shape.dtype) == ((8, 2), np.float32)
    d = jax.jit(jax.grad(lambda s, v: (s * (jnp.ones((2, 6)) @ v)).sum()))(jnp.float32(3), held)
    assert np.isclose(d, 2 * held.dequantize().sum(), rtol=1e-5)
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "weights", {"w": held})
        saver.wait_until_finished()
        again = saver.restore(tmp_path / "weights", {"w": jax.eval_shape(lambda: held)})["w"]
    same(np.asarray(held), again)
    model: Any = nnx.Sequential(nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
    quantize_(model, config_of("int8_per_channel"))
    assert isinstance(model.layers[0].kernel.get_value(), QArray)
