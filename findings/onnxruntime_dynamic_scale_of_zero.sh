#!/usr/bin/env bash
# Finding: DynamicQuantizeLinear of ONNX Runtime chooses a scale of 0 for tiny ranges, but 1 for an empty one
# Packages: onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
# Input: two numbers each: both 0; 0 beside -1.4e-45, 1.4e-45 or -1e-43; 0 beside -1e-40.
# Expected: a positive scale: that of two zeros is 1, so that nothing is divided by zero.
# Seen: scale 0, and zero point 255 whatever the sign: the range over 255 has become 0 after it was compared with 0.
# Matters: whatever divides by the scale, or by a product of scales, gets infinities or NaN.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6

stated=$(cat <<'OUTPUT'
(0, 0) scale 1 zero point 0 codes [0, 0]
(-1e-45, 0) scale 0 zero point 255 codes [0, 0]
(0, 1e-45) scale 0 zero point 255 codes [0, 255]
(-1e-43, 0) scale 0 zero point 255 codes [0, 0]
(-1e-40, 0) scale 3.92e-43 zero point 255 codes [0, 255]
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"])
x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
kinds = {"y": (TensorProto.UINT8, [None]), "scale": (TensorProto.FLOAT, []), "zero": (TensorProto.UINT8, [])}
outputs = [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
graph = helper.make_graph([node], "graph", [x], outputs)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString())
for ends in ((0, 0), (-1e-45, 0), (0, 1e-45), (-1e-43, 0), (-1e-40, 0)):
    codes, scale, zero = session.run(None, {"x": np.array(ends, np.float32)})
    print(ends, "scale", f"{scale:.3g}", "zero point", zero, "codes", codes.tolist())
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
