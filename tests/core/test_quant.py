"""Ready quantizers as declarations: each resolves, fields change what they say, and what is impossible is refused."""

from typing import Any

import numpy as np
import pytest

from samebits.core import (
    BinaryFormat,
    FloatFormat,
    IntegerFormat,
    PerAxis,
    PerGroup,
    PerTensor,
    Quantizer,
    catalog,
    choose_qparams,
    dialects,
    fake_quantize,
    quant,
    quant_floats,
)
from samebits.core.inject import Declaration, DependencyError
from samebits.core.quant_fields import ActQuant, WeightQuant


def ready() -> dict[str, Any]:
    """Every ready declaration, with the range that those want which begin with one."""
    found: dict[str, Any] = {}
    for module in (quant, quant_floats):
        for name, declared in vars(module).items():
            if isinstance(declared, Declaration) and declared.__module__ == module.__name__ and "quantizer" in declared:
                found[name] = declared.let(min_val=-3.0, max_val=3.0) if name.endswith("Init") else declared
    return found


READY = ready()
# The same numbers as a catalog entry, but for the gradient and for the smallest scale
IN_CATALOG = {
    "Int8WeightPerChannelFloat": "int8_narrow_per_channel",
    "ShiftedUint8WeightPerTensorFloat": "uint8_affine_per_tensor",
    "ShiftedUint8WeightPerChannelFloat": "uint8_affine_per_channel",
    "Fp8e4m3OCPWeightPerTensorFloat": "float8_e4m3fn_per_tensor",
    "Fp8e4m3OCPWeightPerChannelFloat": "float8_e4m3fn_per_channel",
    "Fp8e5m2OCPWeightPerTensorFloat": "float8_e5m2_per_tensor",
    "Fp8e5m2OCPWeightPerChannelFloat": "float8_e5m2_per_channel",
    "Fp8e4m3FNUZWeightPerTensorFloat": "float8_e4m3fnuz_per_tensor",
    "Fp8e5m2FNUZWeightPerTensorFloat": "float8_e5m2fnuz_per_tensor",
    "MXFloat8e4m3Weight": "mxfp8_e4m3",
    "MXFloat8e4m3Act": "mxfp8_e4m3",
    "MXInt8Weight": "mxint8",
    "MXInt8Act": "mxint8",
}


@pytest.mark.parametrize("name", READY)
def test_every_ready_declaration_resolves(name: str) -> None:
    q = READY[name].quantizer
    assert isinstance(q, Quantizer)
    assert q == READY[name].quantizer
    same = {n for n, entry in catalog.items() if entry.replace(gradient=q.gradient, floor=q.scale.floor) == q}
    assert same == {IN_CATALOG[name]} if name in IN_CATALOG else not same
    assert q.format.bits == READY[name].bit_width
    assert (q.format.lo < 0) == READY[name].signed
    w = np.linspace(-2, 3, 2 * 64, dtype=np.float32).reshape(2, 64)
    y = fake_quantize(q, w)
    assert y.shape == w.shape
    assert np.isfinite(y).all()
    assert READY[name].quantizer.is_usual


def test_names_say_what_is_declared() -> None:
    for name, declared in READY.items():
        q = declared.quantizer
        assert declared.role == ("bias" if "Bias" in name else "weight" if "Weight" in name else "act"), name
        assert isinstance(q.granularity, PerAxis) == ("PerChannel" in name), name
        assert isinstance(q.granularity, PerGroup) == ("Group" in name or name.startswith("MX")), name
        assert (q.scale.restriction == "power_of_two") == ("FixedPoint" in name), name
        assert (q.scale.statistic == "mse") == name.endswith("MSE"), name
        assert (q.scale.statistic == "hqo") == name.endswith("HQO"), name
        assert q.affine == name.startswith("Shifted"), name
        assert isinstance(q.format, FloatFormat) == name.startswith(("Fp", "MXFloat")), name
        assert isinstance(q.format, BinaryFormat) == ("Binary" in name), name


