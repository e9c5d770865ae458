"""Weights that cannot overflow an accumulator (A2Q) and truncation: laws, the same bits in all rooms, Brevitas."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.function_wrapper import CeilSte, FloorSte, Identity, RoundSte, RoundToZeroSte
from brevitas.core.quant import TruncIntQuant
from brevitas.core.quant.int_base import DecoupledIntQuant
from brevitas.core.scaling.pre_scaling import get_upper_bound_on_l1_norm
from numpy.typing import NDArray

from samebits import core
from samebits.core import IntegerFormat, QParams, accumulator, catalog
from samebits.core.contraction import largest_norm
from samebits.jax_backend import accumulator as in_jax
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.torch_frontend import accumulator as in_torch

A2Q = catalog["int8_narrow_per_channel"].replace(rounding="toward_zero")


def weights() -> NDArray[Any]:
    """Random channels, large and small ones, equal elements (where every quotient is whole), one element, nothing."""
    w = np.random.default_rng(0).standard_normal((12, 72)).astype(np.float32)
    w[1] *= np.float32(2.0**40)
    w[2] *= np.float32(2.0**-60)
    w[3], w[4], w[5], w[6] = 0.1, 1, 1 / 3, 0
    w[7, 1:] = 0
    w[8] = np.resize([1e-3, -7], 72)
    w[9, ::2] = 2.0**-140
    return w


@pytest.mark.parametrize("bound", [15.9375, 16.0, 127.9, 72.0, 1000.0, 0.5])
def test_no_channel_exceeds_the_bound(bound: float) -> None:
    w = weights()
    plain = core.choose_qparams(A2Q, w).scale
    scale = accumulator.accumulator_scale(w, plain, bound)
    codes = core.quantize(A2Q, w, QParams(scale)).astype(np.int64)
    assert (np.abs(codes).sum(1) <= bound).all()
    assert (scale >= plain).all()
    if bound == 16.0:
        assert np.abs(codes).sum(1).max() > 4  # and it is used
    assert_same_bits(scale, in_torch.accumulator_scale(to_torch(w), to_torch(plain), bound))
    assert_same_bits(scale, in_jax.accumulator_scale(to_jax(w), to_jax(plain), bound))
    jitted = jax.jit(in_jax.accumulator_scale, static_argnums=2)
    assert_same_bits(scale, jitted(to_jax(w), to_jax(plain), bound))


def test_numbers_count_from_2_to_the_minus_100_on() -> None:
    """Elements below it are zero, and so is the mean of a channel that is; the expected values are exact."""
    t = np.float32(2.0**-100)
    below = np.nextafter(t, np.float32(0))
    w, scale = np.array([[t] * 4, [below] * 4], np.float32), np.full((2, 1), 2.0**-80, np.float32)
    norms = np.array([[2.0**-98 * 2.0**30 * (1 + 2.0**-19)], [2.0**-80]], np.float32)
    pairs = np.array([[t, -t], [below, -below], [2 * t, 0], [t, 0]], np.float32)
    without_mean = np.array([[t, -t], [0, 0], [t, -t], [t, 0]], np.float32)
    for room, to in ((accumulator, np.asarray), (in_torch, to_torch), (in_jax, to_jax)):
        assert_same_bits(norms, room.accumulator_scale(to(w), to(scale), 2.0**-30))
        centred = room.accumulator_scale(to(w), to(scale), 2.0**-30, True)
        assert_same_bits(np.maximum(2 * norms, scale) * np.array([[1], [0.5]], np.float32), centred)
        assert_same_bits(without_mean, room.centred_channels(to(pairs)) + 0)  # no sign of zero is promised


def test_no_sum_of_products_overflows() -> None:
    """The worst inputs there are: the largest wherever a weight is positive, the smallest wherever it is negative."""
    w = weights()
    for bits, signed in ((8, False), (8, True), (4, False)):
        for accumulator_bits in (14, 16):
            bound = largest_norm(accumulator_bits, bits, input_signed=signed)
            scale = accumulator.accumulator_scale(w, core.choose_qparams(A2Q, w).scale, bound)
            codes = core.quantize(A2Q, w, QParams(scale)).astype(np.int64)
            form = IntegerFormat(bits, signed)
            worst = np.where(codes > 0, form.hi, form.lo), np.where(codes > 0, form.lo, form.hi)
            for x in worst:
                assert np.abs((codes * x).sum(1)).max() <= 2 ** (accumulator_bits - 1) - 1


@pytest.mark.parametrize("signed", [False, True])
def test_bound_is_that_of_brevitas_oracle(signed: bool) -> None:
    for p in (9, 12, 16, 24):
        theirs = get_upper_bound_on_l1_norm(torch.tensor(float(p)), torch.tensor(8.0), signed)
        assert largest_norm(p, 8, input_signed=signed) == theirs.item()
    assert largest_norm(12, 8, input_signed=False, centred=True) == (2**12 - 2) / 255


DIRECTIONS = {"ties_to_even": RoundSte, "toward_negative": FloorSte, "toward_positive": CeilSte}


@pytest.mark.parametrize("rounding", DIRECTIONS)
@pytest.mark.parametrize("signed", [False, True])
def test_truncation_of_every_code_oracle(rounding: str, signed: bool) -> None:
    source = IntegerFormat(8, signed)
    every = np.arange(source.lo, source.hi + 1).astype(source.storage)
    for bits in (1, 3, 4, 7, 8):
        target = IntegerFormat(bits, signed)
        want = accumulator.truncate(every, source, target, rounding)
        theirs = TruncIntQuant(DIRECTIONS[rounding](), BitWidthConst(bits))
        values, scale, _, _ = theirs(
            torch.from_numpy(every.astype(np.float32)), torch.tensor(1.0), torch.tensor(0.0), torch.tensor(8.0), signed
        )
        assert scale.item() == 2 ** (8 - bits)
        assert_same_bits(want, (values / scale).numpy().astype(target.storage))
        assert_same_bits(want, in_torch.truncate(to_torch(every), source, target, rounding))
        assert_same_bits(want, in_jax.truncate(to_jax(every), source, target, rounding))


@pytest.mark.parametrize("rounding", ["ties_to_even", "toward_zero"])
def test_codes_and_values_scaled_apart_oracle(rounding: str) -> None:
    """A decoupled quantizer: codes by one scale, values by another."""
    w, q = weights(), A2Q.replace(rounding=rounding)
    scale = core.choose_qparams(q, w).scale
    pre_scale, zero = accumulator.accumulator_scale(w, scale, 64), torch.tensor(0.0)
    codes = core.quantize(q, w, QParams(pre_scale))
    direction = RoundSte() if rounding == "ties_to_even" else RoundToZeroSte()
    theirs = DecoupledIntQuant(True, True, Identity(), direction)
    got = theirs(to_torch(pre_scale), zero, to_torch(scale), zero, torch.tensor(8.0), to_torch(w))
    assert_same_bits(core.dequantize(q, codes, QParams(scale)), got + 0.0)


@pytest.mark.parametrize("room", [accumulator, in_torch, in_jax], ids=["core", "torch", "jax"])
def test_wrong_arguments_are_named(room: Any) -> None:
    make = {accumulator: np.asarray, in_torch: to_torch, in_jax: to_jax}[room]
    w, codes, int8 = make(np.ones((1, 2), np.float16)), make(np.ones(2, np.int8)), IntegerFormat(8)
    with pytest.raises(TypeError, match="`w` must have dtype float32, got float16"):
        room.accumulator_scale(w, w, 1.0)
    with pytest.raises(ValueError, match="`bound` must be positive, got 0"):
        room.accumulator_scale(make(np.ones((1, 2), np.float32)), w, 0)
    with pytest.raises(ValueError, match="`target` must have the signs of `source`"):
        room.truncate(codes, int8, IntegerFormat(9))
    with pytest.raises(TypeError, match="must have dtype uint8, got int8"):
        room.truncate(codes, IntegerFormat(8, False), IntegerFormat(4, False))
    with pytest.raises(ValueError, match="`rounding` must look at nothing but the number, got 'stochastic'"):
        room.truncate(codes, int8, IntegerFormat(4), "stochastic")


@pytest.mark.parametrize("fault", ["no margin", "the largest element", "bound of all channels"])
def test_planted_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a margin, with another norm, with one norm for all: the law or the comparison fails."""
    if fault == "no margin":
        monkeypatch.setattr(in_torch, "MARGIN", 1.0)
    elif fault == "the largest element":
        monkeypatch.setattr(in_torch, "ordered_sum", lambda terms: terms.amax(-1))
    else:
        monkeypatch.setattr(in_torch, "ordered_sum", lambda terms: terms.sum().expand(len(terms)))
    with pytest.raises(AssertionError):
        test_no_channel_exceeds_the_bound(16.0)


def test_truncation_by_a_shift_that_wraps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_torch, "clamp", lambda x, lo, hi: x)
    with pytest.raises(AssertionError):
        test_truncation_of_every_code_oracle("toward_positive", signed=True)
