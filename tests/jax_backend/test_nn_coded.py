"""Sums, concatenations and averages of codes in flax, beside the layers of torch over tensors with codes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.typing import NDArray

from samebits.core import PerAxis, PerToken, catalog, quant
from samebits.jax_backend import nn as flax_nn
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import nn as torch_nn
from samebits.torch_frontend import quant as torch_quant

Array = NDArray[Any]
AFFINE = catalog["uint8_affine_per_tensor"]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "input_quant",
    [
        "int8_per_tensor",
        AFFINE,
        catalog["int8_per_channel"].replace(granularity=PerAxis(0)),
        catalog["int8_per_channel"].replace(granularity=PerAxis(1)),
        catalog["int4_per_channel"].replace(granularity=PerToken()),
        "binary_per_tensor",
        "float8_e4m3fn_per_tensor",
        None,
    ],
    ids=["tensor", "affine", "rows", "columns", "tokens", "binary", "floats", "none"],
)
def test_sums_add_codes(input_quant: Any) -> None:
    """With every special value a layer can meet, and broadcasting."""
    x, other = random(4, 6), random(6, seed=1)
    x[0, :3] = -0.0, 2.0**-149, -(2.0**-149)
    in_torch, in_flax = (room.QuantEltwiseAdd(input_quant, None) for room in (torch_nn, flax_nn))
    assert_same_bits(to_numpy(in_torch(to_torch(x), to_torch(other))), in_flax(to_jax(x), to_jax(other)))
    if input_quant is AFFINE:
        half = jnp.asarray(x, jnp.bfloat16), jnp.asarray(x[::-1], jnp.bfloat16)
        want = in_torch(*(to_torch(to_numpy(a)) for a in half))
        assert_same_bits(to_numpy(want), nnx.jit(lambda m, a, b: m(a, b))(in_flax, *half))
        fixed = AFFINE.replace(source="constant", scale_value=0.25, zero_point_value=7)
        special = np.array([np.inf, -np.inf, np.nan, 3e38, 0.0], np.float32)
        in_torch, in_flax = (room.QuantEltwiseAdd(fixed, None) for room in (torch_nn, flax_nn))
        assert_same_bits(
            to_numpy(in_torch(to_torch(special), to_torch(special[::-1].copy()))),
            in_flax(to_jax(special), to_jax(special[::-1].copy())),
        )


def test_sums_of_codes_are_not_those_of_values() -> None:
    """Which is why codes are added; and gradients are those of both operands."""
    layer, q = flax_nn.QuantEltwiseAdd("int8_per_tensor", None), flax_nn.QuantIdentity()
    x, other = to_jax(random(4, 600)), to_jax(random(4, 600, seed=1))
    both = q(jnp.concatenate([x, other]))
    assert np.any(np.asarray(layer(x, other)) != np.asarray(both[:4] + both[4:]))
    slope = jnp.broadcast_to(jnp.arange(600, dtype=jnp.float32), x.shape)
    slopes = jax.grad(lambda a, b: (layer(a, b) * slope).sum(), (0, 1))(x, other)
    assert_same_bits((slope, slope), slopes)
    numbers = [np.array(n, np.float32) for n in (1.0, 2.0)]
    want = torch_nn.QuantEltwiseAdd("int8_per_tensor", None)(*map(to_torch, numbers))
    assert_same_bits(to_numpy(want), layer(*map(to_jax, numbers)))


def test_training_counts_both_operands_as_one() -> None:
    """And a delay passes values."""
    q = catalog["int8_per_tensor"].replace(source="running_statistic", delay=1)
    in_torch, in_flax = (room.QuantEltwiseAdd(q) for room in (torch_nn, flax_nn))
    for seed in range(3):
        a, b = random(3, 4, seed=seed), random(3, 4, seed=seed + 9)
        assert_same_bits(to_numpy(in_torch(to_torch(a), to_torch(b)).detach()), in_flax(to_jax(a), to_jax(b)))
    assert_same_bits(to_numpy(in_torch.input_quant.scale.detach()), in_flax.input_quant.scale[...])


def test_concatenations() -> None:
    in_torch, in_flax = torch_nn.QuantCat(AFFINE, "int4_per_channel"), flax_nn.QuantCat(AFFINE, "int4_per_channel")
    parts = random(2, 3), random(2, 5, seed=1)
    want = to_numpy(in_torch([to_torch(p) for p in parts]))
    assert_same_bits(want, in_flax([to_jax(p) for p in parts]))
    assert_same_bits(want, in_flax([to_jax(p) for p in parts], 1))
    joined = flax_nn.QuantCat(None, None)([to_jax(p.T) for p in parts], 0)
    assert_same_bits(np.concatenate([p.T for p in parts]), joined)


POOLS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    # quantizer, of torch, of flax
    "even": ("int8_per_tensor", {"kernel_size": 2}, {"window_shape": (2, 2), "strides": 2}),
    "padded": (
        AFFINE,
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"window_shape": (3, 3), "strides": 2, "padding": 1},
    ),
    "down": (
        "uint8_per_tensor",
        {"kernel_size": (2, 3), "stride": 1, "trunc_quant": torch_quant.TruncTo8bit},
        {"window_shape": (2, 3), "trunc_quant": quant.TruncTo8bit},
    ),
    "wide": (
        catalog["int8_per_tensor"].replace(bits=12),
        {"kernel_size": 2, "trunc_bits": 6},
        {"window_shape": (2, 2), "strides": 2, "trunc_bits": 6},
    ),
    "not cut": ("int4_per_channel", {"kernel_size": 2}, {"window_shape": (2, 2), "strides": 2}),
}


@pytest.mark.parametrize("name", POOLS)
def test_averages_of_codes(name: str) -> None:
    q, of_torch, of_flax = POOLS[name]
    x = random(2, 3, 5, 7)
    x[0, 0, 0, :2] = -0.0, 2.0**-149
    x[1, 0, :2, :2] = 9  # the largest codes, whose sum in fewer bits rounds up to what these do not have
    q_flax = catalog[q].replace(granularity=PerAxis(-1)) if name == "not cut" else q
    q = catalog[q].replace(granularity=PerAxis(1)) if name == "not cut" else q
    in_flax = flax_nn.QuantAvgPool(**of_flax, input_quant=q_flax)
    coded = torch_nn.QuantIdentity(q, return_quant_tensor=True)(to_torch(x))
    want = to_numpy(torch_nn.QuantAvgPool2d(**of_torch)(coded).dequantize())
    assert_same_bits(np.moveaxis(want, 1, -1), in_flax(to_jax(np.moveaxis(x, 1, -1))))


def test_averages_to_a_size_and_compiled() -> None:
    x = random(2, 3, 6, 4)
    coded = torch_nn.QuantIdentity(AFFINE, return_quant_tensor=True)(to_torch(x))
    want = to_numpy(torch_nn.QuantAdaptiveAvgPool2d((2, 1))(coded).dequantize())
    in_flax = flax_nn.QuantAdaptiveAvgPool((2, 1), input_quant=AFFINE)
    images = to_jax(np.moveaxis(x, 1, -1))
    for got in (in_flax(images), nnx.jit(lambda m, x: m(x))(in_flax, images)):
        assert_same_bits(np.moveaxis(want, 1, -1), got)
    slopes = jax.grad(lambda x: in_flax(x).sum())(images)
    assert_same_bits(np.full(images.shape, np.float32(1 / 12)), slopes)
    plain = flax_nn.QuantAvgPool((2, 2), padding="SAME")(images)
    with jax.numpy_dtype_promotion("standard"):
        assert_same_bits(nnx.avg_pool(images, (2, 2), padding="SAME"), plain)
    for message, call in {
        r"multiples of `output_size` \(2, 1\), got shape \(2, 5, 4, 3\)": lambda: in_flax(images[:, :5]),
        "must have exact sums in float32": lambda: flax_nn.QuantAvgPool(
            (128, 64), input_quant="int8_per_tensor", input_bits=16
        )(jnp.ones((1, 128, 64, 1))),
        "`trunc_rounding` must look at nothing but the number": lambda: flax_nn.QuantAvgPool(
            2, trunc_rounding="stochastic"
        ),
        "`window_shape` must be one to three positive ints": lambda: flax_nn.QuantMaxPool(()),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    with pytest.raises(TypeError, match="`trunc_quant` must inherit from TruncTo8bit"):
        flax_nn.QuantAvgPool(2, trunc_quant=quant.Int8ActPerTensorFloat)


def test_the_largest_of_each_window() -> None:
    x = random(2, 3, 5, 7)
    x[0, 0, 0, :2] = -0.0, 2.0**-149
    coded = torch_nn.QuantIdentity(AFFINE, return_quant_tensor=True)(to_torch(x))
    want = to_numpy(torch_nn.QuantMaxPool2d(3, 2, 1)(coded).dequantize())
    in_flax = flax_nn.QuantMaxPool((3, 3), 2, ((1, 1), (1, 1)), input_quant=AFFINE)
    assert_same_bits(np.moveaxis(want, 1, -1), in_flax(to_jax(np.moveaxis(x, 1, -1))))
