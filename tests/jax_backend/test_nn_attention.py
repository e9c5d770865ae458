"""Attention and recurrent cells in flax beside the layers of torch, and beside flax where nothing is quantized."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from numpy.typing import NDArray

from samebits.core import catalog
from samebits.jax_backend import nn as flax_nn
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import nn as torch_nn

Array = NDArray[Any]
RUNNING = catalog["int8_per_tensor"].replace(source="running_statistic")
CODES = {
    "input_quant": RUNNING,
    "query_quant": "int8_per_tensor",
    "key_quant": "uint8_affine_per_tensor",
    "value_quant": "int8_per_tensor",
    "attention_quant": "uint8_per_tensor",
    "context_quant": "int8_per_tensor",
    "output_quant": "int8_per_tensor",
}
FLOATS: dict[str, Any] = {"weight_quant": None}


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def attention(**options: Any) -> Any:
    return flax_nn.QuantMultiHeadAttention(2, 8, rngs=nnx.Rngs(0), **options)


def give(layer: Any, theirs: torch.nn.MultiheadAttention) -> None:
    """The weights of a layer of torch."""
    w, b = (to_numpy(t.detach()) for t in (theirs.in_proj_weight, theirs.in_proj_bias))
    for name, rows, bias in zip(("query", "key", "value"), np.split(w, 3), np.split(b, 3), strict=True):
        part = getattr(layer, name)
        part.kernel.set_value(jnp.asarray(rows.T.reshape(part.kernel.shape)))
        part.bias.set_value(jnp.asarray(bias.reshape(part.bias.shape)))
    layer.out.kernel.set_value(jnp.asarray(to_numpy(theirs.out_proj.weight.detach()).T.reshape(layer.out.kernel.shape)))
    layer.out.bias.set_value(jnp.asarray(to_numpy(theirs.out_proj.bias.detach())))


def test_attention_has_the_bits_of_torch_where_the_softmax_has() -> None:
    """Scores so far apart that their softmax is 0 and 1 in any library; with a mask of which one row sees nothing."""
    options: dict[str, Any] = CODES | {"bias_quant": "int8_per_tensor"}
    torch.manual_seed(0)
    theirs: Any = torch_nn.QuantMultiheadAttention(8, 2, batch_first=True, **options)
    with torch.no_grad():
        theirs.in_proj_weight.mul_(400)
        theirs.in_proj_bias.uniform_(-1, 1)
        theirs.out_proj.bias.uniform_(-1, 1)
    ours = attention(**options)
    give(ours, theirs)
    seen = np.tril(np.ones((5, 5), bool), -1)
    step = nnx.jit(lambda m, x: m(x, mask=jnp.asarray(seen)[None, None]))
    for seed in range(2):  # which is a step of training, too
        x = random(3, 5, 8, seed=seed)
        given = to_torch(x)
        want, weights = theirs(given, given, given, attn_mask=torch.from_numpy(~seen))
        assert set(np.unique(to_numpy(weights.detach() * 2))) <= {0.0, 1.0, 2.0}
        assert_same_bits(to_numpy(want.detach()), step(ours, to_jax(x)))
    assert_same_bits(to_numpy(theirs.input_quant.scale.detach()), ours.input_quant.scale[...])


def sowed(module: nnx.Module) -> Any:
    """What it gives, and what it sows."""
    return nnx.capture(module, nnx.Intermediate)


@pytest.mark.parametrize(
    "options",
    [
        {"num_kv_heads": 1, "normalize_qk": True, "out_features": 6},
        {"qkv_features": 4, "in_kv_features": 3, "use_bias": False, "dropout_rate": 0.5, "deterministic": False},
    ],
    ids=["shared keys", "other features"],
)
def test_attention_without_quantizers_is_that_of_flax(options: dict[str, Any]) -> None:
    ours = attention(**FLOATS, **options)
    theirs = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0), decode=False, **options)
    parameters = [{path for path, _ in nnx.to_flat_state(nnx.state(one, nnx.Param))} for one in (ours, theirs)]
    assert parameters[0] == parameters[1]
    x, read = to_jax(random(3, 5, 8)), to_jax(random(3, 4, options.get("in_kv_features", 8)))
    allowed = np.random.default_rng(1).integers(0, 2, (3, 2, 5, 4)).astype(bool)
    mask = jnp.asarray(allowed | (np.arange(4) == 0))  # a row of which nothing is seen is not as in flax
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        want, of_theirs = sowed(theirs)(x, read, mask=mask, sow_weights=True, rngs=nnx.Rngs(7))
        got, of_ours = sowed(ours)(x, read, mask=mask, sow_weights=True, rngs=nnx.Rngs(7))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
    if "dropout_rate" not in options:  # flax shows the weights before dropout
        weights = [nnx.to_pure_dict(found)["attention_weights"][0] for found in (of_ours, of_theirs)]
        np.testing.assert_allclose(weights[0], weights[1], rtol=2e-5, atol=2e-6)


def test_attention_of_nothing_is_nothing() -> None:
    layer = attention(**FLOATS)
    for shape in ((0, 5, 8), (2, 0, 8)):
        assert layer(jnp.ones(shape)).shape == shape


def test_fields_of_each_quantizer_of_attention() -> None:
    layer = attention(**CODES, weight_bits=4, context_bits=5, output_bits=6, query_bits=7, input_narrow=True)
    assert {layer.query.weight_quant.quantizer.format.bits, layer.out.weight_quant.quantizer.format.bits} == {4}
    assert layer.out.input_quant.quantizer.format.bits == 5
    assert layer.out.output_quant.quantizer.format.bits == 6
    assert layer.query_quant.quantizer.format.bits == 7
    assert layer.query.input_quant is layer.value.input_quant is layer.input_quant
    assert layer.input_quant.quantizer.format.narrow
    for message, options in {
        "QuantMultiHeadAttention has no keyword `decode`": {"decode": True},
        "QuantMultiHeadAttention cannot use `softmax_bits`: `softmax_quant` is None": {"softmax_bits": 4},
        "QuantProjection cannot use `input_bits`: `input_quant` is None": {"context_bits": 4},
    }.items():
        with pytest.raises(TypeError, match=message):
            attention(**options)
    with pytest.raises(ValueError, match="`inputs_k` must be given where `inputs_v` is"):
        layer(jnp.ones((1, 2, 8)), None, jnp.ones((1, 2, 8)))
    with pytest.raises(ValueError, match="`rngs` must be given to the call where there is dropout"):
        attention(dropout_rate=0.5, deterministic=False, keep_rngs=False)(jnp.ones((1, 2, 8)))


# --- recurrent cells --------------------------------------------------------------------------------------------------


def cell_beside(kind: str, **options: Any) -> tuple[Any, Any]:
    """A layer of torch, and one of flax with its weights; the bias at the input is 0."""
    torch.manual_seed(0)
    if kind == "lstm":
        theirs: Any = torch_nn.QuantLSTM(5, 4, batch_first=True, **options)
        ours: Any = flax_nn.QuantLSTMCell(5, 4, rngs=nnx.Rngs(0), **options)
    else:
        theirs = torch_nn.QuantRNN(5, 4, nonlinearity="relu", batch_first=True, **options)
        ours = flax_nn.QuantSimpleCell(5, 4, "relu", rngs=nnx.Rngs(0), **options)
    with torch.no_grad():
        theirs.bias_ih_l0.zero_()
    ours.dense_i.kernel.set_value(jnp.asarray(to_numpy(theirs.weight_ih_l0.detach()).T))
    ours.dense_h.kernel.set_value(jnp.asarray(to_numpy(theirs.weight_hh_l0.detach()).T))
    ours.dense_h.bias.set_value(jnp.asarray(to_numpy(theirs.bias_hh_l0.detach())))
    return theirs, ours


@pytest.mark.parametrize(
    "hidden_quant",
    ["int8_per_tensor", RUNNING.replace(batch_in_training=True), None],
    ids=["statistic", "running", "none"],
)
def test_a_recurrent_cell_of_relu_has_the_bits_of_torch(hidden_quant: Any) -> None:
    """Its gates select numbers. The input has a constant scale, since torch quantizes whole sequences at once."""
    constant = catalog["int8_per_tensor"].replace(source="constant", scale_value=2.0**-5)
    options = {"input_quant": constant, "hidden_quant": hidden_quant}
    theirs, ours = cell_beside("rnn", **options)
    if hidden_quant is None:  # then sums of floats must be exact
        for kernel in (theirs.weight_hh_l0, theirs.bias_hh_l0, theirs.weight_ih_l0):
            kernel.detach().mul_(8).round_().div_(8)
        theirs.weight_quant = None
        ours.dense_i.weight_quant = ours.dense_h.weight_quant = None
        ours.dense_i.kernel.set_value(jnp.asarray(to_numpy(theirs.weight_ih_l0.detach()).T))
        ours.dense_h.kernel.set_value(jnp.asarray(to_numpy(theirs.weight_hh_l0.detach()).T))
        ours.dense_h.bias.set_value(jnp.asarray(to_numpy(theirs.bias_hh_l0.detach())))
    x = random(3, 4, 5)
    want, _ = theirs(to_torch(x))
    got = nnx.RNN(ours)(to_jax(x))
    assert_same_bits(to_numpy(want.detach()), got)
    if hidden_quant is not None and not isinstance(hidden_quant, str):
        assert_same_bits(to_numpy(theirs.hidden_quant.scale.detach()), ours.hidden_quant.scale[...])


def test_a_long_short_term_memory_is_that_of_torch() -> None:
    """Gates differ in the last place, so codes by a step, now and then at most."""
    constant = catalog["int8_per_tensor"].replace(source="constant", scale_value=2.0**-6)
    options = {"input_quant": constant, "hidden_quant": constant, "cell_quant": constant}
    theirs, ours = cell_beside("lstm", **options)
    x = random(3, 4, 5)
    want, (_, c) = theirs(to_torch(x))
    (cell, hidden), got = nnx.RNN(ours, return_carry=True)(to_jax(x))
    np.testing.assert_allclose(got, to_numpy(want.detach()), atol=2.0**-6)
    np.testing.assert_allclose(cell, to_numpy(c.detach())[0], atol=2.0**-6)
    assert hidden.value.shape == (3, 4)
    assert np.mean(np.asarray(got) == to_numpy(want.detach())) > 0.9
    plain = flax_nn.QuantLSTMCell(5, 4, weight_quant=None, rngs=nnx.Rngs(0))
    alike = nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(1))
    nnx.update(alike, nnx.state(plain))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(nnx.RNN(plain)(to_jax(x)), nnx.RNN(alike)(to_jax(x)), rtol=1e-5, atol=1e-6)


def test_what_recurrent_cells_refuse() -> None:
    for message, options in {
        "`nonlinearity` must be 'tanh' or 'relu', got 'gelu'": {"nonlinearity": "gelu"},
        "QuantSimpleCell, `hidden_quant`: must have a zero": {"hidden_quant": "binary_per_tensor"},
    }.items():
        with pytest.raises(ValueError, match=message):
            flax_nn.QuantSimpleCell(5, 4, rngs=nnx.Rngs(0), **options)
    with pytest.raises(TypeError, match="QuantSimpleCell has no keyword `residual`"):
        flax_nn.QuantSimpleCell(5, 4, rngs=nnx.Rngs(0), residual=True)
    cell = flax_nn.QuantLSTMCell(5, 4, rngs=nnx.Rngs(0), weight_bits=4, hidden_quant="int8_per_tensor", hidden_bits=5)
    assert cell.dense_i.weight_quant.quantizer.format.bits == cell.dense_h.weight_quant.quantizer.format.bits == 4
    assert cell.hidden_quant.quantizer.format.bits == 5
