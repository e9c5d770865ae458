#!/usr/bin/env bash
# Finding: the mean of bfloat16 numbers in NumPy is far too small
# Packages: numpy==2.4.6 ml_dtypes==0.6.0
# Input: 1000 ones, and the magnitudes of 4096 normally distributed numbers, as float16 and bfloat16 arrays.
# Expected: 1 and about 0.8 for both, as NumPy takes sums of float16 for a mean in float32.
# Seen: 0.256 and 0.25 for bfloat16. Every partial sum is rounded to bfloat16, where 256 + 1 is 256.
# Matters: a scale that is a mean of magnitudes (ternary and binary weights) is a third of what it should be.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0

stated=$(cat <<'OUTPUT'
float16 1.0 0.8017578125
bfloat16 0.255859375 0.25
bfloat16, dtype=float32 1.0 0.8017154932022095
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import ml_dtypes
import numpy as np

ones = np.ones(1000)
weights = np.abs(np.random.default_rng(0).standard_normal(4096).astype(ml_dtypes.bfloat16)).astype(np.float32)
for dtype in (np.float16, ml_dtypes.bfloat16):
    print(dtype.__name__, float(ones.astype(dtype).mean()), float(weights.astype(dtype).mean()))
means = (x.astype(ml_dtypes.bfloat16).mean(dtype=np.float32) for x in (ones, weights))
print("bfloat16, dtype=float32", *(float(mean) for mean in means))
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
