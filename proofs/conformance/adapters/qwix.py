"""Qwix: `qarray.quantize`, operation by operation."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ....core.granularity import PerAxis
from ...modes.arrays import to_jax
from ..targets import Kind, Target

Array = NDArray[Any]
ROWS = catalog["int8_affine_per_tensor"].replace(granularity=PerAxis(0))
SYMMETRIC = catalog["int8_per_channel"]


def targets() -> dict[str, Target]:
    """The targets of Qwix, by name."""
    found = (
        Target("qwix.quantize", _quantize, ROWS, kind=Kind.CODES),
        Target("qwix.quantize.bfloat16", _quantize, ROWS, "bfloat16", Kind.CODES),
        Target("qwix.quantize.chosen", _chosen, SYMMETRIC, kind=Kind.CODES, chooses=True),
    )
    return {target.name: target for target in found}


def _library() -> Any:
    return import_module("qwix._src.core.qarray")


def _quantize(x: Array, qparams: QParams) -> Array:
    import jax.numpy as jnp

    scale = to_jax(np.asarray(qparams.scale).astype(x.dtype))
    zero = to_jax(np.asarray(qparams.zero_point).astype(np.int8))
    found = _library().quantize_with_scale_zero_point(to_jax(x), jnp.int8, scale, zero)
    return np.asarray(found.qvalue)


def _chosen(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
    import jax.numpy as jnp

    library = _library()
    how = library.HowToQuantize(qtype=jnp.int8, calibration_method="absmax", channelwise_axes=(0,))
    found = library.quantize(to_jax(x), how)
    return np.asarray(found.qvalue), QParams(np.asarray(found.scale))
