"""torch and JAX in one program: weights, models, tensors and functions of one in the other.

`state_dict` and `load_state_dict` need no torch; `to_flax` and `to_torch` convert models, `tensor_to_array` and
`array_to_tensor` tensors, `torch_function` and `jax_function` functions with their gradients. Those import torch when
they are first used.
"""

from typing import TYPE_CHECKING, Any

from ...core.requirements import explaining
from .modules import BatchNorm as BatchNorm
from .modules import Embed as Embed
from .modules import Flatten as Flatten
from .modules import Sequential as Sequential
from .state import Entry as Entry
from .state import entries as entries
from .state import fitting as fitting
from .state import in_torch_layout as in_torch_layout
from .state import load_state_dict as load_state_dict
from .state import state_dict as state_dict
from .state import torch_path as torch_path

if TYPE_CHECKING:
    from .converting import to_flax as to_flax
    from .converting import to_torch as to_torch
    from .jax_functions import jax_function as jax_function
    from .tensors import array_to_tensor as array_to_tensor
    from .tensors import tensor_to_array as tensor_to_array
    from .torch_functions import torch_function as torch_function

_NEED_TORCH = ("array_to_tensor", "jax_function", "tensor_to_array", "to_flax", "to_torch", "torch_function")


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with explaining(f"{__name__}.{name}"):
        from .converting import to_flax, to_torch
        from .jax_functions import jax_function
        from .tensors import array_to_tensor, tensor_to_array
        from .torch_functions import torch_function
    found = (array_to_tensor, jax_function, tensor_to_array, to_flax, to_torch, torch_function)
    return dict(zip(_NEED_TORCH, found, strict=True))[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_NEED_TORCH})
