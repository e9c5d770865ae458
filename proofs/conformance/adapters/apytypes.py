"""APyTypes: arrays of floats and of fixed-point numbers, from floats."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ....core.formats import FloatFormat
from ..targets import Target

Array = NDArray[Any]
INT8 = catalog["int8_per_tensor"]
FLOAT8 = catalog["float8_e5m2_per_tensor"].replace(format=FloatFormat(4, 3, saturate=False))
STEPS = (2.0**-3, 2.0**-7, 0.5, 2.0)


def targets() -> dict[str, Target]:
    """The targets of APyTypes, by name."""
    note = "8 bits in all, wrapping around: of steps that are powers of two"
    found = (
        Target("apytypes.APyFloatArray", _floats, FLOAT8, scales=(1.0,), note="4 and 3 bits, with infinities"),
        Target("apytypes.APyFixedArray", _fixed, INT8, scales=STEPS, note=note),
    )
    return {target.name: target for target in found}


def _floats(x: Array, qparams: QParams) -> Array:
    return np.asarray(import_module("apytypes").APyFloatArray.from_float(x, 4, 3).to_numpy(), x.dtype)


def _fixed(x: Array, qparams: QParams) -> Array:
    digits = int(-np.log2(qparams.scale))
    found = import_module("apytypes").APyFixedArray.from_float(x, int_bits=8 - digits, frac_bits=digits)
    return np.asarray(found.to_numpy(), x.dtype)
