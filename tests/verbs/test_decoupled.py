"""Codes by one scale, values by another: A2Q and A2Q+ from a weight in one call, weight normalization; beside Brevitas.

Expected values: exact sums of the worst inputs, fractions, and the codes of Brevitas' layers.
"""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from brevitas import nn as brevitas_nn
from brevitas.quant.scaled_int import (
    Int8AccumulatorAwareWeightQuant,
    Int8AccumulatorAwareZeroCenterWeightQuant,
    Int8WeightNormL2PerChannelFixedPoint,
    Uint8ActPerTensorFloat,
)
from numpy.typing import NDArray

from samebits import core
from samebits.core import IntegerFormat, QParams, Quantizer, accumulator, catalog
from samebits.jax_backend import accumulator as in_jax
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.torch_frontend import accumulator as in_torch

from .test_accumulator import A2Q, weights

Array = NDArray[Any]
NORMAL = catalog["int8_narrow_per_channel"]


def shifted() -> Array:
    """Weights with a mean, tiny and subnormal ones among them, and a channel of a single sign."""
    w = weights()
    w[0] += np.float32(0.7)
    w[10] = np.abs(w[10])
    w[11] *= np.float32(2.0**-99)
    return w


@pytest.mark.parametrize("centred", [False, True])
def test_codes_of_an_accumulator_are_the_same_everywhere_and_fit(centred: bool) -> None:
    """The worst inputs there are: the largest wherever a code is positive, zero elsewhere, and the other way round."""
    w = shifted()
    scale = core.choose_qparams(A2Q, w).scale
    for accumulator_bits, input_bits in ((12, 4), (14, 8), (16, 8)):
        bits = accumulator_bits, input_bits, False, centred
        codes, pre_scale = accumulator.accumulator_codes(A2Q, w, scale, *bits)
        whole = codes.astype(np.int64)
        for side in (whole.clip(min=0), whole.clip(max=0)):
            assert np.abs(side.sum(1)).max() * (2**input_bits - 1) <= 2 ** (accumulator_bits - 1) - 1
        assert (pre_scale >= scale).all()
        for got in (
            in_torch.accumulator_codes(A2Q, to_torch(w), to_torch(scale), *bits),
            in_jax.accumulator_codes(A2Q, to_jax(w), to_jax(scale), *bits),
        ):
            assert_same_bits((codes, pre_scale), got)
    jitted = jax.jit(in_jax.accumulator_codes, static_argnums=(0, 3, 4, 5, 6))
    assert_same_bits((codes, pre_scale), jitted(A2Q, to_jax(w), to_jax(scale), *bits))


def test_centred_codes_may_have_a_larger_norm() -> None:
    w = np.random.default_rng(3).standard_normal((4, 512)).astype(np.float32)
    scale = core.choose_qparams(A2Q, w).scale
    plain, centred = (accumulator.accumulator_codes(A2Q, w, scale, 16, 8, False, c)[0] for c in (False, True))
    norms = [np.abs(codes.astype(int)).sum(1) for codes in (plain, centred)]
    assert (norms[1] > 1.5 * norms[0]).all()
    assert (norms[0] <= (2**15 - 1) / 2**8).all()
    assert (norms[1] <= (2**16 - 2) / (2**8 - 1)).all()


def test_a_centred_channel_sums_to_its_rounding_errors() -> None:
    """Each difference is the rounded one, from the rounded mean; a mean of 0 leaves the weight."""
    w = shifted()
    got = accumulator.centred_channels(w)
    exact = w.astype(np.float64)
    mean = exact.mean(1, keepdims=True)
    assert (np.abs(got - (exact - mean)) <= 2.0**-20 * np.abs(exact).max(1, keepdims=True) + 2.0**-99).all()
    balanced = np.array([[1.5, -0.25, 0.1, -1.5, 0.25, -0.1]], np.float32)
    assert_same_bits(balanced, accumulator.centred_channels(balanced))
    assert_same_bits(got, in_torch.centred_channels(to_torch(w)))
    assert_same_bits(got, jax.jit(in_jax.centred_channels)(to_jax(w)))


