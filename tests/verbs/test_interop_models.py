"""Models of torch as flax models and back: what they compute, which names and modes they have, what is refused.

They are judged by the error bounds of `samebits.proofs.validation`; quantized layers: `test_interop_quantized.py`.
"""

import re
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from numpy.typing import NDArray
from torch import nn

from samebits.jax_backend import interop
from samebits.jax_backend import nn as flax_nn
from samebits.proofs import assert_same_bits, validate
from samebits.torch_frontend import nn as torch_nn

Array = NDArray[Any]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shuffled(module: nn.Module) -> nn.Module:
    """With numbers of its own in every tensor; variances are positive."""
    generator = np.random.default_rng(1)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.from_numpy(generator.uniform(0.5, 2, value.shape)))
    return module.eval()


def channels_last(x: Array) -> Array:
    return np.moveaxis(x, 1, -1) if x.ndim > 2 else x


def assert_same_model(first: nn.Module, second: nn.Module) -> None:
    """The same layers, with the same bits under the same names."""
    one, other = (re.sub(r"\((\d+)(?:, \1)*,?\)", r"\1", repr(model)) for model in (first, second))  # (2, 2) is 2
    assert one == other
    mine, theirs = first.state_dict(), second.state_dict()
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        assert_same_bits(tensor, theirs[name], call=name)


# --- every layer of the table -----------------------------------------------------------------------------------------

