"""Calling somebody's function: with arrays of its library, twice, on copies, and what went wrong if something did."""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from types import CodeType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.compare import same_bits
from ..modes.arrays import to_jax, to_numpy, to_torch
from ..modes.programs import jax_types

Array = NDArray[Any]
LIBRARIES = ("numpy", "torch", "jax")
DEPTH = 4  # of functions that call functions


@dataclass(frozen=True)
class Outcome:
    """What a call gave: an array, or the verdict on why there is none. ``remark``: what else is to be said of it."""

    result: Array | None
    verdict: str = ""
    remark: str = ""


def library_of(function: Callable[..., Any]) -> str:
    """Whose arrays a function takes: "torch" or "jax" where its code, or what it calls, uses that; else "numpy".

    Raises:
        ValueError: it uses both.
    """
    used = {name for name in _modules(function, DEPTH, set()) if name in ("torch", "jax")}
    if len(used) > 1:
        raise ValueError(
            "`library` must be given for a function that uses both torch and JAX: one of numpy, torch, jax"
        )
    return used.pop() if used else "numpy"


def call(function: Callable[..., Any], library: str, arrays: tuple[Array | None, ...]) -> Outcome:
    """The function on arrays of a library, twice.

    An exception, something that is no array, another result the second time, or inputs that were written to are the
    verdict; what was printed is the remark.
    """
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            first, kept = once(function, library, arrays)
            second, _ = once(function, library, arrays)
    except (Exception, SystemExit) as error:  # whatever a function raises is what is found
        text = " ".join(str(error).split())
        return Outcome(None, f"raised {type(error).__name__}: {text[:300]}", _remark(printed))
    remark = _remark(printed)
    if first is None or second is None:
        return Outcome(None, "returned no array", remark)
    if not same_bits(first, second):
        return Outcome(None, "is not deterministic: the same input gave another result the second time", remark)
    return Outcome(first, "" if kept else "wrote to its inputs", remark)


def once(function: Callable[..., Any], library: str, arrays: tuple[Array | None, ...]) -> tuple[Array | None, bool]:
    """The function on arrays of a library: its result, None where that is no array; and whether inputs were kept."""
    wide = library == "jax" and any(array is not None and array.dtype.itemsize == 8 for array in arrays)
    with np.errstate(all="ignore"), jax_types(wide=True) if wide else nullcontext():  # special values are meant
        given = [_converted(library, array) for array in arrays if array is not None]
        result = to_numpy(function(*given)).copy()
    kept = all(same_bits(a, b) for a, b in zip([a for a in arrays if a is not None], given, strict=True))
    return (None if result.dtype.kind == "O" else result), kept


def _converted(library: str, array: Array) -> Any:
    """A copy in the library, which lies in memory as the array does where the library knows strides."""
    if library == "jax":
        return to_jax(array)
    copy = np.copy(array, order="K")
    return to_torch(copy) if library == "torch" else copy


def _remark(printed: StringIO) -> str:
    text = printed.getvalue()
    return f"prints to standard output: {' '.join(text.split())[:80]!r}" if text else ""


def _modules(function: Any, depth: int, seen: set[int]) -> Iterator[str]:
    """Top-level modules that a callable comes from, and that its code and the functions it calls refer to."""
    if id(function) in seen or depth < 0:
        return
    seen.add(id(function))
    yield _root(type(function).__module__)
    if isinstance(function, partial):
        yield from _modules(function.func, depth, seen)
        return
    if isinstance(function, ModuleType):
        yield _root(function.__name__)
        return
    yield _root(getattr(function, "__module__", None))
    inner = getattr(function, "__wrapped__", None)
    if inner is not None:
        yield from _modules(inner, depth, seen)
    plain = getattr(function, "__func__", function)
    code = getattr(plain, "__code__", None)
    if code is None:
        method = getattr(type(function), "forward", None) or type(function).__call__
        if hasattr(method, "__code__"):
            yield from _modules(method, depth - 1, seen)
        return
    scope = {**getattr(plain, "__globals__", {}), **_closure(plain)}
    for name in _names(code):
        if name in scope:
            yield from _modules(scope[name], depth - 1, seen)
        elif name in sys.modules and name in LIBRARIES:  # imported inside the function
            yield name


def _names(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _closure(function: Any) -> dict[str, Any]:
    cells = getattr(function, "__closure__", None) or ()
    found = {}
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _root(module: str | None) -> str:
    name = (module or "").partition(".")[0]
    return "jax" if name == "jaxlib" else name
