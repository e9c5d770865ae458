"""Ten published algorithms as prototypes, in five modes: how many results and gradients differ from the specification.

.venv/bin/python examples/prototypes/run.py
.venv/bin/python examples/prototypes/run.py --mode "torch eager" --mode "jax eager" --only dorefa
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from samebits.proofs import MODES
from samebits.proofs.prototypes.decorator import Prototype

sys.path.insert(0, str(Path(__file__).parent))
FILES = (
    "dorefa",
    "pact",
    "lsq_plus",
    "sawb",
    "apot",
    "logarithmic",
    "bitnet",
    "four_over_six",
    "residual",
    "mxfp4_gradients",
)


def algorithms(only: Sequence[str] = ()) -> Iterator[Prototype]:
    """Every prototype of the files, or of some of them."""
    for name in only or FILES:
        yield from (v for v in vars(import_module(name)).values() if isinstance(v, Prototype))


def inputs(dtype: Any = np.float32) -> tuple[Any, Any]:
    """Numbers of all magnitudes that weights and activations have, exact halves, zeros; and gradients."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 64)) * np.exp2(rng.integers(-3, 3, size=(8, 1)))
    x[0, :16] = np.arange(16) / 4 - 2
    x[1, :4], x[1, 32:64] = (0.0, -0.0, 1e-40, -1e-30), 0.0
    return x.astype(dtype), rng.normal(size=(8, 64)).astype(dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if anything differs."""
    parser = argparse.ArgumentParser(description="Published algorithms in five modes.")
    parser.add_argument("--mode", action="append", choices=MODES, help="one mode; may be repeated")
    parser.add_argument("--only", action="append", choices=FILES, help="one algorithm; may be repeated")
    given = parser.parse_args(arguments)
    from samebits.proofs.prototypes.agreement import differing

    modes, total = given.mode or MODES, 0
    print(f"{'algorithm':<18}" + "".join(f"{mode:>16}" for mode in modes))
    for one in algorithms(given.only or ()):
        found = differing(one, *inputs(), modes)
        total += sum(found.values())
        print(f"{one.name:<18}" + "".join(f"{found[mode]:>16}" for mode in modes), flush=True)
    return int(total > 0)


if __name__ == "__main__":
    raise SystemExit(main())
