"""Learned scales, zero points and bit widths, and statistics learned later, beside torch and Brevitas."""

from typing import Any

import numpy as np
import pytest
import torch
from brevitas.core.bit_width import BitWidthParameter
from brevitas.core.function_wrapper import Identity, TensorClamp, TensorClampSte
from brevitas.core.quant import IntQuant
from brevitas.core.scaling import ParameterFromRuntimeStatsScaling
from brevitas.core.stats import AbsMax

from samebits import core
from samebits.core import IntegerFormat, QParams, Quantizer, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_torch
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer

UINT8 = catalog["uint8_affine_per_tensor"]


@pytest.mark.parametrize("zero", [0, 8, 254])
@pytest.mark.parametrize("gradient", ["clipped", "learned_scale"])
def test_oracle_of_learned_scale_and_zero_point(gradient: str, zero: int) -> None:
    """torch's learnable fake quantization, where its reciprocal is exact: powers of two. Sums of one term are equal.

    Its backward pass adds the zero point before it rounds, so that ties go elsewhere when that is odd; see below.
    """
    q = UINT8.replace(gradient=gradient)
    random = np.random.default_rng(0)
    data = (random.standard_normal(999) * 100).astype(np.float32)
    ties = np.float32(0.25) * np.array([0.5, 1.5, -0.5, 255.5, 256.5, 254.5, -255.5, -0.49, 1e6, -1e6], np.float32)
    for x in (np.concatenate([data, ties]), *ties[:, None]):
        g = random.standard_normal(x.shape).astype(np.float32)
        scale, z = torch.tensor([0.25], requires_grad=True), torch.tensor([float(zero)], requires_grad=True)
        leaf, factor = to_torch(x).requires_grad_(), 1.0
        if gradient == "learned_scale":
            factor = float(np.float32(1 / np.sqrt(x.size * 255)))
        y = torch._fake_quantize_learnable_per_tensor_affine(leaf, scale, z, 0, 255, factor)
        y.backward(to_torch(g))
        qparams = QParams(np.float32(0.25), np.int32(zero))
        assert_same_bits(core.fake_quantize(q, x, qparams) + np.float32(0), y.detach() + 0)
        d = core.fake_quantize_vjp(q, x, qparams, g)
        assert_same_bits(d.x + np.float32(0), leaf.grad + 0)
        assert scale.grad is not None
        assert z.grad is not None
        size = np.abs(g).sum() * factor
        np.testing.assert_allclose(scale.grad.item(), d.scale, rtol=1e-6, atol=1e-6 * size * 256 * (x.size > 1))
        np.testing.assert_allclose(z.grad.item(), d.zero_point, rtol=1e-6, atol=1e-6 * size * (x.size > 1))


def test_oracle_difference_at_ties_with_an_odd_zero_point() -> None:
    """torch rounds 0.5 to 0 and adds 255 forward, which is inside; backward it rounds 255.5 to 256, which is not."""
    x, scale, z = (torch.tensor([v], requires_grad=True) for v in (0.125, 0.25, 255.0))
    y = torch._fake_quantize_learnable_per_tensor_affine(x, scale, z, 0, 255, 1.0)
    y.backward(torch.ones(1))
    qparams, one = QParams(np.float32(0.25), np.int32(255)), np.ones(1, np.float32)
    assert_same_bits(core.fake_quantize(UINT8, x.detach().numpy(), qparams), y.detach())
    assert x.grad == 0
    assert core.fake_quantize_vjp(UINT8, x.detach().numpy(), qparams, one).x == 1


@pytest.mark.parametrize("momentum", [0.9, None])
def test_oracle_of_a_statistic_that_is_learned_later(momentum: float | None) -> None:
    """Brevitas divides the average of magnitudes; by 128, so that dividing first gives the same bits."""
    q = catalog["int8_per_tensor"].replace(
        denominator="lo", source="statistic_then_learned", steps=3, momentum=momentum, batch_in_training=True
    )
    mine = TensorQuantizer(q)
    theirs: Any = ParameterFromRuntimeStatsScaling(
        3, AbsMax(), scaling_stats_momentum=None if momentum is None else 0.1, scaling_min_val=1e-10
    )
    random = np.random.default_rng(0)
    for step in range(6):
        x = to_torch((random.standard_normal((4, 8)) * 10**step).astype(np.float32))
        for module in (mine, theirs):
            module.train()
        assert_same_bits(theirs(x, torch.tensor(128.0)).detach(), mine.qparams(x).scale.detach())
        for module in (mine, theirs):
            module.eval()
        assert_same_bits(theirs(x, torch.tensor(128.0)).detach(), mine.qparams(x).scale.detach())


@pytest.mark.parametrize("clamp", ["clipped", "pass_through"])
@pytest.mark.parametrize(("signed", "narrow"), [(True, False), (True, True), (False, False), (False, True)])
def test_oracle_of_a_learned_bit_width(signed: bool, narrow: bool, clamp: str) -> None:
    """Values, and gradients of x and of single elements, bit for bit; sums of many within their rounding.

    The scale is a power of two, since autograd of ``x / s * s`` multiplies and divides by it.
    """
    q = Quantizer(format=IntegerFormat(8, signed, narrow), gradient=clamp)
    theirs: Any = IntQuant(
        narrow, signed, Identity(), tensor_clamp_impl=(TensorClamp if clamp == "clipped" else TensorClampSte)()
    )
    random = np.random.default_rng(0)
    many = (random.standard_normal(500) * 30).astype(np.float32)
    for bits in (3, 6, 8):
        for x in (many, *np.array([[-100.0], [-9.9], [0.3], [1.0], [9.7], [500.0]], np.float32)):
            g = random.standard_normal(x.shape).astype(np.float32)
            learned: Any = BitWidthParameter(bits)
            leaf, scale = to_torch(x).requires_grad_(), torch.tensor(0.25, requires_grad=True)
            width = learned()
            assert width.item() == bits
            y = theirs(scale, torch.tensor(0.0), width, leaf)
            y.backward(to_torch(g))
            qparams = QParams(np.float32(0.25), bit_width=np.float32(bits))
            assert_same_bits(core.fake_quantize(q, x, qparams) + np.float32(0), y.detach() + 0)
            d = core.fake_quantize_vjp(q, x, qparams, g)
            assert_same_bits(d.x + np.float32(0), leaf.grad + 0)
            slope = learned.bit_width_offset.grad
            if clamp == "pass_through":
                assert d.bit_width == 0
                assert slope is None or slope == 0
            elif x.size == 1 and bits > 2:
                assert_same_bits(d.bit_width + np.float32(0), slope + 0)
            else:
                np.testing.assert_allclose(slope, d.bit_width, rtol=1e-4, atol=1e-4)
