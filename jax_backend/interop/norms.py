"""Normalization: arguments for flax from torch, and back.

Functions take a layer, and the numbers of axes that images may have where it stands, and give arguments of its partner.
"""

from typing import Any

import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from .modules import BatchNorm
from .translation import Arguments, Axes, Translation, plain, require


def _norm_to_flax(layer: Any, axes: Axes) -> Arguments:
    """Of a layer norm or RMS norm over the last axis."""
    shape = tuple(layer.normalized_shape)
    require(len(shape) == 1, f"normalized_shape={shape}; flax has one axis of weights")
    affine = layer.elementwise_affine
    epsilon = torch.finfo(layer.weight.dtype if affine else torch.float32).eps if layer.eps is None else layer.eps
    bias = {"use_bias": affine and layer.bias is not None} if isinstance(layer, nn.LayerNorm) else {}
    return {
        "num_features": shape[0],
        "epsilon": epsilon,
        "use_scale": affine,
        "use_fast_variance": False,
        **bias,
    }


def _norm_to_torch(layer: Any, axes: Axes) -> Arguments:
    _check_norm(layer)
    require(layer.reduction_axes == layer.feature_axes == -1, "normalizes other axes than the last")
    scale, bias = layer.scale is not None, getattr(layer, "bias", None) is not None
    require(scale or not bias, "a bias without a scale")
    more = {"bias": bias} if isinstance(layer, nnx.LayerNorm) and scale else {}
    smallest = float(jnp.finfo(layer.param_dtype).eps)  # type: ignore[no-untyped-call]
    unset = isinstance(layer, nnx.RMSNorm) and layer.epsilon == smallest
    epsilon = None if unset else layer.epsilon  # as torch has it by default
    return {"normalized_shape": layer.num_features, "eps": epsilon, "elementwise_affine": scale, **more}


def _check_norm(layer: Any) -> None:
    plain(layer)
    require(layer.axis_name is None, f"axis_name={layer.axis_name!r}, statistics over devices")


def _group_norm_to_flax(layer: nn.GroupNorm, axes: Axes) -> Arguments:
    return {
        "num_features": layer.num_channels,
        "num_groups": layer.num_groups,
        "epsilon": layer.eps,
        "use_scale": layer.affine,
        "use_bias": layer.bias is not None,
        "use_fast_variance": False,
    }


def _group_norm_to_torch(layer: nnx.GroupNorm, axes: Axes) -> Arguments:
    _check_norm(layer)
    require(layer.reduction_axes is None, f"reduction_axes={layer.reduction_axes}")
    require(layer.use_scale or not layer.use_bias, "a bias without a scale")
    features = layer.num_groups * layer.group_size
    return {
        "num_groups": layer.num_groups,
        "num_channels": features,
        "eps": layer.epsilon,
        "affine": layer.use_scale,
        **({"bias": layer.use_bias} if layer.use_scale else {}),
    }


def _batch_norm_to_flax(layer: Any, axes: Axes) -> Arguments:
    require(layer.running_mean is not None, "track_running_stats=False; flax keeps statistics")
    return {
        "num_features": layer.num_features,
        "rate": layer.momentum,
        "axes": tuple(sorted(axes)),
        "epsilon": layer.eps,
        "use_scale": layer.affine,
        "use_bias": layer.bias is not None,
    }


def _batch_norm_to_torch(layer: nnx.BatchNorm, axes: Axes) -> Arguments:
    _check_norm(layer)
    require(layer.axis == -1, f"axis={layer.axis}; features must be last")
    require(layer.use_scale or not layer.use_bias, "a bias without a scale")
    return {
        "num_features": layer.num_features,
        "eps": layer.epsilon,
        "momentum": layer.rate if isinstance(layer, BatchNorm) else 1 - layer.momentum,
        "affine": layer.use_scale,
        **({"bias": layer.use_bias} if layer.use_scale else {}),
    }


NORM = Translation(_norm_to_flax, _norm_to_torch)
GROUP_NORM = Translation(_group_norm_to_flax, _group_norm_to_torch)
BATCH_NORM = Translation(_batch_norm_to_flax, _batch_norm_to_torch)
