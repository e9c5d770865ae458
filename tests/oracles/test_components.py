"""Components beside the classes of Brevitas that have their names, on numbers where no known difference shows."""

from typing import Any

import brevitas.core.bit_width as widths
import brevitas.core.quant as quantizers
import brevitas.core.scaling as scalings
import brevitas.core.stats as statistics
import pytest
import torch
from brevitas.core import function_wrapper as functions
from brevitas.core import restrict_val as restrictions
from torch import Tensor, nn

from samebits.torch_frontend import components as c

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
X = torch.linspace(-3, 3, 1001)  # halves among them
SCALE = torch.tensor(0.25)
IDENTITY = functions.Identity()


def same(ours: Any, theirs: Any) -> None:
    """The same numbers; Brevitas keeps -0.0."""
    ours, theirs = (result if isinstance(result, tuple) else (result,) for result in (ours, theirs))
    for mine, other in zip(ours, theirs, strict=True):
        other = other.detach().reshape(mine.shape) if other.numel() == 1 else other.detach()
        assert torch.equal(mine.detach(), other), (mine, other)


def gradients(call: Any, *tensors: Tensor) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in tensors]
    result = call(*leaves)
    result = result[0] if isinstance(result, tuple) else result
    return list(
        torch.autograd.grad((result * torch.linspace(0.5, 1.5, result.numel())).sum(), leaves, allow_unused=True)
    )


