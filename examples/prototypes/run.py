"""Ten published algorithms as prototypes, in five modes: how many results and gradients differ from the specification.

Inputs are random, with special values, and then with a quarter of the elements beside knife edges of the algorithm,
found for each.

.venv/bin/python examples/prototypes/run.py
.venv/bin/python examples/prototypes/run.py --train
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


def compare(given: argparse.Namespace) -> int:
    """Prints how many results and gradients differ, on random inputs and at knife edges; the sum."""
    from samebits.proofs.prototypes.agreement import differing, differing_at_edges

    modes, total = given.mode or MODES, 0
    print(f"{'differences':<18}" + "".join(f"{mode:>16}" for mode in modes))
    for one in algorithms(given.only or ()):
        found = differing(one, *inputs(), modes)
        edges = differing_at_edges(one, *inputs(), modes, given.edges) if given.edges else dict.fromkeys(modes, 0)
        counts = [found[mode] + edges[mode] for mode in modes]
        total += sum(counts)
        print(f"{one.name:<18}" + "".join(f"{count:>16}" for count in counts), flush=True)
    return total


def show_training(given: argparse.Namespace) -> None:
    """Prints the accuracy on held-out digits after the same training in torch and in flax, and how far losses part."""
    from train import train

    print(f"\n{'trained':<18}{'torch':>10}{'flax':>10}{'largest distance of losses':>30}")
    for one in (None, *algorithms(given.only or ())):
        of_torch, of_flax = (train(one, framework, given.epochs) for framework in ("torch", "jax"))
        apart = abs(of_torch.losses - of_flax.losses).max()
        name = "float32" if one is None else one.name
        print(f"{name:<18}{of_torch.accuracy:>8.2f} %{of_flax.accuracy:>8.2f} %{apart:>30.1e}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; 1 if anything differs."""
    parser = argparse.ArgumentParser(description="Published algorithms in five modes.")
    parser.add_argument("--mode", action="append", choices=MODES, help="one mode; may be repeated")
    parser.add_argument("--only", action="append", choices=FILES, help="one algorithm; may be repeated")
    parser.add_argument("--edges", type=int, default=1, help="pairs of tensors beside edges; 0 for none")
    parser.add_argument("--train", action="store_true", help="then train a network with each, in torch and in flax")
    parser.add_argument("--epochs", type=int, default=10, help="of training")
    given = parser.parse_args(arguments)
    total = compare(given)
    if given.train:
        show_training(given)
    return int(total > 0)


if __name__ == "__main__":
    raise SystemExit(main())
