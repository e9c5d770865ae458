"""The textbook code of a formula: every primitive as its author would write it in torch or JAX.

What has no short form there (`to_format`, `percentile`, random bits, exponents, unusual directions) is the primitive
itself; so is what computes nothing.
"""

from collections.abc import Callable, Mapping
from operator import add, eq, ge, gt, le, lt, mul, ne, neg, sub, truediv
from types import SimpleNamespace
from typing import Any

from ...core.directions import Rounding
from ...core.formula_values import OPERANDS, Room

Function = Callable[..., Any]
OPERATORS: Mapping[str, Function] = {
    **{"add": add, "subtract": sub, "multiply": mul, "divide": truediv, "negative": neg, "absolute": abs, "power": pow},
    **{"less": lt, "less_equal": le, "greater": gt, "greater_equal": ge, "equal": eq, "not_equal": ne},
    "fused_multiply_add": lambda a, b, c: a * b + c,
}
SAME_NAMES = ("sqrt", "sign", "floor", "ceil", "trunc", "exp", "exp2", "log", "log2", "tanh")


def textbook_room(library: str) -> Room:
    """The room of "torch" or "jax" with textbook code in the place of its primitives.

    Raises:
        ValueError: another library.
    """
    if library not in ("torch", "jax"):
        raise ValueError(f"`library` must be 'torch' or 'jax', got {library!r}")
    if library == "torch":
        from ...torch_frontend.prototypes import ROOM

        table = _in_torch(ROOM)
    else:
        from ...jax_backend.prototypes import ROOM

        table = _in_jax(ROOM)
    primitives = {name: getattr(ROOM.primitives, name) for name in (*OPERANDS, "random_bits")}
    return ROOM._replace(primitives=SimpleNamespace(**{**primitives, **OPERATORS, **table}))


def _in_torch(room: Room) -> dict[str, Function]:
    import torch

    def tensors(function: Function) -> Function:
        def wrapped(*given: Any) -> Any:
            like = next(one for one in reversed(given) if isinstance(one, torch.Tensor) and one.dtype != torch.bool)
            return function(*(v if isinstance(v, torch.Tensor) else torch.full_like(like, v) for v in given))

        return wrapped

    def clamp(x: Any, lo: Any, hi: Any) -> Any:
        if any(isinstance(v, torch.Tensor) for v in (lo, hi)) or not isinstance(x, torch.Tensor):
            return tensors(lambda *v: torch.minimum(torch.maximum(v[0], v[1]), v[2]))(x, lo, hi)
        return torch.clamp(x, lo, hi)

    def reduced(function: Function) -> Function:
        def wrapped(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
            return function(x, dim=tuple(range(x.ndim)) if axis is None else axis, keepdim=keepdims)

        return wrapped

    return {
        **{name: getattr(torch, name) for name in SAME_NAMES},
        **{name: tensors(getattr(torch, name)) for name in ("minimum", "maximum", "copysign", "where")},
        **{name: reduced(getattr(torch, name)) for name in ("amax", "amin", "sum", "mean")},
        "absmax": lambda x, axis=None, keepdims=False: reduced(torch.amax)(x.abs(), axis, keepdims),
        "clamp": clamp,
        "round": _round(room, torch),
        "cast": lambda x, dtype: x.to(getattr(torch, str(dtype))),
        "sigmoid": torch.sigmoid,
        "erf": torch.erf,
    }


def _in_jax(room: Room) -> dict[str, Function]:
    import jax
    import jax.numpy as jnp

    named = ("minimum", "maximum", "copysign", "where", "amax", "amin", "sum", "mean")
    return {
        **{name: getattr(jnp, name) for name in (*SAME_NAMES, *named)},
        "absmax": lambda x, axis=None, keepdims=False: jnp.amax(jnp.abs(x), axis, keepdims=keepdims),
        "clamp": jnp.clip,
        "round": _round(room, jnp),
        "cast": lambda x, dtype: x.astype(dtype),
        "sigmoid": jax.nn.sigmoid,
        "erf": jax.scipy.special.erf,
    }


def _round(room: Room, library: Any) -> Function:
    """The directions that the libraries have; others are those of the primitive."""
    usual = {
        Rounding.TIES_TO_EVEN: library.round,
        Rounding.TOWARD_ZERO: library.trunc,
        Rounding.TOWARD_POSITIVE: library.ceil,
        Rounding.TOWARD_NEGATIVE: library.floor,
        Rounding.TIES_TOWARD_POSITIVE: lambda x: library.floor(x + 0.5),
    }

    def rounded(x: Any, direction: Any = Rounding.TIES_TO_EVEN, noise: Any = None) -> Any:
        found = usual.get(Rounding(direction))
        return room.primitives.round(x, direction, noise) if found is None else found(x)

    return rounded
