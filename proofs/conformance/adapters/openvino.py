"""OpenVINO on the CPU: `FakeQuantize` and `Convert` alone in a model.

The ends of a range are constants of the model, so every scale has a model of its own.
"""

from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams, Quantizer
from ..targets import Function, Target

Array = NDArray[Any]
INT8, AFFINE = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"]
FLOATS = {
    "f8e4m3": catalog["float8_e4m3fn_per_tensor"],
    "f8e5m2": catalog["float8_e5m2_per_tensor"],
    "f4e2m1": catalog["float4_e2m1_per_tensor"],
}


def targets() -> dict[str, Target]:
    """The targets of OpenVINO, by name."""
    note = "the range is that of the scale: (lo - z) * s to (hi - z) * s"
    found = [
        Target("openvino.FakeQuantize", _fake(INT8), INT8, note=note),
        Target("openvino.FakeQuantize.uint8", _fake(AFFINE), AFFINE, note=note),
    ]
    found += [Target(f"openvino.Convert.{name}", _cast(name), q, scales=(1.0,)) for name, q in FLOATS.items()]
    return {target.name: target for target in found}


def _fake(q: Quantizer) -> Function:
    levels = int(q.format.hi - q.format.lo + 1)

    def run(x: Array, qparams: QParams) -> Array:
        zero = 0 if qparams.zero_point is None else int(np.asarray(qparams.zero_point))
        low, high = (float(np.float32((end - zero) * np.asarray(qparams.scale))) for end in (q.format.lo, q.format.hi))
        return np.array(_fake_model(low, high, levels)(x)[0])

    return run


def _cast(kind: str) -> Function:
    return lambda x, qparams: np.array(_cast_model(kind)(x)[0])


@lru_cache(maxsize=64)
def _fake_model(low: float, high: float, levels: int) -> Any:
    ops = import_module("openvino.opset13")
    given = ops.parameter([-1], np.float32)
    ends = [ops.constant(np.float32(end)) for end in (low, high, low, high)]
    return _compiled(ops.fake_quantize(given, *ends, levels), given)


@lru_cache(maxsize=8)
def _cast_model(kind: str) -> Any:
    ops = import_module("openvino.opset13")
    given = ops.parameter([-1], np.float32)
    return _compiled(ops.convert(ops.convert(given, kind), "f32"), given)


def _compiled(result: Any, given: Any) -> Any:
    library = import_module("openvino")
    return library.compile_model(library.Model([result], [given]), "CPU")
