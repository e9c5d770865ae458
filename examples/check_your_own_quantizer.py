"""Is your quantizer one of ours? Ask it where quantizers are decided, see which rule it breaks, and repair it.

    python examples/check_your_own_quantizer.py
    python examples/check_your_own_quantizer.py --like int8_per_tensor --dtype bfloat16

The first quantizer is as many libraries have it. Each of the next repairs what the report said of the one before.
"""

import argparse

import torch

from samebits.proofs import conformance
from samebits.proofs.conformance.vectors import DTYPES

LIKE = ("int8_per_tensor", "int8_per_channel", "int8_per_token")


def as_many_have_it(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiplies by the reciprocal of the scale, and keeps the sign of zero."""
    return torch.clamp(torch.round(x * (1 / scale)), -128, 127) * scale


def with_a_division(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Divides, so that numbers halfway between two codes stay halfway."""
    return torch.clamp(torch.round(x / scale), -128, 127) * scale


def with_one_zero(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """-0 + 0 is +0, and anything else stays what it is."""
    return torch.clamp(torch.round(x / scale), -128, 127) * scale + 0.0


def in_float32(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Computes numbers of 16 bits in float32, and rounds once at the end."""
    return with_one_zero(x.float(), scale).to(x.dtype) if x.dtype.itemsize == 2 else with_one_zero(x, scale)


def main() -> int:
    """Ask each of them; 0 if the last one has the bits of the specification."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", default="int8_per_channel", choices=LIKE)
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    chosen = parser.parse_args()
    for function in (as_many_have_it, with_a_division, with_one_zero, in_float32):
        report = conformance(function, chosen.like, dtype=chosen.dtype)
        print(report, end="\n\n")
    return 0 if report.same else 1


if __name__ == "__main__":
    raise SystemExit(main())
