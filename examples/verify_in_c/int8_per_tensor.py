"""The same in NumPy: int8 per tensor, judged by the test vectors of samebits, which it reads and answers as text.

samebits vectors int8_per_tensor --out vectors
python examples/verify_in_c/int8_per_tensor.py vectors > answers.txt
samebits verify vectors --results answers.txt
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def table(name: str, *columns: int) -> NDArray[Any]:
    """Columns of a table, as float32 numbers."""
    lines = (Path(sys.argv[1]) / f"{name}.txt").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    return np.array([[int(row[i], 16) for i in columns] for row in rows], np.uint32).view(np.float32).T


x, scale, g = table("elements.float32", 0, 1, 2)
with np.errstate(over="ignore", invalid="ignore", under="ignore"):
    free = np.rint(x / scale)
    code = np.clip(free, -128, 127)
    value = code * scale + np.float32(0)
stored = np.nan_to_num(code).astype(np.int8).view(np.uint8)
dx = np.where((code == free) | np.isnan(free), g, np.float32(0))
print("section elements.float32 code value dx")
for row in zip(stored, value.view(np.uint32), dx.view(np.uint32), strict=True):
    print("{:02x} {:08x} {:08x}".format(*row))

most = np.abs(table("parameters.float32", *range(16))).max(0)
print("section parameters.float32 scale")
for bits in np.maximum(most / np.float32(127), np.finfo(np.float32).smallest_normal).view(np.uint32):
    print(f"{bits:08x}")
