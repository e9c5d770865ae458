"""onnxruntime on the CPU: QuantizeLinear and DynamicQuantizeLinear, each alone in a model."""

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ..targets import Kind, Target

Array = NDArray[Any]
INT8, UINT8 = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"]


def targets() -> dict[str, Target]:
    """The targets of onnxruntime, by name."""
    found = (
        Target("onnxruntime.QuantizeLinear", _quantize, INT8, kind=Kind.CODES),
        Target("onnxruntime.QuantizeLinear.uint8", _quantize, UINT8, kind=Kind.CODES),
        Target("onnxruntime.QuantizeLinear.float16", _quantize, INT8, "float16", Kind.CODES),
        Target("onnxruntime.DynamicQuantizeLinear", _dynamic, UINT8, kind=Kind.CODES, chooses=True),
    )
    return {target.name: target for target in found}


@cache
def _session(operator: str, dtype: str, code: str) -> Any:
    onnx, onnxruntime = import_module("onnx"), import_module("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    real = types.FLOAT16 if dtype == "float16" else types.FLOAT
    whole = types.INT8 if code == "int8" else types.UINT8
    info = helper.make_tensor_value_info
    if operator == "QuantizeLinear":
        inputs = [info("x", real, [None]), info("s", real, []), info("z", whole, [])]
        outputs = [info("y", whole, [None])]
    else:
        inputs = [info("x", real, [None])]
        outputs = [info("y", whole, [None]), info("s", real, []), info("z", whole, [])]
    node = helper.make_node(operator, [i.name for i in inputs], [o.name for o in outputs])
    graph = helper.make_graph([node], "one", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _quantize(x: Array, qparams: QParams) -> Array:
    code = "int8" if qparams.zero_point is None else "uint8"
    zero = np.asarray(0 if qparams.zero_point is None else qparams.zero_point).astype(code)
    feed = {"x": x, "s": np.asarray(qparams.scale).astype(x.dtype), "z": zero}
    found: Array = _session("QuantizeLinear", x.dtype.name, code).run(None, feed)[0]
    return found


def _dynamic(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
    codes, scale, zero = _session("DynamicQuantizeLinear", "float32", "uint8").run(None, {"x": x})
    return codes, QParams(np.asarray(scale), np.asarray(zero).astype(np.int32))
