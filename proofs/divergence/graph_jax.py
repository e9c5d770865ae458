"""The graph of a JAX function: its jaxpr, with the functions that it calls written out."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core
from numpy.typing import NDArray

from ..modes.arrays import to_jax, to_numpy
from .graph import Builder, Graph, Place

Array = NDArray[Any]
NAMES = {name: name for name in ("add", "sub", "mul", "div", "neg", "abs", "floor", "max", "min", "round")} | {
    "convert_element_type": "convert"
}
CALLS = ("jaxpr", "call_jaxpr")  # parameters under which a primitive keeps the function that it calls


def trace_jax(function: Callable[..., Any], *arguments: Array) -> Graph:
    """The operations that ``function`` has for arguments of these shapes and dtypes."""
    closed = jax.make_jaxpr(function)(*map(to_jax, arguments))
    builder = Builder()
    places = [builder.input(None) for _ in closed.jaxpr.invars]
    return builder.graph(_walk(builder, closed.jaxpr, [builder.input(to_numpy(c)) for c in closed.consts], places))


def op_by_op(function: Callable[..., Any], options: dict[str, Any], *arguments: Array) -> list[Any]:
    """The results, every operation compiled by itself with these options of XLA."""
    closed = jax.make_jaxpr(function)(*map(to_jax, arguments))

    def bind(equation: Any, operands: list[Any]) -> Any:
        alone = jax.jit(lambda *given: equation.primitive.bind(*given, **equation.params), compiler_options=options)
        return alone(*operands)

    return _run(closed.jaxpr, closed.consts, [to_jax(a) for a in arguments], [], bind)


def with_all_values(function: Callable[..., Any], *arguments: Array) -> Callable[..., Any]:
    """The same program, which gives the results of all its operations in the order of `trace_jax`."""
    closed = jax.make_jaxpr(function)(*map(to_jax, arguments))

    def program(*given: Any) -> list[Any]:
        results: list[Any] = []
        _run(closed.jaxpr, closed.consts, given, results)
        return results

    return program


def _bind(equation: Any, operands: list[Any]) -> Any:
    return equation.primitive.bind(*operands, **equation.params)


def _run(
    jaxpr: Any, constants: Any, given: Any, results: list[Any], bind: Callable[[Any, list[Any]], Any] = _bind
) -> list[Any]:
    """The results of the program; those of all its operations are put into ``results``."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *given], strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        operands = [value(atom) for atom in equation.invars]
        inner = _inner(equation)
        if inner is not None:
            own, kept = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, [])
            found = _run(own, kept, operands, results, bind)
        else:
            one = bind(equation, operands)
            found = list(one) if equation.primitive.multiple_results else [one]
            results += found
        known.update(zip(equation.outvars, found, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _inner(equation: Any) -> Any:
    """The function that an equation calls, or None; loops stay whole."""
    if equation.primitive.name in ("scan", "while", "cond"):
        return None
    return next((equation.params[name] for name in CALLS if name in equation.params), None)


def _walk(builder: Builder, jaxpr: Any, constants: list[Place], arguments: list[Place]) -> list[Place]:
    known: dict[Any, Place] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def place(atom: Any) -> Place:
        if isinstance(atom, core.Literal):
            return builder.input(np.asarray(atom.val, _dtype(atom)))
        return known[atom]

    for equation in jaxpr.eqns:
        operands = [place(atom) for atom in equation.invars]
        inner = _inner(equation)
        made = _operations(builder, equation, operands) if inner is None else _called(builder, inner, operands)
        known.update(zip(equation.outvars, made, strict=True))
    return [place(atom) for atom in jaxpr.outvars]


def _called(builder: Builder, inner: Any, operands: list[Place]) -> list[Place]:
    jaxpr, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, [])
    return _walk(builder, jaxpr, [builder.input(to_numpy(c)) for c in constants], operands)


def _operations(builder: Builder, equation: Any, operands: list[Place]) -> list[Place]:
    """One for each result of an equation, which mostly has one."""
    name = equation.primitive.name
    if name == "round" and int(equation.params["rounding_method"]) != 1:  # 0: halves away from zero
        name = "round_away"
    found = []
    for index, variable in enumerate(equation.outvars):

        def native(*arrays: Array, index: int = index) -> Array:
            given = [_as_in(v, to_jax(np.asarray(a))) for a, v in zip(arrays, equation.invars, strict=True)]
            results = equation.primitive.bind(*given, **equation.params)
            return to_numpy(results[index] if equation.primitive.multiple_results else results)

        dtype = _dtype(variable)
        found.append(builder.add(NAMES.get(name, f"lax.{name}"), operands, dtype, _text(equation), native))
    return found


def _as_in(atom: Any, value: jax.Array) -> jax.Array:
    """In the dtype that it has there; what was not rounded to its 16 bits stays float32."""
    dtype = _dtype(atom)
    return value if dtype.name in ("bfloat16", "float16") else value.astype(dtype)


def _dtype(atom: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(atom.aval.dtype)
    return dtype


def _text(equation: Any) -> str:
    """Such as ``div: float32[1000], float32[] -> float32[1000]``."""
    taken, given = ([v.aval.str_short() for v in vs] for vs in (equation.invars, equation.outvars))
    return f"{equation.primitive.name}: {', '.join(taken)} -> {', '.join(given)}"
