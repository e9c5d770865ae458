"""optimum-quanto: its operators for activations and for weights of few bits."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ....core.granularity import PerAxis
from ...modes.arrays import to_numpy, to_torch
from ..targets import Kind, Target

Array = NDArray[Any]
INT8 = catalog["int8_per_tensor"]
UINT4 = catalog["uint4_affine_per_group32"].replace(granularity=PerAxis(0), zero_point_domain="shift")


def targets() -> dict[str, Target]:
    """The targets of quanto, by name."""
    found = (
        Target("quanto.quantize_activation", _activation, INT8),
        Target("quanto.quantize_activation.bfloat16", _activation, INT8, "bfloat16"),
        Target("quanto.quantize_affine", _affine, UINT4, kind=Kind.CODES),
        Target("quanto.AbsmaxOptimizer", _chosen, INT8, kind=Kind.CODES, chooses=True),
    )
    return {target.name: target for target in found}


def _library() -> Any:
    return import_module("optimum.quanto")


def _activation(x: Array, qparams: QParams) -> Array:
    quanto = _library()
    scale = to_torch(np.asarray(qparams.scale).astype(x.dtype))
    found = quanto.quantize_activation(to_torch(x), qtype=quanto.qint8, scale=scale)
    return to_numpy(found.dequantize())


def _chosen(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
    quanto = _library()
    scale = quanto.AbsmaxOptimizer()(to_torch(x), quanto.qint8, None)
    found = quanto.WeightQBytesTensor.quantize(to_torch(x), quanto.qint8, None, scale)
    return to_numpy(found._data), QParams(to_numpy(scale).reshape(()))


def _affine(x: Array, qparams: QParams) -> Array:
    import torch

    _library()
    scale, shift = (to_torch(np.asarray(v).reshape(-1, 1).astype(x.dtype)) for v in (qparams.scale, qparams.zero_point))
    return to_numpy(torch.ops.quanto.quantize_affine(to_torch(x), 4, 0, None, scale, shift))
