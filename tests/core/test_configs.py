"""Configs of post-training quantization: what they say, which layer gets which, and quantizers as text."""

from typing import Any

import pytest

from samebits.core import PerAxis, PerGroup, PerToken, Rounding, catalog, dialects
from samebits.core.configs import (
    DEFAULT,
    DynamicActivation,
    ModuleConfigs,
    WeightOnly,
    check_weight,
    chosen,
    float8_weight_only,
    int4_weight_only,
    int8_dynamic_activation_int4_weight,
    int8_dynamic_activation_int8_weight,
    int8_weight_only,
    intx_weight_only,
    mx,
    nvfp4,
)
from samebits.core.described import quantizer_of_text, text_of
from samebits.core.quantized_files import Entry, entries_of, metadata_of, parts_of

INT8, INT4 = int8_weight_only(), int4_weight_only(32)


def test_names_stand_for_quantizers_of_the_catalog() -> None:
    assert INT8 == WeightOnly("int8_per_channel") == WeightOnly(catalog["int8_per_channel"], "plain")
    assert int8_weight_only(32).weight.granularity == PerGroup(32)
    dynamic = int8_dynamic_activation_int8_weight()
    assert dynamic == DynamicActivation("int8_per_token", "int8_per_channel")
    assert (dynamic.act_quant, INT8.act_quant) == (catalog["int8_per_token"], None)
    assert int8_dynamic_activation_int8_weight("torchao").weight == INT8.weight.replace(**dialects["torchao"])
    assert int4_weight_only(64).weight == catalog["uint4_affine_float_zero_per_group64"]
    assert int4_weight_only(32, "integer").weight == catalog["uint4_affine_per_group32"]
    assert int4_weight_only(32, "none").weight == catalog["int4_per_group32"]
    assert int8_dynamic_activation_int4_weight() == DynamicActivation(
        "int8_affine_per_token", "int4_per_group32", "packed"
    )
    assert intx_weight_only(4).weight == catalog["int4_per_channel"]
    assert intx_weight_only(1).weight.affine
    assert not intx_weight_only(2).weight.affine
    assert float8_weight_only().weight == catalog["float8_e4m3fn_per_channel"]
    assert mx("mxfp4_e2m1").weight == catalog["mxfp4_e2m1"]
    assert mx("mxint8", "mxint8") == DynamicActivation("mxint8", "mxint8", "packed")
    assert (nvfp4().act_quant, nvfp4(dynamic=True).act_quant) == (None, catalog["nvfp4"])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: WeightOnly("int9_per_channel"), KeyError, "did you mean"),
        (lambda: WeightOnly(8), TypeError, "`weight` must be a Quantizer or a name of the catalog, got 8"),
        (lambda: WeightOnly("mxint8", "tiled"), ValueError, "`layout` must be one of 'plain', 'packed'; got 'tiled'"),
        (
            lambda: WeightOnly(catalog["int8_per_channel"].replace(rounding=Rounding.STOCHASTIC)),
            ValueError,
            "got 'stochastic'",
        ),
        (
            lambda: DynamicActivation("int8_learned_per_tensor", "mxint8"),
            ValueError,
            "`activation` must take its scale",
        ),
        (lambda: int4_weight_only(zero_point="half"), ValueError, "`zero_point` must be one of"),
        (lambda: intx_weight_only(9), ValueError, "`bits` must be in 1..8, got 9"),
        (lambda: intx_weight_only(1, zero_point="none"), ValueError, "must be 'integer' for 1 bit"),
        (lambda: intx_weight_only(2, zero_point="float"), ValueError, "'none', 'integer'; got 'float'"),
        (lambda: mx("fp4"), ValueError, "`format` must be one of"),
        (lambda: mx(activation="fp4"), ValueError, "`activation` must be one of"),
        (lambda: ModuleConfigs([("a", None)]), TypeError, "must be a mapping"),
        (lambda: ModuleConfigs({"a": "int8_per_channel"}), TypeError, "WeightOnly, DynamicActivation or None"),
        (lambda: ModuleConfigs({"re:(": None}), ValueError, "no regular expression"),
        (lambda: check_weight("a.b", INT4.weight, (8, 40)), ValueError, "'a.b': `in_features`.*group size 32, got 40"),
        (lambda: check_weight("a", catalog["int8_per_block"], (8, 40)), ValueError, "layer 'a': .* block shape"),
        (lambda: chosen(INT8, []), ValueError, "no layer to quantize"),
        (lambda: chosen("int8", ["a"]), TypeError, "`config` must be a WeightOnly"),
        (lambda: chosen(ModuleConfigs({"b": None, "re:c.*": INT8}), ["a"]), ValueError, "'b', 're:c.*' of `configs`"),
    ],
)
def test_what_is_refused(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_which_layer_gets_which_config() -> None:
    """The exact name, then the first pattern that fits the whole name, then the default: torchao's order."""
    names = ["fc", "blocks.0.fc", "blocks.1.fc", "head"]
    configs = ModuleConfigs({DEFAULT: INT8, r"re:blocks\..*": INT4, r"re:.*fc": None, "blocks.1.fc": mx()})
    assert chosen(configs, names) == {"blocks.0.fc": INT4, "blocks.1.fc": mx(), "head": INT8}
    assert chosen(ModuleConfigs({"re:block": INT8, "re:.*": INT4}), ["blocks", "block"]) == {
        "blocks": INT4,
        "block": INT8,
    }
    assert chosen(ModuleConfigs({"fc": INT8}), names) == {"fc": INT8}
    assert chosen(INT8, ["a", "b"]) == {"a": INT8, "b": INT8}


def test_quantizers_as_text() -> None:
    for name, q in catalog.items():
        for changed in (q, *(q.replace(**d) for d in dialects.values() if _fits(q, d))):
            assert quantizer_of_text(text_of(changed)) == changed, name
    assert text_of(catalog["int4_per_group32"]) == (
        '{"format":{"bits":4,"kind":"IntegerFormat"},"granularity":{"kind":"PerGroup","size":32}}'
    )
    assert quantizer_of_text(text_of(catalog["int8_per_token"])).granularity == PerToken()
    for wrong in ("", "[]", '{"format":{"kind":"Path"}}', '{"format":{"kind":"IntegerFormat","bits":40}}', '{"a":1}'):
        with pytest.raises(ValueError, match="`text` must be that of a quantizer"):
            quantizer_of_text(wrong)
    for call in (text_of, quantizer_of_text):
        with pytest.raises(TypeError):
            call(PerAxis(0))


def _fits(q: Any, dialect: Any) -> bool:
    try:
        q.replace(**dialect)
    except (ValueError, TypeError):
        return False
    return True


def test_metadata_of_files() -> None:
    entries = {
        "a": Entry(catalog["uint4_affine_per_group32"], catalog["int8_per_token"], "packed", 64, "float32"),
        "b": Entry(catalog["nvfp4"], None, "plain", 16, "bfloat16"),
    }
    names = [part for name, entry in entries.items() for part in parts_of(name, entry)]
    assert names == ["a.codes", "a.scale", "a.zero_point", "b.codes", "b.scale"]
    metadata = metadata_of(entries)
    assert entries_of("f", metadata, names) == entries
    text = metadata["samebits"]
    for wrong, words in (
        (None, "its metadata say of no weights"),
        ({"format": "pt"}, "its metadata say of no weights"),
        ({"samebits": text.replace('"version": 1', '"version": 2')}, "must have version 1 of the layout, got 2"),
        ({"samebits": "{"}, "a file that save_quantized wrote"),
        ({"samebits": text.replace('"packed"', '"tiled"')}, "`layout` must be one of"),
        ({"samebits": '{"version": 1, "weights": {"a": {}}}'}, "a file that save_quantized wrote"),
    ):
        with pytest.raises(ValueError, match=words):
            entries_of("f", wrong, names)
    with pytest.raises(ValueError, match=r"without a\.zero_point"):
        entries_of("f", metadata, set(names) - {"a.zero_point"})
