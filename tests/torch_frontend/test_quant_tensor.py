"""Tensors with codes: their parts, validity, copies, checkpoints, gradients, and the borders of compiled programs."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samebits.core import QParams, Quantizer, ScaleRule, catalog
from samebits.core.formats import BinaryFormat
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import QuantTensor, fake_quantize, quant_tensor, quantize, quantized_tensor
from samebits.torch_frontend.nn import QuantLinear
from samebits.torch_frontend.quant_formats import format_of, spec_of

INT8 = catalog["int8_per_tensor"]
FIXED = INT8.replace(source="constant", scale_value=0.05)
WITHOUT_CODES = [name for name, q in catalog.items() if q.scale.signed or q.relaxed]


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def made(q: Quantizer, x: Tensor) -> Any:
    """A tensor with codes."""
    t = quantized_tensor(q, x)
    assert isinstance(t, QuantTensor)
    return t


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_values_are_those_of_fake_quantize(dtype: torch.dtype) -> None:
    """Every entry of the catalog: bits of values, and of gradients of x and scale."""
    for name, q in catalog.items():
        x = (numbers(32, 128) * 3).to(dtype)
        t, want = quantized_tensor(q, x), fake_quantize(q, x)
        assert isinstance(t, QuantTensor) == (name not in WITHOUT_CODES), name
        assert_same_bits(want, t.dequantize(), call=name)
        if isinstance(t, QuantTensor):
            assert t.is_valid, name
            assert (t.dtype, t.shape, t.bit_width) == (dtype, x.shape, q.format.bits), name
            assert t.signed == (q.format.lo < 0), name
        x.requires_grad_()
        t, want = quantized_tensor(q, x), fake_quantize(q, x)
        assert_same_bits(want, t.dequantize(), call=name)
        (d,), (d_want,) = (torch.autograd.grad((y * numbers(32, 128).to(dtype)).sum(), x) for y in (t, want))
        assert_same_bits(d_want, d, call=name)


def test_codes_are_read() -> None:
    """`int` gives what `quantize` gives, where dividing values would not: 8 bits in bfloat16, wide accumulators."""
    for name in ("int8_per_tensor", "uint8_affine_per_tensor", "int4_per_channel", "binary_per_tensor"):
        q, x = catalog[name], numbers(8, 32, dtype=torch.bfloat16)
        qparams = made(q, x).scale, made(q, x).zero_point
        given = QParams(qparams[0], qparams[1].to(torch.int32) if q.affine else None)
        t = made(q, x)
        assert_same_bits(quantize(q, x, given), t.int())
        assert_same_bits(t.codes, t.int(float_datatype=True))
    with pytest.raises(TypeError, match="has no integer codes"):
        made(catalog["float8_e4m3fn_per_tensor"], numbers(4)).int()


def test_gradients_reach_learned_scales() -> None:
    q = catalog["int8_learned_per_tensor"]
    x, s = numbers(64).requires_grad_(), torch.tensor(0.03, requires_grad=True)
    t = quantized_tensor(q, x, QParams(s))
    t.square().sum().backward()
    got = x.grad, s.grad
    x.grad = s.grad = None
    fake_quantize(q, x, QParams(s)).square().sum().backward()
    for a, b in zip(got, (x.grad, s.grad), strict=True):
        assert_same_bits(b, a)


def test_nan_is_never_a_valid_code() -> None:
    t = made(FIXED, torch.tensor([1.0, torch.nan, torch.inf]))
    assert t.dequantize().isnan().tolist() == [False, True, False]
    assert not t.is_valid
    for result in (t + t, -t, t * t, t.relu(), t[1:]):
        assert isinstance(result, QuantTensor)
        assert result.isnan()[-2]
        assert not result.is_valid
    with pytest.raises(ValueError, match="holds NaN has no codes there"):
        t.int()
    assert t[::2].is_valid
    assert torch.compile(lambda t: t.int(), backend="aot_eager")(t).tolist() == [20, 0, 127]


def test_binary_tensors_of_one_sign_are_valid() -> None:
    q = catalog["binary_per_tensor"]
    for x in (torch.ones(3), -torch.ones(3), torch.tensor([1.0, -1.0]), torch.tensor(2.0), torch.zeros(0)):
        t = made(q, x)
        assert t.is_valid
        assert (t.format, t.bit_width, t.signed) == (BinaryFormat(), 1, True)
    assert not t.with_codes(torch.zeros(3)).is_valid


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)], ids=str)
def test_small_shapes(shape: tuple[int, ...]) -> None:
    t = made(FIXED, numbers(*shape))
    for result in (t, t + t, -t, t * t, t.relu(), t.reshape(-1), t.clone(), torch.stack([t, t])):
        assert isinstance(result, QuantTensor)
        assert result.is_valid
    assert t.int().shape == shape
    assert copy.deepcopy(t).shape == shape


def test_of_values() -> None:
    x = (torch.arange(-8, 8) * torch.tensor(0.1)).requires_grad_()
    t = quant_tensor(x, 0.1, bit_width=4)
    assert isinstance(t, QuantTensor)
    assert t.int().tolist() == list(range(-8, 8))
    assert_same_bits(x.detach() + 0.0, t.dequantize())
    (t * 2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0] * 16
    affine = quant_tensor(
        torch.tensor([-0.5, 1.0]), torch.tensor(0.5), zero_point=3, bit_width=3, signed=False, training=True
    )
    assert isinstance(affine, QuantTensor)
    assert (affine.int().tolist(), affine.zero_point.item(), affine.training) == ([2, 5], 3.0, True)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            r"integers of int4 times the scale, got 0.8\d* at index \(1,\)",
            lambda: quant_tensor(torch.tensor([0.7, 0.8]), 0.1, bit_width=4),
        ),
        (ValueError, r"got 0.15\d* at index \(\)", lambda: quant_tensor(torch.tensor(0.15), 0.1)),
        (ValueError, "must hold positive normal finite numbers", lambda: quant_tensor(torch.zeros(2), -1.0)),
        (TypeError, "`value` must have dtype", lambda: quant_tensor(torch.zeros(2, dtype=torch.int8), 1.0)),
        (TypeError, "would change a QuantTensor in place", lambda: made(FIXED, numbers(3)).add_(1)),
        (TypeError, "would change a QuantTensor in place", lambda: made(FIXED, numbers(3)).__setitem__(0, 1.0)),
        (
            ValueError,
            "copy_ into a QuantTensor needs",
            lambda: made(FIXED, numbers(3)).copy_(made(INT8.replace(bits=4), numbers(3))),
        ),
        (ValueError, "`spec` must be", lambda: format_of(("decimal", 2))),
    ],
)
def test_refused(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        call()


def test_copies_and_checkpoints() -> None:
    """copy, deepcopy, pickle, torch.save with and without weights_only, buffers in state dicts: every part again."""
    for name in (
        "int8_per_channel",
        "uint8_affine_per_tensor",
        "nf4_per_group64",
        "float4_e2m1_per_tensor",
        "ternary_per_channel",
    ):
        t = (
            made(catalog[name], numbers(4, 64))
            if name != "int8_per_channel"
            else made(catalog[name], numbers(4, 64)) + 0.5
        )
        stored, holder = io.BytesIO(), nn.Module()
        torch.save({"t": t}, stored)
        holder.register_buffer("t", t)
        other = nn.Module()
        other.register_buffer("t", t.with_codes(torch.zeros(4, 64), scale=t.scale * 2))
        other.load_state_dict(holder.state_dict())
        copies = [copy.copy(t), copy.deepcopy(t), pickle.loads(pickle.dumps(t)), copy.deepcopy(holder).t, other.t]
        for weights_only in (True, False):
            stored.seek(0)
            copies.append(torch.load(stored, weights_only=weights_only)["t"])
        for again in copies:
            assert type(again) is QuantTensor
            assert (again.format, again.dtype, again.training) == (t.format, t.dtype, t.training)
            assert_same_bits(t.codes, again.codes)
            assert_same_bits(t.dequantize(), again.dequantize())
        assert format_of(spec_of(t.format)) == t.format
    leaf = made(FIXED, numbers(3)).detach().requires_grad_()
    assert pickle.loads(pickle.dumps(leaf)).requires_grad


def test_tensors_convert() -> None:
    t = made(FIXED, numbers(3, 4))
    half = t.to(torch.bfloat16)
    assert isinstance(half, QuantTensor)
    assert_same_bits(t.dequantize().bfloat16(), half.dequantize())
    assert_same_bits(half.dequantize().float(), half.float())
    assert type(half.float()) is type(t.double()) is Tensor
    assert_same_bits(t.dequantize().numpy(), t.numpy())
    assert t.tolist() == t.dequantize().tolist()
    assert np.asarray(t.value).shape == (3, 4)
    assert repr(t).startswith("QuantTensor(tensor(")
    assert "scale=0.05" in repr(t)
    assert "format=int8" in repr(t)
    assert f"{t[0, 0]:.3f}" == f"{t[0, 0].item():.3f}"
    assert f"{t}" == str(t)


def test_relu_in_place() -> None:
    for q in (FIXED, catalog["uint8_affine_per_tensor"]):
        t = made(q, numbers(9))
        want = t.relu().dequantize()
        assert_same_bits(want, nn.ReLU(inplace=True)(t.clone()).dequantize())


def test_gradients_cross_the_borders_of_compiled_programs() -> None:
    """Into a program and out of it, through operators of eager mode, used once and twice."""

    def inside(t: Tensor, u: Tensor) -> Tensor:
        return (t + u).relu()

    program = torch.compile(inside, backend="aot_eager", fullgraph=True)
    gradients = []
    for function in (inside, program):
        x, y = numbers(6, 5).requires_grad_(), numbers(6, 5).flip(0).requires_grad_()
        z = function(made(FIXED, x * 2), made(FIXED, y))
        assert type(z) is QuantTensor
        loss = (z * torch.arange(5.0)).sum() + torch.cat([z, z]).square().sum() + (-z)[0].sum() + z.dequantize().mean()
        gradients.append(torch.autograd.grad(loss, (x, y)))
    for want, got in zip(*gradients, strict=True):
        assert_same_bits(want, got)
        assert got.abs().sum() > 0


def test_one_program_for_all_values() -> None:
    """Other values, scales and zero points are no new program; another width is one."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    program = torch.compile(lambda t: (t + t) * t, backend=counter, fullgraph=True)
    q = catalog["uint8_affine_per_tensor"]
    for factor in (1.0, 3.0):
        t = made(q, numbers(4, 6) * factor)
        assert_same_bits(((t + t) * t).codes, program(t).codes)
    assert counter.frame_count == 1
    program(made(q.replace(bits=4), numbers(4, 6)))
    assert counter.frame_count == 2


