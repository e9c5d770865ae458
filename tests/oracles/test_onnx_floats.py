"""ONNX QuantizeLinear to floats, as the dialect `onnx_float`.

Of onnxruntime for float8, of the reference evaluator for float4, which onnxruntime has not. Both saturate by default.
The evaluator turns NaN into a zero in float4, which has no NaN, and a quotient of -0.0 into 0.0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from samebits.core import QParams, catalog, dialects, fake_quantize
from samebits.proofs.inputs.compare import assert_same_bits

from ..exact import DTYPES
from .test_torch_and_onnxruntime import inputs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
KINDS = {
    "float8_e4m3fn_per_tensor": TensorProto.FLOAT8E4M3FN,
    "float8_e5m2_per_tensor": TensorProto.FLOAT8E5M2,
    "float4_e2m1_per_tensor": TensorProto.FLOAT4E2M1,
}
SCALES = np.exp(np.random.default_rng(0).uniform(-9, 5, 100)).astype(np.float32)


def pair(kind: int, scale: np.float32) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """QuantizeLinear and DequantizeLinear behind it."""
    info = helper.make_tensor_value_info
    constants = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [float(scale)]),
        helper.make_tensor("z", kind, [], [0.0]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    outputs = [info("y", TensorProto.FLOAT, [None])]
    graph = helper.make_graph(nodes, "pair", [info("x", TensorProto.FLOAT, [None])], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    if kind == TensorProto.FLOAT4E2M1:
        return lambda x: np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("name", KINDS)
def test_onnx_to_floats(name: str) -> None:
    q = catalog[name].replace(**dialects["onnx_float"])
    for scale in SCALES:
        x = inputs(q, scale, 0, DTYPES["float32"], random=100)
        values, ours = pair(KINDS[name], scale)(x), fake_quantize(q, x, QParams(scale))
        if "float4" in name:
            quotient = x / scale
            other = np.isnan(x) | (np.signbit(quotient) & (quotient == 0))
            assert (values[other] == 0).all()
            assert not np.signbit(values[other & ~np.isnan(x)]).any()
            values[other] = ours[other]
        assert_same_bits(values, ours, call=f"{name}, scale {scale}", inputs=x)
