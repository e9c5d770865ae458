"""A digest of the code whose results are recorded, which changes when the code does and not when its words do.

It is taken over syntax trees: comments, docstrings, blank lines and the layout of a line play no part. Names, messages,
annotations and everything that runs do.
"""

import ast
import hashlib
from collections.abc import Collection
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOMS = ("core", "torch_frontend", "jax_backend")
NAMES = ("catalog.py", "dialects.py")  # modules that give names to quantizers and compute nothing


def source_digest(without: Collection[str] = ()) -> str:
    """SHA-256 over the names and the syntax trees of all modules of the three rooms.

    Args:
        without: file names to leave out: `NAMES` where the quantizer itself is recorded, field by field.
    """
    digest = hashlib.sha256()
    for room in ROOMS:
        spec = find_spec(f"samebits.{room}")
        for path in sorted(Path(spec.origin).parent.glob("*.py")) if spec and spec.origin else ():
            if path.name not in without:
                digest.update(f"{room}/{path.name} {tree_digest(path.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()


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
