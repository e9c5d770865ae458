"""compressed-tensors: `quantize`, `fake_quantize`, and `calculate_qparams`, of integers and of floats."""

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
FLOAT8, FLOAT4 = catalog["float8_e4m3fn_per_tensor"], catalog["float4_e2m1_per_tensor"]
MX = {"mxfp4": catalog["mxfp4_e2m1"], "mxfp6": catalog["mxfp6_e2m3"], "mxfp8": catalog["mxfp8_e4m3"]}
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
        Target(f"{name}.fake_quantize.float4", _values(FLOAT4), FLOAT4),
        Target(f"{name}.calculate_qparams", _chosen(INT8), INT8, kind=CODES, chooses=True),
        Target(f"{name}.calculate_qparams.affine", _chosen(AFFINE), AFFINE, kind=CODES, chooses=True),
        *(Target(f"{name}.{form}", _blocks(q), q, chooses=True) for form, q in MX.items()),
        Target(f"{name}.nvfp4", _two_levels, catalog["nvfp4"], chooses=True),
    )
    return {target.name: target for target in found}


def _arguments(q: Quantizer) -> Any:
    whole = isinstance(q.format, IntegerFormat)
    arguments = import_module("compressed_tensors.quantization").QuantizationArgs
    kind = "int" if whole else "float"
    return arguments(num_bits=q.format.bits, type=kind, symmetric=not q.affine, strategy="tensor")


def _of_blocks(q: Quantizer, strategy: str, size: int, scales: Any) -> Any:
    """Arguments of floats in blocks, as its presets MXFP4, MXFP6, MXFP8 and NVFP4 have them."""
    arguments = import_module("compressed_tensors.quantization").QuantizationArgs
    kinds = {"scale_dtype": scales, "zp_dtype": scales}
    return arguments(num_bits=q.format.bits, type="float", symmetric=True, strategy=strategy, group_size=size, **kinds)


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


def _blocks(q: Quantizer) -> Function:
    import torch

    def run(x: Array, qparams: QParams | None) -> Array:
        return _in_blocks(to_torch(x), _of_blocks(q, "group", 32, torch.uint8), None)

    return run


def _two_levels(x: Array, qparams: QParams | None) -> Array:
    import torch

    helpers, values = import_module("compressed_tensors.quantization.utils.helpers"), to_torch(x)
    whole = helpers.generate_gparam(values.min()[None], values.max()[None])
    return _in_blocks(values, _of_blocks(catalog["nvfp4"], "tensor_group", 16, torch.float8_e4m3fn), whole)


def _in_blocks(x: Any, arguments: Any, whole: Any) -> Array:
    """Dynamic scales of blocks, beside the scale of the whole array, and what they make of it."""
    helpers = import_module("compressed_tensors.quantization.utils.helpers")
    forward = import_module("compressed_tensors.quantization.lifecycle.forward")
    scale, zero = helpers.compute_dynamic_scales_and_zp(x, arguments, None, whole)
    return to_numpy(forward.fake_quantize(x, scale, zero, arguments, whole))
