#!/usr/bin/env bash
# Finding: one NaN or infinity in a group makes all of its numbers 896 in MLX's mxfp8, and 0 in its mxfp4, none of them NaN
# Packages: mlx==0.32.4 mlx-cpu==0.32.4 numpy==2.4.6
# Input: a group of 32 ones, with a NaN or an infinity in one place, by mx.quantize and mx.dequantize on the CPU.
# Expected: NaN somewhere: both formats have a scale that is NaN, and mxfp8 a number that is.
# Seen: 32 times 896, or 32 times 0; affine quantization makes the NaN 1, as if it had not been there.
# Matters: a weight that has become NaN vanishes from a checkpoint, and its neighbours are wrong without a trace.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check mlx==0.32.4 mlx-cpu==0.32.4 numpy==2.4.6

stated=$(cat <<'OUTPUT'
affine nan gives ['1.0']
affine inf gives ['nan']
mxfp4 nan gives ['0.0']
mxfp4 inf gives ['0.0']
mxfp8 nan gives ['896.0']
mxfp8 inf gives ['896.0']
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)
for mode in ("affine", "mxfp4", "mxfp8"):
    for special in (np.nan, np.inf):
        x = np.ones((1, 32), np.float32)
        x[0, 3] = special
        packed = mx.quantize(mx.array(x), group_size=32, mode=mode)
        found = np.array(mx.dequantize(*packed, group_size=32, mode=mode, dtype=mx.float32))
        print(mode, special, "gives", sorted({str(v) for v in found.ravel()}))
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
