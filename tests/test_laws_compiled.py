"""Every law in compiled code: on the cases of `law_cases`, in one program of XLA, and in one of inductor."""

import pytest

from samebits.proofs.execution import MODES
from samebits.proofs.laws import LAWS

from .law_cases import cases_of, dtypes_for, implementation_for, laws_for, tried
from .test_laws import UNFUSED

COMPILED = [mode for mode in MODES if mode not in UNFUSED]
TRIED = [(mode, name, law) for mode in COMPILED for name in tried(mode) for law in laws_for(mode, name)]


@pytest.mark.parametrize(("mode", "name", "law"), TRIED)
def test_law(mode: str, name: str, law: str) -> None:
    q = tried(mode)[name]
    for dtype in dtypes_for(mode, name):
        for x, qparams, g in cases_of(q, dtype):
            LAWS[law](implementation_for(mode), q, x, qparams, g)


def test_both_compilers_are_tried() -> None:
    assert {mode for mode, _, _ in TRIED} == {"torch compiled", "jax jit"}
