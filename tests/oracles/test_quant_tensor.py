"""Brevitas' QuantTensor beside ours: values, scales and widths after arithmetic, and where it is wrong."""

from collections.abc import Callable
from typing import Any

import brevitas.nn as bnn
import pytest
import torch
from brevitas.quant import RoundTo8bit, TruncTo8bit
from brevitas.quant_tensor import IntQuantTensor
from torch.nn import functional as F

from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import QuantTensor, quant_tensor
from samebits.torch_frontend.nn import QuantAdaptiveAvgPool2d, QuantAvgPool2d, QuantConv2d, QuantLinear

SCALE = 2.0**-4  # a power of two: then their sums of rounded values are those of codes


def pair(bits: int, signed: bool, *shape: int, seed: int = 0, scale: float = SCALE) -> tuple[Any, Any]:
    """The same codes as a tensor of theirs and of ours, the ends of the format among them."""
    lo, hi = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    codes = torch.randint(lo, hi + 1, shape, generator=torch.Generator().manual_seed(seed)).float()
    codes.view(-1)[:2] = torch.tensor([float(lo), float(hi)])
    value = codes * scale
    theirs = IntQuantTensor(value, scale, 0.0, float(bits), signed, False)
    return theirs, quant_tensor(value, scale, bit_width=bits, signed=signed)


def compare(theirs: Any, ours: Any) -> None:
    assert isinstance(ours, QuantTensor)
    assert theirs.is_valid
    assert ours.is_valid
    assert_same_bits(theirs.value + 0.0, ours.dequantize())  # theirs may be -0.0, ours is not
    torch.testing.assert_close(theirs.scale.reshape(-1), ours.scale.reshape(-1), rtol=0, atol=0)
    assert (int(theirs.bit_width), theirs.signed) == (ours.bit_width, ours.signed)
    assert torch.equal(theirs.int().long(), ours.int().long())


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "cat": lambda a, b: torch.cat([a, b], 1),
}
UNARY: dict[str, Callable[[Any], Any]] = {
    "relu": F.relu,
    "max_pool2d": lambda t: F.max_pool2d(t, 2),
    "pad": lambda t: F.pad(t, (1, 1)),
    "nearest": lambda t: F.interpolate(t, scale_factor=2),
    "pixel_shuffle": lambda t: F.pixel_shuffle(t, 2),
    "transpose": lambda t: t.transpose(1, 2),
    "flatten": lambda t: torch.flatten(t, 1),
}


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("name", BINARY)
def test_two_tensors(name: str, signed: bool) -> None:
    for bits, other in ((4, 4), (8, 8), (8, 4), (3, 6)):
        if name == "cat" and bits != other:
            continue
        (a, ours_a), (b, ours_b) = pair(bits, signed, 2, 4, 6, 6), pair(other, signed, 2, 4, 6, 6, seed=1)
        compare(BINARY[name](a, b), BINARY[name](ours_a, ours_b))


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("name", UNARY)
def test_one_tensor(name: str, signed: bool) -> None:
    theirs, ours = pair(5, signed, 2, 4, 6, 6)
    compare(UNARY[name](theirs), UNARY[name](ours))


def test_negatives() -> None:
    theirs, ours = pair(4, False, 9)
    compare(-theirs, -ours)
    theirs, ours = pair(4, True, 9)
    assert not (-theirs).is_valid  # of -8 in 4 bits
    assert not abs(theirs).is_valid
    assert (-ours).is_valid
    assert abs(ours).is_valid
    assert_same_bits(-theirs.value + 0.0, (-ours).dequantize())


def test_signed_and_unsigned() -> None:
    """-8..7 plus 0..15 is -8..22: theirs has 5 signed bits, -16..15."""
    (a, ours_a), (b, ours_b) = pair(4, True, 9), pair(4, False, 9)
    assert (int((a + b).bit_width), (a + b).is_valid) == (5, False)
    assert ((ours_a + ours_b).bit_width, (ours_a + ours_b).is_valid) == (6, True)


def test_scales_that_differ() -> None:
    """Theirs: an error, but half of both while training, on no grid; ours: a float tensor."""
    (a, ours_a), (b, ours_b) = pair(4, True, 9), pair(4, True, 9, seed=1, scale=0.03)
    with pytest.raises(RuntimeError, match="Scaling factors are different"):
        a + b
    assert not (a.set(training_t=torch.tensor(True)) + b).is_valid
    assert type(ours_a + ours_b) is torch.Tensor
    assert_same_bits(a.value + b.value, ours_a + ours_b)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_accumulators(bits: int) -> None:
    """Width, scale and codes of what a layer without a bias gives."""
    theirs, ours = pair(8, True, 3, 16)
    their_layer = bnn.QuantLinear(16, 5, bias=False, weight_bit_width=bits, return_quant_tensor=True)
    layer = QuantLinear(
        16,
        5,
        bias=False,
        weight_quant="int8_per_tensor",
        weight_bits=bits,
        weight_narrow=True,
        return_quant_tensor=True,
    )
    layer.weight.data = their_layer.weight.data
    y, z = their_layer.eval()(theirs), layer(ours)
    assert (int(y.bit_width), y.signed) == (z.bit_width, z.signed)
    assert_same_bits(y.scale.reshape(()), z.scale.reshape(()))
    assert torch.equal(y.int().long(), z.int().long())
    theirs, ours = pair(8, False, 1, 4, 5, 5)
    their_conv = bnn.QuantConv2d(4, 6, 3, bias=False, weight_bit_width=bits, return_quant_tensor=True)
    conv = QuantConv2d(
        4,
        6,
        3,
        bias=False,
        weight_quant="int8_per_tensor",
        weight_bits=bits,
        weight_narrow=True,
        return_quant_tensor=True,
    )
    conv.weight.data = their_conv.weight.data
    y, z = their_conv.eval()(theirs), conv(ours)
    assert (int(y.bit_width), torch.equal(y.int().long(), z.int().long())) == (z.bit_width, True)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_truncated_averages(signed: bool) -> None:
    theirs, ours = pair(8, signed, 2, 3, 8, 8)
    for quant, rounding in ((RoundTo8bit, "ties_to_even"), (TruncTo8bit, "toward_negative")):
        for their_layer, layer in (
            (bnn.TruncAvgPool2d(4, trunc_quant=quant), QuantAvgPool2d(4, trunc_rounding=rounding)),
            (bnn.TruncAdaptiveAvgPool2d(2, trunc_quant=quant), QuantAdaptiveAvgPool2d(2, trunc_rounding=rounding)),
        ):
            compare(their_layer.eval()(theirs), layer(ours))


def test_averages_with_room() -> None:
    """Of 2 bits over 2 x 2: 4 bits, which theirs scales up to 8; ours stay."""
    theirs, ours = pair(2, False, 1, 1, 4, 4)
    y, z = bnn.TruncAvgPool2d(2).eval()(theirs), QuantAvgPool2d(2)(ours)
    assert (int(y.bit_width), z.bit_width) == (8, 4)
    assert float(y.scale) == float(z.scale) / 16
    assert_same_bits(y.value, z.dequantize())
