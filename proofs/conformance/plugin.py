"""The pytest plugin, which pytest finds where samebits is installed.

A test marked ``@pytest.mark.samebits(like="int8_per_channel")`` returns the function to be tested, and passes if
`conformance` finds the bits of the specification. Fixtures: `knife_edges`, `execution_mode`. Nothing is imported but
pytest until one of them is used.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ...core.descriptions import QParams, Quantizer

MARK = "samebits"
MARK_SAID = (
    'samebits(like, dtype="float32", library=None, returns=None, shapes=True, spacing=None): the test returns a '
    "function of (x, scale[, zero_point]), which must have the bits of that quantizer: samebits.proofs.conformance"
)


def pytest_configure(config: pytest.Config) -> None:
    """Announce the marker."""
    config.addinivalue_line("markers", MARK_SAID)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    """Run a marked test: what it returns is asked, and fails with the whole report."""
    mark = pyfuncitem.get_closest_marker(MARK)
    if mark is None:
        return None
    from .conform import conformance

    names = pyfuncitem._fixtureinfo.argnames
    function = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    if not callable(function):
        pytest.fail(f"a test marked with samebits must return the function to be tested, got {function!r}", False)
    try:
        report = conformance(function, *mark.args, **mark.kwargs)
    except (KeyError, TypeError, ValueError) as error:
        pytest.fail(f"@pytest.mark.samebits: {error.args[0]}", pytrace=False)
    if not report.same:
        pytest.fail(str(report), pytrace=False)
    return True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `execution_mode` runs once for each mode."""
    if "execution_mode" in metafunc.fixturenames:
        from ..modes.execution import MODES, not_installed

        skip = {mode: [pytest.mark.skip(reason=reason)] if (reason := not_installed(mode)) else [] for mode in MODES}
        metafunc.parametrize("execution_mode", [pytest.param(m, marks=skip[m]) for m in MODES], indirect=True)


@pytest.fixture
def execution_mode(request: pytest.FixtureRequest) -> str:
    """One of `samebits.proofs.MODES`: the test runs once for each, and is skipped where its library is not there."""
    mode: str = request.param
    return mode


@pytest.fixture
def knife_edges() -> "Callable[..., tuple[NDArray[Any], QParams]]":
    """``knife_edges(like, scale, zero_point=None, dtype="float32") -> (x, qparams)``.

    An array at whose elements a quantizer is decided, and the parameters that belong to it, of the shapes that
    `samebits.proofs.knife_edge_array` says. ``like`` is a name of the catalog or a quantizer; ``scale`` one number or
    several, ``zero_point`` likewise, which an affine quantizer needs.
    """

    def edges(
        like: "str | Quantizer", scale: Any, zero_point: Any = None, dtype: "str | np.dtype[Any]" = "float32"
    ) -> "tuple[NDArray[Any], QParams]":
        import numpy as np

        from ...core import QParams, catalog
        from ..inputs.knife_edges import knife_edge_array
        from .vectors import DTYPES

        q = catalog[like] if isinstance(like, str) else like
        if q.affine != (zero_point is not None):
            wanted = "needs a `zero_point`" if q.affine else "takes no `zero_point`"
            raise ValueError(f"{q.format} {q.granularity}, {'affine' if q.affine else 'symmetric'}, {wanted}")
        kind = DTYPES[dtype] if isinstance(dtype, str) and dtype in DTYPES else np.dtype(dtype)
        wide = np.float64 if kind == np.float64 else np.float32
        zero = (
            None if zero_point is None else np.asarray(zero_point, wide if q.arithmetic.has_float_zeros else np.int32)
        )
        return knife_edge_array(q, QParams(np.asarray(scale, wide), zero), kind)

    return edges
