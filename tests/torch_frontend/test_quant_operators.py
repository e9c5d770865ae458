"""Operators on tensors with codes: which results have codes, the bits of them, eager, compiled and with gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from samebits.core import catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import QuantTensor, fake_quantize, quantized_tensor

INT8 = catalog["int8_per_tensor"].replace(source="constant", scale_value=0.05)
UINT4 = catalog["uint8_affine_per_tensor"].replace(bits=4)
CHANNELS = catalog["int8_per_channel"]  # a scale for each element of axis 0

# Operators of x, (2, 4, 6, 6), that give codes; by their name
KEEPING: dict[str, Callable[[Any], Any]] = {
    "view": lambda t: t.view(2, 4, 36),
    "reshape": lambda t: t.transpose(1, 2).reshape(4, -1),
    "flatten": lambda t: t.flatten(1),
    "transpose": lambda t: t.transpose(0, 1),
    "permute": lambda t: t.permute(3, 0, 2, 1),
    "t": lambda t: t[0, 0].t(),
    "slices": lambda t: t[1:, ::2, -3:],
    "select": lambda t: t[1, 2],
    "indices": lambda t: t[:, torch.tensor([3, 0])],
    "unsqueeze": lambda t: t[:, None].squeeze(1),
    "expand": lambda t: t[:, :, None].expand(2, 4, 3, 6, 6),
    "split": lambda t: t.split(2, 1)[1],
    "chunk": lambda t: t.chunk(3, -1)[0],
    "unbind": lambda t: t.unbind(1)[2],
    "flip": lambda t: t.flip(0, 3),
    "roll": lambda t: t.roll(1, 2),
    "repeat": lambda t: t.repeat(1, 2, 1, 1),
    "index_select": lambda t: t.index_select(2, torch.tensor([0, 0, 5])),
    "gather": lambda t: t.gather(3, torch.zeros(2, 4, 6, 1, dtype=torch.int64)),
    "diagonal": lambda t: t.diagonal(0, 2, 3),
    "unfold": lambda t: t.unfold(2, 3, 2),
    "clone": lambda t: t.clone(memory_format=torch.channels_last),
    "contiguous": lambda t: t.transpose(2, 3).contiguous(),
    "pixel_shuffle": lambda t: F.pixel_shuffle(t, 2),
    "pixel_unshuffle": lambda t: F.pixel_unshuffle(t, 3),
    "nearest": lambda t: F.interpolate(t, scale_factor=2),
    "reflected": lambda t: F.pad(t, (1, 2, 0, 1), mode="reflect"),
    "replicated": lambda t: F.pad(t, (1, 2, 0, 1), mode="replicate"),
    "circular": lambda t: F.pad(t, (1, 2, 0, 1), mode="circular"),
    "padded": lambda t: F.pad(t, (1, 0, 2, 1)),
    "cat": lambda t: torch.cat([t, t[:, 1:]], 1),
    "cat of nothing": lambda t: torch.cat([t[:, :0], t, t[:, 4:]], 1),
    "cat of no rows": lambda t: torch.cat([t[:, :, 6:], t], 2),
    "stack": lambda t: torch.stack([t, t], 2),
    "max_pool1d": lambda t: F.max_pool1d(t[0], 2),
    "max_pool2d": lambda t: F.max_pool2d(t, 3, 2, 1),
    "max_pool3d": lambda t: F.max_pool3d(t[None], 2),
    "adaptive_max_pool2d": lambda t: F.adaptive_max_pool2d(t, 2),
    "relu": lambda t: t.relu(),
    "dropout in evaluation": lambda t: F.dropout(t, 0.5, training=False),
    "plus": lambda t: t + t,
    "minus": lambda t: t - t.flip(0),
    "times": lambda t: t * t,
    "negative": lambda t: -t,
    "absolute": lambda t: abs(t),
    "plus a number": lambda t: t + 0.3,
    "plus a vector": lambda t: torch.linspace(-1, 1, 6) + t,
    "matmul": lambda t: t[0, 0] @ t[1, 1],
    "batched matmul": lambda t: t @ t.transpose(2, 3),
    "linear": lambda t: F.linear(t, t[0, 0, 1:], torch.linspace(-1, 1, 5)),
    "conv1d": lambda t: F.conv1d(t[0], t[0, :, :, :3]),
    "conv2d": lambda t: F.conv2d(t, t[:, :2, 1:4, 1:3], torch.ones(2), 2, "valid", 1, 2),
    "conv_transpose2d": lambda t: F.conv_transpose2d(t, t.permute(1, 0, 2, 3), stride=2),
    "avg_pool2d": lambda t: F.avg_pool2d(t, 2, padding=1),
    "adaptive_avg_pool2d": lambda t: F.adaptive_avg_pool2d(t, 3),
    "mean": lambda t: F.adaptive_avg_pool2d(t, 1),
}
# and those that give floats
LOSING: dict[str, Callable[[Any], Any]] = {
    "times a number": lambda t: t * 2,
    "divided": lambda t: t / (t + 10.0),
    "minus from": lambda t: 1 - t,
    "plus a tensor": lambda t: t + torch.ones(2, 4, 6, 6),
    "sum": lambda t: t.sum(1),
    "softmax": lambda t: t.softmax(1),
    "hardtanh": lambda t: F.hardtanh(t),
    "padded with 1": lambda t: F.pad(t, (1, 1), value=1.0),
    "uneven windows": lambda t: F.avg_pool2d(t, 4, 4, 1, count_include_pad=False),
    "adaptive to 4": lambda t: F.adaptive_avg_pool2d(t, 4),
    "bilinear": lambda t: F.interpolate(t, scale_factor=2.0, mode="bilinear"),
    "plain weight": lambda t: F.linear(t, torch.ones(2, 6)),
}


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32)


def coded(q: Any, x: Tensor) -> Any:
    """A tensor with codes."""
    return quantized_tensor(q, x)


def check_codes(t: Any) -> None:
    """Codes that the format has, and values ``fl(fl(code - z) * s) + offset``, no -0.0."""
    assert isinstance(t, QuantTensor)
    assert t.is_valid
    want = (t.codes - t.zero_point).float() * t.scale + (0.0 if t.offset is None else t.offset)
    assert_same_bits(want + 0.0 if t.offset is None else want, t.dequantize())
    assert t.shape == t.codes.shape == torch.broadcast_shapes(t.codes.shape, t.scale.shape, t.zero_point.shape)


@pytest.mark.parametrize("q", [INT8, UINT4, CHANNELS], ids=["int8", "uint4 affine", "per channel"])
def test_codes_and_gradients(q: Any) -> None:
    """Values beside those of the same operator on floats, gradients the same, for scales of all kinds."""
    for name, operator in (KEEPING | LOSING).items():
        x = numbers(2, 4, 6, 6).requires_grad_()
        y, x_hat = operator(coded(q, x)), fake_quantize(q, x)
        want = operator(x_hat)
        (d,) = torch.autograd.grad(y.sum(), x)
        (d_want,) = torch.autograd.grad(want.sum(), x)
        torch.testing.assert_close(d, d_want, msg=name)
        torch.testing.assert_close(y.dequantize() if isinstance(y, QuantTensor) else y, want, msg=name)
        if isinstance(y, QuantTensor):
            check_codes(y)
        assert isinstance(y, QuantTensor) == (name in KEEPING) or (q is CHANNELS and name in ALONG_SCALES), name


# A scale for each of two elements of axis 0, along which these add, or join what has other scales
ALONG_SCALES = {"minus", "matmul", "linear", "conv1d", "conv2d", "conv_transpose2d", "max_pool3d"}


def test_exact_codes() -> None:
    x, y = numbers(40, 50), numbers(40, 50) * 3
    for q in (INT8, UINT4.replace(source="constant", scale_value=0.3, zero_point_value=5)):
        t, u = coded(q, x), coded(q, y)
        a, b = t.int().long() - t.zero_point.long(), u.int().long() - u.zero_point.long()
        got: Any
        for got, want in (
            (t + u, a + b),
            (t - u, a - b),
            (t * u, a * b),
            (-t, -a),
            (abs(t), abs(a)),
            (t @ u.t(), a @ b.t()),
            (F.pad(t, (1, 1)), F.pad(a, (1, 1))),
            (torch.cat([t, u]), torch.cat([a, b])),
        ):
            assert torch.equal(got.codes.long() - got.zero_point.long(), want)
            check_codes(got)


def test_the_ends_of_formats_stay_valid() -> None:
    """Where codes are the smallest and largest: the negative of -8 in 4 bits has 5."""
    for bits, signed in ((4, True), (4, False), (8, True), (1, False)):
        q = INT8.replace(bits=bits, signed=signed)
        lo, hi = q.format.lo, q.format.hi
        t = coded(q, torch.tensor([lo, hi, 0.0]) * 0.05)
        results = {"-": -t, "abs": abs(t), "+": t + t, "-t": t - t.flip(0), "*": t * t, "@": t @ t, "relu": t.relu()}
        for r in results.values():
            check_codes(r)
    t = coded(INT8.replace(bits=4), torch.tensor([-0.4]))
    assert ((-t).int().tolist(), (-t).bit_width, abs(t).int().tolist(), abs(t).bit_width) == ([8], 5, [8], 4)
    mixed = coded(INT8.replace(bits=4), torch.tensor([9.0])) + coded(
        INT8.replace(bits=4, signed=False), torch.tensor([9.0])
    )
    assert (mixed.int().tolist(), mixed.bit_width, mixed.is_valid) == ([22], 6, True)


def test_scales_that_differ() -> None:
    """A float tensor in eager mode, an error that says what to do in compiled code; never a tensor on no grid."""
    t = coded(INT8, numbers(4, 6))
    for scale in (0.05 * (1 + 2.0**-23), 0.06):
        u = coded(INT8.replace(scale_value=scale), numbers(4, 6))
        for result, want in ((t + u, t.value + u.value), (torch.cat([t, u]), torch.cat([t.value, u.value]))):
            assert type(result) is Tensor
            assert_same_bits(want, result)
        program = torch.compile(lambda a, b: a + b, backend="aot_eager", fullgraph=True)
        assert_same_bits((t + t).codes, program(t, coded(INT8, numbers(4, 6))).codes)
        with pytest.raises(RuntimeError, match="two scales or zero points meet in compiled code"):
            program(t, u)


def test_accumulators_beyond_float32() -> None:
    """Codes of more than 24 bits are exact, in float64; beyond that one there are none."""
    q = INT8.replace(bits=16, scale_value=2.0**-8)
    x, y = numbers(30, 3000) * 50, numbers(20, 3000) * 50
    t, u = coded(q, x), coded(q, y)
    total = t @ u.t()
    assert torch.equal(total.codes.long(), t.int().long() @ u.int().long().t())
    assert total.codes.abs().max() > 2**24
    assert (total.codes.dtype, total.dtype, total.bit_width, total.int().dtype) == (
        torch.float64,
        torch.float32,
        44,
        torch.int64,
    )
    check_codes(total)
    assert type(total * total) is Tensor


@pytest.mark.parametrize(
    ("backend", "grad"),
    # a network of these is compiled in test_quant_tensor_layers.py
    [("aot_eager", True), pytest.param("inductor", False, marks=pytest.mark.thorough)],
    ids=["traced", "compiled"],
)
def test_compiled_operators(backend: str, grad: bool) -> None:
    """All of them (compiled, those that compute) in one program: kinds, formats, bits and gradients of eager mode."""
    torch._dynamo.reset()
    names = [*KEEPING, *LOSING] if grad else [*KEEPING][[*KEEPING].index("padded") :]
    operators = {name: (KEEPING | LOSING)[name] for name in names}
    x = numbers(2, 4, 6, 6).requires_grad_(grad)

    def all_of_them(x: Tensor) -> list[Any]:
        t = coded(UINT4, x)
        return [
            operator(t.clone()) for operator in operators.values()
        ]  # with gradients torch returns no two views of one

    wants, gots = all_of_them(x), torch.compile(all_of_them, fullgraph=True, backend=backend)(x)
    for name, want, got in zip(operators, wants, gots, strict=True):
        assert type(got) is type(want), name
        if isinstance(want, QuantTensor):
            assert (got.format, got.training, got.affine) == (want.format, want.training, want.affine), name
            for part in ("codes", "scale", "zero_point", "offset"):
                pair = getattr(want, part), getattr(got, part)
                assert pair == (None, None) or pair[0].shape == pair[1].shape, (name, part)
                if pair[0] is not None:
                    assert_same_bits(*pair, call=f"{name}, {part}")
            assert_same_bits(want.dequantize(), got.dequantize(), call=name)
        else:
            torch.testing.assert_close(got, want, msg=name)
    if grad:
        d, d_want = (torch.autograd.grad(sum(y.sum() for y in ys), x)[0] for ys in (gots, wants))
        torch.testing.assert_close(d, d_want, rtol=1e-4, atol=1e-4)
