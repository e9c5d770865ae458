"""What JAX lets users be strict about is strict in all of these tests: promotion of dtypes and of ranks."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion() -> Iterator[None]:
    """No operation may mix dtypes or numbers of axes."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
