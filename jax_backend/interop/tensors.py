"""Tensors of torch as arrays of JAX, and back, bit for bit; by DLPack, without a copy where memory allows it."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from torch import Tensor

# torch dtypes that NumPy does not have, and integers of as many bits
NOT_IN_NUMPY = {
    torch.bfloat16: (torch.int16, np.dtype(ml_dtypes.bfloat16)),
    torch.float8_e4m3fn: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fn)),
    torch.float8_e5m2: (torch.uint8, np.dtype(ml_dtypes.float8_e5m2)),
    torch.float8_e4m3fnuz: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fnuz)),
    torch.float8_e5m2fnuz: (torch.uint8, np.dtype(ml_dtypes.float8_e5m2fnuz)),
    torch.float8_e8m0fnu: (torch.uint8, np.dtype(ml_dtypes.float8_e8m0fnu)),
}
OF_NUMPY = {ours: (bits, theirs) for theirs, (bits, ours) in NOT_IN_NUMPY.items()}


def tensor_to_array(tensor: Tensor, *, copy: bool | None = None) -> jax.Array:
    """A JAX array of the same bits.

    The memory is shared where the strides of the tensor are those of a contiguous one with permuted axes, it begins at
    a multiple of 64 bytes, and it lies on a device that JAX has; then nothing may write into the tensor while the array
    is in use. Slices with steps, expanded tensors, lazy conjugates and negatives are copied. Gradients do not pass: for
    that there is `torch_function`.

    Args:
        tensor: of any shape, 0-d and empty too; bool, integers, floats of 8 to 64 bits, complex.
        copy: True for memory of its own; None where it must be.
    Raises:
        TypeError: no tensor, a sparse or quantized one, one without values (of the device "meta") or of a dtype that
            NumPy does not have, or one of 64 bits without ``jax_enable_x64``, which JAX would round.
    """
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        what = (
            tensor
            if not isinstance(tensor, Tensor)
            else f"one of layout {tensor.layout}, quantized={tensor.is_quantized}, on {tensor.device}"
        )
        raise TypeError(f"`tensor` must be a dense torch.Tensor, got {what!r}")
    check_bits("tensor", dtype_in_numpy(tensor.dtype))
    plain = tensor.detach().resolve_conj().resolve_neg()
    if copy:
        plain = plain.clone(memory_format=torch.contiguous_format)
    elif not _is_dense(plain):
        plain = plain.contiguous()
    return jnp.from_dlpack(plain)


def array_to_tensor(array: jax.Array, *, copy: bool | None = None) -> Tensor:
    """A torch tensor of the same bits, on the device of the array.

    The memory is shared, so nothing may write into the tensor unless it is a copy: JAX takes arrays for constants.

    Args:
        array: of any shape, 0-d and empty too; of a dtype that torch has.
        copy: True for memory of its own.
    Raises:
        TypeError: no array with values, as inside ``jax.jit``, where `jax_function` can be used; or a dtype that torch
            does not have.
    """
    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer):
        hint = "; inside a transformation of JAX use `jax_function`" if isinstance(array, jax.core.Tracer) else ""
        raise TypeError(f"`array` must be a jax.Array with values, got {array!r}{hint}")
    try:
        tensor: Tensor = torch.utils.dlpack.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise TypeError(
            f"`array` must be dense, on one device, and of a dtype that torch has, got {array.dtype}"
        ) from error
    return tensor.clone() if copy else tensor


def tensor_to_numpy(tensor: Tensor) -> NDArray[Any]:
    """A NumPy array of the same bits; memory of the CPU is shared. bfloat16 and float8 are those of ml_dtypes."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    if plain.dtype in NOT_IN_NUMPY:
        bits, dtype = NOT_IN_NUMPY[plain.dtype]
        return np.asarray(plain.view(bits).numpy()).view(dtype)
    return np.asarray(plain.numpy())


def numpy_to_tensor(array: NDArray[Any]) -> Tensor:
    """A tensor on the CPU of the same bits; shares memory that can be written to and has no negative strides."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    if array.dtype in OF_NUMPY:
        bits, dtype = OF_NUMPY[array.dtype]
        return torch.from_numpy(array.view(np.uint8 if bits is torch.uint8 else np.int16)).view(dtype)
    return torch.from_numpy(array)


def dtype_in_numpy(dtype: torch.dtype) -> "np.dtype[Any]":
    """The same dtype of NumPy or ml_dtypes. TypeError where there is none."""
    try:
        return tensor_to_numpy(torch.empty(0, dtype=dtype)).dtype
    except TypeError as error:
        raise TypeError(f"a tensor must be of a dtype that NumPy and JAX have, got {dtype}") from error


def check_bits(name: str, dtype: "np.dtype[Any]") -> None:
    """TypeError for a dtype that JAX would round to 32 bits."""
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise TypeError(f"`{name}` of dtype {dtype} needs 64-bit types in JAX; use `with jax.enable_x64(True):`")


def check_leaf(leaf: object, *others: type) -> None:
    """TypeError unless it is an array of NumPy or JAX that JAX holds as it is, a number, or of these types."""
    if not isinstance(leaf, (bool, int, float, complex, np.ndarray, np.generic, jax.Array, *others)):
        raise TypeError(f"arguments must be pytrees of arrays and numbers, got {leaf!r}")
    if isinstance(leaf, np.ndarray | np.generic):
        check_bits("an argument", leaf.dtype)


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill its memory, in some order of the axes."""
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size != 1 and stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True
