"""Gradients against others: named straight-through rules, learned rounding, quantizers of Brevitas, torch and AQT."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from aqt.jax.v2.numerics.int_numerics import IntSymmetric
from brevitas.core.function_wrapper.learned_round import LearnedRoundHardSigmoid, LearnedRoundSigmoid
from brevitas.core.function_wrapper.ops_ste import ScalarSignedClampMinSte
from brevitas.function import ops, ops_ste
from numpy.typing import NDArray

from samebits import core
from samebits.core import LearnedRounding, PerTensor, QParams, Relaxation, catalog, learned_rounding, straight_through
from samebits.proofs.inputs.bits import neighbours
from samebits.proofs.inputs.compare import assert_same_bits, differences
from samebits.proofs.modes.arrays import to_numpy, to_torch

from ..core.test_grid import brevitas_float
from ..verbs.test_straight_through import data

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN is meant

Array = NDArray[Any]

# ours, theirs, and inputs for which theirs gives another zero
NAMED: dict[str, tuple[Callable[[Array], Array], Callable[[Any], Any]]] = {
    "round_ste": (straight_through.round_ste, ops_ste.round_ste),
    "ceil_ste": (lambda x: straight_through.round_ste(x, "toward_positive"), ops_ste.ceil_ste),
    "floor_ste": (lambda x: straight_through.round_ste(x, "toward_negative"), ops_ste.floor_ste),
    "round_to_zero_ste": (lambda x: straight_through.round_ste(x, "toward_zero"), ops_ste.round_to_zero_ste),
    "dpu_round_ste": (lambda x: straight_through.round_ste(x, "dpu"), ops_ste.dpu_round_ste),
    "binary_sign_ste": (straight_through.binary_sign_ste, ops_ste.binary_sign_ste),
    "ternary_sign_ste": (straight_through.ternary_sign_ste, ops_ste.ternary_sign_ste),
    "scalar_clamp_ste": (
        lambda x: straight_through.scalar_clamp_ste(x, -1.3, 0.7),
        lambda x: ops_ste.scalar_clamp_ste(x, -1.3, 0.7),
    ),
    "scalar_clamp_min_ste": (
        lambda x: straight_through.scalar_clamp_min_ste(x, 0.7),
        lambda x: ops_ste.scalar_clamp_min_ste(x, 0.7),
    ),
    "signed_clamp_min_ste": (
        lambda x: straight_through.signed_clamp_min_ste(x, 1e-10),
        ScalarSignedClampMinSte(1e-10),
    ),
}
# Brevitas computes `sign(x) * floor(|x|)` and `-1 * x`: -0 becomes +0
OTHER_ZEROS = {"round_to_zero_ste": [-0.0]}


@pytest.mark.parametrize("name", NAMED)
def test_named_rules_of_brevitas_oracle(name: str) -> None:
    ours, theirs = NAMED[name]
    x, _, _, g = data("float32")
    leaf = to_torch(x).requires_grad_()
    value = theirs(leaf)
    got, known = to_numpy(value), np.isin(x, OTHER_ZEROS.get(name, [])) & np.signbit(x)
    assert_same_bits(ours(x)[~known], got[~known], call=name, inputs=x[~known])
    assert all(not differences(a, b).same for a, b in zip(ours(x)[known], got[known], strict=True))
    if name == "signed_clamp_min_ste":
        g = np.abs(np.nan_to_num(g))  # they multiply by signs twice, which makes 0 * -1 of zeros
    value.backward(to_torch(g))
    assert_same_bits(straight_through.pass_through_vjp(g), leaf.grad, call=name, inputs=x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_clamps_of_brevitas_oracle(dtype: str) -> None:
    x, lo, hi, g = data(dtype)
    leaves = [to_torch(v).requires_grad_() for v in (x, lo, hi)]
    value = ops.tensor_clamp(*leaves)
    value.backward(to_torch(g))
    assert_same_bits(straight_through.tensor_clamp(x, lo, hi), value)
    for want, leaf in zip(straight_through.tensor_clamp_vjp(x, lo, hi, g), leaves, strict=True):
        assert_same_bits(want, leaf.grad, inputs=x)
    leaf = to_torch(x).requires_grad_()
    value = ops_ste.tensor_clamp_ste(leaf, to_torch(lo), to_torch(hi))
    value.backward(to_torch(g))
    assert_same_bits(straight_through.tensor_clamp_ste(x, lo, hi), value)
    assert_same_bits(g, leaf.grad)


def test_magnitude_of_brevitas_oracle() -> None:
    x, _, _, g = data("float32")
    leaf = to_torch(x).requires_grad_()
    value = ops_ste.abs_binary_sign_grad(leaf)
    value.backward(to_torch(g))
    assert_same_bits(straight_through.abs_binary_sign_grad(x), value)
    assert_same_bits(straight_through.abs_binary_sign_grad_vjp(x, g), leaf.grad, inputs=x)


def test_where_lo_is_above_hi_torch_lets_hi_win_oracle() -> None:
    x, lo, hi = (np.array([v], np.float32) for v in (0, 1, -1))
    assert straight_through.tensor_clamp(x, lo, hi) == 1
    assert torch.clamp(to_torch(x), to_torch(lo), to_torch(hi)).item() == -1


# --- learned rounding -------------------------------------------------------------------------------------------------

LEARNED = {
    "hard_sigmoid": (LearnedRounding(), LearnedRoundHardSigmoid()),
    "sigmoid": (LearnedRounding(relaxation=Relaxation.SIGMOID, temperature=0.5), LearnedRoundSigmoid(0.5)),
}


@pytest.mark.parametrize("name", LEARNED)
def test_learned_rounding_of_brevitas_oracle(name: str) -> None:
    """Hard: the same bits. Soft: their sigmoid is within 2**-23 of the exact one, ours within 2**-22, relative."""
    rule, theirs = LEARNED[name]
    v = np.concatenate([np.linspace(-9, 9, 5001), [0, -0.0, 1e-6, -1e-6]]).astype(np.float32)
    x = np.linspace(-5, 5, v.size, dtype=np.float32)
    theirs.eval()
    up = theirs.round_forward(to_torch(x), theirs(to_torch(v)))
    assert_same_bits(learned_rounding.rounding_offset(rule, v) + np.floor(x) + np.float32(0), up + 0.0, inputs=v)
    theirs.train()
    leaf = to_torch(v).requires_grad_()
    share = theirs(leaf)
    share.sum().backward()
    ours = learned_rounding.rounding_share(rule, v)
    assert np.abs(ours - to_numpy(share)).max() <= 2.0**-22 * (1.3 if name == "hard_sigmoid" else 1)
    slope, theirs_slope = learned_rounding.rounding_slope(rule, v), to_numpy(leaf.grad)
    beside_the_corner = np.abs(np.abs(v) - np.log(11)) < 1e-5  # where either may be beyond it
    assert (np.abs(slope - theirs_slope) <= 2.0**-20)[~beside_the_corner | (name == "sigmoid")].all()


# --- gradient rules of quantizers -------------------------------------------------------------------------------------


def test_clipped_quotient_is_the_clip_gradient_of_aqt_oracle() -> None:
    theirs = IntSymmetric(
        bits=8, preserve_zero=True, preserve_max_val=True, clip=True, clip_gradient=True, round=True, noise_fn=None
    )
    ends = np.array([126.5, 127, 127.4, 127.5, 128, 0, 1e30], np.float32)
    x = neighbours(np.concatenate([ends, -ends]), 2)
    g = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    want, _ = theirs.vjp_bwd((jnp.asarray(x),), jnp.asarray(g))
    q = catalog["int8_narrow_per_channel"].replace(gradient="clipped_quotient", granularity=PerTensor())
    got = core.fake_quantize_vjp(q, x, QParams(np.float32(1)), g)
    assert_same_bits(np.asarray(want) + 0.0, got.x, inputs=x)  # they multiply by 0, which makes -0


def test_learned_scale_is_the_learnable_operator_of_torch_oracle() -> None:
    """Elementwise the same; sums differ in rounding: their terms are (x_hat - x) / s where ours are code - x / s."""
    rng = np.random.default_rng(0)
    q = catalog["uint8_affine_per_tensor"]
    x, g = rng.standard_normal((2, 512)).astype(np.float32)
    scale, zero = np.float32(0.015), np.int32(128)
    leaves = [to_torch(np.asarray(v)).requires_grad_() for v in (x, np.full(1, scale), np.full(1, zero, np.float32))]
    y = torch._fake_quantize_learnable_per_tensor_affine(*leaves, 0, 255, 1.0)
    y.backward(to_torch(g))
    d = core.fake_quantize_vjp(q, x, QParams(scale, zero), g)
    assert leaves[0].grad is not None
    assert_same_bits(d.x, leaves[0].grad + 0.0, inputs=x)  # they multiply by 0, which makes -0
    for ours, leaf in zip((d.scale, d.zero_point), leaves[1:], strict=True):
        assert leaf.grad is not None
        assert abs(float(ours) - leaf.grad.item()) <= 512 * 2.0**-22 * np.abs(g).sum() * (
            1 if ours is d.scale else scale
        )
    factor = 1 / np.sqrt(512 * 255)
    learned = core.fake_quantize_vjp(q.replace(gradient="learned_scale"), x, QParams(scale, zero), g)
    assert abs(learned.scale - d.scale * factor) <= 2.0**-22 * abs(learned.scale)


def test_floats_of_brevitas_have_another_gradient_oracle() -> None:
    """A known difference: theirs is y / x, since their exponent is a function of x, ours 1 inside, as for integers.

    They agree among the subnormal numbers, beyond the largest, and on the grid.
    """
    q, one = catalog["float8_e4m3fn_per_tensor"], QParams(np.float32(1))
    x = np.array([0.3, 1.1, -2.7, 100, 2.0**-8, 1.1 * 2.0**-8, 0, 480, 1000, 1.5], np.float32)
    leaf = to_torch(x).requires_grad_()
    y = brevitas_float(q.format, 1.0)(leaf)[0]
    y.sum().backward()
    assert_same_bits(core.fake_quantize(q, x, one), y)
    ours, theirs = core.fake_quantize_vjp(q, x, one, np.ones_like(x)).x, to_numpy(leaf.grad)
    assert ours.tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0, 1]
    assert np.allclose(theirs[:4], to_numpy(y)[:4] / x[:4], rtol=1e-5)
    assert (np.abs(theirs[:4] - 1) > 1e-3).all()
    assert theirs[4:].tolist() == ours[4:].tolist()
