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
exec timeout "${LIMIT:-480}" "${PYTHON:-python3}" "$root/benchmarks/accelerator.py" "$@"
