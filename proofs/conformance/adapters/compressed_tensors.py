"""compressed-tensors: `quantize`, `fake_quantize`, and `calculate_qparams`, of integers and of float8."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams, Quantizer
from ....core.formats import IntegerFormat
from ...modes.arrays import to_numpy, to_torch
from ..targets import Function, Kind, Target

Array = NDArray[Any]
INT8, AFFINE, INT4 = catalog["int8_per_tensor"], catalog["int8_affine_per_tensor"], catalog["int4_per_channel"]
FLOAT8 = catalog["float8_e4m3fn_per_tensor"]
CODES = Kind.CODES


def targets() -> dict[str, Target]:
    """The targets of compressed-tensors, by name."""
    name = "compressed_tensors"
    found = (
        Target(f"{name}.quantize", _codes(AFFINE), AFFINE, kind=CODES),
        Target(f"{name}.quantize.int4", _codes(INT4), INT4, kind=CODES),
        Target(f"{name}.quantize.float16", _codes(INT8), INT8, "float16", CODES),
        Target(f"{name}.fake_quantize", _values(INT8), INT8),
        Target(f"{name}.fake_quantize.bfloat16", _values(INT8), INT8, "bfloat16"),
        Target(f"{name}.fake_quantize.float8", _values(FLOAT8), FLOAT8),
        Target(f"{name}.calculate_qparams", _chosen(INT8), INT8, kind=CODES, chooses=True),
        Target(f"{name}.calculate_qparams.affine", _chosen(AFFINE), AFFINE, kind=CODES, chooses=True),
    )
    return {target.name: target for target in found}


def _arguments(q: Quantizer) -> Any:
    whole = isinstance(q.format, IntegerFormat)
    bits = q.format.bits if isinstance(q.format, IntegerFormat) else 8
    arguments = import_module("compressed_tensors.quantization").QuantizationArgs
    return arguments(num_bits=bits, type="int" if whole else "float", symmetric=not q.affine, strategy="tensor")


def _operands(x: Array, qparams: QParams) -> dict[str, Any]:
    scale = np.asarray(qparams.scale)
    zero = np.zeros_like(scale) if qparams.zero_point is None else np.asarray(qparams.zero_point)  # its modules have it
    return {"x": to_torch(x), "scale": to_torch(scale.astype(x.dtype)), "zero_point": to_torch(zero.astype(np.int8))}


def _codes(q: Quantizer) -> Function:
    import torch

    forward = import_module("compressed_tensors.quantization.lifecycle.forward")
    return lambda x, qparams: to_numpy(forward.quantize(**_operands(x, qparams), args=_arguments(q), dtype=torch.int8))


def _values(q: Quantizer) -> Function:
    forward = import_module("compressed_tensors.quantization.lifecycle.forward")
    return lambda x, qparams: to_numpy(forward.fake_quantize(**_operands(x, qparams), args=_arguments(q)))


def _chosen(q: Quantizer) -> Function:
    helpers = import_module("compressed_tensors.quantization.utils.helpers")

    def run(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
        ends = to_torch(x.min()[None]), to_torch(x.max()[None])
        scale, zero = (to_numpy(part).reshape(()) for part in helpers.calculate_qparams(*ends, _arguments(q)))
        chosen = QParams(scale, zero.astype(np.int32) if q.affine else None)
        return _codes(q)(x, chosen), chosen

    return run
