"""What flax layers hold for their arguments: fields replaced by keywords, declarations, biases, and what is refused."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from samebits.core import PerAxis, PerGroup, PerTensor, QParams, catalog, quant, quant_floats
from samebits.core.directions import Rounding
from samebits.core.granularity import qparams_shape
from samebits.core.inject import DependencyError, Injector, value
from samebits.jax_backend import interop
from samebits.jax_backend.nn import (
    QuantConv,
    QuantConvTranspose,
    QuantEmbed,
    QuantHardTanh,
    QuantIdentity,
    QuantLinear,
    QuantReLU,
    TensorQuantizer,
    proxies,
)
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import nn as torch_nn
from samebits.torch_frontend import quant as torch_quant


def described(held: Any) -> Any:
    return held.quantizer


def linear(*sizes: int, **keywords: Any) -> QuantLinear:
    return QuantLinear(*(sizes or (3, 2)), rngs=nnx.Rngs(0), **keywords)


def test_keywords_replace_single_fields_of_each_quantizer() -> None:
    layer = linear(
        weight_bits=4,
        weight_rounding="toward_zero",
        weight_granularity=PerTensor(),
        input_quant="uint8_per_tensor",
        input_source="running_statistic",
        output_quant=catalog["int8_per_tensor"],
        output_narrow=True,
    )
    want = catalog["int8_per_channel"].replace(bits=4, rounding=Rounding.TOWARD_ZERO, granularity=PerTensor())
    assert described(layer.weight_quant) == want
    assert described(layer.input_quant) == catalog["uint8_per_tensor"].replace(source="running_statistic")
    assert described(layer.output_quant) == catalog["int8_per_tensor"].replace(narrow=True)
    assert layer.bias_quant is None
    for layer_of_one in (QuantIdentity, QuantReLU):
        for keywords in ({"bits": 5}, {"act_bits": 5}):
            assert described(layer_of_one("int8_per_tensor", **keywords).act_quant).format.bits == 5
    table = QuantEmbed(5, 3, rngs=nnx.Rngs(0), weight_bits=4, embedding_init=nnx.initializers.ones)
    assert described(table.weight_quant).format.bits == 4
    assert float(table.embedding[...].min()) == 1
    assert linear(bias_init=nnx.initializers.ones, use_bias=True).bias[...].tolist() == [1, 1]


def test_channels_of_weights_are_where_the_layer_has_them() -> None:
    """As in torch: per axis 0 of a transposed convolution means its outputs, axis 1."""
    layer = QuantConvTranspose(3, 4, (2, 2), rngs=nnx.Rngs(0), weight_source="learned")
    assert described(layer.weight_quant).granularity == PerAxis(1)
    assert layer.weight.shape == (3, 4, 2, 2)
    assert layer.weight_quant.scale[...].shape == (1, 4, 1, 1)
    grouped = QuantConv(4, 6, (3,), feature_group_count=2, rngs=nnx.Rngs(0), weight_source="learned")
    assert grouped.weight.shape == (6, 2, 3)
    assert grouped.weight_quant.scale[...].shape == (6, 1, 1)


# --- declarations -----------------------------------------------------------------------------------------------------

READY = {name: getattr(quant if hasattr(quant, name) else quant_floats, name) for name in torch_quant.declared()}


def test_a_declaration_is_the_same_quantizer_in_both_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them; channels of activations are the last axis here. Where learned scales begin is not computed."""

    def ones(q: Any, w: Any) -> QParams:
        shape = qparams_shape(q.granularity, w.shape)
        return QParams(jnp.ones(shape), jnp.ones(shape, kind_of_zeros(q)) if q.affine else None)

    monkeypatch.setattr(proxies, "choose_qparams", ones)
    seen = set()
    for name, declaration in READY.items():
        role = f"{declaration.role}_quant"
        if role == "act_quant":
            ends = {"max_val": 3.0, "min_val": -3.0} if "Init" in name else {}
            in_torch, in_jax = (kind(declaration, **ends) for kind in (torch_nn.QuantIdentity, QuantIdentity))
        else:
            keywords = {role: declaration} | ({"input_quant": "int8_per_tensor"} if role == "bias_quant" else {})
            in_torch, in_jax = torch_nn.QuantLinear(32, 2, **keywords), linear(32, 2, **keywords)
        want, got = (described(getattr(layer, role)) for layer in (in_torch, in_jax))
        if role == "bias_quant":
            want = want.replace(granularity=got.granularity)  # there it is made that when scales come
        if want.granularity == PerAxis(1):
            want = want.replace(granularity=PerAxis(-1))
        assert got == want, name
        seen.add(role)
    assert seen == {"act_quant", "weight_quant", "bias_quant"}


