"""The table of pairs: a layer of torch, its layer or function of flax, and how one is made from the other.

Of two rows with one layer of torch the first is used, of several with one of flax that whose images have as many axes.
Layers of samebits take what their classes have of arguments ``*_quant``; that needs no column.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from torch import nn

from ...torch_frontend import nn as torch_nn
from .. import nn as flax_nn
from .contractions import ATTENTION, CONV, CONV_TRANSPOSE, EMBEDDING, LINEAR
from .elementwise import DROPOUT, FLATTEN, GELU, MEAN, NOTHING, POOL, SOFTMAX
from .modules import BatchNorm, Embed, Flatten
from .norms import BATCH_NORM, GROUP_NORM, NORM
from .translation import ANY, IMAGES, ROWS, Axes, Translation, each, only, renamed, same


class Pair(NamedTuple):
    """A row."""

    torch_class: type[nn.Module]
    flax: Callable[..., Any]  # a class of modules, or a function
    translation: Translation
    axes: Axes = ANY  # how many axes the images may have that it is for; 0 where it is for the last axis of any array


def axes(*numbers: int) -> Axes:
    """Numbers of axes of images."""
    return frozenset(numbers)


PAIRS: tuple[Pair, ...] = (
    Pair(nn.Linear, nnx.Linear, LINEAR, ROWS),
    Pair(nn.Conv1d, nnx.Conv, CONV, axes(1)),
    Pair(nn.Conv2d, nnx.Conv, CONV, axes(2)),
    Pair(nn.Conv3d, nnx.Conv, CONV, axes(3)),
    Pair(nn.ConvTranspose1d, nnx.ConvTranspose, CONV_TRANSPOSE, axes(1)),
    Pair(nn.ConvTranspose2d, nnx.ConvTranspose, CONV_TRANSPOSE, axes(2)),
    Pair(nn.ConvTranspose3d, nnx.ConvTranspose, CONV_TRANSPOSE, axes(3)),
    Pair(nn.MultiheadAttention, nnx.MultiHeadAttention, ATTENTION, ROWS),
    Pair(nn.Embedding, nnx.Embed, EMBEDDING, ROWS),
    Pair(nn.Embedding, Embed, EMBEDDING, ROWS),  # with padding_idx
    Pair(nn.LayerNorm, nnx.LayerNorm, NORM, ROWS),
    Pair(nn.RMSNorm, nnx.RMSNorm, NORM, ROWS),
    Pair(nn.GroupNorm, nnx.GroupNorm, GROUP_NORM, IMAGES),
    Pair(nn.BatchNorm1d, BatchNorm, BATCH_NORM, axes(0, 1)),
    Pair(nn.BatchNorm2d, BatchNorm, BATCH_NORM, axes(2)),
    Pair(nn.BatchNorm3d, BatchNorm, BATCH_NORM, axes(3)),
    Pair(nn.BatchNorm1d, nnx.BatchNorm, BATCH_NORM, axes(0, 1)),  # from flax alone, as the next two
    Pair(nn.BatchNorm2d, nnx.BatchNorm, BATCH_NORM, axes(2)),
    Pair(nn.BatchNorm3d, nnx.BatchNorm, BATCH_NORM, axes(3)),
    Pair(nn.Dropout, nnx.Dropout, DROPOUT),
    Pair(nn.Flatten, Flatten, FLATTEN),
    Pair(nn.MaxPool1d, nnx.max_pool, POOL, axes(1)),
    Pair(nn.MaxPool2d, nnx.max_pool, POOL, axes(2)),
    Pair(nn.MaxPool3d, nnx.max_pool, POOL, axes(3)),
    Pair(nn.AvgPool1d, nnx.avg_pool, POOL, axes(1)),
    Pair(nn.AvgPool2d, nnx.avg_pool, POOL, axes(2)),
    Pair(nn.AvgPool3d, nnx.avg_pool, POOL, axes(3)),
    Pair(nn.AdaptiveAvgPool1d, jnp.mean, MEAN, axes(1)),
    Pair(nn.AdaptiveAvgPool2d, jnp.mean, MEAN, axes(2)),
    Pair(nn.AdaptiveAvgPool3d, jnp.mean, MEAN, axes(3)),
    Pair(nn.Identity, jax.nn.identity, NOTHING),
    Pair(nn.ReLU, jax.nn.relu, NOTHING),
    Pair(nn.ReLU6, jax.nn.relu6, NOTHING),
    Pair(nn.GELU, jax.nn.gelu, GELU),
    Pair(nn.SiLU, jax.nn.silu, NOTHING),
    Pair(nn.Mish, jax.nn.mish, NOTHING),
    Pair(nn.Sigmoid, jax.nn.sigmoid, NOTHING),
    Pair(nn.LogSigmoid, jax.nn.log_sigmoid, NOTHING),
    Pair(nn.Tanh, jnp.tanh, NOTHING),
    Pair(nn.Hardtanh, jax.nn.hard_tanh, only(min_val=-1.0, max_val=1.0)),
    Pair(nn.Hardsigmoid, jax.nn.hard_sigmoid, NOTHING),
    Pair(nn.Hardswish, jax.nn.hard_swish, NOTHING),
    Pair(nn.Softsign, jax.nn.soft_sign, NOTHING),
    Pair(nn.Softplus, jax.nn.softplus, only(beta=1.0, threshold=20.0)),
    Pair(nn.SELU, jax.nn.selu, NOTHING),
    Pair(nn.ELU, jax.nn.elu, renamed(alpha=("alpha", 1.0))),
    Pair(nn.CELU, jax.nn.celu, renamed(alpha=("alpha", 1.0))),
    Pair(nn.LeakyReLU, jax.nn.leaky_relu, renamed(negative_slope=("negative_slope", 0.01))),
    Pair(nn.Softmax, jax.nn.softmax, SOFTMAX),
    Pair(nn.LogSoftmax, jax.nn.log_softmax, SOFTMAX),
    Pair(torch_nn.TensorQuantizer, flax_nn.TensorQuantizer, NOTHING),
    Pair(torch_nn.PrototypeQuantizer, flax_nn.PrototypeQuantizer, NOTHING),
    Pair(torch_nn.QuantIdentity, flax_nn.QuantIdentity, NOTHING),
    Pair(torch_nn.QuantReLU, flax_nn.QuantReLU, NOTHING),
    Pair(torch_nn.QuantLinear, flax_nn.QuantLinear, LINEAR, ROWS),
    Pair(torch_nn.QuantConv1d, flax_nn.QuantConv, CONV, axes(1)),
    Pair(torch_nn.QuantConv2d, flax_nn.QuantConv, CONV, axes(2)),
    Pair(torch_nn.QuantConv3d, flax_nn.QuantConv, CONV, axes(3)),
    Pair(torch_nn.QuantConvTranspose1d, flax_nn.QuantConvTranspose, CONV_TRANSPOSE, axes(1)),
    Pair(torch_nn.QuantConvTranspose2d, flax_nn.QuantConvTranspose, CONV_TRANSPOSE, axes(2)),
    Pair(torch_nn.QuantConvTranspose3d, flax_nn.QuantConvTranspose, CONV_TRANSPOSE, axes(3)),
    Pair(torch_nn.QuantEmbedding, flax_nn.QuantEmbed, EMBEDDING, ROWS),
    Pair(torch_nn.QuantHardTanh, flax_nn.QuantHardTanh, same("min_val", "max_val")),
    Pair(torch_nn.QuantSigmoid, flax_nn.QuantSigmoid, NOTHING),
    Pair(torch_nn.QuantTanh, flax_nn.QuantTanh, NOTHING),
    Pair(torch_nn.QuantGELU, flax_nn.QuantGELU, same("approximate")),
    Pair(torch_nn.QuantSiLU, flax_nn.QuantSiLU, NOTHING),
)


def of_torch(layer: nn.Module) -> Pair | None:
    """The row of a layer of torch; None where it has none."""
    return next((pair for pair in PAIRS if pair.torch_class is type(layer)), None)


def of_flax(layer: Any) -> Iterator[Pair]:
    """The rows of a layer or function of flax, those alone for as many axes as it says."""
    kind = type(layer) if isinstance(layer, nnx.Module) else getattr(layer, "func", layer)
    keywords = getattr(layer, "keywords", {})
    numbers: Axes = ANY
    if kind is BatchNorm:
        numbers = frozenset(layer.axes)
    elif window := getattr(layer, "kernel_size", None) or keywords.get("window_shape"):
        numbers = axes(len(window))
    elif kind is jnp.mean:
        numbers = axes(len(each(keywords.get("axis"), 1)))
    return (pair for pair in PAIRS if pair.flax is kind and pair.axes & numbers)
