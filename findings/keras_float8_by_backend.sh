#!/usr/bin/env bash
# Finding: Keras' quantize_and_dequantize to float8 gives other numbers on JAX than on NumPy
# Packages: keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 ml_dtypes==0.6.0
# Input: the 252 numbers halfway between neighbours of float8_e4m3fn, times a scale of 0.3, and both float32 neighbours of each.
# Expected: the same on every backend: x / scale, rounded to float8, times scale.
# Seen: on NumPy (and on torch) the division; on JAX that of x * (1 / scale), another number at 36 of 756.
# Matters: a model quantized on one backend and run on another does not have the same weights.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 ml_dtypes==0.6.0

stated=$(cat <<'OUTPUT'
numpy [0, 36] of 756 differ from division and from the reciprocal
jax [36, 0] of 756 differ from division and from the reciprocal
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import subprocess
import sys

PROGRAM = """
import ml_dtypes
import numpy as np
from keras import ops
from keras.src.quantizers.quantizers import quantize_and_dequantize

s = np.float32(0.3)
values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
values = np.unique(values[np.isfinite(values)])
ties = ((values[1:] + values[:-1]) / 2 * np.float64(s)).astype(np.float32)
x = np.concatenate([np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)] + [ties])
operands = ops.convert_to_tensor(x), ops.convert_to_tensor(s)
found = ops.convert_to_numpy(quantize_and_dequantize(*operands, "float8_e4m3fn", "float32"))
other = [v.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * s for v in (x / s, x * (np.float32(1) / s))]
print([int((found != o).sum()) for o in other], "of", x.size, "differ from division and from the reciprocal")
"""
for backend in ("numpy", "jax"):
    run = subprocess.run([sys.executable, "-c", PROGRAM], env={"KERAS_BACKEND": backend}, capture_output=True, text=True)
    print(backend, run.stdout.strip())
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
