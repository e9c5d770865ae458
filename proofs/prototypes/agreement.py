"""Prototypes in the five modes: results, new states and gradients as NumPy arrays, and how many of them differ."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import prototypes
from ...core.prototype import Prototype
from ..inputs.compare import differences
from ..modes.arrays import to_jax, to_numpy, to_torch
from ..modes.execution import MODES
from ..modes.programs import jax_types, own_code
from .edges import found_inputs

Array = NDArray[Any]


def differing(prototype: Prototype, x: Array, g: Array, modes: Sequence[str] = MODES, **given: Any) -> dict[str, int]:
    """How many elements of result, new states and gradients differ from those of ``numpy``, for each mode.

    Args:
        x: float32, bfloat16, float16 or float64; ``g``: the gradient of the result, of its shape and dtype.
        given: static options, and arrays of parameters.
    """
    expected = results("numpy", prototype, x, g, **given)
    found = {mode: results(mode, prototype, x, g, **given) for mode in modes}
    return {
        mode: sum(differences(value, got[name]).differing for name, value in expected.items())
        for mode, got in found.items()
    }


def differing_at_edges(
    prototype: Prototype, x: Array, g: Array, modes: Sequence[str] = MODES, count: int = 1, **given: Any
) -> dict[str, int]:
    """As `differing`, of tensors whose elements lie beside knife edges that are found: see `edges.found_inputs`.

    Args:
        count: pairs of tensors beside edges of the result, and of its gradient.
    """
    total = dict.fromkeys(modes, 0)
    for found in found_inputs(prototype, x, count, **given):
        for mode, differ in differing(prototype, found, g, modes, **given).items():
            total[mode] += differ
    return total


def results(mode: str, prototype: Prototype, x: Array, g: Array, **given: Any) -> dict[str, Array]:
    """What a mode computes: "y", new states by name, and "d x", "d name" of learned parameters.

    Raises:
        ValueError: a mode that is none of `MODES`; and what the formula raises.
    """
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {', '.join(map(repr, MODES))}; got {mode!r}")
    options, arrays = prototype.split(given)
    learned = [name for name, one in prototype.parameters.items() if one.kind == "learned"]
    for name, one in prototype.parameters.items():
        if name not in arrays:
            arrays[name] = prototype.initial(name, prototypes.ROOM, x, options)
        arrays[name] = np.asarray(arrays[name], np.uint32 if one.kind == "seed" else None)
    if mode == "numpy":
        y, states = prototypes.updated(prototype, x, **options, **arrays)
        gradients = prototypes.vjp(prototype, x, g, **options, **arrays)
        return {"y": y, **states, **{f"d {name}": value for name, value in gradients.items()}}
    key = (prototype, tuple(options.items()), tuple(arrays), tuple(learned), "compiled" in mode or "jit" in mode)
    if mode.startswith("torch"):
        tensors = [to_torch(a.astype(np.int64) if a.dtype == np.uint32 else a) for a in (x, g, *arrays.values())]
        found = _torch_program(*key, x.dtype.name)(*tensors)
    else:
        with jax_types(wide=x.dtype == np.float64):
            found = _jax_program(*key)(*map(to_jax, (x, g, *arrays.values())))
    return {name: to_numpy(value) for name, value in found.items()}


@lru_cache(maxsize=64)
def _torch_program(
    prototype: Prototype, options: Any, names: Sequence[str], learned: Sequence[str], compiled: bool, dtype: str
) -> Callable[..., Any]:
    """One for each dtype, since dynamo compiles a function at most eight times."""
    import torch

    from ...torch_frontend.prototypes import updated

    static = dict(options)

    def forward(x: Any, *arrays: Any) -> Any:
        return updated(prototype, x, **static, **dict(zip(names, arrays, strict=True)))

    chosen = torch.compile(own_code(forward, prototype.name), fullgraph=True) if compiled else forward

    def program(x: Any, g: Any, *arrays: Any) -> dict[str, Any]:
        wanted = {"x": x.clone().requires_grad_()}
        given = dict(zip(names, arrays, strict=True))
        for name in learned:
            wanted[name] = given[name] = given[name].clone().requires_grad_()
        y, states = chosen(wanted["x"], *given.values())
        gradients = torch.autograd.grad(y, list(wanted.values()), g)
        return {"y": y, **states, **{f"d {name}": one for name, one in zip(wanted, gradients, strict=True)}}

    return program


@lru_cache(maxsize=64)
def _jax_program(
    prototype: Prototype, options: Any, names: Sequence[str], learned: Sequence[str], jit: bool
) -> Callable[..., Any]:
    import jax

    from ...jax_backend.prototypes import updated

    static = dict(options)

    def program(x: Any, g: Any, *arrays: Any) -> dict[str, Any]:
        given = dict(zip(names, arrays, strict=True))

        def forward(x: Any, moving: Any) -> Any:
            return updated(prototype, x, **static, **{**given, **moving})

        y, pull, states = jax.vjp(forward, x, {name: given[name] for name in learned}, has_aux=True)
        of_x, others = pull(g)
        return {"y": y, **states, "d x": of_x, **{f"d {name}": one for name, one in others.items()}}

    def eager(*arrays: Any) -> dict[str, Any]:
        with jax.disable_jit():
            return program(*arrays)

    return jax.jit(program) if jit else eager