IMAGES, ROWS = (2, 4, 6, 5), (3, 4)
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(4, 4), ROWS),
    "linear without bias": (nn.Linear(4, 3, bias=False), ROWS),
    "conv of one axis": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (2, 4, 9)),
    "conv of two axes": (nn.Conv2d(4, 4, (3, 2), padding=(1, 0), bias=False), IMAGES),
    "conv of three axes": (nn.Conv3d(2, 3, (1, 2, 3), padding="same"), (1, 2, 3, 4, 5)),
    "conv with an even kernel": (nn.Conv2d(4, 4, (2, 3), padding="same", dilation=(1, 2)), IMAGES),
    "transposed conv of one axis": (nn.ConvTranspose1d(4, 4, 3, 2, 1, 1), (2, 4, 5)),
    "transposed conv of two axes": (nn.ConvTranspose2d(4, 3, (3, 2), (2, 3), (1, 0), (0, 1), dilation=(2, 1)), IMAGES),
    "transposed conv of three axes": (nn.ConvTranspose3d(2, 3, 2, bias=False), (1, 2, 2, 3, 2)),
    "layer norm": (nn.LayerNorm(4, eps=1e-3), ROWS),
    "layer norm without bias": (nn.LayerNorm(4, bias=False), ROWS),
    "layer norm without weights": (nn.LayerNorm(4, elementwise_affine=False), ROWS),
    "rms norm": (nn.RMSNorm(4), ROWS),
    "rms norm with epsilon": (nn.RMSNorm(4, eps=0.5, elementwise_affine=False), ROWS),
    "group norm": (nn.GroupNorm(2, 4, eps=1e-2), IMAGES),
    "group norm of one group": (nn.GroupNorm(1, 4, affine=False), IMAGES),
    "batch norm of rows": (nn.BatchNorm1d(4, eps=1e-2), ROWS),
    "batch norm of one axis": (nn.BatchNorm1d(4, momentum=None), (2, 4, 5)),
    "batch norm of two axes": (nn.BatchNorm2d(4, momentum=0.3), IMAGES),
    "batch norm of three axes": (nn.BatchNorm3d(2, affine=False), (2, 2, 2, 2, 3)),
    "batch norm of two axes without bias": (nn.BatchNorm2d(4, bias=False), IMAGES),
    "dropout": (nn.Dropout(0.3), ROWS),
    "flatten": (nn.Flatten(), ROWS),
    "flatten the first axes": (nn.Flatten(0, 1), (2, 3, 4)),
    "max pool of one axis": (nn.MaxPool1d(2), (2, 4, 6)),
    "max pool of two axes": (nn.MaxPool2d((2, 3), stride=1, padding=1), IMAGES),
    "max pool of three axes": (nn.MaxPool3d(2), (1, 2, 4, 4, 4)),
    "average pool of one axis": (nn.AvgPool1d(3, padding=1), (2, 4, 6)),
    "average pool of two axes": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGES),
    "average pool of three axes": (nn.AvgPool3d(2), (1, 2, 4, 4, 4)),
    "mean of one axis": (nn.AdaptiveAvgPool1d(1), (2, 4, 6)),
    "mean of two axes": (nn.AdaptiveAvgPool2d((1, 1)), IMAGES),
    "mean of three axes": (nn.AdaptiveAvgPool3d(1), (1, 2, 3, 4, 5)),
}
LAYERS |= {
    type(layer).__name__ + str(getattr(layer, "approximate", "")): (layer, (50, 4))
    for layer in (
        nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Sigmoid(),
        nn.LogSigmoid(), nn.Tanh(), nn.Hardtanh(), nn.Hardsigmoid(), nn.Hardswish(), nn.Softsign(), nn.Softplus(),
        nn.SELU(), nn.ELU(0.7), nn.CELU(1.3), nn.LeakyReLU(0.2), nn.Softmax(0), nn.LogSoftmax(-1),
    )
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_there_and_back(name: str) -> None:
    """Modules are held to their bounds; of functions, which are no modules, a few ulps of 1 are allowed."""
    layer, shape = LAYERS[name]
    shuffled(layer)
    x = random(*shape)
    flax = interop.to_flax(layer)
    given = channels_last(x) if {"axis", "axes", "conv", "group"} & set(name.split()) and "first" not in name else x
    if isinstance(flax, nnx.Module) and not isinstance(layer, nn.Dropout | nn.Flatten):
        found = validate(layer, flax, x, jax_inputs=given, explain=False)
        assert found.right, found.rows
    else:
        want, got = layer(torch.from_numpy(x)).numpy(), np.asarray(flax(jnp.asarray(given)))
        np.testing.assert_allclose(got, channels_last(want) if given is not x else want, rtol=1e-6, atol=1e-6)
    assert_same_model(layer, interop.to_torch(flax))


def test_embeddings_and_the_gradient_of_their_padding() -> None:
    for layer in (nn.Embedding(6, 3), nn.Embedding(6, 3, padding_idx=2)):
        shuffled(layer)
        flax, ids = interop.to_flax(layer), np.array([[2, 0], [5, 2]])
        assert_same_bits(layer(torch.from_numpy(ids)).detach(), flax(jnp.asarray(ids)))
        layer(torch.from_numpy(ids)).square().sum().backward()
        gradient = nnx.grad(lambda m, ids=ids: jnp.square(m(jnp.asarray(ids))).sum())(flax)
        assert_same_bits(layer.weight.grad, gradient["embedding"][...])
        assert_same_model(layer, interop.to_torch(flax))


@pytest.mark.parametrize("bias", [True, False])
def test_attention(bias: bool) -> None:
    layer = shuffled(nn.MultiheadAttention(8, 2, bias=bias, dropout=0.1, batch_first=True))
    flax, x, y = interop.to_flax(layer), random(2, 5, 8), random(2, 3, 8, seed=1)
    hidden = np.array([[False, True, False], [True, False, False]])
    want = layer(*map(torch.from_numpy, (x, y, y)), key_padding_mask=torch.from_numpy(hidden))[0].detach()
    got = flax(*map(jnp.asarray, (x, y, y)), mask=jnp.asarray(~hidden[:, None, None]))
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)
    assert {name: v.shape for name, v in interop.state_dict(flax).items()} == {
        name: tuple(v.shape) for name, v in layer.state_dict().items()
    }
    assert_same_model(layer, interop.to_torch(flax))
    wrong = interop.state_dict(flax) | {"in_proj_weight": random(24, 9)}
    with pytest.raises(ValueError, match=r"`in_proj_weight` must have shape \(24, 8\), got \(24, 9\)"):
        interop.load_state_dict(flax, wrong)


