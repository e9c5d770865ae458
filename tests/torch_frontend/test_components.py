"""Components by themselves: what each computes, special values, state, and what is refused."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samebits.core import PerAxis, PerGroup
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import components as c
from samebits.torch_frontend import fake_quantize
from samebits.torch_frontend.straight_through import tensor_clamp

X = torch.tensor([[-2.5, -0.5, 0.3, 1.5], [0.75, -1.5, 2.5, -0.0]])


def integers(scaling: nn.Module | None = None, zero: nn.Module | None = None, **fields: Any) -> c.RescalingIntQuant:
    """int8, the largest magnitude over 128 unless another scaling is given."""
    return c.RescalingIntQuant(
        c.IntQuant(**fields),
        c.StatsFromParameterScaling() if scaling is None else scaling,
        c.IntScaling(fields.get("narrow_range", False), fields.get("signed", True)),
        c.ZeroZeroPoint() if zero is None else zero,
        c.BitWidthConst(8),
    )


MAKERS: dict[str, Any] = {
    "binary": lambda: c.BinaryQuant(c.ParameterScaling(0.1)),
    "clamped binary": lambda: c.ClampedBinaryQuant(c.ConstScaling(0.5)),
    "ternary": lambda: c.TernaryQuant(c.RuntimeStatsScaling(c.AbsAve()), 0.25),
    "integers": integers,
    "learned": lambda: integers(c.ParameterFromRuntimeStatsScaling(2, c.AbsPercentile(90.0))),
    "learned rows": lambda: integers(c.ParameterFromStatsFromParameterScaling(granularity=PerAxis(0))),
    "sigma": lambda: integers(c.StatsFromParameterScaling(c.MeanLearnedSigmaStd(2.0))),
    "affine": lambda: integers(c.RuntimeStatsScaling(c.AbsMinMax()), c.RuntimeZeroPoint(), signed=False),
    "learned affine": lambda: integers(c.ParameterScaling(3.0), c.ParameterZeroPoint(7.3), signed=False),
    "groups": lambda: integers(c.RuntimeDynamicGroupStatsScaling(2)),
    "float": lambda: c.FloatQuant(4, 3, c.StatsFromParameterScaling()),
    "float of scale 1": lambda: c.FloatQuant(2, 1),
    "stochastic": lambda: integers(float_to_int_impl=c.StochasticRoundSte(3)),
    "learned rounding": lambda: integers(
        float_to_int_impl=c.LearnedRoundSte(c.LearnedRoundHardSigmoid(), torch.linspace(-2, 2, 8).reshape(2, 4))
    ),
    "learned width": lambda: c.RescalingIntQuant(
        c.IntQuant(), c.ParameterScaling(2.0), c.IntScaling(False, True), c.ZeroZeroPoint(), c.BitWidthParameter(4)
    ),
    "delayed": lambda: c.TernaryQuant(c.ParameterScaling(1.0), quant_delay_steps=2),
}
each = pytest.mark.parametrize("kind", MAKERS)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_are_those_of_the_description(kind: str, dtype: torch.dtype) -> None:
    module, x = MAKERS[kind](), X.to(dtype)
    for _ in range(4):
        module(x)
    value, scale, zero_point, width = module.eval()(x)
    used = module.qparams(x)
    assert_same_bits(value.detach(), fake_quantize(module.quantizer, x, used).detach())
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (value.dtype, scale.dtype, zero_point.dtype, width.dtype) == (dtype, wide, wide, wide)
    assert_same_bits(scale.detach(), used.scale.detach())


@each
@pytest.mark.parametrize("x", [torch.zeros(2, 4), torch.full((2, 4), 1e-42), torch.full((2, 4), 3e38)], ids=str)
def test_zeros_and_ends_of_the_range(kind: str, x: Tensor) -> None:
    value = MAKERS[kind]()(x)[0]
    assert value.isfinite().all()


@pytest.mark.parametrize("kind", ["binary", "clamped binary", "learned affine", "float of scale 1", "learned width"])
def test_nan_stays_and_infinities_are_limited(kind: str) -> None:
    module = MAKERS[kind]()
    value = module(torch.tensor([math.nan, math.inf, -math.inf, 1.0]))[0]
    assert value[0].isnan()
    assert value[1:].isfinite().all()


@pytest.mark.parametrize("kind", ["integers", "learned", "affine", "float", "groups"])
def test_a_statistic_of_nan_or_infinity_is_refused_and_nothing_is_learned(kind: str) -> None:
    module = MAKERS[kind]()
    module(X)
    before = copy.deepcopy(module.state_dict())
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or an infinity"):
            module(torch.full((2, 4), bad))
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["binary", "ternary", "integers", "learned", "affine", "float", "delayed"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 4)])
def test_empty_and_0d(kind: str, shape: tuple[int, ...]) -> None:
    module = MAKERS[kind]()
    for _ in range(3):
        assert module(torch.ones(shape))[0].shape == shape


def test_a_binary_tensor_of_one_sign() -> None:
    module = c.BinaryQuant(c.StatsFromParameterScaling())
    for x in (torch.ones(4), -torch.ones(4)):
        value, scale, zero_point, width = module(x)
        assert_same_bits(value, x)
        assert (scale.item(), zero_point.item(), width.item()) == (1.0, 0.0, 1.0)


@each
def test_copies_and_pickles_go_on_with_the_same_bits(kind: str) -> None:
    module = MAKERS[kind]()
    module(X)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    others = [copy.deepcopy(module), torch.load(buffer, weights_only=False)]
    for _ in range(3):
        want = module(X * 2)
        for other in others:
            for mine, theirs in zip(want, other(X * 2), strict=True):
                assert_same_bits(mine.detach(), theirs.detach())


@each
def test_state_stays_float32(kind: str) -> None:
    for moved in (MAKERS[kind]().half(), MAKERS[kind]().to(torch.bfloat16)):
        assert all(t.dtype in (torch.float32, torch.int64) for t in moved.state_dict().values())


@each
def test_state_without_values_takes_those_that_are_loaded(kind: str) -> None:
    """Made on the device "meta", as large models are, and whatever the default dtype is."""
    module = MAKERS[kind]()
    module(X)
    with torch.device("meta"):
        empty = MAKERS[kind]()
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(module.state_dict())
    torch.set_default_dtype(torch.float64)
    try:
        double = MAKERS[kind]()
        double.load_state_dict(module.state_dict())
    finally:
        torch.set_default_dtype(torch.float32)
    want = module(X)
    for other in (empty, double):
        for mine, theirs in zip(want, other(X), strict=True):
            assert_same_bits(mine.detach(), theirs.detach())


@each
def test_a_refused_state_changes_nothing_and_loading_keeps_the_parameters(kind: str) -> None:
    module, other = MAKERS[kind](), MAKERS[kind]()
    module(X), other(X * 3)
    kept, before = list(module.parameters()), copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict(before | {"scaling_impl.velue": torch.ones(())})
    module.load_state_dict(other.state_dict())
    assert all(p is q for p, q in zip(kept, module.parameters(), strict=True))
    for mine, theirs in zip(module(X), other(X), strict=True):
        assert_same_bits(mine.detach(), theirs.detach())


def test_every_component_is_traced_whole() -> None:
    """Each tensor quantizer in training, and the parts by themselves; the bits stay."""
    modules = nn.ModuleList([MAKERS[kind]() for kind in MAKERS])
    others = copy.deepcopy(modules)
    roundings = [c.RoundSte(), c.FloorSte(), c.CeilSte(), c.RoundToZeroSte(), c.DPURoundSte()]
    averages = [c.AbsAve(), c.L1Norm(), c.L2Norm(), c.RootMeanSquare(), c.MeanSigmaStd()]
    extremes = [c.AbsMax(), c.AbsMinMax(), c.SignedAbsMax(), c.NegativeMinOrZero(PerAxis(0))]
    percentiles = [c.AbsPercentile(90.0), c.PercentileInterval(10.0, 90.0), c.NegativePercentileOrZero(10.0)]
    restrictions = [
        c.FloatRestrictValue(),
        c.LogFloatRestrictValue(),
        c.PowerOfTwoRestrictValue(),
        c.IntRestrictValue(),
    ]
    parts = nn.ModuleList([*roundings, *averages, *extremes, *percentiles, *restrictions])
    clamps = (c.TensorClamp(), c.TensorClampSte())
    int_quant, width = c.IntQuant(), torch.tensor(4.0)

    def run(modules: nn.ModuleList, x: Tensor) -> list[Tensor]:
        clamped = [clamp(x, -1.0, 1.0) for clamp in clamps] + [int_quant(torch.ones(2, 1), torch.ones(()), width, x)]
        return [module(x)[0] for module in modules] + [part(x) for part in parts] + clamped

    for module in (*modules, *others):
        module(X)
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    for x in (X * 2, X * 3):
        for mine, theirs in zip(compiled(modules, x), run(others, x), strict=True):
            assert_same_bits(mine.detach(), theirs.detach())


def test_scales_by_themselves_are_magnitudes() -> None:
    assert_same_bits(c.ParameterScaling(6.0, (3, 1))(torch.zeros(3, 2)).detach(), torch.full((3, 1), 6.0))
    assert_same_bits(c.StatsFromParameterScaling(c.AbsMax(), (2, 1))(X), torch.tensor([[2.5], [2.5]]))
    assert_same_bits(c.ConstScaling(6.0)(X, torch.tensor(128.0)), torch.tensor(6.0 / 128))
    module = integers(c.ParameterScaling(6.0))
    assert_same_bits(module.scaling_impl.value.detach(), torch.tensor(6.0 / 128))


def test_gradient_of_a_learned_scale_and_a_learned_width() -> None:
    module = MAKERS["learned width"]()
    module(X)[0].sum().backward()
    assert module.scaling_impl.value.grad is not None
    assert module.bit_width_impl.bit_width_offset.grad is not None
    assert module.bit_width is module.bit_width_impl.bit_width_offset
    assert "bit_width" not in module.state_dict()


def test_the_smallest_width_and_the_largest() -> None:
    for offset, want in ((-30.0, 8.0), (0.0, 2.0), (1.5, 4.0), (0.5, 2.0)):
        module = c.BitWidthParameter(4)
        module.bit_width_offset.data.fill_(offset)
        assert module().item() == want


def test_a_zero_point_of_the_tensor_goes_by_the_scale_that_is_used() -> None:
    module = integers(c.ParameterScaling(51.0), c.StatsFromParameterZeroPoint(), signed=False)
    value, scale, zero_point, _ = module(X)
    assert_same_bits(scale.detach(), torch.tensor(51.0) / 255)
    assert zero_point == torch.round(2.5 / scale.detach())
    assert_same_bits(
        value.detach(), ((X / scale).round() + zero_point).clamp(0, 255).sub(zero_point).mul(scale).detach()
    )
    other = c.ParameterZeroPoint(1e4)
    module = integers(c.ParameterScaling(51.0), other, signed=False)
    assert module(X)[2] == 255
    with pytest.raises(ValueError, match="is part of one quantizer"):
        integers(c.ParameterScaling(1.0), other, signed=False)


def test_delay_counts_training_alone_and_is_kept() -> None:
    module, x = c.TernaryQuant(c.ParameterScaling(1.0), quant_delay_steps=2), torch.full((3,), 0.7)
    assert torch.equal(module(x)[0], x)
    module.eval()
    for _ in range(4):
        assert torch.equal(module(x)[0], x)
    other = c.TernaryQuant(c.ParameterScaling(1.0), quant_delay_steps=2)
    other.load_state_dict(module.state_dict())
    for quantizer in (module.train(), other.train()):
        assert torch.equal(quantizer(x)[0], x)
        assert torch.equal(quantizer(x)[0].detach(), torch.ones(3))
        assert torch.equal(quantizer.eval()(x)[0].detach(), torch.ones(3))
    wrapper = c.DelayWrapper(1)
    assert torch.equal(wrapper(x, x + 1), x)
    assert torch.equal(wrapper(x, x + 1), x + 1)


def test_learned_rounding_is_soft_in_training_and_decided_in_evaluation() -> None:
    module = MAKERS["learned rounding"]()
    value, scale, *_ = module(X)
    soft = value.detach() / scale
    assert (soft != soft.round()).any()
    value, scale, *_ = module.eval()(X)
    hard = value.detach() / scale
    assert torch.equal(hard, hard.round())
    v = module.int_quant.float_to_int_impl.value.detach()
    up = c.LearnedRoundHardSigmoid().eval()(v)
    assert torch.equal(hard, ((X / scale).floor() + up).clamp(-128, 127))


def test_stochastic_rounding_draws_anew_in_training_only() -> None:
    module, x = MAKERS["stochastic"](), torch.linspace(-1, 1, 251)
    first, second = module(x)[0], module(x)[0]
    assert not torch.equal(first, second)
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
def test_int_quant_by_itself(signed: bool, narrow: bool) -> None:
    """The formula, of a width that comes with the call."""
    module, x = c.IntQuant(narrow, signed), torch.linspace(-20, 20, 101)
    for bits in (2, 4, 8):
        lo, hi = (-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1 - narrow)
        zero = torch.tensor(float(max(lo, min(hi, 1))))
        codes = (torch.round(x / 0.25) + zero).clamp(lo, hi)
        operands = (torch.tensor(0.25), zero, torch.tensor(float(bits)), x)
        assert torch.equal(module(*operands), (codes - zero) * 0.25)
        assert torch.equal(module.to_int(*operands).to(torch.float32), codes)
        assert (module.min_int(bits), module.max_int(bits)) == (lo, hi)


@pytest.mark.parametrize(("signed", "narrow", "ends"), [(1, 1, 127), (1, 0, 128), (0, 1, 254), (0, 0, 255)])
def test_int_scalings(signed: int, narrow: int, ends: int) -> None:
    width = torch.tensor(8.0)
    assert c.IntScaling(bool(narrow), bool(signed))(width) == ends
    assert c.IntScaling(False, True, "hi")(width) == 127
    assert c.PowerOfTwoIntScaling(bool(signed))(width) == (128 if signed else 256)


def test_clamps() -> None:
    x = X.clone().requires_grad_()
    c.TensorClamp()(x, -1.0, 1.0).sum().backward()
    assert torch.equal(x.grad, (X.abs() <= 1).float())
    assert_same_bits(c.TensorClamp()(X, -1.0, 1.0), tensor_clamp(X, -1.0, 1.0))
    x.grad = None
    c.TensorClampSte()(x, -1.0, 1.0).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(X))


REFUSED: list[tuple[Any, str]] = [
    (lambda: c.BinaryQuant(0.1), "`scaling_impl` must be a module that gives the scale of a tensor, got 0.1"),
    (lambda: c.StatsFromParameterScaling(nn.Identity()), "`scaling_stats_impl` must be a component, like AbsMax"),
    (lambda: c.ConstScaling(1.0, None, nn.Identity()), "`restrict_scaling_impl` must be a component"),
    (lambda: c.RuntimeZeroPoint(nn.Identity()), "`zero_point_stats_impl` must be a component"),
    (
        lambda: c.ConstScaling(1.0, scaling_min_val=0.0),
        "`scaling_min_val` must be None or positive and finite, got 0.0",
    ),
    (lambda: c.ConstScaling("1"), "`scaling_init` must be a number, got '1'"),
    (lambda: c.ParameterFromRuntimeStatsScaling(0), "`collect_stats_steps` must be at least 1, got 0"),
    (lambda: c.RuntimeStatsScaling(scaling_stats_momentum=1.5), r"in \(0, 1\], got 1.5"),
    (lambda: c.RescalingIntQuant(*[c.RoundSte()] * 5), "`int_quant` must be an IntQuant, got RoundSte"),
    (lambda: c.BinaryQuant(c.ConstScaling(1.0), signed=False), "`signed` must be True"),
    (lambda: c.ConstScaling(0.0), "`scaling_init` must be positive and finite, got 0.0"),
    (lambda: c.ParameterScaling(math.nan), "`scaling_init` must be positive"),
    (lambda: c.ParameterScaling(torch.ones(3), (2,)), r"`scaling_shape` \(2,\), got shape \(3,\)"),
    (lambda: c.ParameterScaling(1.0, (2, 3)), r"one axis that is longer than 1.*got \(2, 3\)"),
    (lambda: c.BitWidthConst(17), "`bit_width` must be in 1..16, got 17"),
    (lambda: c.BitWidthConst(8.0), "`bit_width` must be an int, got 8.0"),
    (lambda: c.BitWidthParameter(1), "`bit_width` must be at least 2, got 1"),
    (lambda: c.MsbClampBitWidth(c.BitWidthConst(2), 8, 4), "`max_overall_bit_width` must be at least 8, got 4"),
    (lambda: c.RemoveBitwidthParameter(-1), "`bit_width_to_remove` must be at least 0, got -1"),
    (lambda: c.DelayWrapper(-1), "`quant_delay_steps` must be at least 0, got -1"),
    (lambda: c.IntQuant(float_to_int_impl=nn.Identity()), r"`float_to_int_impl` must be a component, like RoundSte"),
    (lambda: c.TernaryQuant(c.ConstScaling(1.0), 1.5), r"`threshold` must be in \[0, 1\), got 1.5"),
    (lambda: c.PowerOfTwoRestrictValue(c.RoundSte()), "`restrict_value_float_to_int_impl` must be CeilSte or FloorSte"),
    (lambda: c.TensorClamp("pass_through"), "`gradient` must not be 'pass_through'"),
    (lambda: c.IntScaling(False, True, "edge"), "`denominator` must be 'lo' or 'hi', got 'edge'"),
    (lambda: c.FloatQuant(9, 3), "`exponent_bits` must be in 1..8, got 9"),
    (lambda: c.AbsPercentile(0.0), r"`percentile` must be in \(0, 100\], got 0.0"),
    (lambda: c.PrescaledRestrictIntQuant(c.IntQuant(), c.BitWidthConst(8))(X), "`scale` must be given"),
    (lambda: c.ParameterFromRuntimeZeroPoint()(X, torch.ones(()), None), "no range of codes before"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refused(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        call()


def test_a_scaling_is_part_of_one_quantizer() -> None:
    scaling = c.ParameterScaling(1.0)
    assert scaling(X).item() == 1.0
    c.BinaryQuant(scaling)
    with pytest.raises(ValueError, match="is part of one quantizer"):
        integers(scaling)


def test_an_unset_state_is_refused_in_evaluation() -> None:
    module = integers(c.ParameterFromRuntimeStatsScaling()).eval()
    with pytest.raises(RuntimeError, match="is not set"):
        module(X)
    assert module.quantizer.granularity != PerGroup(2)


def test_another_width_is_not_loaded() -> None:
    module = c.BitWidthStatefulConst(8)
    with pytest.raises(RuntimeError, match="`bit_width` must be 8"):
        module.load_state_dict({"bit_width": torch.tensor(4.0)})
    assert module() == 8
