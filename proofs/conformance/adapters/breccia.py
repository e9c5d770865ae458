"""breccia: `cast` and `dequantize` by its recipes, on NumPy."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ..targets import Function, Kind, Target

Array = NDArray[Any]
INT4, AFFINE = catalog["int4_per_group32"], catalog["uint4_affine_per_group32"]
FLOATS = {
    "Float8CurrentScaling": catalog["float8_e4m3fn_per_tensor"],
    "MXFP8BlockScaling": catalog["mxfp8_e4m3"],
    "NVFP4BlockScaling": catalog["nvfp4_one_level"],
}
GROUPS = {"group_size": 32, "scale_dtype": "fp32"}


def targets() -> dict[str, Target]:
    """The targets of breccia, by name."""
    found = [Target(f"breccia.{name}", _values(name), q, chooses=True) for name, q in FLOATS.items()]
    name, shifted = "breccia.INT4Scaling", {**GROUPS, "symmetric": False, "signed": False}
    found.append(Target(name, _codes(GROUPS), INT4, kind=Kind.CODES, chooses=True))
    found.append(Target(f"{name}.asymmetric", _codes(shifted), AFFINE, kind=Kind.CODES, chooses=True))
    return {target.name: target for target in found}


def _values(recipe: str) -> Function:
    def run(x: Array, qparams: QParams | None) -> Array:
        library = import_module("breccia")
        return np.asarray(library.dequantize(library.cast(x, getattr(library, recipe)())))

    return run


def _codes(arguments: dict[str, Any]) -> Function:
    def run(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
        library = import_module("breccia")
        made = library.cast(x, library.INT4Scaling(**arguments))
        codes, scale = np.asarray(made.data).astype(np.int8), np.asarray(made.scale)
        if made.zero_point is not None:
            return codes, QParams(scale, np.asarray(made.zero_point).astype(np.int32))
        return np.where(codes > 7, codes - 16, codes), QParams(scale)  # four bits with a sign

    return run