def test_a_network_of_images_flattens_them_in_the_order_of_torch() -> None:
    """At once: a stack of layers of both layouts, of which one mistake of layout would be out of every bound."""
    model = shuffled(
        nn.Sequential(
            OrderedDict(
                body=nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2)),
                points=nn.Flatten(2),
                mix=nn.Conv1d(4, 5, 1),
                soft=nn.Softmax(1),
                flat=nn.Flatten(),
                norm=nn.BatchNorm1d(45),
                head=nn.Linear(45, 3),
            )
        )
    )
    flax, x = interop.to_flax(model), random(2, 3, 8, 8)
    found = validate(model, flax, x, jax_inputs=channels_last(x))
    assert found.right, [row.place for row in found.beyond]
    assert ("body.1", "body.1") in found.pairs
    assert flax.names == ("body", "points", "mix", "soft", "flat", "norm", "head")
    assert_same_model(model, interop.to_torch(flax))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_keep_their_dtype(dtype: torch.dtype) -> None:
    layer = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).to(dtype)
    assert_same_model(layer, interop.to_torch(interop.to_flax(layer)))
    with pytest.raises(TypeError, match=r"`0` \(Linear\): float64 parameters; JAX needs jax_enable_x64"):
        interop.to_flax(layer.double())
    with jax.enable_x64(True):
        assert_same_model(layer, interop.to_torch(interop.to_flax(layer)))


# --- containers and classes of one's own ------------------------------------------------------------------------------


def test_containers() -> None:
    model = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(2, 3), nn.Sequential(nn.Conv1d(2, 2, 1))]), "b": nn.ReLU()})
    flax = interop.to_flax(model)
    assert isinstance(flax, nnx.Dict)
    assert isinstance(flax["a"], nnx.List)
    assert sorted(interop.state_dict(flax)) == sorted(model.state_dict())
    assert_same_model(model, interop.to_torch(flax))
    with pytest.raises(ValueError, match="`names` must be 2, one for each part, got 1"):
        interop.Sequential(nnx.relu, nnx.relu, names=("a",))


