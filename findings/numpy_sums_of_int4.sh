#!/usr/bin/env bash
# Finding: sums and dot products of int4 arrays in NumPy wrap around, silently and in different types
# Packages: numpy==2.4.6 ml_dtypes==0.6.0
# Input: 4 codes of 7 as int4, and 3 codes of 100 as int8.
# Expected: 28 and 196, as the sum of an int8 array is taken in int64: 300.
# Seen: the sum is -4, an int4; the dot product is -60, an int8. No warning.
# Matters: a zero point or a row sum computed from int4 codes is wrong unless they are cast to int32 first.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0

stated=$(cat <<'OUTPUT'
int8 sum 300 int64
int4 sum -4 int4
int4 dot -60 int8
int4, cast to int32 first 28 196
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import ml_dtypes
import numpy as np

eight = np.full(3, 100, np.int8)
print("int8 sum", eight.sum(), eight.sum().dtype)
four = np.full(4, 7, ml_dtypes.int4)
print("int4 sum", four.sum(), four.sum().dtype)
print("int4 dot", four @ four, (four @ four).dtype)
wide = four.astype(np.int32)
print("int4, cast to int32 first", wide.sum(), wide @ wide)
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
