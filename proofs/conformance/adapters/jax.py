"""JAX: casts to small floats, operation by operation."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ...modes.arrays import to_jax
from ..targets import Function, Target
from .ml_dtypes import E8M0

Array = NDArray[Any]
CASTS = {
    "float8_e4m3fn": "float8_e4m3fn_per_tensor",
    "float8_e5m2": "float8_e5m2_per_tensor",
    "float4_e2m1fn": "float4_e2m1_per_tensor",
}


def targets() -> dict[str, Target]:
    """The casts of JAX, by name."""
    note = "a cast: the scale is 1"
    found = [Target(f"jax.{c}", _cast(c), catalog[n], scales=(1.0,), note=note) for c, n in CASTS.items()]
    found.append(Target("jax.float8_e8m0fnu", _cast("float8_e8m0fnu"), E8M0, scales=(1.0,), note=note))
    return {target.name: target for target in found}


def _cast(name: str) -> Function:
    def run(x: Array, qparams: QParams) -> Array:
        import jax.numpy as jnp

        return np.asarray(to_jax(x).astype(getattr(jnp, name)).astype(jnp.float32))

    return run
