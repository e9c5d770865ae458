"""gfloat: rounding to the formats of OCP, saturating, number by number in float64."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ..targets import Function, Target

Array = NDArray[Any]
FORMATS = {
    "ocp_e4m3": "float8_e4m3fn_per_tensor",
    "ocp_e5m2": "float8_e5m2_per_tensor",
    "ocp_e2m1": "float4_e2m1_per_tensor",
}


def targets() -> dict[str, Target]:
    """Formats of gfloat, by name."""
    note = "saturating; the scale is 1"
    found = [Target(f"gfloat.{f}", _rounded(f), catalog[n], scales=(1.0,), note=note) for f, n in FORMATS.items()]
    return {target.name: target for target in found}


def _rounded(name: str) -> Function:
    def run(x: Array, qparams: QParams) -> Array:
        gfloat, formats = import_module("gfloat"), import_module("gfloat.formats")
        known = getattr(formats, f"format_info_{name}")
        nearest = gfloat.RoundMode.TiesToEven
        values = [gfloat.round_float(known, float(v), nearest, True) for v in x.reshape(-1)]
        return np.array(values, np.float64).astype(x.dtype).reshape(x.shape)

    return run
