"""Where the textbook code of a prototype's formula parts from the formula itself, mode by mode, and at which primitive.

The textbook code is the same Python function, with every primitive as torch and JAX have it (`prototypes.textbook`); it
runs on random numbers, on real ones, and beside the edges of the formula. Beside it the formula of primitives, at 0.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import prototypes
from ...core.formula_values import Room, Run
from ...core.prototype import Prototype
from ..inputs.compare import describe, differences, ulp_distance
from ..modes.arrays import to_jax, to_numpy, to_torch
from ..modes.execution import unavailable
from ..modes.programs import own_code
from ..prototypes.edges import found_inputs
from ..prototypes.steps import explain_textbook
from ..prototypes.textbook import textbook_room
from ..prototypes.users import arrays_of, complete, parameters_of, prototype_of
from .causes import Program
from .divergence import DTYPES, MODES, OURS, data

Array = NDArray[Any]
SHAPE = (128, 256)
TEXTBOOK = "textbook"
MERGED = "no step by itself: the compiler merges several"


@dataclass(frozen=True)
class Parted:
    """One program in one mode, on one kind of input.

    Args:
        program: `TEXTBOOK`, or `OURS`, which must not differ.
        compared, differing: elements of the result, beside those of mode "numpy".
        largest_ulps: the largest distance, in numbers of the dtype.
        example: the differing element of smallest input: input, expected, got.
        first: the first primitive that differs, with its line, or why there is none; "" for ours.
    """

    prototype: str
    program: str
    mode: str
    dtype: str
    inputs: str
    compared: int
    differing: int
    largest_ulps: int
    example: tuple[str, str, str] | None
    first: str


@dataclass(frozen=True)
class Job:
    """A user's prototype, ``FILE.py:NAME``, with parameters ``NAME=VALUE``, as one dtype."""

    name: str
    parameters: tuple[str, ...]
    dtype: str


def jobs(names: Sequence[str], parameters: Sequence[str] = ()) -> tuple[Job, ...]:
    """All of some prototypes.

    Raises:
        ImportError, KeyError, TypeError, ValueError: no such prototype or parameter.
    """
    for name in names:
        parameters_of(prototype_of(name), parameters)
    return tuple(Job(name, tuple(parameters), dtype) for name in names for dtype in DTYPES)


def run_job(job: Job) -> tuple[Parted, ...]:
    """Both programs in every mode that can run here, on every kind of input."""
    prototype = prototype_of(job.name)
    dtype = DTYPES[job.dtype]
    given = arrays_of(prototype, parameters_of(prototype, job.parameters), dtype)
    return tuple(_rows(job, prototype, given))


def textbook_program(name: str) -> Program:
    """The textbook code of a prototype, beside edges, as a program whose causes can be looked for."""
    prototype = prototype_of(name)
    x = _inputs(prototype, "float32", {})["edges"][:16]
    operands = _arrays(prototype, x, {})
    functions = {library: _function(prototype, {}, textbook_room(library)) for library in ("torch", "jax")}
    return Program(f"{name}, textbook", (x, *operands), functions["torch"], functions["jax"])


def _rows(job: Job, prototype: Prototype, given: Mapping[str, Any]) -> Iterator[Parted]:
    inputs = _inputs(prototype, job.dtype, given)
    expected = {kind: prototypes.apply(prototype, x, **given) for kind, x in inputs.items()}
    for mode in (mode for mode in MODES if not unavailable(mode)):
        library, explained = mode.partition(" ")[0], ""
        for program, room in ((TEXTBOOK, textbook_room(library)), (OURS, _room(library))):
            call = _compiled(_function(prototype, given, room), mode, program)
            for kind, x in inputs.items():
                got = call([x, *_arrays(prototype, x, given)])
                found = differences(expected[kind], got, inputs=x)
                example, ulps = None, 0
                if found.differing and found.index is not None:
                    example = describe(x[found.index]), describe(found.expected), describe(found.got)
                    ulps = int(ulp_distance(expected[kind], got).max())
                if found.differing and program == TEXTBOOK:
                    explained = explained or explain_textbook(prototype, x, mode, given) or MERGED
                where = (job.name, program, mode, job.dtype, kind)
                first = explained if found.differing and program == TEXTBOOK else found.reason
                yield Parted(*where, found.compared, found.differing, ulps, example, first)


def _inputs(prototype: Prototype, dtype: str, given: Mapping[str, Any]) -> dict[str, Array]:
    """Random numbers, real ones, and those beside edges of the formula: one array of `SHAPE` each."""
    random = np.random.default_rng(0).standard_normal(SHAPE).astype(DTYPES[dtype])
    real = data(dtype)[2]["real"][: random.size].reshape(SHAPE)
    edges = next(iter(found_inputs(prototype, random, **given)), None)
    return {"random": random, "real": real, **({} if edges is None else {"edges": edges})}


def _arrays(prototype: Prototype, x: Array, given: Mapping[str, Any]) -> list[Array]:
    """All parameters, those that are missing where they begin."""
    every = complete(prototype, x, given)
    seeds = {name for name, one in prototype.parameters.items() if one.kind == "seed"}
    return [every[name].astype(np.uint32) if name in seeds else every[name] for name in prototype.parameters]


def _function(prototype: Prototype, given: Mapping[str, Any], room: Room) -> Callable[..., Any]:
    options, names = prototype.split(given)[0], tuple(prototype.parameters)

    def function(x: Any, *arrays: Any) -> Any:
        return prototype.run(Run(room, guarded=False), x, dict(zip(names, arrays, strict=True)), options)[0]._array

    return function


def _room(library: str) -> Room:
    if library == "torch":
        from ...torch_frontend.prototypes import ROOM
    else:
        from ...jax_backend.prototypes import ROOM
    return ROOM


def _compiled(function: Callable[..., Any], mode: str, name: str) -> Callable[[Sequence[Array]], Array]:
    """The function in a mode, of NumPy arrays. Eager JAX is ordinary dispatch, as a user has it."""
    if mode.startswith("torch"):
        import torch

        chosen = torch.compile(own_code(function, name), fullgraph=True) if mode == "torch compiled" else function

        def in_torch(operands: Sequence[Array]) -> Array:
            with torch.no_grad():
                return to_numpy(chosen(*(to_torch(_signed(one)) for one in operands)))

        return in_torch
    import jax

    jitted = jax.jit(function) if mode == "jax jit" else function
    return lambda operands: to_numpy(jitted(*map(to_jax, operands)))


def _signed(array: Array) -> Array:
    """A seed as torch has it."""
    return array.astype(np.int64) if array.dtype == np.uint32 else array
