"""A digest of the code whose results are recorded, which changes when the code does and not when its words do.

It is taken over syntax trees: comments, docstrings, blank lines and the layout of a line play no part. Names, messages,
annotations and everything that runs do.
"""

import ast
import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOMS = ("core", "torch_frontend", "jax_backend")
FUNCTIONS = "quantizer.py"  # of each room: the five functions
NAMES = ("catalog.py", "dialects.py")  # modules that give names to quantizers and compute nothing


def source_digest(without: Collection[str] = (), reached_from: str | None = None) -> str:
    """SHA-256 over the names and the syntax trees of modules of the three rooms.

    Args:
        without: file names to leave out: `NAMES` where the quantizer itself is recorded, field by field.
        reached_from: a file name; None for all modules, else those that this one of each room can reach by imports.
    """
    digest = hashlib.sha256()
    modules = all_modules()
    for name in sorted(modules if reached_from is None else reached(modules, reached_from)):
        if name.partition("/")[2] not in without:
            digest.update(f"{name} {tree_digest(modules[name])}\n".encode())
    return digest.hexdigest()


def all_modules() -> dict[str, str]:
    """The text of every module, by names like ``core/grid.py`` and ``jax_backend/nn/conv.py``."""
    found = {}
    for room in ROOMS:
        spec = find_spec(f"samebits.{room}")
        if spec and spec.origin:
            folder = Path(spec.origin).parent
            for path in sorted(folder.rglob("*.py")):
                found[f"{room}/{path.relative_to(folder).as_posix()}"] = path.read_text(encoding="utf-8")
    return found


def reached(modules: Mapping[str, str], file: str) -> set[str]:
    """The modules called ``file`` in any room, those they import, those these import, and so on.

    Imports count wherever they stand, in a function too. A name taken from a room itself stands for its ``__init__``,
    which imports nearly everything.
    """
    waiting = [name for name in modules if name.partition("/")[2] == file]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += [_file(path, modules) for path in _imported(name, modules[name])]
    return found


def _file(path: Sequence[str], modules: Mapping[str, str]) -> str:
    """The module that a dotted path leads into: as far as there are files, then the ``__init__`` of that folder."""
    for end in range(len(path), 0, -1):
        for name in ("/".join(path[:end]) + ".py", "/".join((*path[:end], "__init__.py"))):
            if name in modules:
                return name
    return f"{path[0]}/__init__.py"


@lru_cache(maxsize=512)
def _imported(name: str, text: str) -> tuple[tuple[str, ...], ...]:
    """What a module imports of samebits: dotted paths from the room on, which may end with a name in a module."""
    here = ["samebits", *name.split("/")[:-1]]
    paths: list[list[str]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            paths += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = here[: len(here) + 1 - node.level] if node.level else []
            origin = package + (node.module.split(".") if node.module else [])
            paths += [[*origin, alias.name] for alias in node.names]
    return tuple(tuple(path[1:]) for path in paths if path[0] == "samebits" and len(path) > 1)


@lru_cache(maxsize=512)
def tree_digest(text: str) -> str:
    """SHA-256 of the syntax tree of a module.

    Fields that hold nothing are left out, since releases of Python differ in which of them there are.
    """
    return hashlib.sha256(repr(_plain(ast.parse(text))).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, ast.AST):
        own = [(name, _plain(field)) for name, field in ast.iter_fields(value) if field is not None and field != []]
        return type(value).__name__, *own
    if isinstance(value, list):
        return [_plain(item) for item in value if not _is_text(item)]
    return value


def _is_text(node: Any) -> bool:
    """A statement that is a string: a docstring, wherever it stands."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
