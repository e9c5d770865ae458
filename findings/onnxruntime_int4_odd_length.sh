#!/usr/bin/env bash
# Finding: QuantizeLinear of ONNX Runtime to 4 bits turns a large last number of an odd-length array into the smallest code
# Packages: onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
# Input: float32 [3e8], [3e8, 3e8], [0.3, 0.3, 3e8], [0.3, 0.3, 1e8] and three infinities, scale 0.1, to int4, uint4 and int8.
# Expected: the largest code, 7, 15 or 127: the operator saturates.
# Seen: in 4 bits the last element alone, where the length is odd, is -8 or 0 from 2**31 steps upwards; at an even length, in front of the
#   last, below 2**31 steps, and in int8 the code is the largest. Two codes are packed in a byte, and the one left over is rounded elsewhere.
# Matters: an outlier or infinity becomes the number of the other sign, or zero, depending on how long the array is.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6

stated=$(cat <<'OUTPUT'
INT4 [-8] [7, 7] [3, 3, -8] [3, 3, 7] [7, 7, -8]
UINT4 [0] [15, 15] [3, 3, 0] [3, 3, 15] [15, 15, 0]
INT8 [127] [127, 127] [3, 3, 127] [3, 3, 127] [127, 127, 127]
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

INPUTS = ([3e8], [3e8, 3e8], [0.3, 0.3, 3e8], [0.3, 0.3, 1e8], [np.inf] * 3)


def session(kind):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "one", "zero"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy")
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("zero", kind, [], [0]),
    ]
    graph = helper.make_graph(nodes, "graph", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


for name in ("INT4", "UINT4", "INT8"):
    run = session(getattr(TensorProto, name)).run
    print(name, *(run(None, {"x": np.array(x, np.float32)})[0].astype(int).tolist() for x in INPUTS))
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
