"""Scales that are kept as logarithms: the functions' `log_float` scales in every mode, and the state of layers.

Expected values: `numpy.longdouble`, core, and Brevitas `LogFloatRestrictValue`.
"""

from typing import Any

import brevitas.core.restrict_val as restrict_val
import jax
import ml_dtypes
import numpy as np
import torch
from flax import nnx
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import catalog
from samebits.core.elementary import log2
from samebits.core.scaling import restrict_scale, scale_of_logarithm
from samebits.jax_backend import scaling as of_jax
from samebits.jax_backend.tensor_quantizer import TensorQuantizer as JaxQuantizer
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.laws.catalog_of_laws import LAWS, applies
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.proofs.modes.execution import implementation
from samebits.torch_frontend import scaling as of_torch
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer as TorchQuantizer

from .. import law_cases

Array = NDArray[Any]
SYMMETRIC = catalog["int8_per_channel"].replace(restriction="log_float")
AFFINE = catalog["uint4_affine_per_group32"].replace(restriction="log_float", floor=0.01)


def scales() -> Array:
    """From the smallest normal number to the largest, powers of two, what is no scale, and what the floor raises."""
    random = np.random.default_rng(0)
    drawn = random.integers(1 << 23, 0x7F800000, 50_000, dtype=np.int32).view(np.float32)
    special = [0.0, 1e-45, np.finfo(np.float32).max, np.inf, np.nan, 0.3, 1.0]
    return np.concatenate([drawn, np.ldexp(np.float32(1), np.arange(-126, 128)), np.float32(special)])


def test_scales_have_the_same_bits() -> None:
    for q in (SYMMETRIC, AFFINE):
        want = restrict_scale(q, scales())
        assert_same_bits(want, to_numpy(of_torch.restrict_scale(q, to_torch(scales()))), inputs=scales())
        assert_same_bits(want, jax.jit(lambda s, q=q: of_jax.restrict_scale(q, s))(to_jax(scales())), inputs=scales())
        with jax.disable_jit():
            assert_same_bits(want, of_jax.restrict_scale(q, to_jax(scales())), inputs=scales())
        wide = np.append(scales().astype(np.float64) * (1 + 2.0**-40), [1e300, 1e-300])
        assert_same_bits(restrict_scale(q, wide), to_numpy(of_torch.restrict_scale(q, to_torch(wide))), inputs=wide)
        with jax.enable_x64(True):
            assert_same_bits(restrict_scale(q, wide), of_jax.restrict_scale(q, to_jax(wide)), inputs=wide)


def test_scales_have_the_same_bits_in_torch_compiled() -> None:
    compiled = torch.compile(lambda s: of_torch.restrict_scale(AFFINE, s * 1.5) * 3.0 + 1.0, fullgraph=True)
    s = scales()
    with np.errstate(all="ignore"):
        want = restrict_scale(AFFINE, s * np.float32(1.5)) * np.float32(3) + np.float32(1)
    assert_same_bits(want, to_numpy(compiled(to_torch(s))), inputs=s)


def test_scales_lie_within_their_bound() -> None:
    s = scales()
    s = s[np.isfinite(s) & (s >= 2.0**-126)]
    got = restrict_scale(SYMMETRIC, s).astype(np.longdouble)
    exponent = np.abs(np.log2(s.astype(np.longdouble)))
    assert (np.abs(got / s - 1) <= 2.0**-24 * (exponent + 6)).all()
    powers = np.ldexp(np.float32(1), np.arange(-126, 128))
    assert np.array_equal(restrict_scale(SYMMETRIC, powers), powers)
    assert float(restrict_scale(SYMMETRIC, np.float32([np.finfo(np.float32).max]))[0]) == np.finfo(np.float32).max


def test_scales_are_near_those_of_brevitas() -> None:
    """Its powers and logarithms are torch's, each of them within two units of the last place of the exact one."""
    restrict = restrict_val.LogFloatRestrictValue()
    s = scales()
    s = s[(s > 1e-30) & (s < 1e30)]
    want = to_numpy(restrict(restrict.restrict_init_tensor(to_torch(s)))).astype(np.float64)
    got = restrict_scale(SYMMETRIC, s).astype(np.float64)
    assert (np.abs(got / want - 1) <= 2 * 2.0**-24 * (np.abs(np.log2(want)) + 6)).all()


def test_quantizers_have_the_same_bits() -> None:
    x = np.random.default_rng(1).standard_normal((8, 96))

    def program(room: Any, a: Any) -> list[Any]:
        return [(c.scale, c.zero_point) for c in (room.choose_qparams(q, a) for q in (SYMMETRIC, AFFINE))]

    for dtype in (np.float32, ml_dtypes.bfloat16):
        rows = x.astype(dtype)
        want = program(core, rows)
        for got in (
            program(torch_frontend, to_torch(rows)),
            jax.jit(lambda a: program(jax_backend, a))(to_jax(rows)),
        ):
            assert_same_bits(want[0][0], got[0][0])
            assert_same_bits(want[1], got[1])
    assert not np.array_equal(want[0][0], core.choose_qparams(SYMMETRIC.replace(restriction="float"), rows).scale)


