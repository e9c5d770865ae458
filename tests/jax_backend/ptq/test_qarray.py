"""Arrays of codes in JAX: codes of core and torch, outputs with the same bits, and what a pytree goes through."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samebits import core
from samebits.core import configs as of
from samebits.core import packing as by_definition
from samebits.jax_backend import contraction_bound
from samebits.jax_backend.ptq import QArray, array_of_codes, pack, quant_array, unpack
from samebits.jax_backend.ptq.qarray import codes_of, linear
from samebits.proofs.inputs.compare import assert_same_bits

from ...ptq_cases import CONFIGS, EXACT, MORE, rows, weight

torch_weights = importlib.import_module("samebits.torch_frontend.ptq.quant_weight")
BIAS = np.linspace(-1, 1, 24, dtype=np.float32)


def made(name: str) -> QArray:
    config = CONFIGS[name]
    return quant_array(config.weight, jnp.asarray(weight()), None, config.act_quant, config.layout)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.thorough if name in MORE else ()) for name in CONFIGS]
)
def test_codes_are_those_of_core_and_torch(name: str) -> None:
    config, w = CONFIGS[name], weight()
    held = made(name)
    qparams = core.choose_qparams(config.weight, w)
    assert_same_bits(core.quantize(config.weight, w, qparams), codes_of(held))
    in_torch = torch_weights.quant_weight(config.weight, torch.from_numpy(w), None, config.act_quant, config.layout)
    parts = (held.codes, in_torch.codes), (held.scale, in_torch.scale), (held.dequantize(), in_torch.dequantize())
    for mine, theirs in parts:
        assert_same_bits(theirs, mine)
    if config.weight.affine:
        assert_same_bits(in_torch.zero_point, held.zero_point)
        assert np.array_equal(qparams.zero_point, np.asarray(held.zero_point))
    assert held.nbytes == sum(t.numel() * t.element_size() for t in (in_torch.codes, in_torch.scale)) + (
        in_torch.zero_point.nbytes if config.weight.affine else 0
    )


@pytest.mark.parametrize("name", EXACT)
def test_outputs_over_codes_have_the_same_bits_everywhere(name: str) -> None:
    """core, torch eager (compiled: tests/torch_frontend/ptq), JAX op by op and under jit."""
    config, x, held = CONFIGS[name], rows(), made(name)
    given = core.choose_qparams(config.act_quant, x), core.choose_qparams(config.weight, weight())
    want = core.linear(config.act_quant, x, given[0], config.weight, weight(), given[1], BIAS)
    assert_same_bits(want, jax.jit(linear)(x, held, BIAS))
    in_torch = torch_weights.quant_weight(config.weight, torch.from_numpy(weight()), None, config.act_quant)
    assert_same_bits(want, F.linear(torch.from_numpy(x), in_torch, torch.from_numpy(BIAS)))


@pytest.mark.thorough  # many small programs
def test_outputs_over_codes_op_by_op() -> None:
    held, x = made("int8dq"), rows(2)
    want = jax.jit(linear)(x, held, BIAS)
    with jax.disable_jit():
        assert_same_bits(want, linear(x, held, BIAS))


@pytest.mark.parametrize("name", ["int8wo", "int4wo float", "8da4w", "nvfp4"])
def test_outputs_over_values_are_within_the_bound(name: str) -> None:
    config, x, held = CONFIGS[name], rows(), made(name)
    x_hat = x
    if config.act_quant is not None:
        x_hat = core.fake_quantize(config.act_quant, x, core.choose_qparams(config.act_quant, x))
    w_hat = core.fake_quantize(config.weight, weight(), core.choose_qparams(config.weight, weight()))
    exact = x_hat.astype(np.float64) @ w_hat.astype(np.float64).T + BIAS
    bound = np.asarray(contraction_bound(*map(jnp.asarray, (x_hat, w_hat, BIAS)))) + 2.0**-23 * np.abs(exact)
    assert (np.abs(np.asarray(jax.jit(linear)(x, held, BIAS)) - exact) <= bound).all()


def test_products_from_both_sides() -> None:
    held, x = made("int8dq"), jnp.asarray(rows())
    y = linear(x, held)
    assert (held.shape, held.T.shape, held.ndim, held.size, held.dtype) == ((24, 64), (64, 24), 2, 1536, np.float32)
    for other in (x @ held.T, rows() @ held.T, (held @ x.T).T, jax.vmap(lambda row: row @ held.T)(x)):
        assert_same_bits(y, other)
    assert_same_bits(y[3], x[3] @ held.T)
    assert_same_bits(y[3], held @ x[3])
    values = held.dequantize()
    close = jnp.abs(x[:, :24] @ held - x[:, :24] @ values).max()
    assert close < 1e-4, "along out: floats, in another order"
    assert_same_bits(values.T, held.T.dequantize())
    assert_same_bits(values, np.asarray(held))
    for index in (slice(2, 5), np.array([3, 0, 3])):
        assert isinstance(held[index], QArray)
        assert_same_bits(values[index], held[index].dequantize())
    assert held[...] is held
    assert_same_bits(values[3], held[3])
    assert_same_bits(values[:, 2:4], held[:, 2:4])
    assert_same_bits(values.astype(jnp.bfloat16), held.astype(jnp.bfloat16).dequantize())
    by_group = made("int4wo integer")
    assert_same_bits(by_group.dequantize()[2:5], by_group[2:5].dequantize())
    assert "QArray((24, 64), float32, int8 per axis 0, plain, activations int8 per token)" in repr(held)


@pytest.mark.parametrize("name", ["int8dq", "int8wo"])
def test_a_pytree_under_transformations(name: str) -> None:
    held, x, g = made(name), jnp.asarray(rows()), jnp.linspace(-1, 1, 7 * 24).reshape(7, 24)
    again = jax.tree.map(lambda part: part, held)
    assert jax.tree.structure(again) == jax.tree.structure(held)
    dx, d_bias = jax.jit(jax.grad(lambda x, b: (linear(x, held, b) * g).sum(), (0, 1)))(x, jnp.asarray(BIAS))
    in_torch = torch_weights.quant_weight(
        CONFIGS[name].weight, torch.from_numpy(weight()), None, CONFIGS[name].act_quant
    )
    t = torch.from_numpy(rows()).requires_grad_()
    F.linear(t, in_torch).backward(torch.from_numpy(np.array(g)))
    assert t.grad is not None
    assert np.allclose(dx, t.grad, rtol=1e-5, atol=1e-5), "sums in another order"
    assert np.allclose(d_bias, g.sum(0), atol=1e-5)
    _, t_y = jax.jvp(lambda x: linear(x, held), (x,), (jnp.ones_like(x),))
    assert np.isclose((t_y * g).sum(), dx.sum(), rtol=1e-4)


def test_what_is_refused() -> None:
    held, x = made("int8dq"), jnp.asarray(rows())
    q, codes, qparams = held.quantizer, held.codes, held.qparams
    calls = [
        (lambda: linear(x.astype(jnp.bfloat16), held), TypeError, "dtype of the weight, float32, got bfloat16"),
        (lambda: linear(x[:, :60], held), ValueError, r"fit a weight of shape \(24, 64\), got shape \(7, 60\)"),
        (lambda: linear(x * jnp.nan, held), ValueError, "finite"),
        (lambda: made("int8wo") @ jnp.ones((2, 3, 4)), ValueError, "one or two axes"),
        (lambda: array_of_codes(q, codes.astype(np.int32), qparams, np.float32), TypeError, "dtype int8, got int32"),
        (lambda: array_of_codes(q, codes[:3], qparams, np.float32), ValueError, "`qparams.scale` must have shape"),
        (lambda: array_of_codes(q, codes, qparams, np.int8), TypeError, "`dtype` must have dtype float32"),
        (lambda: array_of_codes(q, codes, qparams, np.float32, None, "tiled"), ValueError, "`layout`"),
        (lambda: array_of_codes(q, codes, qparams, np.float32, "int8_per_token"), TypeError, "`act_quant`"),
        (
            lambda: array_of_codes(of.intx_weight_only(4).weight, codes, qparams, np.float32),
            ValueError,
            r"must lie in \[-8, 7\]",
        ),
        (lambda: held.astype(np.int8), TypeError, "`dtype` must have dtype float32"),
    ]
    for call, error, words in calls:
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize(("bits", "dtype"), [(1, "int8"), (3, "uint8"), (4, "int8"), (6, "int8"), (8, "uint8")])
def test_packed_bytes_are_those_of_core(bits: int, dtype: str) -> None:
    lo = -(2 ** (bits - 1)) if dtype == "int8" else 0
    for shape in ((255,), (5, 0), (2, 3, 13)):
        codes = np.resize(np.arange(lo, lo + 2**bits), shape).astype(dtype)
        packed = pack(codes, bits)
        assert_same_bits(by_definition.pack(codes, bits), packed)
        assert_same_bits(codes, unpack(packed, bits, shape[-1], dtype == "int8"))
    with pytest.raises(ValueError, match="`packed` must have 1 bytes"):
        unpack(np.zeros(2, np.uint8), bits, 1, signed=True)
    if bits < 7:
        with pytest.raises(ValueError, match=f"`codes` must fit {bits} bits, got codes from 100 to 100"):
            pack(np.array([100], np.uint8), bits)
