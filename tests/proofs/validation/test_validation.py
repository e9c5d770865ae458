"""Ports of torch models: right ones, planted mistakes that must be named, quantized layers; what cannot be compared."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from samebits.jax_backend import nn as jax_nn
from samebits.jax_backend.interop import load_state_dict
from samebits.proofs import validate
from samebits.proofs.inputs import minilm, minilm_jax, minilm_torch
from samebits.proofs.validation.results import Validation, ValidationError, Verdict
from samebits.torch_frontend import nn as torch_nn

from ...project.source import ROOT
from .ports import HIDDEN, PLACES, RIGHT, WIDE, WORDS, encoders, images, load, pictures, sentences

# What is planted, at which place it must be found, and the words that must come first. Each mistake of a run is at a
# place of its own: none may hide another.
RUNS: list[dict[str, tuple[str, str]]] = [
    {
        "epsilon": ("norm", "epsilon 1e-12 instead of 1e-05"),
        "token type": ("input of norm", "wrong row of types.weight: 1 instead of 0 (token type)"),
        "transposed": ("block.out", "transposed weight"),
        "unbiased": ("block.norm1", "unbiased variance (n - 1) instead of biased (n)"),
        "tanh gelu": ("input of block.down", "tanh gelu instead of erf gelu"),
        "bfloat16": ("block.down", "weight rounded to bfloat16"),
        "rotary": ("input of block.out", "interleaved rotary instead of half-split"),
        "pooling": ("the model", "pooling without mask: filled places count"),
    },
    {
        "other epsilon": ("norm", "epsilon 1e-06 instead of 1e-05"),
        "off by one": ("input of norm", "off by one: places +1"),
        "other weights": ("block.query", "weights of block.key"),
        "scale and bias": ("block.norm1", "scale and bias swapped"),
        "no bias": ("block.up", "bias is missing"),
        "relu": ("input of block.down", "relu instead of erf gelu"),
        "no 1/sqrt(d)": ("input of block.out", "missing 1/sqrt(d): no division by 2.82843"),
        "no residual": ("input of block.norm2", "is given the output of block.down"),
    },
    {"head order": ("input of block.out", "wrong head order: heads are the inner axis of the split")},
    {"merge": ("input of block.out", "swapped axes: reshape instead of a transposition")},
    {"softmax axis": ("input of block.out", "wrong softmax axis: -2 instead of -1")},
    {"mask polarity": ("input of block.out", "mask polarity: what is to be seen is hidden")},
    {"no mask": ("input of block.out", "the mask is not used")},
    {
        "pre-norm": (
            "input of block.norm1",
            "layer order (pre-norm instead of post-norm): block.norm1 comes before block.query, in torch after it",
        )
    },
]
OF_IMAGES: list[dict[str, tuple[str, str]]] = [
    {
        "padding": ("conv", "padding convention: SAME [(0, 1), (0, 1)] instead of [1, 1] on both sides"),
        "batch statistics": ("norm", "statistics of the batch instead of the running ones"),
        "flatten": ("input of head", "swapped axes: flattened with channels last"),
    },
    {"max pooling": ("input of head", "max pooling instead of mean")},
]
HEADS = ("encoder.layer.1.attention.self", "wrong head count: 4 instead of 2")
INTERLEAVED = ("input of block.out", "half-split rotary instead of interleaved")
EVERY = [found for run in RUNS + OF_IMAGES for found in run.values()] + [HEADS, INTERLEAVED]


def named(found: Validation) -> dict[str, str]:
    """What comes first of every place beyond its bound."""
    return {row.place: row.explanations[0] if row.explanations else "" for row in found.beyond}


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_right_port_differs_by_rounding_alone(interleaved: bool) -> None:
    found = validate(*encoders(RIGHT, interleaved), sentences())
    assert found.right
    assert found.first is None
    assert {row.verdict for row in found.rows} == {Verdict.SAME, Verdict.WITHIN}
    assert max(row.ratio or 0 for row in found.rows) < 0.5
    assert found.unpaired == ((), ())
    assert found.whole < 1e-5


@pytest.mark.parametrize("run", RUNS, ids=lambda run: ", ".join(run))
def test_planted_mistakes_are_named(run: dict[str, tuple[str, str]]) -> None:
    found = validate(*encoders(frozenset(run)), sentences())
    seen = named(found)
    assert {place: seen.get(place) for place, _ in run.values()} == dict(run.values())
    if "pre-norm" not in run:  # after which the block is another one
        assert set(seen) - set(dict(run.values())) <= {"block.key"}  # whose weights the query has
    assert found.first is not None
    assert found.whole > 1e-4
    assert not found.right


@pytest.mark.parametrize("run", [{}, *OF_IMAGES], ids=lambda run: ", ".join(run) or "right")
def test_planted_mistakes_with_channels_last(run: dict[str, tuple[str, str]]) -> None:
    x, y = pictures()
    found = validate(*images(frozenset(run)), {"torch.x": x, "jax.x": y})
    if not run:
        assert validate(*images(), x, jax_inputs=y) == found
    assert named(found) == dict(run.values())
    assert found.right == (not run)


def test_the_other_rotary() -> None:
    assert named(validate(*encoders(frozenset({"rotary"}), interleaved=True), sentences())) == dict([INTERLEAVED])


def test_twenty_planted_mistakes_are_in_the_table_of_the_page() -> None:
    assert len(set(EVERY)) >= 20
    page = (ROOT / "docs" / "validation.md").read_text()
    assert [words for _, words in EVERY if f"| {words} |" not in page] == []


def test_the_sentence_encoder() -> None:
    shape = minilm.Shape(WORDS, HIDDEN, layers=2, heads=2, intermediate=WIDE, positions=PLACES)
    tensors, batch = minilm.random_tensors(shape), minilm.random_batch(shape, rows=3, length=7)
    model, port = minilm_torch.encoder(shape, tensors), minilm_jax.encoder(shape, tensors)
    right = validate(model, port, {"ids": batch.ids, "mask": batch.mask})
    assert right.right
    assert len(right.pairs) == 35
    port.encoder.layer[1].attention.self.heads = 4
    assert named(validate(model, port, {"ids": batch.ids, "mask": batch.mask})) == dict([HEADS])


def test_the_example_is_the_row_with_the_smallest_input() -> None:
    model = nn.Sequential(nn.LayerNorm(4, eps=1e-5))
    port = nnx.Sequential(nnx.LayerNorm(4, epsilon=1e-6, use_fast_variance=False, rngs=nnx.Rngs(0)))
    x = np.array([[3, 1, -2, 1], [0.03, 0.01, -0.02, 0.01], [300, 100, 0, 7]], np.float32)
    found = validate(model, port, x)
    assert named(found) == {"0": "epsilon 1e-06 instead of 1e-05"}
    assert found.first is not None
    assert found.first.explanations == ("epsilon 1e-06 instead of 1e-05",), "rounding the weight, which is 1, is none"
    assert found.first.example is not None
    assert found.first.example.row == 1
    assert found.first.example.inputs == tuple(map(float, x[1]))
    assert abs(found.first.example.torch - found.first.example.jax) > found.first.example.bound > 0


def test_a_variance_that_cancels_is_named() -> None:
    port = nnx.Sequential(nnx.LayerNorm(16, epsilon=1e-5, rngs=nnx.Rngs(0)))  # by E[x**2] - E[x]**2
    x = (200 + np.random.default_rng(0).normal(size=(40, 16))).astype(np.float32)
    found = validate(nn.Sequential(nn.LayerNorm(16)), port, x)
    assert named(found) == {"0": "variance as the mean of squares less the squared mean, which cancels"}


def test_a_mistake_within_the_bound_is_hinted_at() -> None:
    """An epsilon of 1e-5 beside a variance of 1 changes less than the worst case of rounding 256 numbers."""
    model = nn.Sequential(nn.LayerNorm(256, eps=1e-12))
    ports = (nnx.LayerNorm(256, epsilon=e, use_fast_variance=False, rngs=nnx.Rngs(0)) for e in (1e-12, 1e-5))
    x = np.random.default_rng(0).normal(size=(9, 256)).astype(np.float32)
    right, wrong = (validate(model, nnx.Sequential(port), x) for port in ports)
    assert right.right
    assert right.hinted == ()
    assert {row.place: row.hints[0] for row in wrong.hinted} == {"0": "epsilon 1e-05 instead of 1e-12"}


def test_functions_and_compiled_parts_are_compared_too() -> None:
    found = validate(
        lambda x: torch.nn.functional.silu(x),
        nnx.jit(lambda x: x * jax.nn.sigmoid(1.702 * x)),
        np.ones((2, 3), np.float32),
    )
    assert named(found) == {"the model": "sigmoid gelu (x * sigmoid(1.702 x)) instead of silu"}


def test_parts_under_a_transformation_belong_to_what_is_around_them() -> None:
    class Port(nnx.Module):
        def __init__(self, hidden: nnx.Module) -> None:
            self.first, self.second = hidden.layers  # type: ignore[attr-defined]

        def __call__(self, x: jax.Array) -> jax.Array:
            return nnx.jit(lambda second, x: second(x))(self.second, jax.nn.relu(self.first(x)))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.second(torch.relu(self.first(x)))
            return y

    model, port = Model(), Port(nnx.Sequential(*(nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(2))))
    load(model, port)
    found = validate(model, port, X)
    assert found.right
    assert [row.place for row in found.rows] == ["first", "the model"]
    assert found.unpaired == (("second",), ("second",))
    port.second.bias[...] = 0 * port.second.bias[...]
    assert named(validate(model, port, X)) == {"the model": "bias is missing"}


def test_an_operation_without_a_rule_is_not_judged() -> None:
    found = validate(torch.special.bessel_j0, lambda x: x * 0 + 0.5, np.ones((2, 3), np.float32))
    assert [row.verdict for row in found.rows] == [Verdict.UNBOUNDED]
    assert "special_bessel_j0" in found.rows[0].reason
    assert not found.right


@pytest.mark.parametrize(("wrong", "verdict"), [(1 / 14, Verdict.UNBOUNDED), (np.nan, Verdict.BEYOND)])
def test_a_bound_that_is_infinite_excuses_no_special_value(wrong: float, verdict: Verdict) -> None:
    x = np.array([14.0], np.float32)  # all of its digits are lost, and may be lost otherwise
    found = validate(lambda x: 1 / ((x + 1e8 + 1e8) - 2e8), lambda x: x * 0 + wrong, x)
    assert [row.verdict for row in found.rows] == [verdict]
    assert not found.right


def quantized(weight: str = "int8_per_channel", **more: Any) -> tuple[nn.Module, nnx.Module]:
    """A quantized layer between float functions, in both."""
    torch.manual_seed(0)
    model = nn.Sequential(torch_nn.QuantLinear(8, 6, weight_quant=weight, **more), nn.ReLU()).eval()
    port = nnx.Sequential(jax_nn.QuantLinear(8, 6, weight_quant=weight, **more, rngs=nnx.Rngs(0)), jax.nn.relu)
    load_state_dict(port, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    return model, port


def test_layers_over_codes_are_held_to_the_same_bits() -> None:
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    model, port = quantized(input_quant="int8_per_tensor")
    found = validate(model, port, x)
    assert {row.verdict for row in found.rows} == {Verdict.SAME}
    port.layers[0].bias[...] = jnp.nextafter(port.layers[0].bias[...], jnp.float32(9))  # type: ignore[attr-defined]
    found = validate(model, port, x)
    assert [(row.place, row.verdict, row.reason) for row in found.beyond] == [
        ("0", Verdict.BEYOND, "other bits, where bits are promised")
    ]


def test_layers_of_quantized_weights_alone_have_the_bound_of_their_contraction() -> None:
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    model, port = quantized()
    assert validate(model, port, x).right
    port.layers[0].bias[...] = port.layers[0].bias[...] + 1e-3  # type: ignore[attr-defined]
    assert not validate(model, port, x).right


class Failing(nnx.Module):
    """Raises."""

    def __call__(self, x: jax.Array) -> jax.Array:
        raise RuntimeError("out of cheese")


class Unlike(nnx.Module):
    """A layer of another kind under another name."""

    def __init__(self) -> None:
        self.conv = nnx.Conv(4, 5, (3,), rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4))


def port_of_linear(outputs: int = 4) -> nnx.Module:
    return nnx.Sequential(nnx.Linear(4, outputs, rngs=nnx.Rngs(0)))


X = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    ("port", "inputs", "options", "words"),
    [
        (Unlike(), X, {}, "the models cannot be paired: no layer of one is like a layer of the other, got 0 and conv"),
        (port_of_linear(5), X, {}, r"'0' and '0' cannot be a pair: .* has shape \(4, 4\), that of the other \(4, 5\)"),
        (port_of_linear(), X[:, :3], {}, "the torch model failed in 0: RuntimeError"),
        (port_of_linear(), X, {"jax_inputs": X[:1]}, "must be given the same numbers"),
        (port_of_linear(), X.astype(np.float64), {}, "'0' is float64"),
        (port_of_linear(), {}, {}, "must hold an array, got none"),
        (port_of_linear(), np.array(["a"]), {}, "must be numbers"),
        (port_of_linear(), X, {"pairs": {"7": "0"}}, "must name modules of the torch model, got '7'"),
        (port_of_linear(), X, {"pairs": {"0": "7"}}, "must name modules of the JAX model, got '7'"),
        (nnx.Sequential(Failing()), X, {}, "the JAX model failed.*out of cheese"),
        (port_of_linear(), np.array([2**40]), {}, "must fit 32 bits"),
    ],
)
def test_what_cannot_be_compared_is_said(port: Any, inputs: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        validate(linear(), port, inputs, **options)


def test_what_is_no_model_is_said() -> None:
    with pytest.raises(TypeError, match="`jax_model` must be a module or a function, got int"):
        validate(nn.ReLU(), 3, X)


def test_a_missing_layer_and_another_shape_are_differences() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.first, self.second = (nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(2))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.first(x)[:, :3]

    port = Port()
    load_state_dict(
        port,
        {
            f"{there}.{name}": t.numpy()
            for i, there in enumerate(("first", "second"))
            for name, t in model[i].state_dict().items()
        },
    )
    found = validate(model, port, X, pairs={"0": "first", "1": "second"})
    assert [(row.place, row.reason) for row in found.beyond] == [
        ("the model", "shape (2, 3) instead of (2, 4)"),
        ("1", "JAX does not call it"),
    ]


def test_results_that_are_not_there_are_a_difference() -> None:
    found = validate(lambda x: {"b": x, "a": x + 1}, lambda x: x + 1, X)
    assert [row.reason for row in found.beyond] == ["1 results instead of 2"]
    assert validate(lambda x: {"b": x, "a": x + 1}, lambda x: {"a": x + 1, "b": x}, X).right


def test_modules_are_called_as_before_when_it_is_over() -> None:
    before = nnx.Linear.__call__, nnx.Sequential.__call__
    with pytest.raises(ValidationError):
        validate(linear(), nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), Failing()), X)
    assert (nnx.Linear.__call__, nnx.Sequential.__call__) == before
