"""Models made quantized by rules, here and by Qwix: the same codes and scales; outputs as far as ours can be theirs.

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

from samebits.core import PerAxis, PerGroup, PerToken, Rule, catalog, choose_qparams, dialects, quantize
from samebits.jax_backend.nn import quantize_model
from samebits.jax_backend.ptq import freeze
from samebits.proofs.inputs.compare import assert_same_bits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import qwix

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]
INT8 = catalog["int8_per_tensor"].replace(**dialects["qwix"])
DIFFERENT = 35  # of 160 outputs
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


CODES = {  # rules of Qwix, and our weights
    "codes of both": (net, (2, 6, 6, 3), {}, WEIGHT),
    "groups of weights alone": (
        mlp,
        (4, 24),
        {"weight_qtype": jnp.int4, "act_qtype": None, "tile_size": 8},
        WEIGHT.replace(bits=4, granularity=PerGroup(8)),
    ),
}


@pytest.mark.parametrize("name", CODES)
def test_codes_and_scales_of_weights(name: str) -> None:
    make, shape, rule, weight = CODES[name]
    model = theirs(make(), qwix.PtqProvider, inputs(*shape), **rule)
    ours: Any = freeze(quantize_model(make(), [Rule("*", weight_quant=weight)]))
    pairs = [(o, t) for o, t in zip(ours.layers, model.layers, strict=True) if hasattr(o, "kernel")]
    assert len(pairs) == 2
    for layer, other in pairs:
        stored = other.kernel.array
        codes, scale = (np.asarray(part[...]) for part in (stored.qvalue, stored.scale))
        assert_same_bits(codes.astype(np.int8), layer.kernel[...])
        found = np.asarray(layer.weight_quant.scale[...])
        assert_same_bits(scale.T if scale.ndim == 2 else scale.reshape(found.shape), found)


def test_outputs_of_scales_that_are_powers_of_two() -> None:
    """A row, or image, whose largest number is 127.5 / 64 has the scale 1 / 64: ours are the outputs in training, too.

    Qwix has one scale for each image, which ours are for one image.
    """
    layers = [(net().layers[0], (1, 6, 6, 3), INT8), (mlp().layers[0], (4, 24), TOKENS)]
    for layer, shape, act in layers:
        x = np.clip(np.array(inputs(*shape)), -1, 1)
        x.reshape(shape[0], -1)[:, 5] = 127.5 / 64
        for provider in (qwix.PtqProvider, qwix.QtProvider):
            want = theirs(nnx.Sequential(layer), provider, jnp.asarray(x))(jnp.asarray(x))
            model: Any = nnx.clone(nnx.Sequential(layer))
            quantize_model(model, [Rule("*", weight_quant=WEIGHT, input_quant=act)])
            assert_same_bits(np.asarray(want), model(jnp.asarray(x)))


def test_outputs_of_other_scales_are_one_rounding_apart() -> None:
    """Both from the same accumulators: the cause of the difference is the order of the products, and nothing else."""
    x, layer = inputs(4, 24), mlp().layers[0]
    w = np.asarray(layer.kernel[...]).T
    of_x, of_w = choose_qparams(TOKENS, np.asarray(x)), choose_qparams(WEIGHT, w)
    codes = quantize(TOKENS, np.asarray(x), of_x).astype(np.int64) @ quantize(WEIGHT, w, of_w).astype(np.int64).T
    acc, s_x, s_w = codes.astype(np.float32), of_x.scale, of_w.scale.reshape(-1)
    in_qwix = np.asarray(theirs(nnx.Sequential(layer), qwix.PtqProvider, x)(x))
    ours: Any = quantize_model(nnx.Sequential(layer), [Rule("*", weight_quant=WEIGHT, input_quant=TOKENS)])
    in_ours = np.asarray(ours(x))
    assert_same_bits(acc * s_x * s_w, in_qwix)
    assert_same_bits(acc * (s_x * s_w), in_ours)
    assert (in_qwix != in_ours).sum() == DIFFERENT
