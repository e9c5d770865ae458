"""QONNX: the Python behind its operators IntQuant and FloatQuant."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ..targets import Target

Array = NDArray[Any]
INT8, FLOAT8 = catalog["int8_affine_per_tensor"], catalog["float8_e4m3fn_per_tensor"]


def targets() -> dict[str, Target]:
    """The targets of QONNX, by name."""
    note = "4 and 3 bits, max_val=448, has_nan, has_subnormal"
    found = Target("qonnx.int_quant", _integers, INT8), Target("qonnx.float_quant", _floats, FLOAT8, note=note)
    return {target.name: target for target in found}


def _integers(x: Array, qparams: QParams) -> Array:
    module = import_module("qonnx.custom_op.general.intquant")
    scale, zero = np.asarray(qparams.scale), np.asarray(qparams.zero_point).astype(x.dtype)
    bits = np.float32(8)  # as its operator has it, a tensor
    return np.asarray(module.int_quant(x, scale, zero, bits, signed=True, narrow=False, rounding_mode="ROUND"))


def _floats(x: Array, qparams: QParams) -> Array:
    module, form = import_module("qonnx.custom_op.general.floatquant"), {"has_nan": True, "has_subnormal": True}
    e, m = np.float32(4), np.float32(3)
    return np.asarray(module.float_quant(x, np.asarray(qparams.scale), e, m, max_val=np.float32(448), **form), x.dtype)