def test_exported_programs() -> None:
    class Residual(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            t = quantized_tensor(FIXED, x)
            u = torch.cat([t.relu() + t, t - t], 1).transpose(0, 1)
            return torch.nn.functional.linear(u, quantized_tensor(catalog["int8_per_channel"], w)).dequantize()

    x, w = numbers(8, 6), numbers(3, 8)
    want = Residual()(x, w)
    for strict in (False, True):
        exported = torch.export.export(Residual(), (x, w), strict=strict)
        assert_same_bits(want, exported.module()(x, w))


def test_autocast_leaves_codes_alone() -> None:
    """Operators of two tensors with codes are not cast: same codes, same dtype; layers as they are without it."""
    t, w, x = made(FIXED, numbers(4, 6)), made(FIXED, numbers(3, 6)), numbers(4, 6)
    layer = QuantLinear(6, 3, input_quant="int8_per_tensor")
    giving = copy.deepcopy(layer)
    giving.return_quant_tensor = True
    want: Any = torch.nn.functional.linear(t, w, numbers(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got: Any = torch.nn.functional.linear(t, w, numbers(3))
        for dtype in (torch.float32, torch.bfloat16):
            y = giving(x.to(dtype))
            assert y.dtype == dtype
            assert_same_bits(layer(x.to(dtype)), y.dequantize())
            y.float().sum().backward()
        assert (t @ t.t()).dtype == torch.float32
    assert got.dtype == torch.float32
    assert_same_bits(want.codes, got.codes)
    assert_same_bits(want.dequantize(), got.dequantize())


def test_transforms_are_refused() -> None:
    for call in (torch.func.grad(lambda x: made(FIXED, x).sum()), torch.func.vmap(lambda x: quant_tensor(x, 1.0))):
        with pytest.raises(RuntimeError, match=r"transforms of torch\.func take no QuantTensor"):
            call(torch.ones(3))


def test_recomputation_and_more_gradients() -> None:
    def function(x: Tensor) -> Any:
        return (made(FIXED, x) * made(FIXED, x)).relu().dequantize()

    x = numbers(4, 6).requires_grad_()
    (want,) = torch.autograd.grad(function(x).sum(), x)
    assert_same_bits(want, torch.autograd.grad(checkpoint(function, x, use_reentrant=False).sum(), x)[0])
    (each,) = torch.autograd.grad(function(x).sum(1), x, torch.eye(4), is_grads_batched=True)
    assert_same_bits(want, each.sum(0))
    t = made(FIXED, x)
    t.retain_grad()
    (t * 2).sum().backward()
    assert t.grad.tolist() == [[2.0] * 6] * 4


def test_soft_rounding_and_signed_scales_give_floats() -> None:
    x = numbers(4, 8)
    soft = INT8.replace(rounding="learned", soft=True)
    signed = INT8.replace(scale=ScaleRule(statistic="signed_absmax"))
    for q, qparams in ((soft, QParams(torch.tensor(0.02), rounding=torch.zeros(4, 8))), (signed, None)):
        t = quantized_tensor(q, x, qparams)
        assert type(t) is Tensor
        assert_same_bits(fake_quantize(q, x, qparams), t)
