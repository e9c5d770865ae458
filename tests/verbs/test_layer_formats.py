"""Linear layers over operands of any two formats, in both frontends: codes where there are integers, else floats."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import PerAxis, PerTensor, QParams, Quantizer, catalog
from samebits.core.contraction import contracts_codes
from samebits.core.matmul import contraction_bound
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch

Array = NDArray[Any]
NAMES = (
    "int8_per_tensor",
    "uint8_affine_per_tensor",
    "binary_per_tensor",
    "ternary_per_tensor",
    "float8_e4m3fn_per_tensor",
    "float4_e2m1_per_tensor",
    "nf4_per_group64",
)
PAIRS = [(first, second) for first in NAMES for second in NAMES]


def operands(first: str, second: str) -> tuple[Quantizer, Array, QParams, Quantizer, Array, QParams, Array]:
    """Quantizers of an input per tensor and a weight per channel, with arrays, parameters and a bias."""
    random = np.random.default_rng(0)
    q_x = catalog[first].replace(granularity=PerTensor())
    q_w = catalog[second].replace(granularity=PerAxis(0))
    x, w = (random.standard_normal(shape).astype(np.float32) for shape in ((5, 48), (7, 48)))
    bias = random.standard_normal(7).astype(np.float32)
    return q_x, x, core.choose_qparams(q_x, x), q_w, w, core.choose_qparams(q_w, w), bias


def run(room: Any, convert: Any, arguments: tuple[Any, ...]) -> Array:
    """The layer of a frontend, on its own arrays."""
    q_x, x, x_qparams, q_w, w, w_qparams, bias = arguments
    x_own, w_own = (
        QParams(*(None if p is None else convert(p) for p in qparams)) for qparams in (x_qparams, w_qparams)
    )
    return to_numpy(room.linear(q_x, convert(x), x_own, q_w, convert(w), w_own, convert(bias)))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_linear_over_two_formats(first: str, second: str) -> None:
    """Bits of the specification where codes are contracted, else within the bound of a sum of floats."""
    arguments = operands(first, second)
    q_x, x, x_qparams, q_w, w, w_qparams, bias = arguments
    expected = core.linear(*arguments)
    for room, convert in ((torch_frontend, to_torch), (jax_backend, to_jax)):
        got = run(room, convert, arguments)
        if contracts_codes(q_x, q_w, per_token=True):
            assert_same_bits(expected, got, call=room.__name__)
            continue
        x_hat, w_hat = core.fake_quantize(q_x, x, x_qparams), core.fake_quantize(q_w, w, w_qparams)
        exact = x_hat.astype(np.float64) @ w_hat.astype(np.float64).T + bias
        assert (np.abs(got - exact) <= contraction_bound(x_hat, w_hat, bias)).all()
        assert got.dtype == np.float32


def test_which_pairs_contract_codes() -> None:
    integers = set(NAMES[:4])
    for first, second in PAIRS:
        q_x, _, _, q_w, *_ = operands(first, second)
        assert contracts_codes(q_x, q_w, per_token=True) == ({first, second} <= integers)


@pytest.mark.parametrize(
    "pair", [("binary_per_tensor", "ternary_per_tensor"), ("int8_per_tensor", "float4_e2m1_per_tensor")]
)
def test_compiled_layers(pair: tuple[str, str]) -> None:
    """The bits of the specification compiled, or those of the bound."""
    q_x, x, x_qparams, q_w, w, w_qparams, bias = operands(*pair)
    expected = core.linear(q_x, x, x_qparams, q_w, w, w_qparams, bias)
    s_x, s_w = to_torch(np.asarray(x_qparams.scale)), to_torch(w_qparams.scale)

    @torch.compile(fullgraph=True)
    def in_torch(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch_frontend.linear(q_x, x, QParams(s_x), q_w, w, QParams(s_w), bias)

    @jax.jit
    def in_jax(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
        return jax_backend.linear(q_x, x, QParams(x_qparams.scale), q_w, w, QParams(w_qparams.scale), bias)

    results = (in_torch(*map(to_torch, (x, w, bias))), in_jax(*map(to_jax, (x, w, bias))))
    for got in map(to_numpy, results):
        if contracts_codes(q_x, q_w, per_token=True):
            assert_same_bits(expected, got)
        else:
            x_hat, w_hat = core.fake_quantize(q_x, x, x_qparams), core.fake_quantize(q_w, w, w_qparams)
            exact = x_hat.astype(np.float64) @ w_hat.astype(np.float64).T + bias
            assert (np.abs(got - exact) <= contraction_bound(x_hat, w_hat, bias)).all()


def test_jax_layers_contract_codes_or_floats() -> None:
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((32, 96)).astype(np.float32), rng.standard_normal((48, 96)).astype(np.float32)
    bias = rng.standard_normal(48).astype(np.float32)
    for q_x, q_w in (("int8_per_token", "binary_per_channel"), ("ternary_per_tensor", "ternary_per_channel")):
        args = (
            catalog[q_x],
            x,
            core.choose_qparams(catalog[q_x], x),
            catalog[q_w],
            w,
            core.choose_qparams(catalog[q_w], w),
        )
        got = jax.jit(lambda bias, args=args: jax_backend.linear(*args, bias))(bias)
        assert_same_bits(core.linear(*args, bias), to_numpy(got))
    for q_x, q_w in (
        ("float8_e4m3fn_per_token", "float8_e4m3fn_per_channel"),
        ("int8_per_tensor", "float4_e2m1_per_tensor"),
    ):
        q_x, q_w = catalog[q_x], catalog[q_w]
        x_qparams, w_qparams = core.choose_qparams(q_x, x), core.choose_qparams(q_w, w)
        x_hat, w_hat = core.fake_quantize(q_x, x, x_qparams), core.fake_quantize(q_w, w, w_qparams)
        exact = x_hat.astype(np.float64) @ w_hat.astype(np.float64).T + bias
        got = to_numpy(jax_backend.linear(q_x, x, x_qparams, q_w, w, w_qparams, bias))
        assert (np.abs(got - exact) <= contraction_bound(x_hat, w_hat, bias)).all()
        gradient = jax.grad(lambda x: jax_backend.linear(q_x, x, x_qparams, q_w, w, w_qparams).sum())(to_jax(x))  # noqa: B023
        assert np.isfinite(to_numpy(gradient)).all()
