"""Every law in programs that XLA compiled, on the cases of `law_cases`."""

import pytest

from ...law_cases import check_law, laws_tried

MODES_TRIED = ("jax jit",)


@pytest.mark.thorough
@pytest.mark.parametrize(("mode", "name", "law"), laws_tried(*MODES_TRIED))
def test_law(mode: str, name: str, law: str) -> None:
    check_law(mode, name, law)
