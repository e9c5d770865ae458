#!/usr/bin/env bash
# Finding: JAX on CPU divides by a scalar as if it multiplied by the reciprocal
# Packages: jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 ml_dtypes==0.6.0
# Input: the 254 ties (k + 0.5) * 0.1 of an int8 quantizer with scale 0.1, as float32.
# Expected: the correctly rounded quotient of IEEE 754, and codes round(x / s) as NumPy has them.
# Seen: all quotients are those of x * (1 / s), eager and under jit; 18 of 254 codes differ.
# Matters: codes of a quantizer that divides differ from those of NumPy and torch by a whole step.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 ml_dtypes==0.6.0

stated=$(cat <<'OUTPUT'
eager: 254 of 254 are the product, 18 codes differ from a division's
jit: 254 of 254 are the product, 18 codes differ from a division's
jit, divisor of full shape: 0 codes differ from a division's
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import jax
import jax.numpy as jnp
import numpy as np

s = np.float32(0.1)
x = ((np.arange(-127, 127) + 0.5) * 0.1).astype(np.float32)
codes, products = np.round(x / s), x * (np.float32(1) / s)


def divide(x, s):
    return x / s


for name, function in (("eager", divide), ("jit", jax.jit(divide))):
    found = np.asarray(function(jnp.asarray(x), jnp.asarray(s)))
    same, differing = (found == products).sum(), (np.round(found) != codes).sum()
    print(f"{name}: {same} of {x.size} are the product, {differing} codes differ from a division's")
full = np.asarray(jax.jit(divide)(jnp.asarray(x), jnp.full(x.shape, s)))
print(f"jit, divisor of full shape: {(np.round(full) != codes).sum()} codes differ from a division's")
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
