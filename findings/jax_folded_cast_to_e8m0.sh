#!/usr/bin/env bash
# Finding: in JAX a cast to float8_e8m0fnu depends on whether its operand is a constant of the program
# Packages: jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 ml_dtypes==0.6.0
# Input: 0, -3 and -80 as float32, cast to float8_e8m0fnu under jit: as an argument, and as a constant.
# Expected: the same byte either way; 255 (NaN), as the format has neither zero nor negative numbers.
# Seen: 255 for an argument; 0, 129 and 133 (the powers of two 2**-127, 4 and 64) for a constant.
# Matters: scales of MX formats computed from constants (a block of zeros) differ from those at run time.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 ml_dtypes==0.6.0

stated=$(cat <<'OUTPUT'
0.0 argument 255 constant 0
-3.0 argument 255 constant 129
-80.0 argument 255 constant 133
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import jax
import jax.numpy as jnp
import numpy as np


def cast(x):
    return x.astype(jnp.float8_e8m0fnu)


for value in (0.0, -3.0, -80.0):
    argument = jax.jit(cast)(jnp.full(4, value, jnp.float32))
    constant = jax.jit(lambda value=value: cast(jnp.full(4, value, jnp.float32)))()
    bytes_of = [int(np.asarray(found).view(np.uint8)[0]) for found in (argument, constant)]
    print(value, "argument", bytes_of[0], "constant", bytes_of[1])
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
