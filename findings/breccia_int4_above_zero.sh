#!/usr/bin/env bash
# Finding: asymmetric int4 of breccia makes all numbers of a block between 5 and 6 the same number, 1
# Packages: breccia==0.1.3 numpy==2.4.6
# Input: 32 numbers from 5 to 6, and from -6 to -5, float32, INT4Scaling(symmetric=False, signed=False).
# Expected: 16 levels over the range: errors of at most 1/30, as its scale of 1/15 says; or a range that holds 0.
# Seen: all are 1, or all are -1: the scale comes from the range of the data alone, and the zero point is cut to 0..15.
# Matters: weights or activations with one sign in a block are lost, without an error.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check breccia==0.1.3 numpy==2.4.6

stated=$(cat <<'OUTPUT'
-1 to 1: zero point 7, 15 codes, back -0.933 to 0.933
5 to 6: zero point 0, 1 codes, back 1.000 to 1.000
-6 to -5: zero point 15, 1 codes, back -1.000 to -1.000
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import numpy as np
from breccia import INT4Scaling, cast, dequantize

recipe = INT4Scaling(group_size=32, symmetric=False, signed=False, scale_dtype="fp32")
for low, high in ((-1, 1), (5, 6), (-6, -5)):
    x = np.linspace(low, high, 32, dtype=np.float32)[None]
    made = cast(x, recipe)
    found = dequantize(made)
    zero, codes = float(made.zero_point.item()), len(np.unique(made.data))
    print(f"{low} to {high}: zero point {zero:g}, {codes} codes, back {found.min():.3f} to {found.max():.3f}")
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
