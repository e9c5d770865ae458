"""Linear layers, convolutions, attention and embeddings: arguments for flax from torch, and back.

Functions take a layer, and the numbers of axes that images may have where it stands, and give arguments of its partner.
"""

from typing import Any

from flax import nnx
from torch import nn

from .modules import Embed
from .translation import ZEROS, Arguments, Axes, Translation, each, margins, plain, require


def _linear_to_flax(layer: nn.Linear, axes: Axes) -> Arguments:
    return {
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "use_bias": layer.bias is not None,
        "kernel_init": ZEROS,
    }


def _linear_to_torch(layer: nnx.Linear, axes: Axes) -> Arguments:
    plain(layer)
    return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}


def _conv_to_flax(layer: Any, axes: Axes) -> Arguments:
    require(layer.padding_mode == "zeros", f"padding_mode={layer.padding_mode!r}; flax has zeros")
    sizes = layer.kernel_size, layer.dilation
    if layer.padding == "same":
        totals = [d * (k - 1) for k, d in zip(*sizes, strict=True)]
        padding = tuple((total // 2, total - total // 2) for total in totals)
    else:
        before = (0,) * len(layer.kernel_size) if layer.padding == "valid" else layer.padding
        padding = tuple((p, p) for p in before)
    return {
        "in_features": layer.in_channels,
        "out_features": layer.out_channels,
        "kernel_size": layer.kernel_size,
        "strides": layer.stride,
        "padding": padding,
        "kernel_dilation": layer.dilation,
        "feature_group_count": layer.groups,
        "use_bias": layer.bias is not None,
        "kernel_init": ZEROS,
    }


def _conv_to_torch(layer: nnx.Conv, axes: Axes) -> Arguments:
    plain(layer)
    n = len(layer.kernel_size)
    require(layer.mask is None, "has a mask")
    require(set(each(layer.input_dilation, n)) == {1}, f"input_dilation={layer.input_dilation}; torch has none")
    strides, dilation = each(layer.strides, n), each(layer.kernel_dilation, n)
    return {
        "in_channels": layer.in_features,
        "out_channels": layer.out_features,
        "kernel_size": tuple(layer.kernel_size),
        "stride": strides,
        "padding": margins(layer.padding, layer.kernel_size, strides, dilation),
        "dilation": dilation,
        "groups": layer.feature_group_count,
        "bias": layer.bias is not None,
    }


def _transposed_to_flax(layer: Any, axes: Axes) -> Arguments:
    require(layer.groups == 1, f"{layer.groups} groups; flax has no groups of transposed convolutions")
    reach = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    sides = zip(reach, layer.padding, layer.output_padding, strict=True)
    return {
        "in_features": layer.in_channels,
        "out_features": layer.out_channels,
        "kernel_size": layer.kernel_size,
        "strides": layer.stride,
        "padding": tuple((r - p, r - p + more) for r, p, more in sides),
        "kernel_dilation": layer.dilation,
        "use_bias": layer.bias is not None,
        "kernel_init": ZEROS,
        "transpose_kernel": True,
    }


def _transposed_to_torch(layer: nnx.ConvTranspose, axes: Axes) -> Arguments:
    plain(layer)
    n = len(layer.kernel_size)
    require(layer.transpose_kernel, "transpose_kernel=False; that of torch is True")
    require(layer.mask is None, "has a mask")
    require(not isinstance(layer.padding, str), f"padding={layer.padding!r}; give numbers")
    sides: Any = (layer.padding,) * n if isinstance(layer.padding, int) else layer.padding
    pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in sides]
    strides, dilation = each(layer.strides, n), each(layer.kernel_dilation, n)
    reach = [d * (k - 1) for k, d in zip(layer.kernel_size, dilation, strict=True)]
    padding = tuple(r - before for r, (before, _) in zip(reach, pairs, strict=True))
    more = tuple(after - before for before, after in pairs)
    fits = all(p >= 0 and 0 <= m < max(s, d) for p, m, s, d in zip(padding, more, strides, dilation, strict=True))
    require(fits, f"padding={pairs}, which no padding and output_padding of torch is")
    return {
        "in_channels": layer.in_features,
        "out_channels": layer.out_features,
        "kernel_size": tuple(layer.kernel_size),
        "stride": strides,
        "padding": padding,
        "output_padding": more,
        "dilation": dilation,
        "bias": layer.bias is not None,
    }


def _attention_to_flax(layer: nn.MultiheadAttention, axes: Axes) -> Arguments:
    same = layer.kdim == layer.vdim == layer.embed_dim
    require(same, f"kdim={layer.kdim}, vdim={layer.vdim}; both must be embed_dim, {layer.embed_dim}")
    require(layer.bias_k is None and not layer.add_zero_attn, "add_bias_kv or add_zero_attn; flax has neither")
    require(
        layer.batch_first, "batch_first=False; flax has the batch first (the weights are those of batch_first=True)"
    )
    return {
        "num_heads": layer.num_heads,
        "in_features": layer.embed_dim,
        "use_bias": layer.in_proj_bias is not None,
        "kernel_init": ZEROS,
        "dropout_rate": layer.dropout,
        "broadcast_dropout": False,
        "decode": False,
    }


def _attention_to_torch(layer: nnx.MultiHeadAttention, axes: Axes) -> Arguments:
    plain(layer)
    widths = {layer.in_features, layer.in_kv_features, layer.qkv_features, layer.out_features}
    require(len(widths) == 1, f"widths {sorted(widths)}; torch has one")
    require(layer.num_kv_heads == layer.num_heads, f"{layer.num_kv_heads} heads of keys; torch has {layer.num_heads}")
    require(not layer.normalize_qk, "normalize_qk=True; torch has no such norms")
    require(not layer.decode, "decode=True; torch keeps no keys")
    require(layer.attention_fn is nnx.dot_product_attention, f"attention_fn={layer.attention_fn}")
    return {
        "embed_dim": layer.in_features,
        "num_heads": layer.num_heads,
        "dropout": layer.dropout_rate,
        "bias": layer.use_bias,
        "batch_first": True,
    }


def _embedding_to_flax(layer: nn.Embedding, axes: Axes) -> Arguments:
    require(layer.max_norm is None, f"max_norm={layer.max_norm}; flax leaves rows as they are")
    require(not layer.scale_grad_by_freq and not layer.sparse, "scale_grad_by_freq or sparse; flax has neither")
    padding = {} if layer.padding_idx is None else {"padding_idx": layer.padding_idx}
    return {"num_embeddings": layer.num_embeddings, "features": layer.embedding_dim, "embedding_init": ZEROS, **padding}


def _embedding_to_torch(layer: nnx.Embed, axes: Axes) -> Arguments:
    plain(layer)
    padding = {"padding_idx": layer.padding_idx} if isinstance(layer, Embed) else {}
    return {"num_embeddings": layer.num_embeddings, "embedding_dim": layer.features, **padding}


LINEAR = Translation(_linear_to_flax, _linear_to_torch)
CONV = Translation(_conv_to_flax, _conv_to_torch)
CONV_TRANSPOSE = Translation(_transposed_to_flax, _transposed_to_torch)
ATTENTION = Translation(_attention_to_flax, _attention_to_torch)
EMBEDDING = Translation(_embedding_to_flax, _embedding_to_torch)
