"""The reference evaluator of ONNX: QuantizeLinear and DynamicQuantizeLinear, each alone in a model."""

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
    """The targets of the reference evaluator, by name."""
    found = (
        Target("onnx.QuantizeLinear", _quantize, INT8, kind=Kind.CODES),
        Target("onnx.QuantizeLinear.float16", _quantize, INT8, "float16", Kind.CODES),
        Target("onnx.DynamicQuantizeLinear", _dynamic, UINT8, kind=Kind.CODES, chooses=True),
    )
    return {target.name: target for target in found}


@cache
def _evaluator(operator: str, dtype: str) -> Any:
    onnx, reference = import_module("onnx"), import_module("onnx.reference")
    helper, types = onnx.helper, onnx.TensorProto
    real, info = (types.FLOAT16 if dtype == "float16" else types.FLOAT), helper.make_tensor_value_info
    if operator == "QuantizeLinear":
        inputs = [info("x", real, [None]), info("s", real, []), info("z", types.INT8, [])]
        outputs = [info("y", types.INT8, [None])]
    else:
        inputs = [info("x", real, [None])]
        outputs = [info("y", types.UINT8, [None]), info("s", real, []), info("z", types.UINT8, [])]
    node = helper.make_node(operator, [i.name for i in inputs], [o.name for o in outputs])
    graph = helper.make_graph([node], "one", inputs, outputs)
    return reference.ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def _quantize(x: Array, qparams: QParams) -> Array:
    feed = {"x": x, "s": np.asarray(qparams.scale).astype(x.dtype), "z": np.array(0, np.int8)}
    return np.asarray(_evaluator("QuantizeLinear", x.dtype.name).run(None, feed)[0])


def _dynamic(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
    codes, scale, zero = _evaluator("DynamicQuantizeLinear", "float32").run(None, {"x": x})
    return np.asarray(codes), QParams(np.asarray(scale), np.asarray(zero).astype(np.int32))
