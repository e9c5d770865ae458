#!/usr/bin/env bash
# Finding: blockwise quantization of bitsandbytes on the CPU does not keep zero, though its table has it
# Packages: bitsandbytes==0.50.2 torch==2.13.0 numpy==2.4.6
# Input: a block of 64 with a one, zeros, and numbers of 6e-7 to 1e-4, float32, by quantize_blockwise.
# Expected: the nearest of the 256 numbers of the table: 0 for 0, and 5.5e-07 for 6e-07.
# Seen: 0 becomes 2.125e-05 of the peak, and so do 6e-07 and 1e-05: code 131, not 127.
# Matters: moments of an optimizer that are zero, or states that were never touched, come back as something.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check bitsandbytes==0.50.2 torch==2.13.0 numpy==2.4.6

stated=$(cat <<'OUTPUT'
1: code 255, 1; nearest in the table 1
0: code 131, 2.125e-05; nearest in the table 0
6e-07: code 131, 2.125e-05; nearest in the table 5.5e-07
-6e-07: code 123, -2.125e-05; nearest in the table -5.5e-07
1e-05: code 131, 2.125e-05; nearest in the table 7.75e-06
0.0001: code 134, 8.875e-05; nearest in the table 8.875e-05
0.5: code 219, 0.5008; nearest in the table 0.5008
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import logging

logging.disable()
import torch
from bitsandbytes.functional import create_dynamic_map, dequantize_blockwise, quantize_blockwise

table = create_dynamic_map()
x = torch.zeros(1, 64)
numbers = (1.0, 0.0, 6e-7, -6e-7, 1e-5, 1e-4, 0.5)
x[0, : len(numbers)] = torch.tensor(numbers)
codes, state = quantize_blockwise(x, blocksize=64)
found = dequantize_blockwise(codes, state)
for i, number in enumerate(numbers):
    nearest = table[(table - x[0, i]).abs().argmin()]
    print(f"{number:g}: code {codes[0, i]}, {found[0, i]:.4g}; nearest in the table {nearest:.4g}")
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
