"""Published algorithms of `examples/prototypes` beside implementations of theirs in other libraries.

Where a library computes the same real numbers in other operations, inputs are such that these are exact.
"""

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor
from torchao.prototype.quantized_training.bitnet import get_bitnet_scale, quantize_bitnet_weight
from torchao.prototype.quantized_training.int8 import quantize_int8_rowwise

from samebits.core.prototypes import vjp
from samebits.proofs import assert_same_bits
from tests.project.source import ROOT

X = (np.random.default_rng(0).integers(-127, 128, size=(8, 64)) / 64).astype(np.float32)
X[:, 5] = 127 / 64
G = (np.random.default_rng(1).integers(-64, 64, size=(8, 64)) / 64).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    folder = str(ROOT / "examples" / "prototypes")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


def found(file: str, name: str | None = None) -> Any:
    return getattr(importlib.import_module(file), name or file)


def test_ternary_weights_of_torchao() -> None:
    """Its floor of the scale is the larger of two, that of the paper a sum: here both are without."""
    x = torch.from_numpy(X)
    scale = get_bitnet_scale(x)
    codes = quantize_bitnet_weight(x, scale, eps=1e-30)
    assert_same_bits(codes.float() * scale, found("bitnet", "ternary").numpy(X, epsilon=0.0) + np.float32(0))


def test_activations_per_token_of_torchao() -> None:
    """It multiplies by 1 / (absmax / 127): with 127 / 64 that is 64."""
    codes, scale = quantize_int8_rowwise(torch.from_numpy(X), eps=1e-5)
    assert_same_bits(codes.float() * scale[:, None], found("bitnet", "per_token").numpy(X))


def test_learned_scales_of_torch() -> None:
    """LSQ is LSQ+ with the offset ``-zero_point * s``; torch multiplies by 1 / s, and adds after rounding.

    So s is a power of two, and the zero point even; its zeros have the sign of the gradient.
    """
    s, zero_point = np.float32(0.25), 4
    x, scale, zero = torch.from_numpy(X).requires_grad_(), torch.tensor([0.25]), torch.tensor([float(zero_point)])
    y = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, 0, 15, 1.0)
    given = {"s": s, "beta": -zero_point * s}
    one = found("lsq_plus")
    assert_same_bits(y.detach(), one.numpy(X, **given))
    y.backward(torch.from_numpy(G))
    v = X / s + zero_point
    decided = ((v >= 0) & (v <= 15)) | (v < -0.5) | (v > 15.5)  # torch clips what is rounded, LSQ+ what is not yet
    of_x = vjp(one, X, G, **given)["x"]
    assert decided.sum() > 400
    assert_same_bits(np.where(decided, x.grad, 0) + np.float32(0), np.where(decided, of_x, np.float32(0)))


def test_clipping_of_pact_is_that_of_torch() -> None:
    """The paper's own identity of absolute values, differentiated by torch; with so many levels nothing is rounded."""
    one, x, alpha = found("pact"), torch.from_numpy(X).requires_grad_(), torch.tensor(1.0, requires_grad=True)
    y = (x.abs() - (x - alpha).abs() + alpha) / 2
    np.testing.assert_allclose(y.detach(), one.numpy(X, alpha=1.0, bits=23), atol=2**-22)
    y.backward(torch.from_numpy(G))
    ours, elsewhere = vjp(one, X, G, alpha=1.0), (X != 0) & (X != 1)
    assert_same_bits(np.where(elsewhere, x.grad, 0), np.where(elsewhere, ours["x"], np.float32(0)))


def test_blocks_of_nvfp4_that_fill_six_of_torchao() -> None:
    """Blocks of which the larger range is the better one are those of NVFP4 with the same scale of the tensor."""
    x = X * np.exp2(np.arange(8) - 4)[:, None].astype(np.float32)
    alpha = np.abs(x).max() / np.float32(6 * 256)
    theirs = NVFP4Tensor.to_nvfp4(torch.from_numpy(x), per_tensor_scale=torch.tensor(alpha)).dequantize(torch.float32)
    ours, other = (a.reshape(-1, 16) for a in (found("four_over_six").numpy(x), theirs.numpy()))
    blocks = x.reshape(-1, 16).astype(np.float64)
    errors = [((a - blocks) ** 2).sum(1) for a in (ours, other)]
    same = (ours == other).all(1)
    assert same.sum() > 4
    assert (errors[0][~same] < errors[1][~same]).all()
