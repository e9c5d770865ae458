"""Every kind of flax layer beside the layer of torch: same weights, same quantizers, the same bits, in both modes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from numpy.typing import NDArray

from samebits import core
from samebits.core import catalog
from samebits.jax_backend import interop
from samebits.jax_backend import nn as flax_nn
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import nn as torch_nn

Array = NDArray[Any]
FIXED = catalog["uint8_affine_per_tensor"].replace(source="constant", scale_value=2.0**-5, zero_point_value=100)
CODES = {"input_quant": FIXED, "weight_quant": "int8_per_channel"}
VALUES = {"input_quant": None, "weight_quant": None}
NUMBERS = [0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**-149, -(2.0**-149), 2.0**-126, 1.0, -1.0, 0.5, -0.25, 3e38, -3e38]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def channels_last(x: Array) -> Array:
    return np.moveaxis(x, 1, -1)


compiled = nnx.jit(lambda m, x: m(x))


# --- convolutions -----------------------------------------------------------------------------------------------------

KERNELS = {1: (3,), 2: (3, 2), 3: (2, 2, 3)}
CONVOLUTIONS: dict[str, tuple[int, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # dimensions, of both, of torch, of flax
    "one": (
        1,
        CODES | {"input_quant": "uint8_affine_per_tensor"},
        {"padding": 1, "stride": 2},
        {"padding": 1, "strides": 2},
    ),
    "causal": (1, VALUES, {}, {"padding": "CAUSAL"}),
    "two, groups, dilated": (
        2,
        CODES | {"bias_quant": "int8_per_tensor"},
        {"groups": 2, "dilation": (1, 2), "padding": "same"},
        {"feature_group_count": 2, "kernel_dilation": (1, 2), "padding": "SAME"},
    ),
    "circular": (1, CODES, {"padding_mode": "circular"}, {"padding": "CIRCULAR"}),
    "reflected": (2, VALUES, {"padding_mode": "reflect"}, {"padding": "REFLECT"}),
    "three": (3, VALUES, {}, {"padding": "VALID"}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    axes, both, of_torch, of_flax = CONVOLUTIONS[name]
    size = KERNELS[axes]
    w, bias = random(6, 4 // of_torch.get("groups", 1), *size), random(6, seed=1)
    x = random(2, 4, *(7, 6, 5)[:axes], seed=2)
    if both is VALUES:  # then sums of floats must be exact
        w, bias, x = (np.rint(4 * a) for a in (w, bias, x))
    else:
        x[0, 0].flat[:2] = -0.0, 2.0**-149
    images = x
    if name == "causal":
        images = np.pad(x, ((0, 0), (0, 0), (2, 0)), constant_values=0)
    if "padding_mode" in of_torch:  # for kernels of even length flax has one less before
        of_torch = of_torch | {"padding": 0, "padding_mode": "zeros"}
        sides = [(0, 0), (0, 0), *(((k - 1) // 2, k // 2) for k in size)]
        mode: Any = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[of_flax["padding"]]
        images = np.pad(x, sides, mode=mode)
    in_torch = getattr(torch_nn, f"QuantConv{axes}d")(4, 6, size, **both, **of_torch)
    in_flax = flax_nn.QuantConv(4, 6, size, **both, **of_flax, rngs=nnx.Rngs(0))
    with torch.no_grad():
        in_torch.weight.copy_(torch.from_numpy(w))
        in_torch.bias.copy_(torch.from_numpy(bias))
    interop.load_state_dict(in_flax, {name: to_numpy(t) for name, t in in_torch.state_dict().items()})
    assert_same_bits(w, in_flax.weight)
    want = channels_last(to_numpy(in_torch(to_torch(images)).detach()))
    assert_same_bits(want, compiled(in_flax, channels_last(to_jax(x))))
    if name == "one":
        assert_same_bits(want, in_flax(channels_last(to_jax(x))))


TRANSPOSED: dict[str, tuple[int, bool, dict[str, Any], dict[str, Any]]] = {
    # dimensions, whether the kernel is turned as in torch, of torch, of flax
    "two, dilated": (
        2,
        True,
        {"stride": 2, "padding": 1, "dilation": (1, 2), "output_padding": 1},
        {"strides": 2, "padding": ((1, 2), (1, 2)), "kernel_dilation": (1, 2)},
    ),
    "three": (3, False, {"padding": (1, 1, 2)}, {"padding": (0, 0, 0)}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name: str) -> None:
    axes, turned, of_torch, of_flax = TRANSPOSED[name]
    size = KERNELS[axes]
    w, bias, x = random(4, 6, *size), random(6, seed=1), random(2, 4, *(4, 3, 3)[:axes], seed=2)
    in_torch = getattr(torch_nn, f"QuantConvTranspose{axes}d")(4, 6, size, **CODES, **of_torch)
    options = CODES | of_flax | {"transpose_kernel": turned}
    in_flax: Any = flax_nn.QuantConvTranspose(4, 6, size, **options, rngs=nnx.Rngs(0))
    with torch.no_grad():
        in_torch.weight.copy_(torch.from_numpy(w))
        in_torch.bias.copy_(torch.from_numpy(bias))
    kernel = w.transpose(*range(2, axes + 2), 1, 0)
    kernel = kernel if turned else np.flip(kernel, tuple(range(axes))).swapaxes(-1, -2)
    in_flax.kernel.set_value(jnp.asarray(kernel))
    in_flax.bias.set_value(jnp.asarray(bias))
    assert_same_bits(w, in_flax.weight)
    want = channels_last(to_numpy(in_torch(to_torch(x)).detach()))
    assert_same_bits(want, compiled(in_flax, channels_last(to_jax(x))))


@pytest.mark.parametrize("padding", ["SAME", "VALID", 2, ((1, 0), (3, 2))])
@pytest.mark.parametrize(("size", "strides", "spread"), [((3, 2), (2, 3), (1, 2)), ((1, 4), (3, 1), (1, 1))])
def test_transposed_convolutions_lie_where_those_of_flax_do(padding: Any, size: Any, strides: Any, spread: Any) -> None:
    """Of whole numbers, so that sums are exact."""
    options: Any = {"strides": strides, "kernel_dilation": spread, "padding": padding, "rngs": nnx.Rngs(0)}
    layer = flax_nn.QuantConvTranspose(3, 2, size, weight_quant=None, **options)
    layer.kernel.set_value(jnp.rint(4 * layer.kernel[...]))
    x = jnp.rint(4 * random(2, 5, 4, 3))
    assert_same_bits(nnx.ConvTranspose.__call__(layer, x), layer(x))


def test_images_of_any_number_of_batches() -> None:
    """None or many axes of them, empty ones too; as flax lays them out."""
    options: Any = {"weight_quant": None, "rngs": nnx.Rngs(0)}
    layers = flax_nn.QuantConv(3, 2, (2, 2), **options), flax_nn.QuantConvTranspose(3, 2, (2, 2), **options)
    x = jnp.rint(4 * to_jax(random(6, 4, 4, 3)))
    for layer in layers:
        layer.kernel.set_value(jnp.rint(4 * layer.kernel[...]))
        y = layer(x)
        assert_same_bits(y.reshape(2, 3, *y.shape[1:]), layer(x.reshape(2, 3, 4, 4, 3)))
        assert_same_bits(y[0], layer(x[0]))
        assert layer(x[:0]).shape == (0, *y.shape[1:])


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_quant", ["int8_per_channel", "uint4_affine_per_group32", "mxfp4_e2m1", None])
def test_tables(weight_quant: Any) -> None:
    options = {"weight_quant": weight_quant, "output_quant": "int8_per_tensor"}
    in_torch, in_flax = (
        torch_nn.QuantEmbedding(7, 32, **options),
        flax_nn.QuantEmbed(7, 32, **options, rngs=nnx.Rngs(0)),
    )
    table = random(7, 32)
    table[0, :2] = -0.0, 2.0**-149
    with torch.no_grad():
        in_torch.weight.copy_(torch.from_numpy(table))
    interop.load_state_dict(in_flax, {name: to_numpy(t) for name, t in in_torch.state_dict().items()})
    for rows in (np.array([[3, 0], [6, 6]], np.int32), np.array(2, np.int32), np.zeros((0, 2), np.int32)):
        want = to_numpy(in_torch(torch.from_numpy(rows)).detach()) if rows.size else np.zeros((0, 2, 32), np.float32)
        assert_same_bits(want, in_flax(jnp.asarray(rows)))
    assert_same_bits(want, compiled(in_flax, jnp.asarray(rows)))
    plain = flax_nn.QuantEmbed(7, 32, weight_quant=weight_quant, rngs=nnx.Rngs(0))
    quantized = plain(jnp.arange(7))
    np.testing.assert_allclose(plain.attend(to_jax(random(3, 32))), random(3, 32) @ np.asarray(quantized).T, atol=1e-4)
    assert np.isnan(plain(jnp.array([7]))).all()
    assert_same_bits(quantized[-1], plain(jnp.array(-1)))


# --- activations ------------------------------------------------------------------------------------------------------

SELECTING: dict[str, tuple[Any, Any]] = {
    "identity": (torch_nn.QuantIdentity, flax_nn.QuantIdentity),
    "relu": (torch_nn.QuantReLU, flax_nn.QuantReLU),
    "hard tanh": (torch_nn.QuantHardTanh, flax_nn.QuantHardTanh),
}


@pytest.mark.parametrize("name", SELECTING)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_activations_that_select(name: str, dtype: str) -> None:
    """With and without a quantizer; of a range with 0 at its end, and one of subnormals, too."""
    x = np.tile(np.array(NUMBERS), 3).astype(np.float32)
    theirs, ours = SELECTING[name]
    ranges = [(-1.0, 1.0), (0.0, 0.3), (-0.3, 0.0), (2.0**-148, 2.0**-140)] if name == "hard tanh" else [()]
    for ends in ranges:
        for act_quant in (None, catalog["int8_per_tensor"].replace(source="constant", scale_value=2.0**-8)):
            in_torch, in_flax = (kind(act_quant, *ends) for kind in (theirs, ours))
            given = to_torch(x).to(getattr(torch, dtype)).requires_grad_()
            y = in_torch(given)
            y.sum().backward()
            cast = jnp.asarray(to_numpy(given.detach()))
            want = to_numpy(y.detach())
            if name == "relu":  # of which torch keeps -0.0
                want = np.where(want == 0, np.zeros_like(want), want)
            assert_same_bits(want, in_flax(cast), inputs=to_numpy(given.detach()))
            if dtype == "float32" and act_quant is None:
                slopes = jax.grad(lambda v: in_flax(v).sum())(cast)  # noqa: B023
                known = ~np.isnan(x)  # torch has 0 for NaN where it computes many at once, and 1 elsewhere
                assert_same_bits(to_numpy(given.grad)[known], slopes[known], inputs=x[known])
    assert_same_bits(in_flax(cast), compiled(in_flax, cast))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("QuantSigmoid", jax.nn.sigmoid),
        ("QuantTanh", jnp.tanh),
        ("QuantSiLU", jax.nn.silu),
        ("QuantGELU", lambda x: jax.nn.gelu(x, approximate=False)),
    ],
)
def test_activations_that_compute(name: str, function: Callable[[Any], Any]) -> None:
    """The function of JAX, quantized; within one step of what torch quantizes of its own."""
    x = np.concatenate([random(500), np.array([n for n in NUMBERS if np.isfinite(n)], np.float32)])
    in_torch, in_flax = getattr(torch_nn, name)(), getattr(flax_nn, name)()
    assert described(in_torch) == described(in_flax)
    y, want = in_flax(to_jax(x)), to_numpy(function(to_jax(x)))
    assert_same_bits(core.fake_quantize(described(in_flax), want), y)
    step = core.choose_qparams(described(in_flax), want).scale
    assert np.abs(to_numpy(in_torch(to_torch(x))) - to_numpy(y)).max() <= 1.01 * step
    inner = getattr(flax_nn, name)(None, input_quant="int8_per_tensor")
    assert_same_bits(function(to_jax(core.fake_quantize(catalog["int8_per_tensor"], x))), inner(to_jax(x)))


def described(layer: Any) -> Any:
    return layer.act_quant.quantizer


def test_gelu_by_tanh() -> None:
    x = to_jax(random(9))
    assert_same_bits(jax.nn.gelu(x), flax_nn.QuantGELU(None, "tanh")(x))
    with pytest.raises(ValueError, match="`approximate` must be 'none' or 'tanh', got True"):
        flax_nn.QuantGELU(None, True)
