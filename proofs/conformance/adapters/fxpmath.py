"""fxpmath: fixed-point numbers of 8 bits."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ..targets import Function, Target

Array = NDArray[Any]
INT8 = catalog["int8_per_tensor"]
STEPS = (2.0**-3, 2.0**-7, 0.5, 2.0)


def targets() -> dict[str, Target]:
    """The targets of fxpmath, by name; what it does by itself is to truncate."""
    found = [
        Target(f"fxpmath.Fxp.{rounding}", _fixed(rounding), INT8, scales=STEPS) for rounding in ("trunc", "around")
    ]
    return {target.name: target for target in found}


def _fixed(rounding: str) -> Function:
    def run(x: Array, qparams: QParams) -> Array:
        digits = int(-np.log2(qparams.scale))
        made = import_module("fxpmath").Fxp(x, signed=True, n_word=8, n_frac=digits, rounding=rounding)
        return np.asarray(made.get_val(), x.dtype)

    return run