ROUNDINGS = ["RoundSte", "FloorSte", "CeilSte", "RoundToZeroSte", "DPURoundSte"]


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("clamp", ["TensorClamp", "TensorClampSte"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
def test_int_quant(name: str, clamp: str, signed: bool, narrow: bool) -> None:
    theirs = quantizers.IntQuant(narrow, signed, IDENTITY, getattr(functions, name)(), getattr(functions, clamp)())
    ours = c.IntQuant(narrow, signed, getattr(c, name)(), getattr(c, clamp)())
    for bits in (2.0, 4.0):
        operands = (SCALE, torch.tensor(0.0), torch.tensor(bits), X)
        same(ours(*operands), theirs(*operands))
        same(
            gradients(lambda x, o=operands: ours(*o[:3], x), X)[0],
            gradients(lambda x, o=operands: theirs(*o[:3], x), X)[0],
        )


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("signed", [True, False])
def test_decoupled(name: str, signed: bool) -> None:
    theirs = quantizers.DecoupledIntQuant(True, signed, IDENTITY, getattr(functions, name)())
    ours = c.DecoupledIntQuant(True, signed, getattr(c, name)())
    operands = (torch.tensor(0.3), torch.tensor(1.0), SCALE, torch.tensor(2.0), torch.tensor(4.0))
    same(ours(*operands, X), theirs(*operands, X))
    for mine, other in zip(
        gradients(lambda p, s, x: ours(p, operands[1], s, *operands[3:], x), operands[0], SCALE, X),
        gradients(lambda p, s, x: theirs(p, operands[1], s, *operands[3:], x), operands[0], SCALE, X),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)  # sums, in an order of autograd


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("zero", [0.0, 12.0])
def test_truncation(name: str, signed: bool, zero: float) -> None:
    theirs = quantizers.TruncIntQuant(getattr(functions, name)(), widths.BitWidthConst(4))
    ours = c.TruncIntQuant(c.BitWidthConst(4), getattr(c, name)())
    codes = torch.arange(-128.0, 128.0) if signed else torch.arange(256.0)
    call = ((codes - zero) * SCALE, SCALE, torch.tensor(zero), torch.tensor(8.0), signed)
    same(ours(*call), theirs(*call))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
def test_int_scalings(signed: bool, narrow: bool) -> None:
    for bits in (2.0, 4.0, 8.0):
        width = torch.tensor(bits)
        same(c.IntScaling(narrow, signed)(width), scalings.IntScaling(narrow, signed)(width))
        same(c.PowerOfTwoIntScaling(signed)(width), scalings.PowerOfTwoIntScaling(signed)(width))


def test_widths() -> None:
    for bits in (2, 5, 8):
        same(c.BitWidthParameter(bits)(), widths.BitWidthParameter(bits)())
        same(c.BitWidthConst(bits)(), widths.BitWidthConst(bits)())
        same(c.RemoveBitwidthParameter(bits)(), widths.RemoveBitwidthParameter(bits)())
        ours, theirs = c.BitWidthParameter(bits), widths.BitWidthParameter(bits)
        for module in (ours, theirs):
            module.bit_width_offset.data.fill_(-1.3)
            module().backward()
        same(ours(), theirs())
        same(ours.bit_width_offset.grad, theirs.bit_width_offset.grad)
    for given in (4.0, 8.0, 16.0):
        ours = c.MsbClampBitWidth(c.RemoveBitwidthParameter(3), 2, 8)
        theirs = widths.MsbClampBitWidth(widths.RemoveBitwidthParameter(3), 2, 8)
        same(ours(torch.tensor(given)), theirs(torch.tensor(given)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (c.AbsMax(), statistics.AbsMax()),
        (c.AbsMinMax(), statistics.AbsMinMax()),
        (c.AbsPercentile(90.0), statistics.AbsPercentile(90.0, None)),
        (c.PercentileInterval(10.0, 90.0), statistics.PercentileInterval(10.0, 90.0)),
        (c.NegativeMinOrZero(), statistics.NegativeMinOrZero()),
        (c.NegativePercentileOrZero(10.0), statistics.NegativePercentileOrZero(10.0)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_statistics(ours: nn.Module, theirs: nn.Module) -> None:
    for seed in range(5):
        x = torch.randn(100, generator=torch.Generator().manual_seed(seed))
        same(ours(x), theirs(x))
        same(ours(x.abs() + 1), theirs(x.abs() + 1))


@pytest.mark.parametrize("threshold", [None, torch.tensor(128.0)])
def test_constant_and_learned_scales(threshold: Tensor | None) -> None:
    powers = (c.PowerOfTwoRestrictValue(), restrictions.PowerOfTwoRestrictValue(functions.CeilSte()))
    for mine, other in ((None, restrictions.FloatRestrictValue()), powers):
        for value in (0.1, 6.0, 0.25):
            ours, theirs = (c.ConstScaling(value, None, mine), scalings.ConstScaling(value, other))
            same(ours(X, threshold), theirs(X, threshold).reshape(()))
            ours, theirs = (c.ParameterScaling(value, (3, 1), mine), scalings.ParameterScaling(value, (3, 1), other))
            x = torch.zeros(3, 2)
            same(ours(x, threshold), theirs(x, threshold))


def test_binary_and_ternary() -> None:
    pairs = [
        (c.BinaryQuant(c.ConstScaling(0.5)), quantizers.BinaryQuant(scalings.ConstScaling(0.5))),
        (c.ClampedBinaryQuant(c.ConstScaling(0.5)), quantizers.ClampedBinaryQuant(scalings.ConstScaling(0.5))),
        (c.TernaryQuant(c.ConstScaling(0.5), 0.5), quantizers.TernaryQuant(scalings.ConstScaling(0.5), 0.5)),
    ]
    for ours, theirs in pairs:
        same(ours(X), theirs(X))
        slope, other = gradients(ours, X)[0], gradients(theirs, X)[0]
        g = torch.linspace(0.5, 1.5, X.numel())
        inside = torch.ones_like(X) if isinstance(ours, c.BinaryQuant) else (X.abs() <= 0.5).float()
        assert torch.equal(slope, g * inside)
        beyond = (X.abs() > 0.25).float() if isinstance(ours, c.TernaryQuant) else inside
        assert torch.equal(other, g * beyond * 0.5), "theirs is multiplied by the scale, and passes where it is not 0"
