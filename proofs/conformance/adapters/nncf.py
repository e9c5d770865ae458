"""NNCF: the quantizers of weight compression, in NumPy, and the reference of its fake quantizer, in torch."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams, Quantizer
from ....core.granularity import PerGroup
from ...modes.arrays import to_numpy, to_torch
from ..targets import Function, Kind, Target

Array = NDArray[Any]
INT8, AFFINE = catalog["int8_per_tensor"], catalog["uint8_affine_per_channel"]
INT4 = catalog["int4_per_group32"]
FLOATS = {
    "nf4": catalog["nf4_per_group64"],
    "mxfp4": catalog["mxfp4_e2m1"],
    "mxfp8_e4m3": catalog["mxfp8_e4m3"],
    "nvfp4": catalog["nvfp4"],
}
WEIGHTS = "nncf.quantization.algorithms.weight_compression.weight_lowering"


def targets() -> dict[str, Target]:
    """The targets of NNCF, by name."""
    name, codes = "nncf.do_integer_quantization", Kind.CODES
    found = [
        Target(name, _codes(AFFINE, "int8_asym"), AFFINE, kind=codes),
        Target(f"{name}.chosen", _codes(AFFINE, "int8_asym"), AFFINE, kind=codes, chooses=True),
        Target(f"{name}.int4.chosen", _codes(INT4, "int4_sym"), INT4, kind=codes, chooses=True),
    ]
    found += [Target(f"nncf.do_float_quantization.{m}", _values(q, m), q, chooses=True) for m, q in FLOATS.items()]
    found.append(Target("nncf.Quantize_forward", _fake, INT8, note="the reference of its fake quantizer, in torch"))
    return {target.name: target for target in found}


def _configured(q: Quantizer, mode: str) -> Any:
    config = import_module("nncf.quantization.algorithms.weight_compression.config").WeightCompressionConfig
    size = q.granularity.size if isinstance(q.granularity, PerGroup) else -1
    return config(mode=import_module("nncf.parameters").CompressWeightsMode(mode), group_size=size)


def _codes(q: Quantizer, mode: str) -> Function:
    def run(x: Array, qparams: QParams | None) -> Any:
        weights, tensor = import_module(WEIGHTS), import_module("nncf.tensor").Tensor
        if qparams is not None:
            given = tensor(np.asarray(qparams.scale)), tensor(np.asarray(qparams.zero_point))
            return weights.do_integer_quantization(tensor(x), _configured(q, mode), (1,), *given).tensor.data
        found = weights.do_integer_quantization(tensor(x), _configured(q, mode), (1,))
        zero = None if found.zero_point is None else found.zero_point.data
        return found.tensor.data.reshape(x.shape), QParams(found.scale.data, zero)

    return run


def _values(q: Quantizer, mode: str) -> Function:
    def run(x: Array, qparams: QParams | None) -> Array:
        weights, tensor = import_module(WEIGHTS), import_module("nncf.tensor").Tensor
        packed = weights.do_float_quantization(tensor(x), _configured(q, mode), (1,))
        return np.asarray(weights.do_float_dequantization(packed).data).reshape(x.shape)

    return run


def _fake(x: Array, qparams: QParams) -> Array:
    functions = import_module("nncf.torch.quantization.reference").ReferenceQuantizedFunctions
    low, span = (to_torch((end * np.asarray(qparams.scale)).astype(np.float32)) for end in (-128, 255))
    return to_numpy(functions.Quantize_forward(to_torch(x), low, span, 256))
