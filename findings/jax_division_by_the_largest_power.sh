#!/usr/bin/env bash
# Finding: JAX on CPU divides every number by 2**127 to 0
# Packages: jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 ml_dtypes==0.6.0
# Input: 1e38, 2e38 and 3e38 in float32 and bfloat16, divided by the scalars 2**126 and 2**127, eager and under jit.
# Expected: 0.6, 1.2 and 1.8 for 2**127, as NumPy has them and as JAX has them for a divisor of full shape.
# Seen: 0, 0 and 0: the reciprocal 2**-127 that is multiplied by is subnormal, and flushed.
# Matters: a quantizer (Qwix, say) with such a scale makes every code the zero point; with 2**126 all is well.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 ml_dtypes==0.6.0

stated=$(cat <<'OUTPUT'
float32 / 2**126: ['1.18', '2.35', '3.53'] jit ['1.18', '2.35', '3.53'] full shape ['1.18', '2.35', '3.53']
float32 / 2**127: ['0', '0', '0'] jit ['0', '0', '0'] full shape ['0.588', '1.18', '1.76']
bfloat16 / 2**126: ['1.17', '2.34', '3.53'] jit ['1.17', '2.34', '3.53'] full shape ['1.17', '2.34', '3.53']
bfloat16 / 2**127: ['0', '0', '0'] jit ['0', '0', '0'] full shape ['0.586', '1.17', '1.77']
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import jax
import jax.numpy as jnp
import numpy as np


def shown(found):
    return [f"{v:.3g}" for v in np.asarray(found, np.float32)]


def divide(x, s):
    return x / s


for dtype in (jnp.float32, jnp.bfloat16):
    x = jnp.array([1e38, 2e38, 3e38], dtype)
    for exponent in (126, 127):
        s = jnp.array(2.0**exponent, dtype)
        print(dtype.__name__, f"/ 2**{exponent}:", shown(x / s), "jit", shown(jax.jit(divide)(x, s)), end=" ")
        print("full shape", shown(x / jnp.full(3, s)))
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
