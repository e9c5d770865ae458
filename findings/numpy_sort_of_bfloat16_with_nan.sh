#!/usr/bin/env bash
# Finding: NumPy does not sort bfloat16 or float8 arrays that hold a NaN
# Packages: numpy==2.4.6 ml_dtypes==0.6.0
# Input: 7 numbers, two of them NaN, as float32, float16, bfloat16 and float8_e4m3fn arrays.
# Expected: numbers in ascending order and NaN at the end, as for float16 and float32.
# Seen: for bfloat16 and float8_e4m3fn the numbers keep their places on either side of a NaN.
# Matters: a range by percentiles or ranks of such an array takes arbitrary elements.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0

stated=$(cat <<'OUTPUT'
float32 [-1.0, 0.0, 1.0, 2.0, 3.0, nan, nan]
float16 [-1.0, 0.0, 1.0, 2.0, 3.0, nan, nan]
bfloat16 [3.0, nan, 1.0, nan, -1.0, 0.0, 2.0]
float8_e4m3fn [3.0, nan, 1.0, nan, -1.0, 0.0, 2.0]
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import ml_dtypes
import numpy as np

x = np.array([3, np.nan, 1, np.nan, 2, 0, -1], np.float32)
for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
    print(dtype.__name__, np.sort(x.astype(dtype)).astype(np.float32).tolist())
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
