#!/usr/bin/env bash
# Finding: MXFP8 of breccia cuts the largest element of a block, by up to 29 percent
# Packages: breccia==0.1.3 numpy==2.4.6
# Input: blocks of 32 with one element of 448 to 640 beside ones, float32, MXFP8BlockScaling().
# Expected: at most 12.5 percent, where the exponent is the floor of the logarithm (OCP MX 1.0, section 6.3); else nothing.
# Seen: 633 becomes 448: the logarithm of amax / 448 is rounded to the nearest integer, so amax may be 448 * sqrt(2) steps.
# Matters: outliers, for which blocks were made, are the numbers that are lost.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check breccia==0.1.3 numpy==2.4.6

stated=$(cat <<'OUTPUT'
448: scale 2**0, back 448
500: scale 2**0, back 448
560: scale 2**0, back 448
633: scale 2**0, back 448
634: scale 2**1, back 640
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import numpy as np
from breccia import MXFP8BlockScaling, cast, dequantize

for peak in (448, 500, 560, 633, 634):
    x = np.ones((1, 32), np.float32)
    x[0, 0] = peak
    made = cast(x, MXFP8BlockScaling())
    print(f"{peak}: scale 2**{int(made.scale.item()) - 127}, back {dequantize(made)[0, 0]:g}")
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
