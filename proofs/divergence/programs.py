"""The programs whose causes are looked for: those of `divergence`, on the knife edges of their scale, and your own."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...core.prototype import Prototype
from ..inputs.named import named
from .causes import Function, Program
from .divergence import TARGETS, Job, data, jobs
from .of_prototypes import textbook_program


def program_of(job: Job) -> Program:
    """A program of a target: with its scale as a constant, a scalar or a tensor, alone or followed by ``+ b``."""
    target = TARGETS[job.target]
    scale, b, inputs = data(job.dtype)
    x = np.unique(inputs["knife edges"])
    s, addend = scale.astype(target.scale_dtype or scale.dtype), b[: x.size]
    given = () if job.scale == "constant" else (np.full(x.shape, s),) if job.scale == "tensor" else (s,)
    added = () if job.surroundings == "alone" else (addend,)
    in_torch, in_jax = (make(job.scale, float(scale)) for make in (target.in_torch, target.in_jax))

    scaled, shifted = bool(given), bool(added)

    def around(function: Function) -> Function:
        def program(x: Any, *others: Any) -> Any:
            y = function(x, others[0] if scaled else None)
            return y + others[-1] if shifted else y

        return program

    name = f"{job.target}, {job.scale} scale, {job.dtype}{', + b' * bool(added)}"
    return Program(name, (x, *given, *added), around(in_torch), around(in_jax))


def programs(names: Sequence[str]) -> tuple[Program, ...]:
    """Programs by the names of targets, and as ``package.module:name``: a `Program`, a function that makes one, or
    a prototype, of which it is the textbook code.

    Raises:
        KeyError: a name that is no target, or not in its module. ImportError: no such module.
        TypeError: not a `Program`.
    """
    found: list[Program] = []
    for name in names:
        if ":" not in name:
            found += [program_of(job) for job in jobs([name])]
            continue
        own = named(name)
        if isinstance(own, Prototype):
            found.append(textbook_program(name))
            continue
        made = own() if callable(own) else own
        if not isinstance(made, Program):
            raise TypeError(f"{name!r} must be a samebits.proofs.divergence.causes.Program, got {type(made).__name__}")
        found.append(made)
    return tuple(found)
