"""Rules of thumb: which method they give, for which reason."""

import re
from typing import Any

import pytest
import torch
from flax import nnx
from torch import nn

from samebits.proofs.inputs import minilm
from samebits.proofs.quantizing.recommend import NOTES, RULES, recommend

INT8 = "int8_dynamic_activation_int8_weight"
ENCODER = minilm.shapes(minilm.Shape())


def advised(model: Any, goal: str = "throughput") -> dict[str, tuple[str, str]]:
    return {one.name: (one.method, one.why) for one in recommend(model, goal).layers}


@pytest.mark.parametrize(
    ("goal", "linear", "embedding"),
    [
        ("throughput", (INT8, "dynamic_for_linear"), ("none", "embeddings_stay")),
        ("latency", ("int8_weight_only", "weights_for_small_batches"), ("none", "embeddings_stay")),
        ("accuracy", ("int8_weight_only", "weights_lose_least"), ("none", "embeddings_stay")),
        ("size", ("int4_weight_only", "groups_for_size"), ("int8_weight_only", "embeddings_for_size")),
    ],
)
def test_a_transformer(goal: str, linear: tuple[str, str], embedding: tuple[str, str]) -> None:
    found = advised(ENCODER, goal)
    assert {said for name, said in found.items() if name.startswith("encoder") and len(ENCODER[name]) == 2} == {linear}
    assert found["embeddings.word_embeddings.weight"] == embedding
    assert found["embeddings.token_type_embeddings.weight"] == ("none", "small_layers_stay")
    assert found["embeddings.LayerNorm.weight"] == ("none", "vectors_stay")
    assert ("calibrated_weights" in recommend(ENCODER, goal).notes) is (goal == "size")


def test_convolutions_and_recurrent_layers() -> None:
    network = {"conv.weight": (64, 32, 3, 3), "head.weight": (10, 512), "lstm.weight_ih_l0": (512, 128)}
    static = ("prepare and convert", "static_for_convolutions")
    assert advised(network) == {
        "conv.weight": static,
        "head.weight": static,
        "lstm.weight_ih_l0": ("quantize_dynamic", "dynamic_for_recurrent"),
    }
    assert "train_when_it_loses" in recommend(network).notes
    assert advised(network, "size")["head.weight"] == ("int4_weight_only", "groups_for_size")


@pytest.mark.parametrize(
    ("inputs", "method", "group"),
    [(384, "int4_weight_only", 128), (96, "int4_weight_only", 32), (100, "int8_weight_only", None)],
)
def test_the_largest_group_that_divides(inputs: int, method: str, group: int | None) -> None:
    (found,) = recommend({"fc.weight": (100, inputs)}, "size").layers
    assert found.method == method
    assert str(recommend({"fc.weight": (100, inputs)}, "size")).startswith(
        f"fc.weight: {method}" + (f", group {group} (" if group else " (")
    )


def test_models_of_both_frameworks_and_their_shapes_get_the_same_advice() -> None:
    models = nn.Sequential(nn.Linear(128, 64)), nnx.Sequential(nnx.Linear(128, 64, rngs=nnx.Rngs(0)))
    by_shape = advised({"0.bias": (64,), "0.weight": (64, 128)}, "size")
    assert [advised(model, "size") for model in models] == [by_shape, by_shape]


def test_modules_say_what_names_do_not() -> None:
    model = nn.ModuleDict({"embedder": nn.Linear(64, 64), "table": nn.Embedding(64, 64)})
    assert {one.name: one.kind for one in recommend(model).layers} == {
        "embedder.weight": "linear",
        "embedder.bias": "other",
        "table.weight": "embedding",
    }


def test_every_rule_and_note_is_used_and_said() -> None:
    models = [ENCODER, {"conv.weight": (64, 32, 3, 3), "r.weight_hh_l0": (64, 64), "fc.weight": (64, 100)}]
    found = [recommend(model, goal) for model in models for goal in ("throughput", "latency", "size", "accuracy")]
    assert {one.why for advice in found for one in advice.layers} == RULES.keys()
    assert {name for advice in found for name in advice.notes} == NOTES.keys()
    assert all(words in str(advice) for advice in found for words in advice.rules.values())


def test_mistakes() -> None:
    with pytest.raises(
        ValueError, match=re.escape("`goal` must be one of 'throughput', 'latency', 'size', 'accuracy'")
    ):
        recommend(ENCODER, "speed")
    with pytest.raises(ValueError, match="`model` must have tensors"):
        recommend({})
    with pytest.raises(TypeError, match="must be shapes by name, a torch module or a flax nnx module, got Tensor"):
        recommend(torch.zeros(3))
