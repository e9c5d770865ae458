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


def trace_jax(function: Callable[..., Any], *arguments: Array, branches: bool = False) -> Graph:
    """The operations that ``function`` has for arguments of these shapes and dtypes.

    Args:
        branches: whether all branches of a condition are written out, with a choice between their results; else it is
            one operation.
    """
    closed = jax.make_jaxpr(function)(*map(to_jax, arguments))
    builder = Builder()
    places = [builder.input(None) for _ in closed.jaxpr.invars]
    constants = [builder.input(to_numpy(c)) for c in closed.consts]
    return builder.graph(_walk(builder, closed.jaxpr, constants, places, branches))


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


def _walk(
    builder: Builder, jaxpr: Any, constants: list[Place], arguments: list[Place], branches: bool = False
) -> list[Place]:
    known: dict[Any, Place] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def place(atom: Any) -> Place:
        if isinstance(atom, core.Literal):
            return builder.input(np.asarray(atom.val, _dtype(atom)))
        return known[atom]

    for equation in jaxpr.eqns:
        operands = [place(atom) for atom in equation.invars]
        inner = _inner(equation)
        if branches and equation.primitive.name == "cond":
            made = _chosen(builder, equation, operands)
        elif inner is None:
            made = _operations(builder, equation, operands)
        else:
            made = _called(builder, inner, operands, branches)
        known.update(zip(equation.outvars, made, strict=True))
    return [place(atom) for atom in jaxpr.outvars]


def _called(builder: Builder, inner: Any, operands: list[Place], branches: bool) -> list[Place]:
    jaxpr, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, [])
    return _walk(builder, jaxpr, [builder.input(to_numpy(c)) for c in constants], operands, branches)


def _chosen(builder: Builder, equation: Any, operands: list[Place]) -> list[Place]:
    """The results of all branches, and of each the one whose number is the first operand."""
    results = [_called(builder, branch, operands[1:], True) for branch in equation.params["branches"]]

    def choice(number: Array, *given: Array) -> Array:
        return given[min(max(int(number), 0), len(given) - 1)]

    return [
        builder.add("chosen_branch", [operands[0], *places], _dtype(variable), "chosen_branch", choice)
        for variable, places in zip(equation.outvars, zip(*results, strict=True), strict=True)
    ]


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
