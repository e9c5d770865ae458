#!/usr/bin/env bash
# Finding: MLX turns groups of tiny numbers into huge ones or infinity, quantized to mxfp4 and mxfp8
# Packages: mlx==0.32.4 mlx-cpu==0.32.4 numpy==2.4.6
# Input: 32 equal numbers, 2**-100 to 2**-140, by mx.quantize and mx.dequantize on the CPU.
# Expected: numbers near the input, or zeros: the smallest scale of the format is 2**-127.
# Seen: from 2**-126 (mxfp4) and 2**-120 (mxfp8) downward infinity, then numbers around 1e37: the scale byte wraps around.
# Matters: one group of weights that decayed to almost nothing makes a layer infinite.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check mlx==0.32.4 mlx-cpu==0.32.4 numpy==2.4.6

stated=$(cat <<'OUTPUT'
mxfp4 2**-100 = 7.89e-31 becomes 7.89e-31, scale byte 25
mxfp4 2**-119 = 1.5e-36 becomes 1.5e-36, scale byte 6
mxfp4 2**-120 = 7.52e-37 becomes 7.52e-37, scale byte 5
mxfp4 2**-125 = 2.35e-38 becomes 2.35e-38, scale byte 0
mxfp4 2**-126 = 1.18e-38 becomes inf, scale byte 255
mxfp4 2**-130 = 7.35e-40 becomes 8.51e+37, scale byte 251
mxfp4 2**-140 = 7.17e-43 becomes 8.31e+34, scale byte 241
mxfp8 2**-100 = 7.89e-31 becomes 7.89e-31, scale byte 19
mxfp8 2**-119 = 1.5e-36 becomes 1.5e-36, scale byte 0
mxfp8 2**-120 = 7.52e-37 becomes inf, scale byte 255
mxfp8 2**-125 = 2.35e-38 becomes inf, scale byte 250
mxfp8 2**-126 = 1.18e-38 becomes inf, scale byte 249
mxfp8 2**-130 = 7.35e-40 becomes 8.51e+37, scale byte 245
mxfp8 2**-140 = 7.17e-43 becomes 7.27e+34, scale byte 234
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)
for mode in ("mxfp4", "mxfp8"):
    for exponent in (-100, -119, -120, -125, -126, -130, -140):
        x = mx.array(np.full((1, 32), 2.0**exponent, np.float32))
        packed, scale = mx.quantize(x, mode=mode)
        found = np.array(mx.dequantize(packed, scale, mode=mode, dtype=mx.float32))[0, 0]
        print(mode, f"2**{exponent} = {2.0**exponent:.3g} becomes {found:.3g}, scale byte {scale.item()}")
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
