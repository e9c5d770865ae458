"""Brevitas: `IntQuant`, which is given its scale."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams, Quantizer
from ...modes.arrays import to_numpy, to_torch
from ..targets import Target

Array = NDArray[Any]
INT8, UINT8 = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"]


def targets() -> dict[str, Target]:
    """The targets of Brevitas, by name."""
    return {
        "brevitas.IntQuant": Target("brevitas.IntQuant", _values(INT8), INT8, gradient=_gradient(INT8)),
        "brevitas.IntQuant.uint8": Target("brevitas.IntQuant.uint8", _values(UINT8), UINT8),
        "brevitas.IntQuant.bfloat16": Target("brevitas.IntQuant.bfloat16", _values(INT8), INT8, "bfloat16"),
    }


def _module(q: Quantizer) -> Any:
    import torch

    quant = import_module("brevitas.core.quant").IntQuant
    clamp = import_module("brevitas.core.function_wrapper").TensorClamp()
    return quant(False, q.format.lo < 0, torch.nn.Identity(), tensor_clamp_impl=clamp)


def _run(module: Any, leaf: Any, x: Array, qparams: QParams) -> Any:
    import torch

    zero = np.asarray(0 if qparams.zero_point is None else qparams.zero_point).astype(x.dtype)
    return module(to_torch(np.asarray(qparams.scale).astype(x.dtype)), to_torch(zero), torch.tensor(8.0), leaf)


def _values(q: Quantizer) -> Any:
    module = _module(q)
    return lambda x, qparams: to_numpy(_run(module, to_torch(x), x, qparams))


def _gradient(q: Quantizer) -> Any:
    module = _module(q)

    def run(x: Array, qparams: QParams, g: Array) -> Array:
        leaf = to_torch(x).requires_grad_()
        _run(module, leaf, x, qparams).backward(to_torch(g))
        return to_numpy(leaf.grad)

    return run
