"""The gradient of x in every way that a mode computes it.

With the gradients of scale and zero point beside it, as `fake_quantize_vjp` gives them; and alone, as a layer asks for
it whose scale is a statistic: frameworks then run other operations.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import QParams, Quantizer
from . import programs
from .arrays import to_jax, to_numpy, to_torch
from .devices import ACCELERATED, in_jax, torch_place, way_of
from .execution import MODES, Implementation, implementation

Array = NDArray[Any]


def gradients_of_x(chosen: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> dict[str, Array]:
    """``g`` times the mask, by name of the way; shape and dtype of ``x``.

    An implementation that is none of ours has one way only, and so have ``numpy`` and ``jax eager``, which compute the
    gradients one after the other whatever is asked for.
    """
    found = {"fake_quantize_vjp": np.asarray(chosen.fake_quantize_vjp(q, x, qparams, g).x)}
    if chosen.name in (*MODES, *ACCELERATED) and _is_ours(chosen):
        way = way_of(chosen.name)
        if way.framework == "torch":
            found["gradient of x alone"] = _torch_alone(chosen.name, q, x, qparams, g)
        elif way.how == "jit":
            with in_jax(chosen.name):
                arguments = (None if a is None else to_jax(np.asarray(a)) for a in (x, *qparams[:2], g))
                found["gradient of x alone"] = to_numpy(_jax_alone(q)(*arguments))
    return found


def _is_ours(chosen: Implementation) -> bool:
    return chosen.fake_quantize_vjp.__module__ == implementation.__module__


def _torch_alone(mode: str, q: Quantizer, x: Array, qparams: QParams, g: Array) -> Array:
    import torch

    program, place = (
        programs.torch_program("fake_quantize", q, x.dtype.name, compiled=way_of(mode).compiled),
        torch_place(mode),
    )
    scale, zero = (None if p is None else to_torch(np.asarray(p), place) for p in qparams[:2])
    leaf = to_torch(x, place).requires_grad_()
    return to_numpy(torch.autograd.grad(program(leaf, scale, zero), leaf, to_torch(g, place))[0])


@cache
def _jax_alone(q: Quantizer) -> Any:
    import jax

    from ... import jax_backend

    def alone(x: Any, scale: Any, zero: Any, g: Any) -> Any:
        return jax.vjp(lambda v: jax_backend.fake_quantize(q, v, QParams(scale, zero)), x)[1](g)[0]

    return jax.jit(alone)