def kind_of_zeros(q: Any) -> Any:
    return np.float32 if q.arithmetic.has_float_zeros else np.int32


def test_a_declaration_looks_at_the_layer() -> None:
    class OfInputs(quant.Int8WeightPerTensorFloat):
        @value
        def bit_width(module: Any) -> int:
            return module.weight.shape[1]

    assert described(linear(5, 2, weight_quant=OfInputs).weight_quant).format.bits == 5
    conv = QuantConvTranspose(3, 4, (2, 2), rngs=nnx.Rngs(0), weight_quant=quant.Int8WeightPerChannelFloat)
    assert described(conv.weight_quant).granularity == PerAxis(1)
    groups = QuantConv(
        4, 2, (3,), rngs=nnx.Rngs(0), weight_quant=quant.ShiftedUint8WeightGroupQuantFloat, weight_group_size=2
    )
    assert described(groups.weight_quant).granularity == PerGroup(2, 1)
    hard = QuantHardTanh(quant.Int8ActPerTensorFloatMinMaxInit, -2.0, 6.35)
    assert described(hard.act_quant).scale.scale_value == pytest.approx(6.35 / 128)
    assert (
        described(linear(weight_quant=quant.Int8WeightPerTensorFloat, weight_bit_width=3).weight_quant).format.bits == 3
    )


def test_channels_of_declared_activations_are_last_where_the_layer_takes_them_as_they_lie() -> None:
    per_channel = quant.Int8ActPerTensorFloat.let(scaling_per_output_type="channel")
    assert described(QuantReLU(per_channel).act_quant).granularity == PerAxis(-1)
    assert described(linear(input_quant=per_channel).input_quant).granularity == PerAxis(-1)
    conv = QuantConv(3, 4, (2,), rngs=nnx.Rngs(0), input_quant=per_channel)
    assert described(conv.input_quant).granularity == PerAxis(1)  # of (batch, channels, length), as it is quantized
    shaped = QuantReLU(per_channel, per_channel_broadcastable_shape=(1, 1, 5, 1))
    assert described(shaped.act_quant).granularity == PerAxis(2)


def test_a_learned_scale_of_a_declared_weight_begins_at_that_of_the_weight() -> None:
    """As in torch, where a proxy begins it when it is made: evaluation needs no training before."""
    declaration = quant.Int8WeightPerChannelFloat.let(scaling_impl_type="parameter_from_stats")
    in_torch: Any = torch_nn.QuantLinear(8, 3, bias=False, weight_quant=declaration).eval()
    in_jax = linear(8, 3, use_bias=False, weight_quant=declaration)
    in_jax.kernel.set_value(jnp.asarray(in_torch.weight.detach().numpy().T))
    in_jax = QuantLinear(
        8, 3, use_bias=False, weight_quant=declaration, rngs=nnx.Rngs(0), kernel_init=lambda *_: in_jax.kernel[...]
    )
    in_jax.eval()
    assert isinstance(in_jax.weight_quant.scale, nnx.Param)
    assert_same_bits(in_torch.weight_quant.tensor_quant.scale.detach().numpy(), in_jax.weight_quant.scale[...])
    x = np.eye(8, dtype=np.float32)
    assert_same_bits(in_torch(torch.from_numpy(x)).detach().numpy(), in_jax(jnp.asarray(x)))


