"""Arrays from one library to another, keeping every bit: subnormals, NaN payloads, signs of zero.

Nothing is computed and, where memory allows it, nothing is copied. torch and JAX are imported only when they are used.
"""

import sys
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import jax
    import torch

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def to_numpy(value: Any) -> Array:
    """A NumPy array of what is given: an array of any of the three libraries, or a number. bfloat16 is ml_dtypes'.

    The memory is shared where possible; a gradient history is left behind.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        plain = value.detach().cpu()
        if plain.dtype == torch.bfloat16:
            return np.asarray(plain.view(torch.int16).numpy()).view(BFLOAT16)
        return np.asarray(plain.numpy())
    return np.asarray(value)


def to_torch(x: Array, device: str = "cpu") -> "torch.Tensor":
    """A torch tensor of the same bits; on the CPU it shares the memory of a writable array with positive strides."""
    import torch

    x = np.asarray(x)
    if not x.flags.writeable or any(stride < 0 for stride in x.strides):
        x = x.copy()
    if x.dtype == BFLOAT16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(x).to(device)


def to_jax(x: Array) -> "jax.Array":
    """A JAX array of the same bits. TypeError for float64 (int64, uint64) unless 64-bit types are on: JAX would round.

    Under `jax.enable_x64(True)` they are kept.
    """
    import jax

    x = np.asarray(x)
    if jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
        raise TypeError(f"`x` of dtype {x.dtype} needs 64-bit types in JAX; use `with jax.enable_x64(True):`")
    array: jax.Array = jax.device_put(x)
    return array
