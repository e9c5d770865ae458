"""torch_frontend beside core on one array, eager, bit for bit."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samebits import core, torch_frontend
from samebits.core import QParams, Quantizer
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import special_values
from samebits.proofs.modes.arrays import to_torch

Array = NDArray[Any]


def in_torch(qparams: QParams) -> QParams:
    """Parameters as tensors."""
    return QParams(*(None if p is None else to_torch(np.array(p)) for p in qparams[:2]))


def cotangent(x: Array) -> Array:
    """An incoming gradient with both zeros, infinities and NaN in it."""
    g = np.random.default_rng(1).standard_normal(x.size).astype(x.dtype)
    g[::9] = np.resize(special_values(x.dtype), g[::9].size)
    return g.reshape(x.shape)


def gradient(q: Quantizer, x: Tensor, qparams: QParams, g: Tensor) -> Tensor:
    """Gradient of x by autograd, parameters constant."""
    leaf = x.clone().requires_grad_()
    torch_frontend.fake_quantize(q, leaf, qparams).backward(g)
    assert leaf.grad is not None
    return leaf.grad


def assert_same_functions(q: Quantizer, x: Array, qparams: QParams) -> None:
    """Codes, values, fake quantization and the gradient of x against core, eager."""
    t, parameters, g = to_torch(x), in_torch(qparams), cotangent(x)
    number = x if q.format.has_nan else np.where(np.isnan(x), np.zeros_like(x), x)
    codes = core.quantize(q, number, qparams)
    dx = core.fake_quantize_vjp(q, x, qparams, g).x
    room = torch_frontend
    got = room.quantize(q, to_torch(number), parameters)
    assert_same_bits(codes, got, call=f"quantize({q})", inputs=number)
    got = room.dequantize(q, to_torch(codes), parameters, t.dtype)
    assert_same_bits(core.dequantize(q, codes, qparams, x.dtype), got, call=f"dequantize({q})", inputs=codes)
    got = room.fake_quantize(q, t, parameters)
    assert_same_bits(core.fake_quantize(q, x, qparams), got, call=f"fake_quantize({q})", inputs=x)
    got = gradient(q, t, parameters, to_torch(g))
    assert_same_bits(dx, got, call=f"gradient of x, {q}", inputs=x)
    got = room.fake_quantize_vjp(q, t, parameters, to_torch(g)).x
    assert_same_bits(dx, got, call=f"fake_quantize_vjp({q}).x", inputs=x)
