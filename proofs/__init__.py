"""The instruments: what it takes to say "the same bits" and mean it, on your functions as well as on ours.

The names that most users need are here; the rest is imported from the rooms. Each is imported when it is first used, so
that importing this package costs nothing and needs no framework. What compares arrays needs NumPy alone; a name that
needs more says which extra brings it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .certificates.certify import certify as certify
    from .certificates.request import requested as requested
    from .conformance.conform import conformance as conformance
    from .conformance.fingerprint import fingerprint as fingerprint
    from .divergence.divergence import diverge as diverge
    from .inputs.compare import assert_same_bits as assert_same_bits
    from .inputs.compare import differences as differences
    from .inputs.found_edges import found_differences as found_differences
    from .inputs.found_edges import found_edges as found_edges
    from .inputs.knife_edges import knife_edge_array as knife_edge_array
    from .inputs.knife_edges import knife_edges as knife_edges
    from .laws.catalog_of_laws import LAWS as LAWS
    from .laws.catalog_of_laws import applies as applies
    from .modes.execution import MODES as MODES
    from .modes.execution import Implementation as Implementation
    from .modes.execution import implementation as implementation
    from .prototypes.decorator import prototype as prototype
    from .validation.validate import validate as validate

_PLACES = {
    "certify": "certificates.certify",
    "requested": "certificates.request",
    "conformance": "conformance.conform",
    "fingerprint": "conformance.fingerprint",
    "diverge": "divergence.divergence",
    "assert_same_bits": "inputs.compare",
    "differences": "inputs.compare",
    "found_differences": "inputs.found_edges",
    "found_edges": "inputs.found_edges",
    "knife_edge_array": "inputs.knife_edges",
    "knife_edges": "inputs.knife_edges",
    "LAWS": "laws.catalog_of_laws",
    "applies": "laws.catalog_of_laws",
    "MODES": "modes.execution",
    "Implementation": "modes.execution",
    "implementation": "modes.execution",
    "prototype": "prototypes.decorator",
    "validate": "validation.validate",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = getattr(import_module(f".{_PLACES[name]}", __name__), name)
        return globals().get(name, found)  # a room of that name, which importing it has put here, can be called as well
    except ImportError as error:
        from ..core.requirements import explained

        line = explained(error, f"{__name__}.{name}")
        if line is None:
            raise
        raise ImportError(line, name=error.name) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
