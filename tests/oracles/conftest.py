"""What the oracles share."""

from types import SimpleNamespace

import pytest
import torch
from optimum.quanto.library.extensions import get_extension


@pytest.fixture(autouse=True, scope="session")
def _quanto_unpacks_in_python() -> None:
    """quanto would compile for half a minute what unpacks its codes, by a C++ compiler, in every new environment."""
    get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=_unpack)


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of ``bits`` bits, the lowest bits of all bytes first."""
    return torch.cat([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)])
