"""A digest of the code whose results are recorded, which changes when the code does and not when its words do.

It is taken over syntax trees: comments, docstrings, blank lines and the layout of a line play no part. Names, messages,
annotations and everything that runs do.
"""

import ast
import hashlib
from collections.abc import Collection, Mapping
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
    """The text of every module, by names like ``core/grid.py``."""
    found = {}
    for room in ROOMS:
        spec = find_spec(f"samebits.{room}")
        for path in sorted(Path(spec.origin).parent.glob("*.py")) if spec and spec.origin else ():
            found[f"{room}/{path.name}"] = path.read_text(encoding="utf-8")
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
        for room, inside in _imported(name.partition("/")[0], modules[name]):
            module = f"{room}/{inside}.py"
            waiting.append(module if module in modules else f"{room}/__init__.py")
    return found


@lru_cache(maxsize=512)
def _imported(room: str, text: str) -> tuple[tuple[str, str], ...]:
    """What a module of a room imports of samebits: a room, and the name of a module or of something in the room."""
    paths: list[list[str]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            paths += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ([], ["samebits", room], ["samebits"])[node.level]
            origin = package + (node.module.split(".") if node.module else [])
            paths += [[*origin, alias.name] for alias in node.names]
    return tuple((p[1], p[2] if len(p) > 2 else "__init__") for p in paths if p[0] == "samebits" and len(p) > 1)


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
