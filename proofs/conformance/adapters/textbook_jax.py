"""Fake quantization as everybody writes it in JAX: clip(round(x / s), -128, 127) * s, op by op and jitted."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ...modes.arrays import to_jax
from ..targets import Target

Array = NDArray[Any]
Q = catalog["int8_per_tensor"]


def targets() -> dict[str, Target]:
    """The textbook formula in JAX, by name."""
    found = (Target("textbook.jax_eager", _eager, Q, gradient=_gradient), Target("textbook.jax_jit", _jitted, Q))
    return {target.name: target for target in found}


def formula(x: Any, s: Any) -> Any:
    """``clip(round(x / s), -128, 127) * s``."""
    import jax.numpy as jnp

    return jnp.clip(jnp.round(x / s), -128, 127) * s


def _eager(x: Array, qparams: QParams) -> Array:
    return np.asarray(formula(to_jax(x), to_jax(qparams.scale)))


def _gradient(x: Array, qparams: QParams, g: Array) -> Array:
    import jax

    scale = to_jax(qparams.scale)
    return np.asarray(jax.vjp(lambda v: formula(v, scale), to_jax(x))[1](to_jax(g))[0])


def _jitted(x: Array, qparams: QParams) -> Array:
    padded = np.resize(x, -(-x.size // 64) * 64)  # few shapes, so that few programs are compiled
    return np.asarray(_program()(to_jax(padded), to_jax(qparams.scale)))[: x.size]


@cache
def _program() -> Any:
    import jax

    return jax.jit(formula)