# --- biases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight_quant", "bias_quant"),
    [
        ("int8_per_channel", "int8_per_tensor"),
        ("int8_per_channel", quant.Int8BiasPerTensorFloatInternalScaling),
        ("float8_e4m3fn_per_tensor", quant.Int16Bias),
    ],
    ids=["over codes", "of its own", "over values"],
)
def test_a_bias_has_the_bits_of_torch(weight_quant: str, bias_quant: Any) -> None:
    """With the scale of the products or its own, over codes and over values (where all sums are exact)."""
    options = {"bias_quant": bias_quant, "weight_quant": weight_quant, "input_quant": "uint8_per_tensor"}
    in_torch, in_jax = torch_nn.QuantLinear(6, 4, **options), linear(6, 4, **options)
    w, x = (np.random.default_rng(seed).integers(-9, 10, (4 + seed, 6)).astype(np.float32) for seed in range(2))
    w[0, 0], x[0, 0] = 448, 255  # one scale of float8 and that of uint8 are 1
    bias = np.array([0.3, -17.123, 1e4, 0.0], np.float32)
    with torch.no_grad():
        in_torch.weight.copy_(torch.from_numpy(w))
        in_torch.bias.copy_(torch.from_numpy(bias))
    interop.load_state_dict(in_jax, {name: t.numpy() for name, t in in_torch.state_dict().items()})
    want = in_torch(torch.from_numpy(x)).detach().numpy()
    assert_same_bits(want, in_jax(jnp.asarray(x)))
    plain: Any = linear(6, 4, **options | {"bias_quant": None})
    plain.kernel.set_value(in_jax.kernel[...])
    plain.bias.set_value(in_jax.bias[...])
    assert np.any(np.asarray(plain(jnp.asarray(x))) != want)


# --- what is refused --------------------------------------------------------------------------------------------------


class NoQuantizer(Injector):
    """It declares nothing that is asked for."""

    bits = 4


class Unresolved(quant.Int8ActPerTensorFloatMinMaxInit):
    """It lacks where its range ends."""


def _conv(*args: Any, **keywords: Any) -> Callable[[], Any]:
    return lambda: QuantConv(*args, rngs=nnx.Rngs(0), **keywords)


def _transposed(*args: Any, **keywords: Any) -> Callable[[], Any]:
    return lambda: QuantConvTranspose(*args, rngs=nnx.Rngs(0), **keywords)


