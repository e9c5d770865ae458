"""Which libraries each extra brings, from which release on, and the line that says what to install.

Every room but core needs libraries that `pip install samebits` does not bring. The first thing such a room does is
`require`, so that a user without them reads one line instead of a traceback from within. No library is imported for it.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

# By extra, by the name under which a library is imported: the oldest release that the test suite has run with. The
# lower bounds of pyproject.toml are the same. Each of these libraries has the name of its distribution.
EXTRAS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "torch": MappingProxyType({"torch": "2.13"}),
        "jax": MappingProxyType({"jax": "0.8.2", "flax": "0.12.4"}),
        "proofs": MappingProxyType(
            {
                "hypothesis": "6.100",
                "jinja2": "3.1",
                "matplotlib": "3.9",
                "rich": "13.0",
                "safetensors": "0.5",
                "typer": "0.15.4",
            }
        ),
        "files": MappingProxyType({"safetensors": "0.5"}),
        "onnx": MappingProxyType({"onnx": "1.23"}),
        "cluster": MappingProxyType({"distributed": "2026.8"}),
    }
)
ROOMS: Mapping[str, str] = MappingProxyType({"torch_frontend": "torch", "jax_backend": "jax"})  # and the extra of each


def require(room: str) -> None:
    """ImportError, with the line of `lacking`, unless the libraries of a room of `ROOMS` are there and new enough."""
    if line := lacking(ROOMS[room], f"samebits.{room}"):
        raise ImportError(line)


def lacking(extra: str, what: str) -> str | None:
    """The first library of an extra of `EXTRAS` that ``what`` would miss, and the command that brings it, in one line.

    None when all are there. A release is too old by its numbers alone: 2.13.0a0+git and 2.13.0+cpu are new enough for
    2.13, and so is a library that does not say its release.
    """
    return next(filter(None, (_line(library, extra, what) for library in EXTRAS[extra])), None)


def explained(error: ImportError, what: str) -> str | None:
    """The same line for an import that failed; None where it did not fail for want of a library of `EXTRAS`."""
    return shortage((error.name or "").partition(".")[0], what)


def shortage(library: str, what: str) -> str | None:
    """The same line for one library; None where it is there and new enough, or not in `EXTRAS`."""
    extra = next((extra for extra, libraries in EXTRAS.items() if library in libraries), None)
    return _line(library, extra, what) if extra else None


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """Around imports: an ImportError for want of a library of `EXTRAS` says the same line."""
    try:
        yield
    except ImportError as error:
        line = explained(error, what)
        if line is None:
            raise
        raise ImportError(line, name=error.name) from None


def _line(library: str, extra: str, what: str) -> str | None:
    found, least = _release(library), EXTRAS[extra][library]
    if found is None:
        return f"{what} needs {library}, which is not installed: pip install 'samebits[{extra}]'"
    if _numbers(found) and _numbers(found) < _numbers(least):
        return f"{what} needs {library} {least} or newer, found {found}: pip install -U 'samebits[{extra}]'"
    return None


def _release(library: str) -> str | None:
    """The release of a library; "" when it is there and does not say which, None when it is not there."""
    from importlib.metadata import PackageNotFoundError, version  # they cost milliseconds that core alone needs not
    from importlib.util import find_spec

    try:
        return version(library) or ""
    except PackageNotFoundError:
        spec = find_spec(library)
        return "" if spec and spec.origin else None  # a folder that happens to have the name has no origin


def _numbers(release: str) -> tuple[int, ...]:
    """The numbers that a release begins with, without zeros at their end; none of them in a text that is no release."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", release)
    numbers = [int(number) for number in match[1].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
