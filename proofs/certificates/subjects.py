"""What a sweep runs: a primitive, or a prototype at given parameters, in every mode, as functions of NumPy arrays."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import primitives
from ...core.catalog import Named
from ...core.directions import Rounding
from ...core.formula_values import OPERANDS
from ..inputs.bits import is_float
from ..modes.arrays import to_jax, to_numpy, to_torch
from ..modes.programs import own_code
from ..modes.source import tree_digest
from ..prototypes import agreement
from ..prototypes.users import arrays_of, prototype_of, what_mixes
from .cases import DTYPES, IN_CACHE

Array = NDArray[Any]
Results = Mapping[str, Array]  # by name
Function = Callable[..., Results]  # of arrays of one shape
APART = ("absmax", "amax", "amin", "sum", "mean", "percentile", "take", "broadcast_to", "where", "to_format")
DRAWN = (Rounding.STOCHASTIC, Rounding.LEARNED)
PERIOD = 1021  # gradients that come in, repeated


@dataclass(frozen=True)
class Primitive:
    """A primitive of so many operands, with its options: ``verb`` is the function."""

    name: str
    verb: str
    operands: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Formula:
    """A prototype of a user, with its parameters; ``source``: the digest of its file."""

    name: str
    given: tuple[tuple[str, Any], ...] = ()
    source: str = ""
    operands: int = 1


Subject = Primitive | Formula


def _primitives() -> Iterator[Primitive]:
    for verb, operands in OPERANDS.items():
        if verb == "round":
            yield Primitive(verb, verb, operands)
            yield from (Primitive(f"{verb} {r}", verb, operands, (str(r),)) for r in Rounding if r not in DRAWN)
        elif verb == "cast":
            yield from (Primitive(f"{verb} {dtype}", verb, operands, (dtype,)) for dtype in DTYPES)
        elif verb not in APART:
            yield Primitive(verb, verb, operands)


PRIMITIVES: Mapping[str, Primitive] = Named("primitive", {one.name: one for one in _primitives()})


def formula(name: str, given: Mapping[str, Any]) -> Formula:
    """The subject of a user's prototype.

    Raises:
        ImportError, KeyError, TypeError: as `prototype_of`.
        ValueError: an element's result depends on others; the message says by which line.
    """
    prototype = prototype_of(name)
    like = np.ones((64, 64), np.float32)  # of lengths that the usual groups divide
    if reason := what_mixes(prototype, like, **arrays_of(prototype, given, like.dtype)):
        raise ValueError(f"{reason}; samebits check takes it on tensors")
    text = Path(prototype.function.__code__.co_filename).read_text(encoding="utf-8")
    return Formula(name, tuple(sorted(given.items())), hashlib.sha256(tree_digest(text).encode()).hexdigest()[:32])


def function_of(subject: Subject, mode: str, dtype: str) -> Function:
    """The subject in a mode. What it gives: under its name the result; of a prototype also new states and gradients."""
    if isinstance(subject, Formula):
        return _formula(subject, mode, dtype)
    if mode == "numpy":
        return lambda *operands: {subject.name: _in_parts(subject, operands)}
    program = _program(subject, mode)
    convert: Callable[[Array], Any] = to_torch if mode.startswith("torch") else to_jax
    return lambda *operands: {subject.name: to_numpy(program(*map(convert, operands)))}


def reference(subject: Formula, dtype: str) -> Callable[[Array], tuple[Array, ...]]:
    """A prototype as the elementwise function that it is, by the specification: its result and its derivative."""
    prototype = prototype_of(subject.name)
    given = arrays_of(prototype, dict(subject.given), dtype_of(dtype))

    def asked(x: Array) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):
            found = agreement.results("numpy", prototype, x, np.ones_like(x), **given)
        return found["y"], found["d x"]

    return asked


def _formula(subject: Formula, mode: str, dtype: str) -> Function:
    prototype = prototype_of(subject.name)
    given = arrays_of(prototype, dict(subject.given), dtype_of(dtype))

    def results(x: Array) -> Results:
        return agreement.results(mode, prototype, x, np.resize(_cotangents(dtype), x.shape), **given)

    return results


@lru_cache
def _cotangents(dtype: str) -> Array:
    return np.random.default_rng(0).standard_normal(PERIOD).astype(dtype_of(dtype))


def _in_parts(subject: Primitive, operands: Sequence[Array]) -> Array:
    """Long arrays in parts that stay in cache."""
    function = getattr(primitives, subject.verb)
    parts = [
        function(*(one[i : i + IN_CACHE] for one in operands), *subject.options)
        for i in range(0, max(1, len(operands[0])), IN_CACHE)
    ]
    return np.concatenate(parts)


@lru_cache(maxsize=16)
def _program(subject: Primitive, mode: str) -> Callable[..., Any]:
    if mode.startswith("torch"):
        import torch

        from ...torch_frontend import primitives as of_torch

        def in_torch(*operands: Any) -> Any:
            return getattr(of_torch, subject.verb)(*operands, *subject.options)

        name = f"sweep_{subject.name.replace(' ', '_')}"
        return torch.compile(own_code(in_torch, name), fullgraph=True) if mode == "torch compiled" else in_torch
    import jax

    from ...jax_backend import primitives as of_jax

    def in_jax(*operands: Any) -> Any:
        return getattr(of_jax, subject.verb)(*operands, *subject.options)

    def eager(*operands: Any) -> Any:
        with jax.disable_jit():
            return in_jax(*operands)

    return jax.jit(in_jax) if mode == "jax jit" else eager


def dtype_of(name: str) -> np.dtype[Any]:
    """One of `DTYPES`."""
    found: np.dtype[Any] = np.dtype(DTYPES[name])
    return found


def canonical(values: Array) -> Array:
    """With one NaN in the place of all."""
    if not is_float(values.dtype):
        return values
    with np.errstate(invalid="ignore"):  # signalling NaN
        nan = np.isnan(values)
    return np.where(nan, np.asarray(np.nan, values.dtype), values) if nan.any() else values