@pytest.mark.parametrize(
    ("name", "fields", "changes"),
    [
        ("Int8WeightPerTensorFloat", {"bit_width": 4}, {"bits": 4}),
        ("Int8WeightPerTensorFloat", {"narrow_range": False}, {"narrow": False, "denominator": "lo"}),
        ("Int8WeightPerTensorFloat", {"signed": False, "narrow_range": False}, {"signed": False, "narrow": False}),
        ("Int8WeightPerTensorFloat", {"scaling_per_output_channel": True}, {"granularity": PerAxis(0)}),
        ("Int8WeightPerChannelFloat", {"scaling_per_output_channel": False}, {"granularity": PerTensor()}),
        ("Int8WeightPerTensorFloat", {"scaling_per_output_type": "GROUP"}, {"granularity": PerGroup(32)}),
        ("Int8WeightPerTensorFloat", {"float_to_int_impl_type": "floor"}, {"rounding": "toward_negative"}),
        ("Int8WeightPerTensorFloat", {"scaling_min_val": None}, {"floor": None}),
        ("Int8WeightPerTensorFloat", {"restrict_scaling_type": "log_fp"}, {"restriction": "log_float"}),
        ("Int8WeightPerTensorFloat", {"quant_delay_steps": 7}, {"delay": 7}),
        ("Int8ActPerTensorFloat", {"collect_stats_steps": 30}, {"steps": 30}),
        ("Int8ActPerTensorFloat", {"scaling_stats_momentum": None}, {"momentum": None}),
        ("Int8ActPerTensorFloat", {"scaling_stats_op": "max"}, {"statistic": "extremes"}),
        ("Int8ActPerTensorFloat", {"high_percentile_q": 99.0}, {"percentile": 99.0}),
        ("Int8ActPerTensorFloat", {"bit_width_impl_type": "parameter"}, {"learned_bits": 8.0}),
        (
            "Int8ActPerTensorFloat",
            {"scaling_impl_type": "dynamic"},
            {"source": "statistic", "batch_in_training": False},
        ),
        ("Fp8e4m3OCPWeight", {"saturating": False}, {"saturate": False}),
        ("MXFloat8e4m3Weight", {"group_size": 16}, {"granularity": PerGroup(16)}),
    ],
)
def test_fields_change_what_they_say_and_nothing_else(name: str, fields: Any, changes: Any) -> None:
    changed, before = READY[name].let(**fields).quantizer, READY[name].quantizer
    floor = {} if "floor" in changes else {"floor": changed.scale.floor}  # which is divided by the end of the range
    assert changed == before.replace(**changes, **floor)


def test_a_scale_that_is_given_is_divided_in_float32() -> None:
    """0.3 and 0.3 / 255 are no numbers of float32."""
    q = quant.Uint8ActPerTensorFloatMaxInit.let(max_val=0.3).quantizer
    assert q.scale.scale_value == float(np.float32(0.3) / np.float32(255))
    assert choose_qparams(q, np.ones(3, np.float32)).scale == np.float32(0.3) / np.float32(255)
    assert quant.Int8ActPerTensorFloatMinMaxInit.let(min_val=-5.0, max_val=2.0).quantizer.scale.scale_value == 5 / 128
    assert quant.SignedBinaryWeightPerTensorConst.quantizer.scale.scale_value == float(np.float32(0.1))
    assert WeightQuant.let(scaling_impl_type="parameter", scaling_init=2.0).quantizer.scale.scale_value == 2 / 128


def test_the_smallest_scale_is_that_of_the_smallest_magnitude() -> None:
    tiny = np.full((2, 2), 1e-20, np.float32)
    assert choose_qparams(quant.Int8WeightPerTensorFloat.quantizer, tiny).scale == np.float32(1e-10) / np.float32(127)


