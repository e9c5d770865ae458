#!/usr/bin/env bash
# Finding: a program that torch.compile made for 0.0 is used for -0.0 too, and one for -0.0 for 0.0
# Packages: torch==2.13.0 numpy==2.4.6
# Input: a tensor and a Python float, 0.0 in one call and -0.0 in the next, in either order.
# Expected: the results of eager mode: the float decides the sign of zeros, as IEEE 754 has it.
# Seen: the second call has the signs of the first, since the guard on the float compares 0.0 == -0.0.
# Matters: a test that runs special values one after the other compares results of another input than it thinks.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

stated=$(cat <<'OUTPUT'
0.0, then -0.0: eager [0.0, -0.0], compiled [0.0, 0.0]
-0.0, then 0.0: eager [-0.0, 0.0], compiled [-0.0, -0.0]
the float as a tensor: eager [0.0, -0.0], compiled [0.0, -0.0]
OUTPUT
)

seen=$(TMPDIR=$folder "$folder/bin/python" - <<'PROGRAM'
import torch


def product(x, factor):
    return x * factor


x = torch.ones(1)
for title, factors in (("0.0, then -0.0", (0.0, -0.0)), ("-0.0, then 0.0", (-0.0, 0.0))):
    torch.compiler.reset()
    compiled = torch.compile(product, fullgraph=True)
    print(f"{title}: eager {[product(x, f).item() for f in factors]}, compiled {[compiled(x, f).item() for f in factors]}")
torch.compiler.reset()
compiled, tensors = torch.compile(product, fullgraph=True), [torch.tensor(f) for f in (0.0, -0.0)]
print(f"the float as a tensor: eager {[product(x, t).item() for t in tensors]}, compiled {[compiled(x, t).item() for t in tensors]}")
PROGRAM
)

printf '%s\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed; stated was:\n%s\n' "$stated" >&2
    exit 1
fi
