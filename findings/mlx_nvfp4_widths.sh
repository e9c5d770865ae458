#!/usr/bin/env bash
# Finding: MLX does not quantize rows of 16, 48 or 80 numbers to nvfp4, whose groups are of 16
# Packages: mlx==0.32.4 mlx-cpu==0.32.4 numpy==2.4.6
# Input: matrices of one row, of 16 to 96 numbers, by mx.quantize(mode="nvfp4") on the CPU.
# Expected: packed codes: the documentation asks for a last dimension divisible by the group size, which is 16.
# Seen: a ValueError about a reshape for odd multiples of 16.
# Matters: a layer whose width is such a multiple fits the format, and cannot be quantized.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check mlx==0.32.4 mlx-cpu==0.32.4 numpy==2.4.6

stated=$(cat <<'OUTPUT'
16 numbers: [reshape] Cannot reshape array of size 16 into shape (0,4,8).
32 numbers: 2 scales
48 numbers: [reshape] Cannot reshape array of size 48 into shape (1,4,8).
64 numbers: 4 scales
80 numbers: [reshape] Cannot reshape array of size 80 into shape (2,4,8).
96 numbers: 6 scales
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)
for width in range(16, 97, 16):
    try:
        packed, scale = mx.quantize(mx.array(np.ones((1, width), np.float32)), mode="nvfp4")
        print(width, "numbers:", scale.size, "scales")
    except ValueError as error:
        print(width, "numbers:", error)
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
