"""What users name on the command line: ``package.module:attribute``, where modules of the current directory count."""

import os
import sys
from importlib import import_module
from typing import Any


def named(name: str) -> Any:
    """The attribute of a module that is imported for it.

    Raises:
        ImportError: no such module, or one that fails to import something. KeyError: it has no such attribute.
    """
    path, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name}: cannot import {path}: {error}") from None
    if not hasattr(module, attribute):
        raise KeyError(f"{path} has no '{attribute}'")
    return getattr(module, attribute)
