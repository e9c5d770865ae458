#!/usr/bin/env bash
# Finding: FakeQuantize of OpenVINO is another quantizer where its range is small
# Packages: openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.4.6
# Input: -r, 0 and r to 256 levels from -r to r, for r from 1 to 1e-36, each alone in a model on the CPU, float32.
# Expected: the same multiples of r for every r: -1, one of the two numbers next to 0, and 1.
# Seen: from 1e-7 downward the range is moved by half a step, and ends 0.4 percent beyond -r; from 1e-30 by powers of ten.
# Matters: scales of 1e-9 (gradients, small biases) are quantized by other codes than others; a model is not scale invariant.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.4.6

stated=$(cat <<'OUTPUT'
r = 1e0: -1 0.003922 1 times r
r = 1e-3: -1 0.003921 1 times r
r = 1e-6: -1 0.003922 1 times r
r = 1e-7: -1.004 -0.007843 0.9961 times r
r = 1e-20: -1.004 0 0.9961 times r
r = 1e-30: -1.28 0 1.27 times r
r = 1e-33: -1280 0 1270 times r
r = 1e-36: -1.28e+06 0 1.27e+06 times r
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import numpy as np
import openvino
from openvino import opset13

for exponent in (0, -3, -6, -7, -20, -30, -33, -36):
    r = np.float32(10.0**exponent)
    x = opset13.parameter([3], np.float32)
    ends = [opset13.constant(end) for end in (-r, r, -r, r)]
    model = openvino.Model([opset13.fake_quantize(x, *ends, 256)], [x])
    found = openvino.compile_model(model, "CPU")(np.array([-r, 0, r], np.float32))[0]
    print(f"r = 1e{exponent}:", *(f"{v:.4g}" for v in found / r), "times r")
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
