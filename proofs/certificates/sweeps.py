"""Sweeps: a primitive on every input of a dtype, or a prototype at given parameters; what is asked and what it shows.

    operands   dtype            asked
    =========  ===============  =====================================================================================
    1          float32          all 2**32 bit patterns, in 256 tiles
    1          16 bits          all 2**16
    2          16 bits          all 2**32 pairs, in 256 tiles
    3          16 bits          all of one operand with every pair of `special` numbers for the others; each in turn
    =========  ===============  =====================================================================================

A prototype has one operand. As float32 it is asked at the edges that bisection finds, and at every 511th number; all of
them with the engine "exhaustive".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.knife_edges import special_values
from ..modes.execution import MODES
from ..modes.source import source_digest
from ..prototypes.users import parameters_of, prototype_of
from .cases import DTYPES
from .nearest import BESIDE
from .request import Request, check_modes
from .subjects import PRIMITIVES, Formula, Primitive, Subject, dtype_of, formula
from .tiles import SWEEP_STRIDE, Part, Tile

Array = NDArray[Any]
AT_ONCE, OF_THREE = 1 << 24, 1 << 21  # inputs of a tile; of three operands, which take longest
ENGINES = ("boundary", "exhaustive")
PRIMITIVE_SOURCE, FORMULA_SOURCE = "primitives/__init__.py", "prototypes.py"  # what a result depends on, in each room
OPERANDS = ("all of a", "all of b", "all of c")  # kinds of tiles of three operands
MORE = (1.5, 2.0, 3.0, 0.1)  # beside the special values, of either sign


@dataclass(frozen=True)
class Sweep:
    """What is to be certified of a primitive or a prototype; ``engine``: of `ENGINES`."""

    name: str
    subject: Subject
    modes: tuple[str, ...] = MODES
    engine: str = "exhaustive"
    dtype: str = "float32"

    @property
    def reached_from(self) -> str:
        """The file of each room whose imports hold all the code that a result depends on."""
        return FORMULA_SOURCE if isinstance(self.subject, Formula) else PRIMITIVE_SOURCE

    def plan(self) -> tuple[Part, ...]:
        """Its parts; ValueError for a dtype that is too wide for so many operands."""
        if self.subject.operands == 1:
            return _of_one(self)
        if self.dtype == "float32":
            raise ValueError(
                f"`dtype` must be bfloat16 or float16 for {self.name}, which has {self.subject.operands} operands: "
                "pairs of float32 are 2**64"
            )
        if self.subject.operands == 2:
            step = AT_ONCE >> 16
            pairs = tuple(Tile("pairs", first, step, dtype=self.dtype) for first in range(0, 1 << 16, step))
            return (Part("pairs", f"all 2**32 pairs of {self.dtype}", pairs),)
        count, step = len(special(self.dtype)) ** 2, OF_THREE >> 16
        return tuple(
            Part(
                kind,
                f"every {self.dtype} as operand {kind[-1]}, with {count:,} pairs of special numbers for the others",
                tuple(Tile(kind, i, min(step, count - i), dtype=self.dtype) for i in range(0, count, step)),
            )
            for kind in OPERANDS
        )


AnyRequest = Request | Sweep


def requested_primitive(name: str, dtype: str = "float32", modes: Sequence[str] = ()) -> Sweep:
    """The sweep of a primitive by names.

    Raises:
        KeyError: an unknown primitive.
        ValueError: another dtype or mode, or one that cannot be.
    """
    return _checked(Sweep(name, PRIMITIVES[name], _modes(modes), "exhaustive", _dtype(dtype)))


def requested_prototype(
    name: str, engine: str = "boundary", dtype: str = "float32", modes: Sequence[str] = (), given: Sequence[str] = ()
) -> Sweep:
    """The sweep of a user's prototype, `FILE.py:NAME`, with parameters ``NAME=VALUE``.

    Raises:
        ImportError, KeyError, TypeError: no such prototype, or parameter.
        ValueError: an element depends on others; another engine, dtype, mode or value.
    """
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be {' or '.join(ENGINES)} for a prototype, got {engine!r}")
    subject = formula(name, parameters_of(prototype_of(name), given))
    shown = ", ".join([name, *(f"{key}={value}" for key, value in subject.given)])
    return _checked(Sweep(shown, subject, _modes(modes), engine, _dtype(dtype)))


def special(dtype: str) -> Array:
    """Special values, each once, NaN among them, and some that are not: 1-d."""
    kind = dtype_of(dtype)
    values = np.concatenate([special_values(kind), np.array([*MORE, *(-v for v in MORE)], kind)])
    bits = np.unique(values.view(np.uint16 if kind.itemsize == 2 else np.uint32))
    return bits.view(kind)


def content(request: Sweep, plan: Sequence[Part]) -> dict[str, Any]:
    """The sections of a certificate that follow from the request alone."""
    subject = request.subject
    own: dict[str, Any]
    if isinstance(subject, Formula):
        kind, own = "prototype", {"given": dict(subject.given), "file": subject.source}
    else:
        kind, own = "primitive", {"operands": subject.operands}
    return {
        kind: {"name": subject.name, **own},
        "request": {"engine": request.engine, "modes": list(request.modes), "dtype": request.dtype},
        "statement": {"result": "sampled" if _is_sample(plan) else "complete", "says": _says(request, plan)},
        "domain": [{"part": part.name, "claim": part.claim, "tiles": len(part.tiles)} for part in plan],
        "assumptions": _assumptions(request),
    }


def sweep_of(found: Mapping[str, Any]) -> Sweep:
    """The request of a certificate; KeyError, TypeError, ValueError or ImportError when there is none."""
    asked = found["request"]
    if "primitive" in found:
        return requested_primitive(found["primitive"]["name"], asked["dtype"], asked["modes"])
    own = found["prototype"]
    given = [f"{key}={value!r}" for key, value in own["given"].items()]
    return requested_prototype(own["name"], asked["engine"], asked["dtype"], asked["modes"], given)


def source_of(request: Sweep) -> str:
    """The digest of the code that its results depend on."""
    return source_digest(reached_from=request.reached_from)


def _of_one(request: Sweep) -> tuple[Part, ...]:
    dtype, bits = request.dtype, 8 * dtype_of(request.dtype).itemsize
    step = min(AT_ONCE, 1 << bits)
    every = tuple(Tile("numbers", first, step, dtype=dtype) for first in range(0, 1 << bits, step))
    whole = Part("numbers", f"every bit pattern of {dtype}", every)
    if isinstance(request.subject, Primitive) or bits == 16:
        return (whole,)
    edges = Part(
        "edges",
        "the numbers beside every place at which bisection finds the result or the gradient of x change, and special "
        "values; of what changes everywhere, beside powers of two",
        (Tile("edges", 0, 0, dtype=dtype),),
    )
    if request.engine == "exhaustive":
        return edges, whole
    count = (1 << bits) // SWEEP_STRIDE + 1
    sample = tuple(
        Tile("numbers", first * SWEEP_STRIDE, min(step, count - first), SWEEP_STRIDE, dtype=dtype)
        for first in range(0, count, step)
    )
    return edges, Part("sample", f"every {SWEEP_STRIDE}th bit pattern of {dtype}", sample)


def _is_sample(plan: Sequence[Part]) -> bool:
    return any(part.name == "sample" for part in plan)


def _says(request: Sweep, plan: Sequence[Part]) -> str:
    asked = "; ".join(part.claim for part in plan)
    ours = f"Modes {', '.join(request.modes)} give the bits of samebits.core for {request.name} on: {asked}."
    if isinstance(request.subject, Primitive):
        return ours + (" They are the numbers nearest to the exact ones." if request.subject.verb in BESIDE else "")
    return f"{ours} So do the gradients, of one and the same incoming one. Other parameters are outside the statement."


def _assumptions(request: Sweep) -> list[str]:
    listed = [
        "Each mode is deterministic: the same arrays give the same bits again.",
        "The position of an element in an array does not change its result.",
    ]
    if request.subject.operands == 3:
        listed.append("Triples in which at most one number is none of the special ones stand for all others.")
    if _is_sample(request.plan()):
        listed.append("Between the numbers asked a mode is as right as at them.")
    return listed


def _checked(request: Sweep) -> Sweep:
    check_modes(request.modes)
    request.plan()
    return request


def _modes(modes: Sequence[str]) -> tuple[str, ...]:
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(MODES)}; got {mode!r}")
    return tuple(mode for mode in MODES if not modes or mode in modes)


def _dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}; got {dtype!r}")
    return dtype
