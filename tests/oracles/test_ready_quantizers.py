"""Ready quantizers beside those of Brevitas under the same name: what its layers and ours give in training and after.

Where values differ is data, with the cause, and has to be so: what is not listed must be the same bits, and what is
must not. Zeros compare equal here, since Brevitas keeps -0.0. Special values stand in `test_differences.py`.
"""

import importlib
from typing import Any

import brevitas.nn
import pytest
import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.function_wrapper import Identity
from brevitas.core.quant import IntQuant, PrescaledRestrictIntQuant
from torch import Tensor

from samebits.torch_frontend import components, quant

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ROOMS = ("scaled_int", "fixed_point", "shifted_scaled_int", "binary", "ternary")
FLOATS = ("float", "float_quant_ocp", "float_quant_fnuz", "mx_quant_ocp")
MODULES = [importlib.import_module(f"brevitas.quant.{name}") for name in (*ROOMS, *FLOATS)]
MODULES += [importlib.import_module(f"brevitas.quant.experimental.{name}") for name in FLOATS]
SEEDS = range(2)


def theirs(name: str) -> Any:
    """The quantizer of Brevitas, or None."""
    return next((getattr(module, name) for module in MODULES if hasattr(module, name)), None)


def tensor(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def value_of(result: Any) -> Tensor:
    value: Tensor = (result if isinstance(result, Tensor) else result.value).detach()
    return value


def differs(mine: Tensor, other: Tensor) -> bool:
    return not torch.equal(mine.detach(), other.reshape(mine.shape))


def of_weights(name: str) -> set[str]:
    found = set()
    for seed in SEEDS:
        fields = {"weight_group_size": 32} if "Group" in name else {}
        layer = brevitas.nn.QuantLinear(64, 4, bias=False, weight_quant=theirs(name), **fields)
        layer.weight.data = tensor(seed, (4, 64))
        layer.weight_quant.init_tensor_quant()
        ours = getattr(quant, name).let(module=layer).tensor_quant
        if differs(ours(layer.weight.detach())[0], value_of(layer.quant_weight())):
            found.add("weight")
    return found


def of_activations(name: str) -> set[str]:
    """The first batch in training, evaluation after it and after the second, and after statistics are over."""
    found: set[str] = set()
    range_given = {"max_val": 1.3} if name.startswith("Uint") else {"min_val": -1.7, "max_val": 1.3}
    fields: dict[str, Any] = {"collect_stats_steps": 3} | (range_given if "Init" in name else {})
    shape = (2, 4, 4, 8) if "PerChannel" in name else (4, 64)
    if "PerChannel" in name:
        fields |= {"per_channel_broadcastable_shape": (1, 4, 1, 1)}
    own = {"scaling_stats_permute_dims": (1, 0, 2, 3)} if "PerChannel" in name else {}
    own |= {"group_dim": -1} if "MX" in name else {}
    for seed in SEEDS:
        layer = brevitas.nn.QuantIdentity(act_quant=theirs(name), return_quant_tensor=False, **fields, **own)
        ours = getattr(quant, name).let(**fields).tensor_quant
        for step, (training, evaluation) in enumerate(
            [("training", "evaluation"), ("training", "average"), ("training", "average"), ("learned", "learned")]
        ):
            x = tensor(10 * seed + step, shape) * (1 + step)
            if differs(ours.train()(x)[0], value_of(layer.train()(x))):
                found.add(training)
            if differs(ours.eval()(x)[0], value_of(layer.eval()(x))):
                found.add(evaluation)
    return found


TRAINED = {"training", "average", "learned"}
LATER = {"average", "learned"}

# cause: which quantizers, and at which stages they differ on the tensors of these tests
KNOWN: dict[str, dict[str, set[str]]] = {
    # fl(0.9 * a / d + 0.1 * b / d) for fl(0.9 * a + 0.1 * b) / d, the same where d is a power of two
    "scales are averaged, theirs are magnitudes": {
        "Uint8ActPerTensorFloat": LATER,
        "Fp8e4m3ActPerTensorFloat": LATER,
        "Fp8e4m3ActPerTensorFloatMSE": LATER,
        "Fp8e4m3ActPerChannelFloat2d": LATER,
        "Fp8e4m3ActPerChannelFloat2dMSE": LATER,
        "Fp8e4m3OCPActPerTensorFloat": {"average"},
        "Fp8e4m3OCPActPerTensorFloatMSE": LATER,
        "Fp8e4m3FNUZActPerTensorFloat": LATER,
        "Fp8e4m3FNUZActPerTensorFloatMSE": LATER,
        "Fp8e5m2ActPerTensorFloat": {"average"},
        "Fp8e5m2ActPerChannelFloat2d": LATER,
        "Fp8e5m2OCPActPerTensorFloat": {"average"},
        "Fp8e5m2FNUZActPerTensorFloat": {"average"},
    },
    # and a zero point is clamp(round(average of zero points)), theirs round(-average of minima / average of scales)
    "zero points are averaged, theirs are minima": {"ShiftedUint8ActPerTensorFloat": LATER},
    # ours is a power of two from the first tensor on, and so is what is averaged
    "theirs is restricted only when statistics are over": {
        "Int8ActPerTensorFixedPoint": TRAINED,
        "Int8ActPerTensorFixedPointMSE": TRAINED,
        "Uint8ActPerTensorFixedPoint": TRAINED,
        "Uint8ActPerTensorFixedPointMSE": TRAINED,
        "ShiftedUint8ActPerTensorFixedPoint": TRAINED,
        "ShiftedUint8ActPerTensorFixedPointMSE": TRAINED,
    },
    # absmax * fl(k / 20) for fl(a + fl(fl(absmax - a) * fl(k / 19))) with a = absmax / 20: the last bit of the scale
    "candidates of MSE are rounded otherwise": {
        "Uint8ActPerTensorFloatMSE": TRAINED,
        "Fp8e5m2ActPerTensorFloatMSE": TRAINED,
        "Fp8e5m2ActPerChannelFloat2dMSE": TRAINED | {"evaluation"},
        "Fp8e5m2OCPActPerTensorFloatMSE": TRAINED,
        "Fp8e5m2FNUZActPerTensorFloatMSE": TRAINED,
        "Fp8e5m2OCPWeightPerChannelFloatMSE": {"weight"},
        "Fp8e5m2FNUZWeightPerChannelFloatMSE": {"weight"},
    },
    "MSE searches both ends together, theirs one after the other": {"ShiftedUint8ActPerTensorFloatMSE": TRAINED},
    # see test_half_quadratic.py
    "HQO of a channel ends where its own error no longer falls, theirs where that of the tensor does": {
        "Int8WeightPerChannelFloatHQO": {"weight"},
    },
    # values are (code - mid) * s + z with z the value of the middle code, theirs (code - z) * s with any number z
    "floating-point zero points are values, theirs are multiples of the scale": {
        "ShiftedUint8WeightPerTensorFloatHQO": {"weight"},
        "ShiftedUint8WeightPerChannelFloatHQO": {"weight"},
        "ShiftedUint8WeightPerGroupFloatHQO": {"weight"},
        "ShiftedUint8ActPerTensorFloatHQO": TRAINED | {"evaluation"},
    },
    # 2**(floor(log2 absmax) - 6), theirs 2**(floor(log2 absmax) - 7)
    "MXINT8 of OCP has a code for the largest element, theirs clamps": {
        "MXInt8Weight": {"weight"},
        "MXInt8WeightMSE": {"weight"},
        "MXInt8Act": TRAINED | {"evaluation"},
    },
}
NOT_THEIRS = {
    "Int8ActPerTensorFloatHQO",
    "Uint8ActPerTensorFloatHQO",
    "Int8DynamicActPerTensorFloat",
    "Fp8e5m2WeightPerTensorFloatMSE",
    "Fp8e5m2WeightPerChannelFloatMSE",
    *(
        f"Fp8{numbers}{standard}ActPerChannelFloat2d{statistic}"
        for numbers in ("e4m3", "e5m2")
        for standard in ("OCP", "FNUZ")
        for statistic in ("", "MSE")
    ),
}


@pytest.mark.parametrize("name", sorted(n for n, d in quant.declared().items() if d.role != "bias"))
def test_ready_quantizers_give_what_those_of_brevitas_give(name: str) -> None:
    if theirs(name) is None:
        assert name in NOT_THEIRS
        return
    found = (of_weights if getattr(quant, name).role == "weight" else of_activations)(name)
    known = [stages[name] for stages in KNOWN.values() if name in stages]
    assert found == (known[0] if known else set())


def test_names_in_the_lists_are_those_of_ready_quantizers() -> None:
    listed = [name for stages in KNOWN.values() for name in stages]
    assert len(listed) == len(set(listed))
    assert {*listed, *NOT_THEIRS} <= set(quant.declared())
    assert not any(theirs(name) for name in NOT_THEIRS)


def test_theirs_keeps_the_sign_of_zero() -> None:
    layer = brevitas.nn.QuantIdentity(act_quant=theirs("SignedTernaryActPerTensorConst"))
    x = torch.tensor([-0.1])
    assert torch.signbit(value_of(layer(x))).all()
    assert not torch.signbit(quant.SignedTernaryActPerTensorConst.tensor_quant(x)[0]).any()


@pytest.mark.parametrize("bits", [8, 16])
def test_biases_by_the_scale_of_the_products(bits: int) -> None:
    module = PrescaledRestrictIntQuant(IntQuant(False, True, Identity()), BitWidthConst(bits))
    ours = components.PrescaledRestrictIntQuant(components.IntQuant(), components.BitWidthConst(bits))
    for seed in SEEDS:
        bias, scale = tensor(seed, (16,)), tensor(seed + 1, (16,)).abs() * 1e-3
        for mine, other in zip(ours(bias, scale), module(bias, scale), strict=True):
            assert torch.equal(mine.detach(), other.detach())


@pytest.mark.parametrize(
    "name", ["Int8BiasPerTensorFloatInternalScaling", "Int8BiasPerTensorFixedPointInternalScaling"]
)
def test_biases_by_a_scale_of_their_own(name: str) -> None:
    layer = brevitas.nn.QuantLinear(8, 16, bias=True, bias_quant=theirs(name))
    layer.bias.data = tensor(3, (16,))
    layer.bias_quant.init_tensor_quant()
    assert torch.equal(getattr(quant, name).tensor_quant(layer.bias.detach())[0], value_of(layer.quant_bias()))


@pytest.mark.parametrize("name", ["Uint8ActPerTensorFloat", "Fp8e4m3ActPerTensorFloat"])
def test_an_average_of_magnitudes_is_theirs(name: str) -> None:
    """The first cause above, on its own: with their average the scales are the same again."""
    unlike = 0
    for seed in range(0, 8, 2):
        layer = brevitas.nn.QuantIdentity(act_quant=theirs(name), return_quant_tensor=True, collect_stats_steps=3)
        ours = getattr(quant, name).tensor_quant
        given = [tensor(seed, (4, 64)), tensor(seed + 1, (4, 64))]
        for x in given:
            layer.train()(x)
            ours(x)
        first, second = map(ours.scaling_impl.scaling_stats_impl, given)
        scale = layer.eval()(given[0]).scale.detach()
        assert torch.equal((0.9 * first + 0.1 * second) / ours.quantizer.format.hi, scale)
        unlike += not torch.equal(ours.scaling_impl.value.detach(), scale)
    assert unlike
