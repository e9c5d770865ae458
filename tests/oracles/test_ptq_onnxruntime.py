"""What onnxruntime makes of patterns that `export_onnx` avoids: as long as these hold there is a reason to."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
FIRST, SECOND = np.float32(0.1), np.float32(0.2)


def ran(nodes: list[Any], constants: dict[str, Any], x: Array, level: str) -> Array:
    """The output ``y`` for an input ``x``."""
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    ins = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"n{i}" for i in range(x.ndim)])]
    graph = helper.make_graph(nodes, "pattern", ins, outs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    found: Array = session.run(None, {"x": x})[0]
    return found


def pair(x: str, y: str, scale: str, zero: str = "zero") -> list[Any]:
    return [
        helper.make_node("QuantizeLinear", [x, scale, zero], [f"{y}_codes"]),
        helper.make_node("DequantizeLinear", [f"{y}_codes", scale, zero], [y]),
    ]


def test_two_pairs_become_one() -> None:
    x = np.array([0.1, 0.3, 0.5], np.float32)
    constants = {"a": FIRST, "b": SECOND, "zero": np.uint8(128)}
    nodes = pair("x", "between", "a") + pair("between", "y", "b")
    plain, optimized = (ran(nodes, constants, x, level) for level in ("DISABLE_ALL", "ENABLE_BASIC"))
    want = np.rint(np.rint(x / FIRST) * FIRST / SECOND) * SECOND
    np.testing.assert_array_equal(plain, want)
    assert (optimized != want).any()


@pytest.mark.parametrize("shape", ["as MatMul takes it", "through Gemm"])
def test_inputs_of_a_weight_alone_are_quantized(shape: str) -> None:
    draw = np.random.default_rng(0)
    codes, scale = draw.integers(-128, 128, (40, 128)).astype(np.int8), draw.random(40).astype(np.float32)
    x = draw.standard_normal((4, 128)).astype(np.float32)
    want = x.astype(np.float64) @ (codes * scale[:, None].astype(np.float64)).T
    if shape == "through Gemm":
        stored, axis, last = codes, 0, helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    else:
        stored, axis, last = np.ascontiguousarray(codes.T), 1, helper.make_node("MatMul", ["x", "w"], ["y"])
    nodes = [helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], axis=axis), last]
    error = {
        level: abs(ran(nodes, {"codes": stored, "scale": scale}, x, level) - want).max() / abs(want).max()
        for level in ("DISABLE_ALL", "ENABLE_ALL")
    }
    assert error["DISABLE_ALL"] < 1e-6
    assert (error["ENABLE_ALL"] > 1e-3) == (shape == "as MatMul takes it")


@pytest.mark.parametrize("zero", [np.int8(0), np.uint8(128)])
def test_signed_codes_before_a_pooling_do_not_load(zero: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    nodes = pair("x", "between", "a")
    nodes += [helper.make_node("MaxPool", ["between"], ["y"], kernel_shape=[2, 2], strides=[2, 2])]
    constants = {"a": FIRST, "zero": zero}
    want = (np.rint(x / FIRST) * FIRST).reshape(2, 3, 4, 2, 4, 2).max((3, 5))
    np.testing.assert_array_equal(ran(nodes, constants, x, "DISABLE_ALL"), want)
    if zero.dtype == np.uint8:
        np.testing.assert_array_equal(ran(nodes, constants, x, "ENABLE_ALL"), want)
    else:
        with pytest.raises(Exception, match="output_dtype INT8 does not match"):
            ran(nodes, constants, x, "ENABLE_ALL")
