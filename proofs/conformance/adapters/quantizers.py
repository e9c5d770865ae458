"""quantizers, of HGQ2: fixed-point numbers of 8 bits on NumPy.

It imports Keras, of which nothing is computed here; a backend must be named all the same.
"""

import os
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
    """The targets of quantizers, by name."""
    found = [Target(f"quantizers.{mode}", _fixed(mode), INT8, scales=STEPS) for mode in ("RND", "RND_CONV")]
    return {target.name: target for target in found}


def _fixed(mode: str) -> Function:
    def run(x: Array, qparams: QParams) -> Array:
        os.environ.setdefault("KERAS_BACKEND", "numpy")
        digits = int(-np.log2(qparams.scale))
        quantizer = import_module("quantizers").get_fixed_quantizer_np(mode, "SAT")
        return np.asarray(quantizer(x, 1, 7 - digits, digits), x.dtype)

    return run