def test_weight_norm_scales_are_the_same_everywhere() -> None:
    """And what they say: values have the norm g, whatever that of the weight is."""
    random, w = np.random.default_rng(5), shifted()
    scale = np.exp2(random.uniform(-9, -4, (len(w), 1))).astype(np.float32)
    g = random.uniform(0.5, 2, (len(w), 1)).astype(np.float32)
    g[4], scale[5] = 2.0**100, 2.0**-126
    w[7, 0], scale[7], g[7] = 0.3, 1.1 * 2.0**-126, 2.0**-20  # where the product is subnormal, but not the quotient
    got = accumulator.weight_norm_scale(w, scale, g)
    assert (got >= 2.0**-126).all()
    assert_same_bits(got, in_torch.weight_norm_scale(to_torch(w), to_torch(scale), to_torch(g)))
    assert_same_bits(got, jax.jit(in_jax.weight_norm_scale)(to_jax(w), to_jax(scale), to_jax(g)))
    norm = np.sqrt((w[:3].astype(np.float64) ** 2).sum(1, keepdims=True))
    np.testing.assert_allclose(got[:3], scale[:3] * norm / g[:3], rtol=2.0**-20)
    values = core.dequantize(NORMAL, core.quantize(NORMAL, w, QParams(got)), QParams(scale))
    np.testing.assert_allclose(np.sqrt((values[:3].astype(np.float64) ** 2).sum(1)), g[:3, 0], rtol=0.1)


@pytest.mark.parametrize("centred", [False, True])
def test_codes_of_brevitas_a2q_oracle(centred: bool) -> None:
    """The same codes, of 2,304. (Its norm is another sum, and with a mean its quotient is rounded once more: so a code
    may differ where the quotient is a rounding from a whole number. Among these there is none.)
    """
    w = np.random.default_rng(0).standard_normal((32, 72)).astype(np.float32) + np.float32(0.3)
    kind = Int8AccumulatorAwareZeroCenterWeightQuant if centred else Int8AccumulatorAwareWeightQuant
    layer = brevitas_nn.QuantLinear(
        72, 32, bias=False, weight_quant=kind, weight_accumulator_bit_width=14, input_quant=Uint8ActPerTensorFloat
    )
    layer.weight.data = torch.from_numpy(w.copy())
    layer.weight_quant.init_tensor_quant()
    layer.eval()
    theirs = layer.quant_weight(layer.input_quant(torch.rand(4, 72)))
    scale = theirs.scale.detach().numpy().reshape(-1, 1)
    codes, _ = accumulator.accumulator_codes(A2Q, w, scale, 14, 8, False, centred)
    assert_same_bits(theirs.int().numpy(), codes)
    assert np.abs(codes).max() > 1
    assert_same_bits(theirs.value.detach().numpy() + np.float32(0), core.dequantize(A2Q, codes, QParams(scale)))


def test_codes_of_brevitas_weight_norm_oracle() -> None:
    """The same codes, from its scale (a power of two of what it keeps) and its g, of 2,304; its norm is another sum."""
    w = np.random.default_rng(1).standard_normal((32, 72)).astype(np.float32)
    layer = brevitas_nn.QuantLinear(72, 32, bias=False, weight_quant=Int8WeightNormL2PerChannelFixedPoint)
    layer.weight.data = torch.from_numpy(w.copy())
    layer.weight_quant.init_tensor_quant()
    layer.eval()
    g = layer.weight_quant.tensor_quant.pre_scaling_impl.value
    with torch.no_grad():
        g *= torch.from_numpy(np.random.default_rng(2).uniform(0.3, 1.5, g.shape).astype(np.float32))
    theirs = layer.quant_weight()
    scale = theirs.scale.detach().numpy().reshape(-1, 1)
    pre_scale = accumulator.weight_norm_scale(w, scale, g.detach().numpy())
    codes = core.quantize(NORMAL, w, QParams(pre_scale))
    assert_same_bits(theirs.int().numpy(), codes)
    assert len(np.unique(codes)) > 100


@pytest.mark.parametrize(
    ("message", "q", "signed"),
    [
        ("`q` must be symmetric, of signed integers, rounded toward zero, per axis 0", NORMAL, False),
        ("`q` must be symmetric", A2Q.replace(granularity=catalog["int8_per_tensor"].granularity), False),
        ("`q` must be symmetric", A2Q.replace(format=IntegerFormat(8, signed=False)), False),
        ("`q` must be symmetric", A2Q.replace(zero_point="min_max"), False),
        ("`q` must be symmetric", A2Q.replace(statistic="signed_absmax"), False),
        ("`centred` must be False where the input is signed, got True", A2Q, True),
    ],
)
def test_what_cannot_promise_it_is_refused(message: str, q: Quantizer, signed: bool) -> None:
    w, scale = np.ones((2, 3), np.float32), np.ones((2, 1), np.float32)
    for room, to in ((accumulator, np.asarray), (in_torch, to_torch), (in_jax, to_jax)):
        with pytest.raises(ValueError, match=message):
            room.accumulator_codes(q, to(w), to(scale), 16, 8, signed, True)
        for function in (room.centred_channels, lambda v, r=room: r.weight_norm_scale(v, v, v)):
            with pytest.raises(TypeError, match="`w` must have dtype float32, got float16"):
                function(to(w.astype(np.float16)))
