"""Activations, pooling, and what else has no parameters: arguments for flax from torch, and back.

Functions take a layer, and the numbers of axes that images may have where it stands, and give arguments of its partner.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from torch import nn

from .translation import Arguments, Axes, Translation, each, margins, require


def _dropout_to_torch(layer: nnx.Dropout, axes: Axes) -> Arguments:
    require(not layer.broadcast_dims, f"broadcast_dims={layer.broadcast_dims}")
    return {"p": layer.rate}


def _flatten_to_flax(layer: nn.Flatten, axes: Axes) -> Arguments:
    ends = layer.start_dim, layer.end_dim
    images = 0 not in axes
    require(not images or (ends[0] in (1, 2) and ends[1] == -1), f"start_dim={ends[0]}, end_dim={ends[1]} of images")
    return {"start_dim": ends[0], "end_dim": ends[1], "channels_last": images}


def _flatten_to_torch(layer: Any, axes: Axes) -> Arguments:
    require(
        0 in axes or layer.channels_last, "channels_last=False behind images, whose elements torch has in another order"
    )
    return {"start_dim": layer.start_dim, "end_dim": layer.end_dim}


def _softmax_to_flax(layer: Any, axes: Axes) -> Arguments:
    require(layer.dim is not None, "dim=None, which depends on the input")
    if 0 in axes:
        return {"axis": layer.dim}
    require(layer.dim == 1, f"dim={layer.dim} of images; give 1, the channels")
    return {"axis": -1}


def _softmax_to_torch(keywords: Mapping[str, Any], axes: Axes) -> Arguments:
    axis = keywords.get("axis", -1)
    if 0 in axes:
        return {"dim": axis}
    require(axis == -1, f"axis={axis} of images; give -1, the channels")
    return {"dim": 1}


def _pool_to_flax(layer: Any, axes: Axes) -> Arguments:
    (n,) = axes
    require(not layer.ceil_mode, "ceil_mode=True; flax rounds down")
    require(set(each(getattr(layer, "dilation", 1), n)) == {1}, "dilation; flax has none")
    require(not getattr(layer, "return_indices", False), "return_indices=True; flax has none")
    require(getattr(layer, "divisor_override", None) is None, "divisor_override; flax has none")
    counted = {"count_include_pad": layer.count_include_pad} if hasattr(layer, "count_include_pad") else {}
    return {
        "window_shape": each(layer.kernel_size, n),
        "strides": each(layer.stride, n),
        "padding": tuple((p, p) for p in each(layer.padding, n)),
        **counted,
    }


def _pool_to_torch(keywords: Mapping[str, Any], axes: Axes) -> Arguments:
    window = tuple(keywords["window_shape"])
    strides = each(keywords.get("strides"), len(window))
    beside = margins(keywords.get("padding", "VALID"), window, strides, (1,) * len(window))
    require(beside != "same", "padding='SAME'; torch has the same on both sides of an axis")
    counted = {"count_include_pad": keywords["count_include_pad"]} if "count_include_pad" in keywords else {}
    return {"kernel_size": window, "stride": strides, "padding": beside, **counted}


def _mean_to_flax(layer: Any, axes: Axes) -> Arguments:
    (n,) = axes
    require(set(each(layer.output_size, n)) == {1}, f"output_size={layer.output_size}; 1 alone is a mean")
    return {"axis": tuple(range(1, n + 1)), "keepdims": True}


def _mean_to_torch(keywords: Mapping[str, Any], axes: Axes) -> Arguments:
    (n,) = axes
    found = {"axis": keywords.get("axis"), "keepdims": keywords.get("keepdims")}
    require(
        found == {"axis": tuple(range(1, n + 1)), "keepdims": True}, f"{found}; a mean of all pixels alone is a pooling"
    )
    return {"output_size": 1}


def _gelu_to_flax(layer: nn.GELU, axes: Axes) -> Arguments:
    return {"approximate": layer.approximate == "tanh"}


def _gelu_to_torch(keywords: Mapping[str, Any], axes: Axes) -> Arguments:
    return {"approximate": "tanh" if keywords.get("approximate", True) else "none"}


DROPOUT = Translation(lambda layer, axes: {"rate": layer.p}, _dropout_to_torch)
FLATTEN = Translation(_flatten_to_flax, _flatten_to_torch)
SOFTMAX = Translation(_softmax_to_flax, _softmax_to_torch)
POOL = Translation(_pool_to_flax, _pool_to_torch)
MEAN = Translation(_mean_to_flax, _mean_to_torch)
GELU = Translation(_gelu_to_flax, _gelu_to_torch)
NOTHING = Translation(lambda layer, axes: {}, lambda layer, axes: {})
