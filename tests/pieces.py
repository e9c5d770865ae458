"""Eager formulas of torch by small pieces, so that small arrays go by them."""

from typing import Any

import pytest

from samebits.torch_frontend import formula_pieces


def counted_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> list[int]:
    """How many elements each piece had that was computed, in a list that grows; a whole one has ``size``."""
    seen: list[int] = []
    replay = formula_pieces._replay

    def counted(*given: Any) -> None:
        seen.append(given[-1].numel())
        replay(*given)

    monkeypatch.setattr(formula_pieces, "CHUNK", size)
    monkeypatch.setattr(formula_pieces, "_replay", counted)
    return seen
