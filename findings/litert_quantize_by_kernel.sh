#!/usr/bin/env bash
# Finding: QUANTIZE of LiteRT rounds, and treats subnormal numbers and NaN, otherwise by default than by its reference kernel
# Packages: ai-edge-litert==2.3.0 numpy==2.4.6 flatbuffers==25.12.19
# Input: half steps, NaN and subnormal numbers, to int8 with zero point 0 and scales 1 and 2**-126, in a model of one operator.
# Expected: the same codes from both: the reference kernel says what the operator means.
# Seen: 2.5 becomes 2 or 3, NaN 127 or -128, and 3/4 of the scale 2**-126, a subnormal number, 0 or 1.
# Matters: codes of a model depend on whether the delegate takes the operator; tests by reference kernels do not show it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check ai-edge-litert==2.3.0 numpy==2.4.6 flatbuffers==25.12.19

stated=$(cat <<'OUTPUT'
scale 1 AUTO [0, 2, 2, -2, 127, 2, 3, 4]
scale 1 BUILTIN_REF [1, 2, 3, -3, -128, 2, 3, 4]
scale 1.18e-38 AUTO [0, 0, 0, 0, 1, 1, 2, 2]
scale 1.18e-38 BUILTIN_REF [0, 0, 1, 1, 1, 1, 2, 2]
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from flatbuffers import Builder


def made(kind, **fields):
    table = kind()
    for name, value in fields.items():
        setattr(table, name, value)
    return table


def model(scale):
    op, kinds = schema.BuiltinOperator.QUANTIZE, (schema.TensorType.FLOAT32, schema.TensorType.INT8)
    code = made(schema.OperatorCodeT, builtinCode=op, deprecatedBuiltinCode=op, version=1)
    tensors = [made(schema.TensorT, name=str(kind), shape=[8], type=kind, buffer=0) for kind in kinds]
    tensors[1].quantization = made(schema.QuantizationParametersT, scale=[scale], zeroPoint=[0])
    operator = made(schema.OperatorT, opcodeIndex=0, inputs=[0], outputs=[1])
    graph = made(schema.SubGraphT, tensors=tensors, inputs=[0], outputs=[1], operators=[operator])
    parts, builder = {"operatorCodes": [code], "subgraphs": [graph], "buffers": [schema.BufferT()]}, Builder()
    builder.Finish(made(schema.ModelT, version=3, **parts).Pack(builder), b"TFL3")
    return bytes(builder.Output())


for scale, x in ((1.0, [0.5, 1.5, 2.5, -2.5, np.nan, 2, 3, 4]), (2.0**-126, [2.0**-128 * i for i in range(8)])):
    for kernels in ("AUTO", "BUILTIN_REF"):
        kind = getattr(OpResolverType, kernels)
        interpreter = Interpreter(model_content=model(scale), experimental_op_resolver_type=kind)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.array(x, np.float32))
        interpreter.invoke()
        found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        print(f"scale {scale:.3g}", kernels, found.tolist())
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
