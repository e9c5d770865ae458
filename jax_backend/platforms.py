"""Which kernel a program takes, and what its compiler computes otherwise: decided for the platform of a process."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.descriptions import Quantizer

Array = jax.Array
PLATFORMS = ("cuda", "tpu")  # for which there are kernels of `pallas`
OF_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # instructions that multiply it, as Linux names them


@cache
def type_of_codes() -> Any:
    """The dtype in which integers of at most 256 are multiplied fastest; float32 and bfloat16 both hold them.

    bfloat16 on accelerators, and where the processor is known to multiply it; a processor that cannot, takes twice as
    long as for float32.
    """
    if jax.default_backend() != "cpu":
        return jnp.bfloat16
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return np.float32
    return np.float32 if OF_BFLOAT16.isdisjoint(known.split()) else jnp.bfloat16


def rounds_once() -> bool:
    """Whether the compiler of this process rounds a quotient once, and keeps a conversion to 16 bits: on the CPU.

    XLA on a GPU divides float32 with an error of units in the last place, leaves out a narrowing that is widened again,
    and may take a convolution by an algorithm that rounds integers, too.
    """
    return jax.default_backend() == "cpu"


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


def fake_quantized(q: Quantizer, ordinary: Callable[..., Array], *operands: Any) -> Array:
    """``ordinary(*operands)``, or the kernel of `pallas` where there is one and it fits.

    Args:
        operands: ``x``, scale, zero point, seed and bit width, those that are not there None.
    """
    if has_kernels():
        from . import pallas  # takes longer to import than it is to everybody worth

        def kernel(platform: str, x: Array, scale: Array, zero_point: Array | None, *_: None) -> Array:
            value: Array = pallas.fake_quantized(platform, q, x, scale, zero_point)
            return value

        if pallas.fits(q, operands[0], operands[-1]):
            return by_platform(kernel, ordinary, *operands)
    return ordinary(*operands)