def test_fixed_points_divide_by_the_power_of_two_after_the_range() -> None:
    """127.7 / 128 is at most 1, and 127.7 / 127.5 is not; 255.5 / 256 is at most 1, and 255.5 / 255 is not."""
    for name, largest in (("Int8WeightPerTensorFixedPoint", 127.7), ("Uint8ActPerTensorFixedPoint", 255.5)):
        assert choose_qparams(READY[name].quantizer, np.array([largest], np.float32)).scale == 1


def test_axes_come_from_the_layer_and_from_the_shape() -> None:
    class Layer:
        transposed, weight = True, np.zeros((2, 3, 1, 1))

    class Linear:
        weight = np.zeros((2, 3))

    channel, group = quant.Int8WeightPerChannelFloat, quant_floats.MXInt8Weight
    plain = type("Conv", (Layer,), {"transposed": False})
    for layer, axis, along in ((Layer(), 1, 0), (plain(), 0, 1), (Linear(), 0, -1), ((Layer(), plain()), 1, 0)):
        assert channel.let(module=layer).quantizer.granularity == PerAxis(axis)
        assert group.let(module=layer).quantizer.granularity == PerGroup(32, along)
    act = quant.Int8ActPerTensorFloat.let(scaling_per_output_channel=True)
    assert act.quantizer.granularity == PerAxis(1)
    assert act.let(per_channel_broadcastable_shape=(1, 1, 4)).quantizer.granularity == PerAxis(2)
    with pytest.raises(ValueError, match=r"one axis longer than 1, got \(2, 4\)"):
        act.let(per_channel_broadcastable_shape=(2, 4)).quantizer  # noqa: B018


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("quant_type", "integer"),
        ("scaling_impl_type", "he"),
        ("scaling_impl_type", "dynamic"),  # of activations
        ("scaling_stats_op", "median"),
        ("restrict_scaling_type", None),
        ("scaling_per_output_type", 3),
        ("float_to_int_impl_type", "up"),
        ("bit_width_impl_type", "learned"),
        ("zero_point_type", "max"),
    ],
)
def test_names_that_stand_for_nothing_are_refused(field: str, wrong: object) -> None:
    with pytest.raises(ValueError, match=f"`{field}` must be one of .*; got {wrong!r}"):
        WeightQuant.let(**{field: wrong}).quantizer  # noqa: B018


def test_what_is_missing_or_impossible_is_named() -> None:
    with pytest.raises(DependencyError, match="`max_val`, asked for by scaling_init"):
        quant.Uint8ActPerTensorFloatMaxInit.quantizer  # noqa: B018
    with pytest.raises(DependencyError, match=r"`exponent_bit_width`.*`mantissa_bit_width`"):
        ActQuant.let(quant_type="float").quantizer  # noqa: B018
    with pytest.raises(ValueError, match="'ocp' has no float of 5 exponent and 1 mantissa"):
        quant_floats.Fp8e5m2OCPWeight.let(mantissa_bit_width=1).quantizer  # noqa: B018
    with pytest.raises(ValueError, match="must be one number, got"):
        quant.SignedBinaryWeightPerTensorConst.let(scaling_init=np.ones(3)).quantizer  # noqa: B018
    with pytest.raises(ValueError, match="`learned_bits` must be None for 'statistic' scales"):
        quant.Int8WeightPerTensorFloat.let(bit_width_impl_type="parameter").quantizer  # noqa: B018
    with pytest.raises(ValueError, match=r"`bits` must be in 1\.\.16"):
        quant.Int8Bias.let(bit_width=32).quantizer  # noqa: B018


def test_a_dialect_is_the_arithmetic_of_another_system() -> None:
    q = quant.Int8WeightPerTensorFloat.let(dialect="brevitas").quantizer
    assert q == quant.Int8WeightPerTensorFloat.quantizer.replace(floor=None, **dialects["brevitas"])
    assert IntegerFormat(8, narrow=True) == q.format
