"""The project's source as the tests of it see it: its files, what they import and define."""

import ast
import importlib.util
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
BACKENDS = ("torch_frontend", "jax_backend")
ROOMS = ("core", *BACKENDS, "proofs")
FOLDERS = (*ROOMS, "tests", "benchmarks", "examples", "docs", "findings")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@cache
def parsed(path: Path) -> ast.Module:
    """Syntax tree of a file, which nobody changes."""
    return ast.parse(path.read_text(), str(path))


def imported_names(tree: ast.Module, package: str) -> Iterator[str]:
    """Full dotted name of everything a module of this package imports; ``?`` for an import by a computed name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package.rsplit(".", level - 1)[0] if level else ""
                start = ".".join(part for part in (base, module) if part)
                yield from (f"{start}.{alias.name}" for alias in names)
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
                yield "?"
            case _:
                pass


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Classes, functions and methods with their dotted names; what is local to a function stays out."""
    for node in tree.body:
        if isinstance(node, Definition):
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from definitions(node, f"{prefix}{node.name}.")


def is_public(name: str) -> bool:
    """Whether no part of a dotted name starts with an underscore."""
    return not any(part.startswith("_") for part in name.split("."))


def example(name: str) -> ModuleType:
    """A program as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
