"""Which kernel a program takes: decided for the platform that it is compiled for."""

import os
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

Array = jax.Array
PLATFORMS = ("cuda", "tpu")  # for which there are kernels of `pallas`


def has_kernels() -> bool:
    """Whether this process may compile for one of `PLATFORMS`, and the kernels are not switched off."""
    return jax.default_backend() != "cpu" and os.environ.get("SAMEBITS_PALLAS", "1") != "0"


def by_platform(kernel: Callable[..., Array], ordinary: Callable[..., Array], *arrays: Any) -> Array:
    """``kernel(platform, *arrays)`` in programs for one of `PLATFORMS`, else ``ordinary(*arrays)``."""

    def on(platform: str) -> Callable[..., Array]:
        return lambda *operands: kernel(platform, *operands)

    kernels = {platform: on(platform) for platform in PLATFORMS}
    result: Array = lax.platform_dependent(*arrays, default=ordinary, **kernels)
    return result
