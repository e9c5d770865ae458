"""Pychop: floats of few bits, rounded to nearest, on NumPy."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ....core.formats import FloatFormat
from ..targets import Function, Target

Array = NDArray[Any]
FORMATS = {"e5m2": FloatFormat(5, 2, saturate=False), "e4m3": FloatFormat(4, 3, saturate=False)}


def targets() -> dict[str, Target]:
    """The targets of Pychop, by name."""
    note, like = "rmode=1, with infinities", catalog["float8_e5m2_per_tensor"]
    found = [
        Target(f"pychop.Chop.{name}", _chopped(form), like.replace(format=form), scales=(1.0,), note=note)
        for name, form in FORMATS.items()
    ]
    return {target.name: target for target in found}


def _chopped(form: FloatFormat) -> Function:
    def run(x: Array, qparams: QParams) -> Array:
        library = import_module("pychop")
        library.backend("numpy")
        chop = library.Chop(exp_bits=form.exponent_bits, sig_bits=form.mantissa_bits, rmode=1)
        return np.asarray(chop(x), x.dtype)

    return run
