"""Which module is which: names of several houses, order where there are none, and what cannot be."""

import pytest

from samebits.proofs.validation.pairing import Part, paired, plain_name
from samebits.proofs.validation.results import ValidationError


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("h_0.attn.q_proj", "layers.0.self_attn.query"),
        ("encoder.layer.0.attention.output.LayerNorm", "encoder.layers_0.attention.output.layer_norm"),
        ("wte", "word_embeddings"),
        ("Dense_0", "linear.0"),
        ("blocks_3.ln_1", "layers.3.norm1"),
        ("model.layers.2.mlp.up_proj", "h.2.ffn.fc1"),
    ],
)
def test_usual_words_are_evened_out(a: str, b: str) -> None:
    assert plain_name(a) == plain_name(b)


def test_other_words_are_not() -> None:
    names = ("layers.0.query", "layers.1.query", "layers.0.key", "embed", "conv1", "conv2", "up", "down")
    assert len({plain_name(name) for name in names}) == len(names)


def leaf(*shape: int, kind: str = "Linear") -> Part:
    return Part(kind, (shape, shape[-1:]), True)


HOLDS = Part("Block", (), False)


def test_by_order_where_names_say_nothing() -> None:
    here = {"": HOLDS, "a": leaf(4, 3), "b": leaf(4, 3), "c": leaf(5, 4), "n": leaf(4, kind="LayerNorm")}
    there = {"": HOLDS, "x": leaf(4, 5), "y": leaf(3, 4), "z": leaf(3, 4), "w": leaf(4, kind="LayerNorm")}
    order = lambda: (["b", "a", "c", "n"], ["x", "z", "y", "w"])  # noqa: E731
    assert paired(here, there, order=order) == {"": "", "b": "z", "a": "y", "c": "x", "n": "w"}


def test_modules_around_the_same_layers_are_a_pair() -> None:
    here = {"": HOLDS, "part": HOLDS, "part.query": leaf(4, 4), "part.key": leaf(4, 4)}
    there = {"": HOLDS, "other": HOLDS, "other.q_proj": leaf(4, 4), "other.k_proj": leaf(4, 4)}
    found = paired(here, there, {"part.query": "other.q_proj", "part.key": "other.k_proj"})
    assert found["part"] == "other"


def test_prefixes_around_a_stack_do_not_matter() -> None:
    here = {"": HOLDS, "bert.encoder.layer.0.attention.query": leaf(4, 4)}
    there = {"": HOLDS, "blocks.0.attn.q_proj": leaf(4, 4)}
    assert paired(here, there)["bert.encoder.layer.0.attention.query"] == "blocks.0.attn.q_proj"


def test_one_module_has_one_partner() -> None:
    parts = {"": HOLDS, "a": leaf(4, 4), "b": leaf(4, 4)}
    with pytest.raises(ValidationError, match="must name a module of the JAX model once"):
        paired(parts, parts, {"a": "a", "b": "a"})
