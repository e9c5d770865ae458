"""torchao: `quantize_affine` of its quantization primitives."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ...modes.arrays import to_numpy, to_torch
from ..targets import Kind, Target

Array = NDArray[Any]
INT8, UINT8 = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"]


def targets() -> dict[str, Target]:
    """The targets of torchao, by name."""
    found = (
        Target("torchao.quantize_affine", _quantize, UINT8, kind=Kind.CODES),
        Target("torchao.quantize_affine.bfloat16", _quantize, INT8, "bfloat16", Kind.CODES),
        Target("torchao.choose_qparams_affine", _chosen, INT8, kind=Kind.CODES, chooses=True),
        Target("torchao.fake_quantize_affine", _fake, INT8),
    )
    return {target.name: target for target in found}


def _primitives() -> Any:
    return import_module("torchao.quantization.quant_primitives")


def _quantize(x: Array, qparams: QParams) -> Array:
    import torch

    affine = qparams.zero_point is not None
    scale = to_torch(np.asarray(qparams.scale).astype(x.dtype))
    zero = torch.tensor(int(qparams.zero_point) if affine else 0, dtype=torch.int32)
    kind, limits = (torch.uint8, (0, 255)) if affine else (torch.int8, (-128, 127))
    return to_numpy(_primitives().quantize_affine(to_torch(x), x.shape, scale, zero, kind, *limits))


def _fake(x: Array, qparams: QParams) -> Array:
    import torch

    scale = to_torch(np.asarray(qparams.scale).astype(x.dtype))
    zero = torch.tensor(0, dtype=torch.int32)
    return to_numpy(_primitives()._fake_quantize_affine(to_torch(x), x.shape, scale, zero, torch.int8))


def _chosen(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
    import torch

    primitives = _primitives()
    how = primitives.MappingType.SYMMETRIC, x.shape, torch.int8
    scale, zero = primitives.choose_qparams_affine(to_torch(x), *how)
    codes = primitives.quantize_affine(to_torch(x), x.shape, scale, zero, torch.int8)
    return to_numpy(codes), QParams(to_numpy(scale).reshape(()))
