"""ai-edge-quantizer, which makes LiteRT models: `uniform_quantize`, and the parameters that it chooses."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams, Quantizer
from ..targets import Function, Kind, Target

Array = NDArray[Any]
SYMMETRIC, AFFINE = catalog["int8_per_tensor"].replace(narrow=True), catalog["int8_affine_per_tensor"]


def targets() -> dict[str, Target]:
    """The targets of ai-edge-quantizer, by name."""
    name, codes = "ai_edge_quantizer.uniform_quantize", Kind.CODES
    found = (
        Target(name, _given(AFFINE), AFFINE, kind=codes),
        Target(f"{name}.symmetric", _given(SYMMETRIC), SYMMETRIC, kind=codes),
        Target(f"{name}.chosen", _chosen(SYMMETRIC), SYMMETRIC, kind=codes, chooses=True),
        Target(f"{name}.affine.chosen", _chosen(AFFINE), AFFINE, kind=codes, chooses=True),
    )
    return {target.name: target for target in found}


def _given(q: Quantizer) -> Function:
    library = import_module("ai_edge_quantizer.algorithms.uniform_quantize.uniform_quantize_tensor")
    parameters = import_module("ai_edge_quantizer.qtyping").UniformQuantParams

    def run(x: Array, qparams: QParams) -> Array:
        zero = np.zeros(1, np.int8) if qparams.zero_point is None else np.reshape(qparams.zero_point, 1)
        given = parameters(8, None, np.reshape(qparams.scale, 1), zero.astype(np.int8), symmetric=not q.affine)
        found: Array = library.uniform_quantize(x, given)
        return found

    return run


def _chosen(q: Quantizer) -> Function:
    library = import_module("ai_edge_quantizer.algorithms.uniform_quantize.uniform_quantize_tensor")
    whole = import_module("ai_edge_quantizer.qtyping").QuantGranularity.TENSORWISE
    quantize = _given(q)

    def run(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
        zero, scale = library.tensor_zp_scale_from_min_max(x.min(), x.max(), 8, not q.affine, whole)
        point = np.asarray(zero).astype(np.int32) if q.affine else None
        chosen = QParams(np.asarray(scale, np.float32).reshape(()), point)
        return quantize(x, chosen), chosen

    return run
