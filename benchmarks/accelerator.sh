#!/usr/bin/env bash
# Everything that is to be measured on one GPU, in under 8 minutes: bits of all modes there, and speed. Installs nothing.
#   benchmarks/accelerator.sh [--out FOLDER] [--device cpu --quick]
# PYTHON names an interpreter that has NumPy, ml_dtypes, torch and jax; samebits itself is taken from this checkout.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$root/build/types/samebits"
for room in core torch_frontend jax_backend proofs; do ln -sfn "../../../$room" "$root/build/types/samebits/$room"; done
export PYTHONPATH="$root/build/types${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false} # torch needs memory, too

end=$((SECONDS + ${LIMIT:-480}))
again=()
for _ in 1 2 3 4 5 6; do
    code=0
    timeout -k 5 "$((end - SECONDS))" "${PYTHON:-python3}" "$root/benchmarks/accelerator.py" "$@" "${again[@]}" || code=$?
    # What a signal ended goes on with the parts that are left; a part that never ends takes no others with it, either.
    if [ "$code" -lt 128 ] || [ "$SECONDS" -ge "$end" ]; then break; fi
    again=(--resume)
done
exit "$code"
