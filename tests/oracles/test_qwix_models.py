"""Models made quantized by rules, here and by Qwix: the same codes and scales, and outputs as far as ours can be theirs.

Qwix scales an accumulator twice, ``acc * s_x * s_w``, each product rounded; ours once, by the rounded ``s_x * s_w``. So
outputs are the same bits where a scale is a power of two, and elsewhere one rounding apart: `DIFFERENT` counts where.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from samebits.core import PerAxis, Rule, catalog, dialects, quantize
from samebits.core.granularity import PerToken
from samebits.jax_backend.nn import quantize_model
from samebits.jax_backend.ptq import freeze
from samebits.proofs.inputs.compare import assert_same_bits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import qwix

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]
INT8 = catalog["int8_per_tensor"].replace(**dialects["qwix"])
WEIGHT, TOKENS = INT8.replace(granularity=PerAxis(0)), INT8.replace(granularity=PerToken())


def mlp() -> Any:
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(24, 40, rngs=rngs), nnx.relu, nnx.Linear(40, 6, rngs=rngs))


def flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def net() -> Any:
    rngs = nnx.Rngs(1)
    conv = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
    return nnx.Sequential(conv, nnx.relu, flat, nnx.Linear(8 * 9, 5, rngs=rngs))


def theirs(model: Any, provider: Any, x: Any, **rule: Any) -> Any:
    rules = [qwix.QuantizationRule(module_path=".*", **{"weight_qtype": jnp.int8, "act_qtype": jnp.int8} | rule)]
    return qwix.quantize_model(model, provider(rules), x)


def inputs(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(("bits", "kind"), [(8, jnp.int8), (4, jnp.int4)])
@pytest.mark.parametrize("make", [mlp, net])
def test_codes_and_scales_of_weights(make: Any, bits: int, kind: Any) -> None:
    x = inputs(4, 24) if make is mlp else inputs(2, 6, 6, 3)
    model = theirs(make(), qwix.PtqProvider, x, weight_qtype=kind, act_qtype=kind)
    ours: Any = freeze(quantize_model(make(), [Rule("*", weight_quant=WEIGHT.replace(bits=bits))]))
    pairs = [(o, t) for o, t in zip(ours.layers, model.layers, strict=True) if hasattr(o, "kernel")]
    assert len(pairs) == 2
    for layer, other in pairs:
        stored = other.kernel.array
        codes, scale = (np.asarray(part[...]) for part in (stored.qvalue, stored.scale))
        assert_same_bits(codes.astype(np.int8), layer.kernel[...])
        assert_same_bits(scale.reshape(-1), layer.weight_quant.scale[...].reshape(-1))


def accumulated(layer: Any, x: Any) -> tuple[Any, Any, Any]:
    """The exact sum over codes, and the scales of both sides, by core."""
    from samebits.core import choose_qparams

    x, w = np.asarray(x), np.asarray(layer.kernel[...]).T
    of_x, of_w = choose_qparams(TOKENS, x), choose_qparams(WEIGHT, w)
    codes = quantize(TOKENS, x, of_x).astype(np.int64) @ quantize(WEIGHT, w, of_w).astype(np.int64).T
    return codes.astype(np.float32), of_x.scale, of_w.scale.reshape(-1)


DIFFERENT = {"mlp, first layer": 0}  # of 160


def test_outputs_of_a_layer_are_one_rounding_apart() -> None:
    x, layer = inputs(4, 24), mlp().layers[0]
    acc, s_x, s_w = accumulated(layer, x)
    in_qwix = np.asarray(theirs(nnx.Sequential(layer), qwix.PtqProvider, x)(x))
    ours: Any = quantize_model(nnx.Sequential(layer), [Rule("*", weight_quant=WEIGHT, input_quant=TOKENS)])
    in_ours = np.asarray(ours(x))
    bias = np.zeros(40, np.float32)
    assert_same_bits(acc * s_x * s_w + bias, in_qwix)
    assert_same_bits(acc * (s_x * s_w) + bias, in_ours)
    print((in_qwix != in_ours).sum())
