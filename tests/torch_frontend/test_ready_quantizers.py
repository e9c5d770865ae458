"""The ready quantizers as graphs of components: each is its description, and has the bits of `TensorQuantizer`."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samebits.core import PerAxis, Quantizer, catalog
from samebits.core.inject import Declaration
from samebits.core.scales import ScaleSource
from samebits.proofs.inputs.compare import assert_same_bits, same_bits
from samebits.torch_frontend import components, quant
from samebits.torch_frontend.nn import QuantConvTranspose2d
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer

SHAPE = (4, 64)
FIELDS = {"min_val": -1.7, "max_val": 1.3}
NAMES = sorted(
    name for name, d in quant.declared().items() if "requires_input_scale" not in d or not d.requires_input_scale
)
# Beyond the ready ones: what else a declaration can ask for
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "delay": ("Int8ActPerTensorFloat", {"quant_delay_steps": 3}),
    "logarithm": ("Uint8ActPerTensorFloat", {"restrict_scaling_type": "log_fp"}),
    "mean": ("Int8ActPerTensorFloat", {"scaling_stats_momentum": None}),
    "running": ("ShiftedUint8ActPerTensorFloat", {"scaling_impl_type": "stats"}),
    "running mean": ("Int8ActPerTensorFloat", {"scaling_impl_type": "stats", "scaling_stats_momentum": None}),
    "stochastic": ("Int8ActPerTensorFloat", {"float_to_int_impl_type": "stochastic_round", "stochastic_round_seed": 3}),
    "integers": ("Int8WeightPerTensorFloatMSE", {"restrict_scaling_type": "int"}),
    "directed": ("Int8WeightPerChannelFloat", {"float_to_int_impl_type": "floor", "bit_width": 4}),
    "average": ("Int8ActPerTensorFloat", {"scaling_stats_op": "ave"}),
    "signed": ("Int8WeightPerTensorFloat", {"scaling_stats_op": "signed_max", "narrow_range": False}),
}
COMPILED = ("ShiftedUint8ActPerTensorFixedPoint", "Int8WeightPerChannelFloat", "SignedBinaryActPerTensorConst", "delay")


def declaration(name: str) -> Declaration:
    """With so few steps of statistics that they end in these tests, where there are such steps."""
    base, fields = VARIANTS.get(name, (name, {}))
    found: Declaration = getattr(quant, base).let(**FIELDS, **fields)
    collects = found.quantizer.scale.source is ScaleSource.STATISTIC_THEN_LEARNED
    return found.let(collect_stats_steps=2) if collects else found


def trained(module: nn.Module, steps: range, call: Callable[..., Any] | None = None) -> list[Tensor]:
    """Values and gradients of steps of training, the learned state moved by each."""
    parameters, seen = list(module.parameters()), []
    optimizer = torch.optim.SGD(parameters, 1e-3) if parameters else None
    for step in steps:
        x = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(step)) * (step + 1)).requires_grad_()
        module.zero_grad()
        value = value_of((call or module)(x))
        (value * torch.arange(64.0)).sum().backward()
        if optimizer is not None:
            optimizer.step()
        seen += [value.detach(), x.grad, *(p.grad for p in parameters if p.grad is not None)]
    return seen


def value_of(result: Any) -> Any:
    """The value that a tensor quantizer gives, or a `TensorQuantizer`."""
    return result[0] if isinstance(result, tuple) else result


def pair(name: str) -> tuple[Any, TensorQuantizer]:
    d = declaration(name)
    return d.tensor_quant, TensorQuantizer(d.quantizer, SHAPE, seed=3)


@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_components_are_the_description_and_have_its_bits(name: str) -> None:
    """In training, statistics first and then learned, and in evaluation."""
    ours, plain = pair(name)
    assert ours.quantizer == plain.quantizer
    for mine, other in zip(trained(ours, range(5)), trained(plain, range(5)), strict=True):
        assert_same_bits(mine, other)
    assert sorted(p.numel() for p in ours.parameters()) == sorted(p.numel() for p in plain.parameters())
    x = torch.randn(SHAPE)
    value, scale, zero_point, width = ours.eval()(x)
    used = plain.eval().qparams(x)
    assert_same_bits(value, plain(x))
    assert_same_bits(scale.detach(), used.scale.detach())
    assert torch.equal(zero_point, torch.zeros(()) if used.zero_point is None else used.zero_point)
    assert width == plain.quantizer.format.bits


@pytest.mark.parametrize("name", ["Int8ActPerTensorFloat", "ShiftedUint8ActPerTensorFloat", *VARIANTS])
@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("further", [False, True])
def test_training_goes_on_from_a_checkpoint_with_the_same_bits(name: str, at: int, further: bool) -> None:
    """At every stage: before anything was seen, while statistics are collected, learned; also one further on."""
    whole, first = declaration(name).tensor_quant, declaration(name).tensor_quant
    wanted = trained(whole, range(5))
    before = trained(first, range(at))
    then = declaration(name).tensor_quant
    if further:
        trained(then, range(7, 12))
    kept = list(then.parameters())
    then.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(p is q for p, q in zip(kept, then.parameters(), strict=True)), "an optimizer would train others"
    for mine, other in zip([*before, *trained(then, range(at, 5))], wanted, strict=True):
        assert_same_bits(mine, other)


@pytest.mark.parametrize("name", ["Int8ActPerTensorFloat", "ShiftedUint8ActPerTensorFloat", *VARIANTS])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_repeated_forward_pass_is_no_step(name: str, reentrant: bool) -> None:
    plain, repeated = declaration(name).tensor_quant, declaration(name).tensor_quant

    def again(x: Tensor) -> Any:
        return checkpoint(lambda x: value_of(repeated(x)) * 2, x, use_reentrant=reentrant)

    for mine, other in zip(
        trained(repeated, range(5), again), trained(plain, range(5), lambda x: plain(x)[0] * 2), strict=True
    ):
        assert_same_bits(mine, other)


def compiled_beside_eager(names: tuple[str, ...]) -> None:
    ours, others = (nn.ModuleList([declaration(name).tensor_quant for name in names]) for _ in range(2))

    def run(modules: nn.ModuleList, x: Tensor) -> list[Tensor]:
        return [module(x)[0] for module in modules]

    compiled = torch.compile(run, fullgraph=True)
    for step in range(5):
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(step)) * (step + 1)
        program = run if step == 0 else compiled  # shapes become known in the first call
        for name, mine, other in zip(names, program(ours, x), run(others, x), strict=True):
            assert same_bits(mine.detach(), other.detach()), name
    assert all(map(torch.equal, ours.state_dict().values(), others.state_dict().values()))
    ours.eval(), others.eval()
    for mine, other in zip(compiled(ours, x), run(others, x), strict=True):
        assert_same_bits(mine.detach(), other.detach())


def test_compiled_components_have_the_same_bits() -> None:
    """In one program, whole, with the state that they learn."""
    compiled_beside_eager(COMPILED)


@pytest.mark.thorough
def test_every_kind_of_ready_quantizer_compiled() -> None:
    kinds: dict[Any, str] = {}
    for name in NAMES:
        q: Quantizer = declaration(name).quantizer
        rule = (q.scale.source, q.scale.restriction, q.scale.statistic)
        kinds.setdefault((type(q.format), *rule, q.affine, type(q.granularity)), name)
    compiled_beside_eager((*kinds.values(), *VARIANTS))


def test_shapes_of_states_are_those_of_the_layer() -> None:
    """Known before there is a tensor, so that a state dict fits and the first batch can be compiled."""
    layer = nn.Conv2d(3, 5, 2)
    weight = quant.Int8WeightPerChannelFloatMSE.let(module=layer).tensor_quant
    assert weight.scaling_impl.value.shape == (5, 1, 1, 1)
    turned = quant.Int8WeightPerChannelFloatMSE.let(module=(QuantConvTranspose2d(3, 5, 2),)).tensor_quant
    assert turned.scaling_impl.value.shape == (1, 5, 1, 1)
    groups = quant.MXFloat8e4m3WeightMSE.let(module=nn.Linear(64, 4)).tensor_quant
    assert groups.scaling_impl.value.shape == (4, 2)
    act = quant.Fp8e4m3ActPerChannelFloat2d.let(per_channel_broadcastable_shape=(1, 5, 1, 1)).tensor_quant
    assert act.scaling_impl.value.shape == (1, 5, 1, 1)
    assert quant.Fp8e4m3ActPerChannelFloat2d.tensor_quant.scaling_impl.value.shape == (0,)


def test_parts_are_replaced_by_name() -> None:
    d = quant.Int8WeightPerTensorFloat.let(float_to_int_impl=components.FloorSte, scaling_impl=Half)
    module, x = d.tensor_quant, torch.randn(SHAPE)
    assert_same_bits(module(x)[1], x.abs().max() / 2 / 127)
    assert module.quantizer.rounding == "toward_negative"


class Half(nn.Module):
    """A scaling of somebody else."""

    def forward(self, x: Tensor, threshold: Tensor) -> Tensor:
        """Half the largest magnitude, as a scale."""
        return x.abs().max() / 2 / threshold


class Rows(nn.Module):
    """Another, for rows."""

    def forward(self, x: Tensor) -> Tensor:
        """The largest magnitude of each row."""
        return x.abs().amax(1, keepdim=True)


def test_somebody_elses_scaling_says_by_its_shape_what_shares_a_scale() -> None:
    module, x = components.BinaryQuant(Rows()), torch.randn(SHAPE)
    value, scale, *_ = module(x)
    assert scale.shape == (4, 1)
    assert module.quantizer.granularity == PerAxis(0)
    assert_same_bits(value, torch.where(x >= 0, 1.0, -1.0) * scale)


def test_what_components_do_not_compute_is_refused() -> None:
    with pytest.raises(ValueError, match="`dialect` must be None here"):
        _ = quant.Int8WeightPerTensorFloat.let(dialect="brevitas").tensor_quant
    with pytest.raises(ValueError, match=r"`quantizer` must be what the fields say.*got int4"):
        _ = quant.Int8WeightPerTensorFloat.let(quantizer=catalog["int4_per_channel"]).tensor_quant


def test_truncation_is_ready_too() -> None:
    """From 10 bits to 8: a quarter, rounded down or to the nearest."""
    codes = torch.arange(-512.0, 512.0)
    for name, wanted in (("TruncTo8bit", (codes / 4).floor()), ("RoundTo8bit", (codes / 4).round().clamp(-128, 127))):
        operands = (codes * 0.5, torch.tensor(0.5), torch.zeros(()), torch.tensor(10.0), True)
        value, scale, zero_point, width = getattr(quant, name).tensor_quant(*operands)
        assert torch.equal(value, wanted * 2)
        assert (scale, zero_point, width) == (2, 0, 8)


def test_names_of_ready_quantizers() -> None:
    assert "Int8ActPerTensorFloat" in dir(quant)
    assert quant.Int8ActPerTensorFloat is quant.Int8ActPerTensorFloat
    with pytest.raises(AttributeError, match="has no attribute 'Int8ActPerTensorFlaot'"):
        _ = quant.Int8ActPerTensorFlaot
