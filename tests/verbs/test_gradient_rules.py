"""Gradient rules that look at the quotient: clipping before rounding (AQT), the learned clip of PACT.

The same bits in all rooms and modes; the formulas by hand and over exact fractions. Others' libraries stand in
`oracles/test_gradients.py`.
"""

import math
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import QParams, Quantizer, catalog
from samebits.proofs.inputs.bits import neighbours
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import special_values
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch

from ..exact import DTYPES

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN is meant

Array = NDArray[Any]
UNSIGNED = catalog["int8_per_channel"].replace(signed=False, bits=4)
RULES: dict[str, Quantizer] = {
    "clipped quotient, int8": catalog["int8_narrow_per_channel"].replace(gradient="clipped_quotient"),
    "clipped quotient, uint4": UNSIGNED.replace(gradient="clipped_quotient"),
    "clipped quotient, e4m3": catalog["float8_e4m3fn_per_tensor"].replace(gradient="clipped_quotient"),
    "learned clip, uint4": UNSIGNED.replace(gradient="learned_clip"),
    "learned clip, uint8, down": UNSIGNED.replace(gradient="learned_clip", bits=8, rounding="toward_negative"),
}
SCALES = (0.1, 1.0, 2.0**-126, 3e30, 1 / 3, 2.0**-70, 1.9, 2.0**100)


def data(name: str, dtype: str) -> tuple[Array, QParams, Array]:
    """Both ends of the range and 0, where codes change around them, and special values, at several scales."""
    q, d = RULES[name], DTYPES[dtype]
    per_tensor = q.granularity == core.PerTensor()
    scale = np.array(SCALES[:1] if per_tensor else SCALES, np.float32)[:, None]
    ends = np.array([q.format.lo, q.format.hi], float)
    around = np.concatenate([ends + offset for offset in (-1, -0.5, -0.25, 0, 0.25, 0.5, 1)] + [[0, 1e-39, -1e-39]])
    rows = []
    for s in scale[:, 0].astype(float):
        few = (around * s).astype(d)
        rows.append(np.concatenate([neighbours(few[np.isfinite(few)], 2), special_values(d)]))
    x = np.stack([np.resize(row, 160) for row in rows])
    g = np.random.default_rng(0).standard_normal(x.shape).astype(d)
    return x, QParams(scale.reshape(()) if per_tensor else scale), g


def passes(q: Quantizer, x: float, s: float) -> bool:
    """The factor of x, over fractions: the quotient rounded to float32, and its comparison with the ends."""
    if math.isnan(x):
        return True
    u = float(np.float32(x) / np.float32(s))
    below = u < q.format.hi if q.gradient == "learned_clip" else u <= q.format.hi
    return q.format.lo <= u and below


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", RULES)
def test_gradient_of_x_in_every_eager_room(name: str, dtype: str) -> None:
    q, (x, qparams, g) = RULES[name], data(name, dtype)
    scales = np.broadcast_to(qparams.scale, x.shape)
    want = np.array(
        [v if passes(q, float(a), float(s)) else 0 for a, s, v in zip(x.flat, scales.flat, g.flat, strict=True)],
        g.dtype,
    ).reshape(x.shape)
    assert_same_bits(want, core.fake_quantize_vjp(q, x, qparams, g).x, inputs=x)
    leaf = to_torch(x).requires_grad_()
    given = QParams(to_torch(np.asarray(qparams.scale)))
    torch_frontend.fake_quantize(q, leaf, given).backward(to_torch(g))
    assert_same_bits(want, leaf.grad, inputs=x)
    assert_same_bits(want, torch_frontend.fake_quantize_vjp(q, to_torch(x), given, to_torch(g)).x)
    given = QParams(to_jax(np.asarray(qparams.scale)))
    pull = jax.vjp(lambda v: jax_backend.fake_quantize(q, v, given), to_jax(x))[1]
    assert_same_bits(want, pull(to_jax(g))[0], inputs=x)
    plain = q.replace(gradient="clipped")
    assert_same_bits(core.fake_quantize(plain, x, qparams), core.fake_quantize(q, x, qparams))