def test_laws() -> None:
    for q in (SYMMETRIC, AFFINE):
        for law in LAWS:
            if applies(law, q) and ("chosen" in law or "scale" in law or "block" in law):
                for x, qparams, g in law_cases.cases_of(q.replace(restriction="float"), "float32"):
                    LAWS[law](implementation("numpy"), q, x, qparams, g)


def test_layers_learn_the_logarithm() -> None:
    """The parameter starts at log2 of the scale of the first tensor; its gradient is that of the scale times s ln 2."""
    q = SYMMETRIC.replace(source="learned", gradient="learned_scale")
    x = np.random.default_rng(2).standard_normal((4, 32)).astype(np.float32)
    in_torch, in_jax = TorchQuantizer(q, x.shape), JaxQuantizer(q, x.shape)
    assert in_torch.scale is not None
    assert in_jax.scale is not None
    first = core.choose_qparams(q, x).scale
    for step in range(3):
        if step == 1:  # anywhere
            v = np.float32([-30.0, -7.3, 0.1, 6.0]).reshape(first.shape)
            in_torch.load_state_dict({"scale": to_torch(v)})
            in_jax.scale.set_value(to_jax(v))
        elif step == 2:
            in_jax.scale.set_value(to_jax(to_numpy(in_torch.scale.detach())))
        in_torch.zero_grad()
        got = in_torch(to_torch(x))
        got.sum().backward()
        logarithm = log2(first) if step == 0 else v
        scale = scale_of_logarithm(q, logarithm)
        assert_same_bits(logarithm, to_numpy(in_torch.scale.detach()))
        assert_same_bits(core.fake_quantize(q, x, core.QParams(scale)), to_numpy(got.detach()))
        if step == 0:
            assert_same_bits(to_numpy(got.detach()), in_jax(to_jax(x)))
            assert_same_bits(logarithm, np.asarray(in_jax.scale[...]))
        d = torch_frontend.fake_quantize_vjp(q, to_torch(x), core.QParams(to_torch(scale)), torch.ones(x.shape)).scale
        assert_same_bits(to_numpy(d) * (scale * np.float32(np.log(2))), to_numpy(in_torch.scale.grad))

        @nnx.jit
        def loss(m: Any, a: Any) -> Any:
            return nnx.grad(lambda m: m(a).sum())(m)

        gradient = jax.tree.leaves(nnx.to_pure_dict(loss(in_jax, to_jax(x))))[0]
        d = core_gradient(q, x, scale)
        assert np.all(np.abs(np.asarray(gradient) - d) <= 2.0**-20 * np.abs(d) + 2.0**-20 * scale * 32)
    ends = np.float32([-130.0, -126.0, 127.99999, 129.0]).reshape(first.shape)
    in_torch.load_state_dict({"scale": to_torch(ends)})
    in_jax.scale.set_value(to_jax(ends))
    want = core.fake_quantize(q, x, core.QParams(scale_of_logarithm(q, ends)))
    assert_same_bits(want, to_numpy(in_torch(to_torch(x)).detach()))
    assert_same_bits(want, in_jax(to_jax(x)))


def core_gradient(q: Any, x: Array, scale: Array) -> Array:
    d = core.fake_quantize_vjp(q, x, core.QParams(scale), np.ones_like(x)).scale
    return np.asarray(d * (scale * np.float32(np.log(2))))


def test_statistics_that_are_learned_later_average_logarithms() -> None:
    q = catalog["uint8_affine_per_tensor"].replace(
        restriction="log_float", source="statistic_then_learned", steps=2, momentum=0.5
    )
    random = np.random.default_rng(3)
    batches = [(random.standard_normal((4, 8)) * size).astype(np.float32) for size in (1, 8, 3)]
    logs = [log2(core.choose_qparams(q, x).scale) for x in batches]
    average = np.float32(0.5) * logs[0] + np.float32(0.5) * logs[1]
    in_torch, in_jax = TorchQuantizer(q), JaxQuantizer(q)
    assert in_torch.scale is not None
    assert in_jax.scale is not None
    compiled = torch.compile(in_torch, fullgraph=True)
    for step, x in enumerate(batches):
        run = in_torch if step < 2 else compiled
        got, other = run(to_torch(x)), in_jax(to_jax(x))
        assert_same_bits(to_numpy(got.detach()), other)
        assert_same_bits(logs[0] if step == 0 else average, to_numpy(in_torch.scale.detach()))
        assert_same_bits(to_numpy(in_torch.scale.detach()), np.asarray(in_jax.scale[...]))
    constant = TorchQuantizer(
        catalog["int8_per_tensor"].replace(restriction="log_float", source="learned", scale_value=0.25)
    )
    assert float(constant.scale) == -2
    again = JaxQuantizer(constant.quantizer)
    assert float(again.scale[...]) == -2
