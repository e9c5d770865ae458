"""What users name on the command line: ``package.module:attribute``, or ``FILE.py:attribute``.

Modules of the current directory count, and for a file those beside it.
"""

import os
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any


def named(name: str) -> Any:
    """The attribute of a module or a file, which is imported for it.

    Raises:
        ImportError: no such module or file, or one that fails to import something. KeyError: it has no such attribute.
    """
    path, _, attribute = name.rpartition(":")
    module = _of_file(name, Path(path)) if path.endswith(".py") else _of_path(name, path)
    if not hasattr(module, attribute):
        raise KeyError(f"{path} has no '{attribute}'")
    return getattr(module, attribute)


def _of_path(name: str, path: str) -> ModuleType:
    _look_in(os.getcwd())
    try:
        return import_module(path)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name}: cannot import {path}: {error}") from None


def _of_file(name: str, file: Path) -> ModuleType:
    """A file as a module, executed once."""
    if not file.is_file():
        raise ImportError(f"{name}: no such file: {file}")
    whole = file.resolve()
    alias = f"samebits file {whole}"  # no name that an import could have
    if alias not in sys.modules:
        _look_in(str(whole.parent))
        spec = spec_from_file_location(alias, whole)
        assert spec is not None  # the name ends with .py
        assert spec.loader is not None
        module = sys.modules[alias] = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a user's file raises
            del sys.modules[alias]
            raise ImportError(f"{name}: {file} cannot be executed: {type(error).__name__}: {error}") from error
    return sys.modules[alias]


def _look_in(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)
