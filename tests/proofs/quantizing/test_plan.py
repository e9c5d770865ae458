"""What becomes of each tensor: kinds, patterns, descriptions, and why a tensor is left alone."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from samebits.core import configs
from samebits.proofs.quantizing.methods import METHODS, config_of, group_of
from samebits.proofs.quantizing.plan import kind_of, plan, read_description

SHAPES = {
    "conv.weight": (8, 3, 3, 3),
    "embed.weight": (100, 64),
    "fc.bias": (10,),
    "fc.weight": (10, 96),
    "rnn.weight_ih_l0": (128, 64),
    "up.weight": (256, 128),
}


def methods_of(*arguments: Any, **keywords: Any) -> dict[str, tuple[str, int | None]]:
    found = plan(SHAPES, *arguments, **keywords)
    return {one.name: (one.method, group_of(one.config)) for one in found if one.config}


def test_methods_are_the_configs_of_their_names() -> None:
    assert config_of("int8_weight_only") == configs.int8_weight_only()
    assert config_of("int8_weight_only", 32) == configs.int8_weight_only(32)
    assert config_of("int4_weight_only", 64) == configs.int4_weight_only(64)
    assert config_of("mxfp4_e2m1") == configs.mx("mxfp4_e2m1")
    assert len({config_of(name) for name in METHODS}) == len(METHODS)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("a.bias", (4,), "other"),
        ("a.scale", (), "other"),
        ("a.weight", (4, 4), "linear"),
        ("word_embeddings.weight", (4, 4), "embedding"),
        ("transformer.wte.weight", (4, 4), "embedding"),
        ("a.weight", (4, 4, 3), "convolution"),
        ("lstm.weight_hh_l1_reverse", (4, 4), "recurrent"),
    ],
)
def test_kinds(name: str, shape: tuple[int, ...], kind: str) -> None:
    assert kind_of(name, shape) == kind


def test_linear_layers_by_default_and_by_pattern() -> None:
    assert methods_of("int8_weight_only") == dict.fromkeys(("fc.weight", "up.weight"), ("int8_weight_only", None))
    assert set(methods_of("int8_weight_only", ["embed.*", "up*"])) == {"embed.weight", "up.weight"}
    why = {one.name: one.why for one in plan(SHAPES, "int8_weight_only", ["up"])}
    assert why == {
        "conv.weight": "no pattern fits it",
        "embed.weight": "no pattern fits it",
        "fc.bias": "not a matrix",
        "fc.weight": "no pattern fits it",
        "rnn.weight_ih_l0": "no pattern fits it",
        "up.weight": "",
    }


def test_groups_that_do_not_divide_are_skipped_or_an_error() -> None:
    found = {one.name: one for one in plan(SHAPES, "int4_weight_only", group_size=128)}
    assert found["fc.weight"].why == "`in_features` must be a multiple of the group size 128, got 96"
    assert found["fc.weight"].config is None
    assert found["up.weight"].config == configs.int4_weight_only(128)
    with pytest.raises(ValueError, match=r"layer 'fc\.weight': `in_features` must be a multiple of"):
        plan(SHAPES, "int4_weight_only", uneven="error")


def test_of_a_description_the_last_pattern_counts() -> None:
    described = {
        "*": {"method": "int8_weight_only"},
        "fc": {"method": "int4_weight_only", "group_size": 32},
        "up.*": {"method": "none"},
    }
    assert methods_of(description=described) == {
        "embed.weight": ("int8_weight_only", None),
        "fc.weight": ("int4_weight_only", 32),
    }
    why = {one.name: one.why for one in plan(SHAPES, description=described)}
    assert why["up.weight"] == "it is to stay as it is"
    assert why["rnn.weight_ih_l0"].startswith("a recurrent layer")
    # what it does not say is the command's; a kind that it names goes before the name
    assert methods_of("int8_weight_only", group_size=32, description={"embed": {"kind": "linear"}}) == dict.fromkeys(
        ("embed.weight", "fc.weight", "up.weight"), ("int8_weight_only", 32)
    )
    assert methods_of("int4_weight_only", group_size=32, description={"up": {"method": "nvfp4"}})["up.weight"] == (
        "nvfp4",
        16,
    )
    found = plan(SHAPES, "int8_dynamic_activation_int8_weight", description={"embed": {"kind": "embedding"}})
    assert next(one.why for one in found if one.kind == "embedding").startswith("an embedding is looked up")


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "method": ({"method": "int8"}, KeyError, "unknown method 'int8'; methods are int8_weight_only, "),
    "pattern": ({"method": "nvfp4", "patterns": ["down"]}, ValueError, "'down' fits no matrix of floats; matrices are"),
    "described": ({"description": {"down": {}}}, ValueError, "'down' of the description fits no tensor"),
    "nothing": ({"method": "none"}, ValueError, "nothing to quantize: fc.weight: it is to stay"),
    "group": ({"method": "int4_weight_only", "group_size": 0}, ValueError, "0"),
    "group of blocks": ({"method": "nvfp4", "group_size": 32}, ValueError, "`group_size` must be left out for nvfp4"),
    "group alone": ({"group_size": 32}, ValueError, "`group_size` must come with a method"),
    "uneven": ({"method": "nvfp4", "uneven": "warn"}, ValueError, "`uneven` must be one of 'skip', 'error'"),
}


@pytest.mark.parametrize(("settings", "error", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        plan(SHAPES, **settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", 'must be an object {"layers"'),
        ('{"layers": {"a": 1}}', "'a' must be an object with kind, method, group_size at most, got 1"),
        ('{"layers": {"a": {"bits": 4}}}', "'a' must be an object with kind"),
        ('{"layers": {"a": {"kind": "norm"}}}', "`kind` of 'a' must be one of linear, "),
        ('{"layers": {"a": {"method": "int4"}}}', "'a': unknown method 'int4'"),
        ('{"layers": {"a": {"method": "nvfp4", "group_size": 8}}}', "'a': `group_size` must be left out"),
    ],
)
def test_descriptions_that_are_none(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "model.layers.json"
    file.write_text(text)
    with pytest.raises((KeyError, ValueError), match=re.escape(words)) as caught:
        read_description(file)
    assert str(file) in str(caught.value)


def test_a_description_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.layers.json"
    layers = {"*": {"method": "nvfp4"}, "head": {"method": "none", "kind": "linear"}}
    file.write_text(json.dumps({"layers": layers}))
    assert read_description(file) == layers
    with pytest.raises(ValueError, match="No such file"):
        read_description(tmp_path / "none.json")
