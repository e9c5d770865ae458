#!/usr/bin/env bash
# Finding: safetensors saves arrays of NumPy that it cannot load again
# Packages: safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.6.0
# Input: 1, 2 and 3 as bfloat16, float8_e4m3fn and float8_e5m2 arrays, by save and load, save_file and load_file.
# Expected: the same arrays again, or an error when saving.
# Seen: saving always works; float8 files cannot be loaded, and bfloat16 bytes only by load_file.
# Matters: a checkpoint of float8 weights written from NumPy or JAX cannot be read back by the same module.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.6.0

stated=$(cat <<'OUTPUT'
bfloat16: load KeyError, load_file the same
float8_e4m3fn: load KeyError, load_file AttributeError
float8_e5m2: load KeyError, load_file AttributeError
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import os
import tempfile

import ml_dtypes
import numpy as np
from safetensors.numpy import load, load_file, save, save_file


def outcome(read, x):
    try:
        return "the same" if np.array_equal(read()["x"], x) else "other numbers"
    except (KeyError, AttributeError) as error:
        return type(error).__name__


path = os.path.join(tempfile.mkdtemp(), "x.safetensors")
for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
    x = np.array([1, 2, 3], dtype)
    save_file({"x": x}, path)
    saved = save({"x": x})
    found = outcome(lambda: load(saved), x), outcome(lambda: load_file(path), x)
    print(f"{dtype.__name__}: load {found[0]}, load_file {found[1]}")
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