@pytest.mark.parametrize("name", ["clipped quotient, int8", "learned clip, uint4"])
def test_gradient_of_x_in_compiled_programs_and_op_by_op(name: str) -> None:
    q, (x, qparams, g) = RULES[name], data(name, "float32")
    want = core.fake_quantize_vjp(q, x, qparams, g).x
    if name.startswith("learned"):
        program = torch.compile(lambda x, s, g: torch_frontend.fake_quantize_vjp(q, x, QParams(s), g).x, fullgraph=True)
        assert_same_bits(want, program(to_torch(x), to_torch(np.asarray(qparams.scale)), to_torch(g)), inputs=x)
    with jax.disable_jit():
        got = jax_backend.fake_quantize_vjp(q, to_jax(x), QParams(to_jax(np.asarray(qparams.scale))), to_jax(g))
    assert_same_bits(want, got.x, inputs=x)


@pytest.mark.parametrize("name", RULES)
def test_gradient_of_the_scale_is_the_exact_sum(name: str) -> None:
    q, (x, qparams, g) = RULES[name], data(name, "float32")
    x, g = np.where(np.isfinite(x), x, np.float32(1)), np.round(g * 8)
    x, scale = x[:1], np.asarray(qparams.scale).reshape(-1)[:1]
    given = QParams(qparams.scale if qparams.scale.ndim == 0 else qparams.scale[:1])
    terms = []
    values = core.fake_quantize(q, x, given) / scale  # codes
    for u, code, v in zip((x / scale).flat, np.round(values * 8).flat, g[:1].flat, strict=True):
        inside = passes(q, float(u), 1.0)
        part = float(np.float32(float(code) / 8) - (u if inside else np.float32(0)))
        terms.append(0.0 if q.gradient == "learned_clip" and inside else float(np.float32(v) * np.float32(part)))
    if name.endswith("e4m3"):
        return
    want = np.float32(math.fsum(terms))
    got = core.fake_quantize_vjp(q, x, given, g[:1]).scale.item()
    assert got == want
    bound = len(terms) * 2.0**-23 * math.fsum(map(abs, terms))
    for room, make in ((torch_frontend, to_torch), (jax_backend, to_jax)):
        d = room.fake_quantize_vjp(q, make(x), QParams(make(np.asarray(given.scale))), make(g[:1]))
        assert abs(to_numpy(d.scale).item() - want) <= bound


def test_learned_clip_by_hand() -> None:
    """4 bits, s = 1/4, so alpha = 15/4: d alpha is the sum of g where x >= alpha."""
    q = UNSIGNED.replace(gradient="learned_clip")
    x = np.array([[-1, -0.01, 0, 1.1, 3.74, 3.75, 9]], np.float32)
    d = core.fake_quantize_vjp(q, x, QParams(np.full((1, 1), 0.25, np.float32)), np.array([[1, 2, 3, 4, 5, 6, 7]], "f"))
    assert d.x.tolist() == [[0, 0, 3, 4, 5, 0, 0]]
    assert d.scale.item() / 15 == 13


def test_clipped_quotient_by_hand() -> None:
    """127.4 rounds to 127 and is yet clipped: AQT clips before it rounds."""
    q = RULES["clipped quotient, int8"]
    x = np.array([[127, 127.4, -127, -127.4, 126.6]], np.float32)
    d = core.fake_quantize_vjp(q, x, QParams(np.ones((1, 1), np.float32)), np.ones_like(x))
    assert d.x.tolist() == [[1, 0, 1, 0, 1]]
    assert Fraction(d.scale.item()) == Fraction(127 - 127) + Fraction(float(np.float32(127) - np.float32(126.6)))


def test_wrong_descriptions_are_named() -> None:
    with pytest.raises(ValueError, match="`gradient` 'clipped_quotient' is for symmetric integers and floats"):
        catalog["uint8_affine_per_tensor"].replace(gradient="clipped_quotient")
    with pytest.raises(ValueError, match="`gradient` 'clipped_quotient' is for symmetric integers and floats"):
        catalog["binary_per_tensor"].replace(gradient="clipped_quotient")
    with pytest.raises(ValueError, match="`gradient` 'learned_clip' is for unsigned integers"):
        catalog["int8_per_tensor"].replace(gradient="learned_clip")
