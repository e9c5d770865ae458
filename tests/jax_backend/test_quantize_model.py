"""Float nnx models whose layers are made quantized ones by rules; the same rules for a model of torch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from jax import lax

from samebits.core import Rule, catalog
from samebits.jax_backend import interop
from samebits.jax_backend import nn as quantized
from samebits.jax_backend.nn import QuantMultiHeadAttention, quantize_model
from samebits.jax_backend.ptq import freeze, model_size
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import nn as torch_nn


class Model(nnx.Module):
    """Layers of many kinds, one of them under two names."""

    def __init__(self, dtype: Any = jnp.float32) -> None:
        options: Any = {"rngs": nnx.Rngs(0), "param_dtype": dtype}
        self.embedding = nnx.Embed(10, 4, **options)
        self.body: Any = nnx.Sequential(
            nnx.Conv(4, 4, (3,), padding=1, feature_group_count=2, **options),
            nnx.relu,
            nnx.ConvTranspose(4, 4, (2,), 1, padding="VALID", **options),
        )
        self.again: Any = self.body.layers[0]
        self.norm = nnx.LayerNorm(4, **options)
        self.heads: Any = nnx.Dict({"first": nnx.Linear(4, 3, **options)})

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(self.body(self.again(self.embedding(x))))
        return self.heads["first"](y.mean(1))


X = np.arange(8).reshape(2, 4)
WHOLE: Any = {"*": {"input_quant": "int8_per_tensor", "act_quant": "uint8_per_tensor"}}


def kinds(model: Any) -> dict[str, str]:
    found = {"/".join(map(str, path)): type(part).__name__ for path, part in nnx.iter_modules(model)}
    return {name: kind for name, kind in found.items() if kind.startswith("Quant")}


def test_layers_are_made_quantized_and_parameters_stay() -> None:
    m = Model()
    variables, whole = jax.tree.leaves(nnx.state(m), is_leaf=lambda v: isinstance(v, nnx.Variable)), nnx.state(m)
    held = [m.embedding.embedding, m.again.kernel, m.body.layers[2].bias, m.heads["first"].kernel]
    before = interop.state_dict(m)
    assert quantize_model(m) is m
    want = {"embedding": "Embed", "again": "Conv", "body/layers/2": "ConvTranspose", "heads/first": "Linear"}
    assert kinds(m) == {name: f"Quant{kind}" for name, kind in want.items()}
    assert m.again is m.body.layers[0]
    again = [m.embedding.embedding, m.again.kernel, m.body.layers[2].bias, m.heads["first"].kernel]
    assert all(one is other for one, other in zip(held, again, strict=True))
    assert len(jax.tree.leaves(nnx.state(m))) == len(variables) == len(jax.tree.leaves(whole))
    after = interop.state_dict(m)
    assert before.keys() == after.keys()
    assert quantize_model(m) is m  # nothing is left to do
    assert interop.state_dict(nnx.clone(m)).keys() == after.keys()


def test_they_are_the_layers_that_are_made() -> None:
    """A layer made with the same keywords has the same attributes, and the same output of the same weights."""
    m: Any = nnx.Sequential(
        nnx.Conv(4, 6, (3, 3), (2, 1), padding="CIRCULAR", use_bias=False, rngs=nnx.Rngs(0)),
        nnx.ConvTranspose(6, 4, (3, 3), (2, 2), transpose_kernel=True, rngs=nnx.Rngs(0)),
        nnx.Linear(4, 3, rngs=nnx.Rngs(0)),
        nnx.gelu,
    )
    fields: Any = {"input_quant": "uint8_affine_per_tensor", "weight_bits": 4}
    quantize_model(m, {"*": {**fields, "act_bits": 6}})
    rngs = nnx.Rngs(0)
    made = [
        quantized.QuantConv(4, 6, (3, 3), (2, 1), padding="CIRCULAR", use_bias=False, rngs=rngs, **fields),
        quantized.QuantConvTranspose(6, 4, (3, 3), (2, 2), transpose_kernel=True, rngs=rngs, **fields),
        quantized.QuantLinear(4, 3, rngs=rngs, **fields),
        quantized.QuantGELU(approximate="tanh", act_bits=6),
    ]
    x: Any = jax.random.normal(jax.random.key(0), (2, 4, 5, 4))
    for one, other in zip(m.layers, made, strict=True):
        assert vars(one).keys() == vars(other).keys()
        assert dict(one._pytree__nodes) == dict(other._pytree__nodes)
    nnx.update(made[0], nnx.state(m.layers[0]))
    assert_same_bits(made[0](x), m.layers[0](x))
    assert m.layers[3].approximate == "tanh"


def small(dtype: Any = jnp.float32) -> Any:
    options: Any = {"rngs": nnx.Rngs(0), "param_dtype": dtype}
    return nnx.Sequential(nnx.Embed(10, 4, **options), nnx.relu, nnx.Linear(4, 3, **options))


def test_an_optimizer_made_before_trains() -> None:
    m = small()
    optimizer = nnx.Optimizer(m, optax.sgd(0.1), wrt=nnx.Param)
    start = np.asarray(m.layers[2].kernel[...])
    quantize_model(m, WHOLE)

    @nnx.jit
    def step(m: Any, optimizer: Any) -> jax.Array:
        loss, gradient = nnx.value_and_grad(lambda m: jnp.square(m(X) - 1).mean())(m)
        optimizer.update(m, gradient)
        return loss

    losses = [float(step(m, optimizer)) for _ in range(3)]
    assert losses[-1] < losses[0]
    assert np.any(m.layers[2].kernel[...] != start)


RULES = [
    Rule("*", weight_bits=4, act_quant="uint8_per_tensor", input_quant="int8_per_tensor", input_bits=6),
    Rule(r"re:body\.\d|again", weight_bits=3),
    Rule("head*", weight_quant="int8_per_tensor", weight_rounding="toward_zero", input_quant=None),
    Rule("embed*", stays=True),
]


def test_rules_apply_in_their_order_and_to_models_of_torch() -> None:
    class InTorch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(10, 4)
            parts = torch.nn.Conv1d(4, 4, 3, groups=2), torch.nn.ReLU(), torch.nn.ConvTranspose1d(4, 4, 2)
            self.body = torch.nn.Sequential(*parts)
            self.again = self.body[0]
            self.heads = torch.nn.ModuleDict({"first": torch.nn.Linear(4, 3)})

    m, in_torch = Model(), InTorch()
    quantize_model(m, RULES)
    torch_nn.quantize_model(in_torch, RULES)
    assert type(m.embedding) is nnx.Embed
    assert m.body.layers[0].weight_quant.quantizer == catalog["int8_per_channel"].replace(bits=3)
    assert m.heads["first"].input_quant is None
    modules: Any = in_torch
    pairs = [(m.heads["first"], modules.heads["first"]), *zip(m.body.layers, modules.body, strict=True)]
    for one, other in pairs:
        for role in ("weight_quant", "input_quant", "act_quant"):
            held: Any = getattr(one, role, None)
            theirs: Any = getattr(other, role, None)
            assert (held is None) == (theirs is None)
            assert held is None or held.quantizer == theirs.quantizer, (type(one), role)
    with pytest.warns(UserWarning, match=r"left as they are.*'0' \(LinearGeneral\)"):
        quantize_model(nnx.Sequential(nnx.LinearGeneral(2, 8, rngs=nnx.Rngs(0))))
    excluded = quantize_model(Model(), exclude=["body", "again", "re:emb.*"])
    assert kinds(excluded) == {"heads/first": "QuantLinear"}


def test_a_model_that_is_a_layer() -> None:
    class Mine(nnx.Linear):
        pass

    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    assert quantize_model(layer, {"*": {"weight_bits": 2}}) is layer
    assert isinstance(layer, quantized.QuantLinear)
    with pytest.warns(UserWarning, match=r"'0' \(Mine\)"):
        quantize_model(nnx.Sequential(Mine(2, 2, rngs=nnx.Rngs(0))))


def test_functions_that_cannot_be_hashed_stay() -> None:
    class Doubled:
        __hash__ = None

        def __call__(self, x: jax.Array) -> jax.Array:
            return 2 * x

    m = quantize_model(nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), Doubled(), nnx.relu), [Rule("2", act_bits=4)])
    assert [type(part).__name__ for part in m.layers] == ["QuantLinear", "Doubled", "QuantReLU"]  # type: ignore[attr-defined]


def test_the_size_of_a_model_with_keys() -> None:
    assert model_size(nnx.Dropout(0.5, rngs=nnx.Rngs(0))) == 12  # a key of two words, and its counter


def test_frozen_weights_are_codes_and_outputs_stay() -> None:
    m = quantize_model(Model(), WHOLE)
    floats, program = model_size(m), nnx.jit(lambda m, x: m(x))
    want = program(m, X)
    assert freeze(m) is m
    assert_same_bits(want, program(m, X))
    for layer in (m.again, m.body.layers[2], m.heads["first"]):  # type: ignore[attr-defined]
        assert layer.kernel[...].dtype == np.int8
        assert not isinstance(layer.kernel, nnx.Param)
    assert model_size(m) < floats
    with pytest.raises(ValueError, match="must have layers whose weights are quantized and not codes yet"):
        freeze(m)


@pytest.mark.parametrize(
    ("dtype", "rules"),
    [
        (jnp.float32, {"*": {"weight_source": "learned", "weight_restriction": "power_of_two"}}),
        (jnp.float32, [Rule("*", weight_quant="mxfp4_e2m1"), Rule("2", weight_quant="int8_affine_per_token")]),
        (jnp.bfloat16, WHOLE),
    ],
    ids=["learned", "groups and rows", "bfloat16"],
)
def test_frozen_weights_of_other_kinds(dtype: Any, rules: Any) -> None:
    m = small(dtype)
    m.layers[0] = nnx.Embed(10, 32, param_dtype=dtype, rngs=nnx.Rngs(0))
    m.layers[2] = nnx.Linear(32, 3, param_dtype=dtype, rngs=nnx.Rngs(0))
    quantize_model(m, rules)
    m(X)  # sets learned scales
    m.eval()
    want, attended = m(X), m.layers[0].attend(jnp.ones((2, 32), dtype))
    freeze(m)
    assert want.dtype == dtype
    assert_same_bits(want, m(X))
    assert_same_bits(attended, m.layers[0].attend(jnp.ones((2, 32), dtype)))


def unchanged(m: nnx.Module, call: Callable[[], Any], error: type[Exception], words: str) -> None:
    before = [(path, id(part), type(part), list(vars(part))) for path, part in nnx.iter_modules(m)]
    with pytest.raises(error, match=words):
        call()
    assert [(path, id(part), type(part), list(vars(part))) for path, part in nnx.iter_modules(m)] == before


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"rules": {"haed": {}}},
        ValueError,
        "the rule 'haed' fits no layer; layers are 'embedding', 'body.0', 'body.1', ",
    ),
    ({"exclude": ["norm"]}, ValueError, "the rule 'norm' fits no layer"),
    ({"rules": [Rule("heads", wieght_bits=4)]}, TypeError, "'heads': no layer takes `wieght_bits`; prefixes are"),
    ({"rules": {"body.1": {"weight_bits": 4}}}, TypeError, "no layer takes `weight_bits`; prefixes are `act_`"),
    ({"rules": {"heads": {"weight_bit": 4}}}, TypeError, "'heads.first': QuantLinear, `weight_quant`: no field `bit`"),
    ({"rules": {"heads": {"weight_quant": "int9"}}}, KeyError, "'heads.first': QuantLinear, `weight_quant`: unknown"),
    ({"rules": {"heads": {"weight_bits": 40}}}, ValueError, "'heads.first': QuantLinear, `weight_quant`: `bits` must"),
    ({"rules": {"again": {"weight_bits": 4}}}, ValueError, "'again': is a layer that has another name too"),
    ({"rules": {"heads": {"weight_quant": "int4_per_group32"}}}, ValueError, "'heads.first'.*32"),
    ({"rules": "heads"}, TypeError, "`rules` must be a mapping from patterns to keywords, or a sequence of Rule"),
]


@pytest.mark.parametrize(("keywords", "error", "words"), REFUSED)
def test_a_refused_call_changes_nothing(keywords: dict[str, Any], error: type[Exception], words: str) -> None:
    m = Model()
    unchanged(m, lambda: quantize_model(m, **keywords), error, words)


def test_layers_with_options_that_quantized_ones_do_not_have_are_refused() -> None:
    options: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
        (nnx.Linear, {"dot_general": lambda *a, **k: lax.dot_general(*a, **k)}, "'1': `dot_general` must be what flax"),
        (nnx.Linear, {"precision": lax.Precision.DEFAULT}, "'1': `precision` must be"),
        (nnx.Linear, {"preferred_element_type": jnp.float32}, "'1': `preferred_element_type` must be"),
        (nnx.Conv, {"kernel_size": (1,), "mask": jnp.ones((1, 4, 2))}, "'1': `mask` must be"),
        (nnx.Conv, {"kernel_size": (1,), "input_dilation": 2}, "'1': `input_dilation` must be 1, got 2"),
        (nnx.Conv, {"kernel_size": (1, 1, 1, 1)}, "'1': `kernel_size` must be one to three"),
        (nnx.ConvTranspose, {"kernel_size": (1,), "padding": "CIRCULAR"}, "'1': `padding` must be"),
    ]
    for kind, keywords, words in options:
        m = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), kind(4, 2, rngs=nnx.Rngs(0), **keywords))
        unchanged(m, lambda m=m: quantize_model(m), ValueError, words)  # type: ignore[misc]
    not_one: Any = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(TypeError, match=r"`model` must be an nnx\.Module, got dict"):
        quantize_model(not_one)


def test_layers_are_changed_before_they_are_stacked() -> None:
    def one(rngs: nnx.Rngs, make: Callable[[nnx.Module], nnx.Module]) -> nnx.Module:
        return make(nnx.Sequential(nnx.Linear(3, 3, rngs=rngs)))

    def stacked(make: Callable[[nnx.Module], nnx.Module]) -> nnx.Module:
        return nnx.split_rngs(splits=2)(nnx.vmap(partial(one, make=make)))(nnx.Rngs(0))

    words = r"'0': its weight must have 2 axes, got shape \(2, 3, 3\): layers that `nnx.vmap` stacks"
    floats = stacked(lambda m: m)
    unchanged(floats, lambda: quantize_model(floats), ValueError, words)
    trained = stacked(quantize_model)
    unchanged(trained, lambda: freeze(trained), ValueError, words)
    codes: Any = stacked(lambda m: freeze(quantize_model(m)))
    assert codes.layers[0].kernel[...].dtype == np.int8
    empty = nnx.eval_shape(lambda: nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0))))
    unchanged(empty, lambda: quantize_model(empty), ValueError, "'0': its weight must have values, got a shape")


def test_what_cannot_be_frozen_stays_as_it_was() -> None:
    cases: list[tuple[Any, type[Exception], str]] = [
        ({"heads": {"weight_rounding": "stochastic"}}, ValueError, "layer 'heads.first': its weight must have codes"),
        (
            {"heads": {"weight_source": "learned", "weight_learned_bits": 6.0}},
            ValueError,
            "layer 'heads.first': its weight must have codes",
        ),
        ({"heads": {"weight_source": "learned"}}, RuntimeError, "layer 'heads.first': "),
    ]
    for rules, error, words in cases:
        m = quantize_model(Model(), rules)
        unchanged(m, lambda m=m: freeze(m), error, words)  # type: ignore[misc]
    m = quantize_model(Model())
    kernel: Any = m.heads["first"].kernel  # type: ignore[attr-defined]
    kernel.set_value(kernel[...].at[0, 0].set(jnp.nan))
    unchanged(m, lambda: freeze(m), ValueError, "layer 'heads.first': ")
    not_one: Any = []
    with pytest.raises(TypeError, match=r"`model` must be an nnx\.Module, got list"):
        freeze(not_one)
    coarse = nnx.Sequential(nnx.Linear(64, 64, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    quantize_model(coarse, {"*": {"weight_bits": 12, "weight_source": "constant", "weight_scale_value": 9.985e-5}})
    unchanged(coarse, lambda: freeze(coarse), ValueError, "layer '0': `kernel` has a dtype, bfloat16, too coarse")


# --- attention -------------------------------------------------------------------------------------------------------


def test_attention_becomes_what_the_layer_is_and_is_frozen() -> None:
    rules = [Rule("*", weight_quant="int8_per_channel", input_quant="int8_per_tensor")]
    rules += [Rule("0", query_quant="int8_per_tensor", key_bits=8, key_quant="int8_per_tensor", weight_bits=4)]
    model: Any = nnx.Sequential(nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0), decode=False))
    attention = model.layers[0]
    kernel = attention.query.kernel
    quantize_model(model, rules)
    of_both: Any = {"weight_quant": "int8_per_channel", "input_quant": "int8_per_tensor", "weight_bits": 4}
    products: Any = {"query_quant": "int8_per_tensor", "key_quant": "int8_per_tensor"}
    like = QuantMultiHeadAttention(2, 8, rngs=nnx.Rngs(0), **of_both, **products)
    assert model.layers[0] is attention
    assert attention.query.kernel is kernel
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 8)), jnp.float32)
    y = attention(x)
    assert_same_bits(y, like(x))
    freeze(model.eval() or model)
    assert attention.out.kernel[...].dtype == np.int8
    assert_same_bits(y, attention(x))


def test_attention_that_the_layer_has_not_is_refused() -> None:
    for keywords in ({"decode": True}, {"decode": False, "attention_fn": lambda *a, **k: a[0]}):
        model: Any = nnx.Sequential(nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0), **keywords))
        unchanged(model, lambda model=model: quantize_model(model), ValueError, "'0': `")  # type: ignore[misc]
