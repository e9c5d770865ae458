"""AQT: `IntSymmetric`, with a scale that is given and with its own."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ...modes.arrays import to_jax
from ..targets import Kind, Target

Array = NDArray[Any]
NARROW = catalog["int8_narrow_per_channel"]


def targets() -> dict[str, Target]:
    """The targets of AQT, by name."""
    found = (
        Target("aqt.IntSymmetric", _given, NARROW, kind=Kind.CODES),
        Target("aqt.IntSymmetric.chosen", _chosen, NARROW, kind=Kind.CODES, chooses=True),
    )
    return {target.name: target for target in found}


def _library(name: str) -> Any:
    return import_module(f"aqt.jax.v2.{name}")


def _given(x: Array, qparams: QParams) -> Array:
    scale = to_jax(np.asarray(qparams.scale).astype(x.dtype))
    start = _library("aqt_tensor").QTensor(qvalue=None, scale=[scale], scale_t=None, bias=[], dequant_dtype=x.dtype)
    return _codes(_library("aqt_quantizer").quantizer_make(8).calculate_qvalue(to_jax(x), start)[0])


def _chosen(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
    found, _ = _library("aqt_quantizer").quantizer_make(8).quant(to_jax(x), calibration_axes=[1])
    return _codes(found), QParams(np.asarray(found.scale[0]))


def _codes(tensor: Any) -> Array:
    return np.asarray(tensor.qvalue).astype(np.int8)
