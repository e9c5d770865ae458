"""Errors of formulas: file and line, what was called that is no primitive, and what to call instead."""

import ast
import linecache
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

from .formula_values import OPERANDS, Run, Value

ROOMS = tuple(Path(__file__).resolve().parents[1] / room for room in ("core", "torch_frontend", "jax_backend"))
INSTEAD = {  # what functions of other libraries are called here
    "abs": "absolute",
    "fabs": "absolute",
    "clip": "clamp",
    "hardtanh": "clamp",
    "rint": "round",
    "round_": "round",
    "pow": "power",
    "max": "maximum (of two), amax (of an axis)",
    "min": "minimum (of two), amin (of an axis)",
    "relu": "maximum(x, 0.0)",
    "square": "x * x",
    "rsqrt": "1 / sqrt(x)",
    "reciprocal": "1 / x",
    "detach": "stop_gradient",
    "quantile": "percentile",
    "astype": "cast",
    "to": "cast",
    "float32": "cast",
    "asarray": "constant",
    "frexp": "exponent and significand",
    "ldexp": "scale_by_power",
    "rand": "random_bits",
    "uniform": "random_bits",
    "rand_like": "random_bits",
}

NUMBERS = {
    "float",
    "int",
    "bool",
    "numpy",
    "item",
    "tolist",
    "array",
    "tensor",
    "data",
}  # what makes numbers of a value, or arrays of another library


def guarded(run: Run, function: Callable[..., Any], call: Callable[[], Any], named: str = "") -> Any:
    """``call()``, of the function, with errors that say where in it they arose; as they are, while a compiler follows.

    Args:
        named: what to say of a function without lines of its own, as a primitive is one.
    Raises:
        TypeError, ValueError: with file, line and text of what was called.
    """
    if not run.guarded:
        return call()
    try:
        return call()
    except Exception as error:
        raise _located(error, function, named) from error


def _located(error: Exception, function: Callable[..., Any], named: str) -> Exception:
    code = getattr(function, "__code__", None)
    place = None if code is None or _in_package(code.co_filename) else _last(error.__traceback__, code.co_filename)
    if (place is None and not named) or isinstance(error, LocatedTypeError | LocatedValueError):
        return error
    text = "" if place is None else _text(place)
    where = (
        named if place is None else f"{Path(place.filename).name}:{place.lineno}" + (f", in `{text}`" if text else "")
    )
    foreign = isinstance(error, TypeError | AttributeError) and not _is_ours(error.__traceback__)
    if foreign or "is no primitive" in str(error) or "is no array of NumPy" in str(error):
        called, name = _function(text)
        if called == name and name in OPERANDS:  # one of Python
            name = f"{name} of samebits.core.formula"
        return LocatedTypeError(
            f"{where}: {f'`{called}`' if called else 'this'} is no primitive; {_instead(name)} ({error})"
        )
    kind = LocatedValueError if isinstance(error, ValueError) else LocatedTypeError
    known = isinstance(error, TypeError | ValueError)
    return kind(f"{where}: {error if known else f'{type(error).__name__}: {error}'}")


class LocatedTypeError(TypeError):
    """TypeError of a formula, with its line."""


class LocatedValueError(ValueError):
    """ValueError of a formula, with its line."""


def misshapen(function: Callable[..., Any], y: Any, x: Value, name: str, again: Callable[[], Any]) -> NoReturn:
    """The error for a result that is not like ``x``, or a gradient that is not, at the line of its ``return``.

    Args:
        again: calls the function once more, as it was called.
    """
    file = Path(function.__code__.co_filename)
    where = f"{file.name}:{_returned_at(function, again)}, `{function.__name__}`"
    wanted = f"a value of shape {x.shape} and dtype {x.dtype}, as `{name}` has"
    if not isinstance(y, Value):
        arrays = ": what is computed on arrays themselves is no primitive" if hasattr(y, "dtype") else ""
        raise LocatedTypeError(f"{where}: must return {wanted}, got {type(y).__name__}{arrays}")
    kind = LocatedValueError if y.shape != x.shape else LocatedTypeError
    raise kind(f"{where}: must return {wanted}, got {y.shape}, {y.dtype}")


def misreturned(function: Callable[..., Any], result: tuple[Any, ...], again: Callable[[], Any]) -> NoReturn:
    """The error for a tuple that is no pair of a value and new states by name, at the line of its ``return``."""
    where = f"{Path(function.__code__.co_filename).name}:{_returned_at(function, again)}, `{function.__name__}`"
    kinds = ", ".join(type(one).__name__ for one in result)
    raise LocatedTypeError(f"{where}: must return a value, or a pair of it and a dict of values by name, got ({kinds})")


def _last(trace: TracebackType | None, file: str) -> traceback.FrameSummary | None:
    found = [frame for frame in traceback.extract_tb(trace) if frame.filename == file]
    return found[-1] if found else None


def _is_ours(trace: TracebackType | None) -> bool:
    """Whether something of this package raised."""
    return _in_package(traceback.extract_tb(trace)[-1].filename)


def _in_package(file: str) -> bool:
    return any(Path(file).resolve().is_relative_to(room) for room in ROOMS)


def _text(place: traceback.FrameSummary) -> str:
    """The expression that was evaluated, as it stands in the file."""
    line = linecache.getline(place.filename, place.lineno or 0)
    if place.colno is None or place.end_colno is None or place.end_lineno != place.lineno:
        return line.strip()
    return line.encode()[place.colno : place.end_colno].decode()


def _function(text: str) -> tuple[str, str]:
    """The name that is called, or the attribute, as it stands there; and its last part."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return "", ""
    if isinstance(node, ast.Call):
        node = node.func
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return (ast.unparse(node), name) if name else ("", "")


def _instead(name: str) -> str:
    if name in NUMBERS:
        return "a value has no number while a formula runs, and its array is not for formulas"
    return f"use {INSTEAD.get(name, name if name.partition(' ')[0] in OPERANDS else 'those of samebits.core.formula')}"


def _returned_at(function: Callable[..., Any], again: Callable[[], Any]) -> int:
    """The line of the ``return`` by which it ends."""
    lines = [function.__code__.co_firstlineno]

    def follow(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not function.__code__:
            return None
        if event == "return":
            lines.append(frame.f_lineno)
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        again()
    finally:
        sys.settrace(before)
    return lines[-1]