SHARED = TensorQuantizer("int8_per_tensor")


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "QuantLinear has no keyword `wieght_bits`; .* `weight_`, `bias_`", lambda: linear(wieght_bits=4)),
        (TypeError, "QuantLinear has no keyword `precision`", lambda: linear(precision="highest")),
        (TypeError, "`weight_quant`: no field `bit`, .* `weight_bit`; .* bits, ", lambda: linear(weight_bit=4)),
        (TypeError, "here it is `weight_bits`; fields are", lambda: linear(weight_bit_width=4)),
        (
            TypeError,
            "QuantLinear cannot use `weight_bits`: `weight_quant` is None",
            lambda: linear(weight_quant=None, weight_bits=4),
        ),
        (TypeError, "QuantLinear cannot use `input_bits`: `input_quant` is None", lambda: linear(input_bits=4)),
        (
            TypeError,
            "`input_quant` is an instance, which others may share",
            lambda: linear(input_quant=SHARED, input_bits=4),
        ),
        (ValueError, "QuantLinear, `weight_quant`: `bits` must be in 1..16, got 40", lambda: linear(weight_bits=40)),
        (
            ValueError,
            "QuantLinear, `weight_quant`: .* must be a multiple of the group size 32, got 33",
            lambda: linear(33, 2, weight_quant="int4_per_group32"),
        ),
        (
            TypeError,
            "QuantReLU: `act_quant` must be a quantizer of activations, got Int8WeightPerTensorFloat, one of `weight`",
            lambda: QuantReLU(quant.Int8WeightPerTensorFloat),
        ),
        (
            TypeError,
            "QuantLinear: `weight_quant` must be a quantizer of weights, got Int8Bias, one of `bias`",
            lambda: linear(weight_quant=quant.Int8Bias),
        ),
        (
            TypeError,
            "got Int8WeightPerTensorFloat, whose `tensor_quant` means modules of torch",
            lambda: linear(weight_quant=torch_quant.Int8WeightPerTensorFloat),
        ),
        (
            TypeError,
            "whose `proxy_class` means modules of torch",
            lambda: QuantReLU(quant.Int8ActPerTensorFloat.let(proxy_class=int)),
        ),
        (TypeError, "must declare a `quantizer`, got NoQuantizer", lambda: QuantReLU(NoQuantizer)),
        (
            TypeError,
            r"NoQuantizer.*quantizer must be a Quantizer, got 4",
            lambda: QuantReLU(NoQuantizer.let(quantizer=4)),
        ),
        (
            TypeError,
            "nothing in Int8ActPerTensorFloat asks for `bit_widht`; did you mean bit_width",
            lambda: QuantReLU(quant.Int8ActPerTensorFloat, bit_widht=4),
        ),
        (DependencyError, "QuantReLU, `act_quant`: .*`max_val`", lambda: QuantReLU(Unresolved)),
        (
            ValueError,
            "QuantLinear, `bias_quant`: must be of symmetric integers",
            lambda: linear(bias_quant="uint8_affine_per_tensor"),
        ),
        (
            ValueError,
            "QuantLinear, `bias_quant`: has no scale, since `input_quant` is None",
            lambda: linear(bias_quant="int8_per_tensor")(jnp.ones((1, 3))),
        ),
        (
            ValueError,
            "QuantLinear, `bias_quant`: `input_quant` must be per tensor, got per token",
            lambda: linear(bias_quant="int8_per_tensor", input_quant="int8_affine_per_token")(jnp.ones((1, 3))),
        ),
        (ValueError, "`kernel_size` must be one to three positive ints", _conv(1, 1, (3, 3, 3, 3))),
        (ValueError, "`kernel_dilation` must be a positive int", _conv(1, 1, (3, 3), kernel_dilation=0)),
        (ValueError, "`input_dilation` must be 1, got 2: QuantConvTranspose", _conv(1, 1, (3, 3), input_dilation=2)),
        (ValueError, "`feature_group_count` must divide 3 `in_features`", _conv(3, 4, (3,), feature_group_count=2)),
        (ValueError, "`padding` must be 'SAME', 'VALID', .* got 'CAUSAL'", _conv(1, 1, (3, 3), padding="CAUSAL")),
        (
            ValueError,
            "`padding` must be 'SAME', 'VALID', .* got 'CIRCULAR'",
            _transposed(1, 1, (3,), padding="CIRCULAR"),
        ),
        (TypeError, "QuantConv has no keyword `mask`", _conv(1, 1, (3, 3), mask=jnp.ones((3, 3, 1, 1)))),
        (
            ValueError,
            r"`x` must be \(batch, length, channels\), got shape \(2,\)",
            lambda: _conv(1, 1, (3,))()(jnp.ones(2)),
        ),
        (ValueError, "`min_val` must be less than `max_val`, 1.0, got 1", lambda: QuantHardTanh(None, 1.0)),
        (ValueError, "`x` must hold integers, got float32", lambda: QuantEmbed(3, 2, rngs=nnx.Rngs(0))(jnp.ones(2))),
        (
            ValueError,
            r"`query` must have 2 features on its last axis, got shape \(1, 3\)",
            lambda: QuantEmbed(3, 2, rngs=nnx.Rngs(0)).attend(jnp.ones((1, 3))),
        ),
    ],
)
def test_what_is_refused(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        call()