class Doubled(nn.Module):
    """A forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)


class FlaxDoubled(nnx.Module):
    def __init__(self) -> None:
        self.inner = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * self.inner(x)


def test_classes_of_ones_own_are_made_by_functions() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Doubled())
    with pytest.raises(TypeError, match=r"`1` \(Doubled\): has a forward of its own: write its counterpart"):
        interop.to_flax(model)
    flax = interop.to_flax(model, modules={Doubled: lambda layer: FlaxDoubled()})
    assert validate(model, flax, random(2, 3)).right
    with pytest.raises(TypeError, match=r"`1` \(FlaxDoubled\): has a forward of its own"):
        interop.to_torch(flax)
    assert_same_model(model, interop.to_torch(flax, modules={FlaxDoubled: lambda layer: Doubled()}))
    with pytest.raises(ValueError, match=r"missing 1\.bias, 1\.weight; unexpected 1\.inner"):
        interop.to_flax(model, modules={Doubled: lambda layer: nnx.Linear(3, 3, rngs=nnx.Rngs(0))})


# --- what is refused --------------------------------------------------------------------------------------------------


def hooked() -> nn.Module:
    layer = nn.ReLU()
    layer.register_forward_hook(lambda *_: None)
    return layer


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))
    model[1].weight = model[0].weight
    return model


REFUSED_BY_FLAX: dict[str, tuple[nn.Module, str]] = {
    "all of them": (
        nn.Sequential(nn.LSTM(2, 2), nn.ReLU(), nn.PReLU()),
        r"2 of the layers: `0` \(LSTM\): .*; `2` \(PR",
    ),
    "hooks": (hooked(), r"`the model` \(ReLU\): has hooks"),
    "tied": (tied(), r"`1` \(Linear\): shares `weight` with `0`"),
    "padding mode": (nn.Conv1d(1, 1, 3, padding_mode="circular"), "padding_mode='circular'"),
    "groups": (nn.ConvTranspose1d(2, 2, 3, groups=2), "2 groups"),
    "axes of a norm": (nn.LayerNorm((2, 3)), r"normalized_shape=\(2, 3\)"),
    "statistics": (nn.BatchNorm1d(2, track_running_stats=False), "track_running_stats=False"),
    "maximal norm": (nn.Embedding(2, 3, max_norm=1.0), "max_norm=1.0"),
    "sparse": (nn.Embedding(2, 3, sparse=True), "sparse"),
    "batch": (nn.MultiheadAttention(4, 2), "batch_first=False"),
    "widths": (nn.MultiheadAttention(4, 2, kdim=3, batch_first=True), "kdim=3"),
    "bias of keys": (nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True), "add_bias_kv"),
    "ceil": (nn.MaxPool1d(2, ceil_mode=True), "ceil_mode=True"),
    "indices": (nn.MaxPool1d(2, return_indices=True), "return_indices=True"),
    "dilated pool": (nn.MaxPool1d(2, dilation=2), "dilation"),
    "adaptive": (nn.AdaptiveAvgPool2d(2), "output_size=2"),
    "softplus": (nn.Softplus(2.0), "beta=2.0; flax has 1.0"),
    "softmax": (nn.Softmax(), "dim=None"),
    "linear on images": (nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(2, 2)), r"`1` \(Linear\): is for the last axis"),
    "norm on images": (nn.Sequential(nn.MaxPool2d(1), nn.LayerNorm(2)), r"`1` \(LayerNorm\): is for the last axis"),
    "images of rows": (
        nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2)),
        r"`1` \(GroupNorm\): is for images of 1 or 2",
    ),
    "axes": (nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool1d(1)), r"`1` \(MaxPool1d\): is for images of 1 axes"),
    "flatten images": (nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(1, 2)), "start_dim=1, end_dim=2 of images"),
    "softmax of pixels": (nn.Sequential(nn.Conv2d(1, 1, 1), nn.Softmax(2)), "dim=2 of images"),
    "attention": (torch_nn.QuantMultiheadAttention(4, 2), "has a forward of its own"),
    "codes": (torch_nn.QuantReLU(return_quant_tensor=True), "return_quant_tensor=True"),
}


@pytest.mark.parametrize("name", REFUSED_BY_FLAX)
def test_what_flax_cannot_do_is_refused_by_name(name: str) -> None:
    model, message = REFUSED_BY_FLAX[name]
    with pytest.raises(TypeError, match=f"no flax counterpart of .*{message}"):
        interop.to_flax(model)


def linear(**options: Any) -> nnx.Linear:
    return nnx.Linear(2, 2, rngs=nnx.Rngs(0), **options)


def conv(**options: Any) -> nnx.Conv:
    return nnx.Conv(2, 2, (2, 2), rngs=nnx.Rngs(0), **options)


def tied_flax() -> nnx.Module:
    first, second = linear(), linear()
    second.kernel = first.kernel
    return nnx.Sequential(first, second)


REFUSED_BY_TORCH: dict[str, tuple[Any, str]] = {
    "all of them": (nnx.Sequential(jnp.sin, nnx.relu, nnx.PReLU()), r"2 of the layers: `0` .*; `2` \(PReLU\)"),
    "dtype": (linear(dtype=jnp.bfloat16), "computes in bfloat16"),
    "tied": (tied_flax(), "shares `kernel` with `0`"),
    "same with strides": (conv(strides=2), r"padding='SAME' with strides \(2, 2\)"),
    "circular": (conv(padding="CIRCULAR"), "padding='CIRCULAR'"),
    "one side": (conv(padding=((1, 0), (0, 0))), "torch has the same on both sides"),
    "mask": (conv(mask=jnp.ones((2, 2, 2, 2))), "has a mask"),
    "dilated input": (conv(input_dilation=2), "input_dilation=2"),
    "kernel": (nnx.ConvTranspose(2, 2, (2,), rngs=nnx.Rngs(0)), "transpose_kernel=False"),
    "reduction": (nnx.LayerNorm(2, reduction_axes=(1, 2), rngs=nnx.Rngs(0)), "normalizes other axes"),
    "bias alone": (nnx.LayerNorm(2, use_scale=False, rngs=nnx.Rngs(0)), "a bias without a scale"),
    "axis": (nnx.BatchNorm(2, axis=1, rngs=nnx.Rngs(0)), "axis=1"),
    "devices": (nnx.BatchNorm(2, axis_name="batch", rngs=nnx.Rngs(0)), "axis_name='batch'"),
    "grouped keys": (nnx.MultiHeadAttention(2, 4, num_kv_heads=1, rngs=nnx.Rngs(0)), "1 heads of keys"),
    "widths": (nnx.MultiHeadAttention(2, 4, 8, rngs=nnx.Rngs(0)), r"widths \[4, 8\]"),
    "normalized": (nnx.MultiHeadAttention(2, 4, normalize_qk=True, rngs=nnx.Rngs(0)), "normalize_qk"),
    "dropped axes": (nnx.Dropout(0.5, broadcast_dims=(1,), rngs=nnx.Rngs(0)), "broadcast_dims"),
    "keyword": (jax.tree_util.Partial(jax.nn.softmax, where=jnp.ones(2, bool)), "where; Softmax has no such argument"),
    "order": (nnx.Sequential(conv(), interop.Flatten(channels_last=False)), "channels_last=False behind images"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_BY_TORCH)
def test_what_torch_cannot_do_is_refused_by_name(name: str) -> None:
    model, message = REFUSED_BY_TORCH[name]
    with pytest.raises(TypeError, match=f"no torch counterpart of .*{message}"):
        interop.to_torch(model)


def test_flax_models_of_ones_own() -> None:
    """Defaults of flax are kept, not those of torch: epsilon, momentum, the formula of gelu, padding."""
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Conv(3, 4, (3, 3), rngs=rngs),
        nnx.BatchNorm(4, rngs=rngs),
        nnx.gelu,
        interop.Flatten(),
        nnx.LayerNorm(64, rngs=rngs),
    )
    model.eval()
    found, x = interop.to_torch(model), random(2, 3, 4, 4)
    assert (found[1].momentum, found[1].eps, found[4].eps) == (1 - 0.99, 1e-5, 1e-6)
    assert found[2].approximate == "tanh"
    assert not found.training
    assert validate(found, model, x, jax_inputs=channels_last(x)).right
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module, got"):
        interop.to_flax(model)
    with pytest.raises(ValueError, match=r"`start_dim` must be 1 or 2 and `end_dim` -1 for images .*, got 0 and -1"):
        interop.Flatten(0)


def test_flatten_takes_every_shape() -> None:
    for shape, ends in (
        ((2, 3, 4), (0, -1)),
        ((), (0, -1)),
        ((0, 3, 2), (1, -1)),
        ((2, 3, 4, 5), (1, 2)),
        ((4,), (0, -1)),
    ):
        x = random(*shape)
        got = interop.Flatten(*ends, channels_last=False)(jnp.asarray(x))
        assert_same_bits(nn.Flatten(*ends)(torch.from_numpy(x)), got, call=f"{shape} {ends}")
    images = interop.Flatten()
    assert images(jnp.zeros((0, 3, 4, 2))).shape == (0, 24)
    assert flax_nn.TensorQuantizer is type(interop.to_flax(torch_nn.TensorQuantizer("int8_per_tensor")))
