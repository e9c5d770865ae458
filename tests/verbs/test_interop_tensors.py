"""Tensors and arrays of the two frameworks: every bit arrives, memory is shared where it can be."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits.jax_backend import interop
from samebits.jax_backend.interop.tensors import numpy_to_tensor, tensor_to_numpy

# NaN with a payload, infinities, both zeros, a subnormal, the largest number: float32 bit patterns
BITS = np.array([0x7FC12345, 0x7F800000, 0xFF800000, 0, 0x80000000, 1, 0x7F7FFFFF, 0x3F800000], np.uint32)
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


def bits(value: Any) -> NDArray[Any]:
    """The bytes of a tensor or an array, in row-major order."""
    array = tensor_to_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def assert_arrives(tensor: torch.Tensor, shared: bool) -> None:
    array = interop.tensor_to_array(tensor)
    assert (array.shape, str(array.dtype)) == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
    np.testing.assert_array_equal(bits(array), bits(tensor))
    assert (array.unsafe_buffer_pointer() == tensor.data_ptr()) == shared
    back = interop.array_to_tensor(array)
    assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
    np.testing.assert_array_equal(bits(back), bits(tensor))
    assert back.data_ptr() == array.unsafe_buffer_pointer()
    owns = interop.tensor_to_array(tensor, copy=True), interop.array_to_tensor(array, copy=True)
    assert not tensor.numel() or owns[0].unsafe_buffer_pointer() != tensor.data_ptr()
    assert not tensor.numel() or owns[1].data_ptr() != array.unsafe_buffer_pointer()
    np.testing.assert_array_equal(bits(owns[0]), bits(owns[1]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_bit_of_floats_arrives(dtype: torch.dtype) -> None:
    width = torch.empty(0, dtype=dtype).element_size()
    pattern = BITS if width == 4 else np.arange(2 ** (8 * min(width, 2)), dtype=f"uint{8 * width}")
    tensor = torch.from_numpy(pattern.view(f"int{8 * width}") if width > 1 else pattern).view(dtype)
    assert_arrives(tensor.clone(), shared=True)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.complex64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    assert_arrives(torch.tensor([0, 1, 1, 0, 1]).to(dtype), shared=True)


LAID_OUT = {
    "0-d": (torch.tensor(-0.0), True),
    "empty": (torch.empty(0, 3), True),
    "permuted": (torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1), True),
    "channels last": (torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last), True),
    "of one element": (torch.arange(6.0).reshape(2, 3)[1:, 2:], False),
    "with steps": (torch.arange(24.0).reshape(4, 6)[:, ::2], False),
    "rows of a matrix": (torch.arange(64.0).reshape(4, 16)[1:], True),
    "at no multiple of 64 bytes": (torch.arange(64.0)[3:], False),
    "expanded": (torch.arange(3.0).expand(2, 3), False),
    "with a gradient": (torch.arange(3.0, requires_grad=True), True),
    "conjugate": (torch.tensor([1 + 2j, 3 - 4j]).conj(), False),
    "negative": (torch.tensor([1 + 2j, 3 - 4j]).conj().imag, False),
}


@pytest.mark.parametrize("name", LAID_OUT)
def test_memory_is_shared_where_it_can_be(name: str) -> None:
    assert_arrives(*LAID_OUT[name])


def test_shared_memory_is_seen_and_a_copy_is_not() -> None:
    tensor = torch.zeros(4)
    shared, own = interop.tensor_to_array(tensor), interop.tensor_to_array(tensor, copy=True)
    tensor.fill_(1)
    assert (np.asarray(shared).sum(), np.asarray(own).sum()) == (4, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex128])
def test_64_bits_are_kept_or_refused(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1, -2, 3], dtype=dtype)
    with pytest.raises(TypeError, match=r"`tensor` of dtype .* needs 64-bit types in JAX; use `with jax.enable_x64"):
        interop.tensor_to_array(tensor)
    with jax.enable_x64(True):
        assert_arrives(tensor, shared=True)


def test_what_is_no_array_is_refused() -> None:
    for wrong in (
        np.zeros(2),
        torch.zeros(2).to_sparse(),
        torch.quantize_per_tensor(torch.zeros(2), 1, 0, torch.qint8),
        torch.zeros(2, device="meta"),
    ):
        with pytest.raises(TypeError, match=r"`tensor` must be a dense torch.Tensor, got"):
            interop.tensor_to_array(wrong)
    with pytest.raises(TypeError, match=r"of a dtype that NumPy and JAX have, got torch.complex32"):
        interop.tensor_to_array(torch.zeros(2, dtype=torch.complex32))
    with pytest.raises(TypeError, match=r"`array` must be a jax.Array with values, got array"):
        interop.array_to_tensor(np.zeros(2))
    with pytest.raises(TypeError, match="inside a transformation of JAX use `jax_function`"):
        jax.eval_shape(interop.array_to_tensor, jnp.zeros(2))
    for other in (jax.random.key(0), jnp.zeros(2, ml_dtypes.int4)):
        with pytest.raises(TypeError, match=r"`array` must be dense, on one device, and of a dtype that torch has"):
            interop.array_to_tensor(other)


def test_numpy_in_between() -> None:
    """What weights pass through: dtypes that NumPy does not have, memory that cannot be shared."""
    for dtype in FLOATS:
        tensor = torch.tensor([1.0, -2.0]).to(dtype)
        array = tensor_to_numpy(tensor)
        assert str(array.dtype) == str(dtype).removeprefix("torch.")
        np.testing.assert_array_equal(bits(numpy_to_tensor(array)), bits(tensor))
    kept = np.arange(3.0)
    kept.flags.writeable = False
    numpy_to_tensor(kept).fill_(7)
    numpy_to_tensor(kept[::-1]).fill_(7)
    assert kept.tolist() == [0, 1, 2]


def test_torch_is_imported_when_it_is_needed() -> None:
    code = (
        "import sys; from samebits.jax_backend import interop; interop.state_dict; interop.Flatten;"
        "print('torch' in sys.modules); interop.to_flax; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert {"to_flax", "state_dict", "jax_function"} <= set(dir(interop))
    with pytest.raises(AttributeError, match="has no attribute 'to_keras'"):
        interop.to_keras  # noqa: B018
