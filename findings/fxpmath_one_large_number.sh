#!/usr/bin/env bash
# Finding: in fxpmath one large number in an array changes how all the others are rounded
# Packages: fxpmath==0.4.10 numpy==2.4.6
# Input: 0.6, 1.6, -0.6 and -1.6 to 8 bits without a fraction, rounding="around", alone and beside 1e19, 1e30 or infinity.
# Expected: 1, 2, -1 and -2 each time, and 127 for the large number, which saturates.
# Seen: 0, 1, 0 and -1 beside 1e30 or infinity: truncated, with a RuntimeWarning about objects.
# Matters: an outlier, or one infinity, makes every other code of the tensor another.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check fxpmath==0.4.10 numpy==2.4.6

stated=$(cat <<'OUTPUT'
beside [] -> [1.0, 2.0, -1.0, -2.0]
beside [1e+19] -> [1.0, 2.0, -1.0, -2.0]
beside [1e+30] -> [0.0, 1.0, 0.0, -1.0]
beside [inf] -> [0.0, 1.0, 0.0, -1.0]
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import warnings

import numpy as np
from fxpmath import Fxp

warnings.simplefilter("ignore")
x = np.array([0.6, 1.6, -0.6, -1.6])
for more in ([], [1e19], [1e30], [np.inf]):
    made = Fxp(np.append(x, more), signed=True, n_word=8, n_frac=0, rounding="around")
    print("beside", more, "->", made.get_val()[:4].tolist())
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
