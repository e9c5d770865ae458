"""Weights between torch and flax: tensors named and laid out as in a torch ``state_dict``, for a flax nnx module.

Names are those of the module's attributes joined by dots, as in torch; the parts of ``nnx.Sequential`` are numbered:

    =====================  ====================  =================================================
    flax module            variable              torch name and layout
    =====================  ====================  =================================================
    ``Linear``             ``kernel``            ``weight``, ``(in, out)`` becomes ``(out, in)``
    ``Conv``               ``kernel``            ``weight``, ``(h, w, in, out)`` becomes ``(out, in, h, w)``
    ``ConvTranspose``      ``kernel``            ``weight``, ``(h, w, out, in)`` becomes ``(in, out, h, w)``
    ``Embed``              ``embedding``         ``weight``
    ``LayerNorm``          ``scale``             ``weight``
    ``RMSNorm``            ``scale``             ``weight``
    ``GroupNorm``          ``scale``             ``weight``
    ``BatchNorm``          ``scale``             ``weight``
    ``BatchNorm``          ``mean``, ``var``     ``running_mean``, ``running_var``
    all of these           ``bias``              ``bias``
    `TensorQuantizer`      ``scale``             ``scale``
    `TensorQuantizer`      ``zero_point``        ``zero_point``
    `TensorQuantizer`      ``sigma``             ``sigma``
    `TensorQuantizer`      ``step``              ``step``, int64, here uint32
    =====================  ====================  =================================================

The projections of ``MultiHeadAttention`` are the tensors of torch's ``MultiheadAttention``: ``in_proj_weight``, those
of query, key and value below each other, ``in_proj_bias``, ``out_proj.weight`` and ``out_proj.bias``. A transposed
convolution has names of torch with ``transpose_kernel=True`` only, as torch has it; attention without grouped keys,
norms of queries, and other widths of keys than of queries. A variable of any other module keeps its name and layout.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from ..tensor_quantizer import TensorQuantizer
from .modules import Sequential

Tensor = NDArray[Any]
RENAMED: tuple[tuple[type[nnx.Module], Mapping[str, str]], ...] = (
    (nnx.Linear, {"kernel": "weight"}),
    (nnx.Conv, {"kernel": "weight"}),
    (nnx.Embed, {"embedding": "weight"}),
    (nnx.LayerNorm, {"scale": "weight"}),
    (nnx.RMSNorm, {"scale": "weight"}),
    (nnx.GroupNorm, {"scale": "weight"}),
    (nnx.BatchNorm, {"scale": "weight", "mean": "running_mean", "var": "running_var"}),
)
PROJECTIONS = ("query", "key", "value")
COUNTER = "num_batches_tracked"  # of batch norms in torch, which needs it where there is no momentum


class Entry(NamedTuple):
    """A variable of a module and how torch lays it out."""

    variable: Any
    axes: tuple[int, ...] | None  # transposition to torch's layout; None for none
    grows: bool  # whether its shape is not known yet


def state_dict(module: nnx.Module) -> dict[str, Tensor]:
    """The parameters and statistics of a module as NumPy arrays, by their torch names and in torch layout.

    Scales that are not set yet are NaN, or empty where even their shape is not known.
    """
    found = {name: (np.asarray(entry.variable[...]), entry.axes) for name, entry in entries(module).items()}
    tensors = {
        name: in_torch_layout(array.astype(np.int64) if array.dtype == np.uint32 else array, axes)
        for name, (array, axes) in found.items()
    }
    for prefix, _ in attentions(module):
        join_projections(tensors, prefix)
    return dict(sorted(tensors.items()))


def load_state_dict(module: nnx.Module, tensors: Mapping[str, Tensor]) -> None:
    """Sets all parameters and statistics of a module from arrays by their torch names and in torch layout.

    The counter of batches that torch's batch norms have (`COUNTER`) is left out where those of flax have none. Nothing
    is set when an exception is raised.

    Raises:
        ValueError: names that are missing or that the module does not have, a tensor of another shape, or a count
            that does not fit an uint32.
        TypeError: a tensor of another dtype.
    """
    held, tensors = entries(module), dict(tensors)
    for prefix, part in attentions(module):
        split_projections(tensors, prefix, part)
    counters = {f"{name}.{COUNTER}".lstrip(".") for name in batch_norms(module)} - set(held)
    missing, unexpected = sorted(set(held) - set(tensors)), sorted(set(tensors) - set(held) - counters)
    if missing or unexpected:
        kinds = (("missing", missing), ("unexpected", unexpected))
        found = "; ".join(f"{kind} {', '.join(names)}" for kind, names in kinds if names)
        raise ValueError(f"`tensors` must hold what the module holds, got {found}")
    new = {name: fitting(name, np.asarray(tensors[name]), entry) for name, entry in held.items()}
    for name, entry in held.items():
        entry.variable.set_value(new[name])


def batch_norms(module: nnx.Module) -> Iterator[str]:
    """Their torch names."""
    for path, part in nnx.iter_modules(module):
        if isinstance(part, nnx.BatchNorm):
            yield ".".join(torch_path(module, path))


def entries(module: nnx.Module) -> dict[str, Entry]:
    """The variables of a module by their torch names, in the order of these."""
    found: dict[str, Entry] = {}
    for path, part in nnx.iter_modules(module):
        prefix = "".join(f"{name}." for name in torch_path(module, path))
        for name, variable in vars(part).items():
            if isinstance(variable, nnx.Variable) and not isinstance(variable, nnx.RngState):
                found[prefix + _renamed(part, name)] = Entry(variable, _axes(part, name), _grows(part, variable))
    return dict(sorted(found.items()))


def torch_path(module: nnx.Module, path: Sequence[object]) -> Iterator[str]:
    """Names of a path in torch: the list inside an ``nnx.Sequential`` has none, its parts those of a `Sequential`."""
    here: Any = module
    names: Sequence[str] = ()
    for name in path:
        inside = isinstance(here, nnx.Sequential) and name == "layers"
        if not inside:
            yield names[name] if names and isinstance(name, int) else str(name)
        names = here.names if inside and isinstance(here, Sequential) else ()
        here = here[name] if isinstance(name, int) else getattr(here, str(name))


def attentions(module: nnx.Module) -> Iterator[tuple[str, nnx.MultiHeadAttention]]:
    """The attention layers whose projections torch holds in one tensor, behind the beginnings of their names."""
    for path, part in nnx.iter_modules(module):
        if not isinstance(part, nnx.MultiHeadAttention) or part.normalize_qk or part.num_kv_heads != part.num_heads:
            continue
        if part.in_features == part.in_kv_features == part.out_features:
            yield "".join(f"{name}." for name in torch_path(module, path)), part


def join_projections(tensors: dict[str, Tensor], prefix: str) -> None:
    """Puts the projections of an attention layer into the tensors that torch has for them."""
    weights = [tensors.pop(f"{prefix}{name}.kernel") for name in PROJECTIONS]
    joined = np.concatenate([w.reshape(len(w), -1).T for w in weights])
    out = tensors.pop(f"{prefix}out.kernel")
    tensors |= {f"{prefix}in_proj_weight": joined, f"{prefix}out_proj.weight": _turned(out)}
    if f"{prefix}out.bias" in tensors:
        biases = [tensors.pop(f"{prefix}{name}.bias").reshape(-1) for name in PROJECTIONS]
        tensors[f"{prefix}in_proj_bias"] = np.concatenate(biases)
        tensors[f"{prefix}out_proj.bias"] = tensors.pop(f"{prefix}out.bias")


def split_projections(tensors: dict[str, Tensor], prefix: str, part: nnx.MultiHeadAttention) -> None:
    """Puts torch's tensors of an attention layer under the names, and into the layouts, of flax.

    Raises:
        ValueError: a tensor of another shape.
    """
    width, inside, heads = part.in_features, part.qkv_features, (part.num_heads, part.head_dim)
    shapes = {
        f"{prefix}in_proj_weight": (3 * inside, width),
        f"{prefix}in_proj_bias": (3 * inside,),
        f"{prefix}out_proj.weight": (width, inside),
        f"{prefix}out_proj.bias": (width,),
    }
    found = {name: np.asarray(tensors.pop(name)) for name in shapes if name in tensors}
    for name, tensor in found.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"`{name}` must have shape {shapes[name]}, got {tensor.shape}")
    for name, tensor in found.items():
        if name.endswith("in_proj_weight"):
            parts = [_turned(w).reshape(width, *heads) for w in np.split(tensor, 3)]
            tensors |= {f"{prefix}{p}.kernel": w for p, w in zip(PROJECTIONS, parts, strict=True)}
        elif name.endswith("in_proj_bias"):
            parts = [b.reshape(heads) for b in np.split(tensor, 3)]
            tensors |= {f"{prefix}{p}.bias": b for p, b in zip(PROJECTIONS, parts, strict=True)}
        elif name.endswith("weight"):
            tensors[f"{prefix}out.kernel"] = _turned(tensor).reshape(*heads, width)
        else:
            tensors[f"{prefix}out.bias"] = tensor


def _turned(matrix: Tensor) -> Tensor:
    """A matrix of all axes but the last, transposed."""
    return np.ascontiguousarray(matrix.reshape(-1, matrix.shape[-1]).T)


def _renamed(part: nnx.Module, name: str) -> str:
    if isinstance(part, nnx.ConvTranspose) and part.transpose_kernel:
        return "weight" if name == "kernel" else name
    return next((names.get(name, name) for kind, names in RENAMED if isinstance(part, kind)), name)


def _axes(part: nnx.Module, name: str) -> tuple[int, ...] | None:
    if name != "kernel":
        return None
    if isinstance(part, nnx.Linear):
        return (1, 0)
    if isinstance(part, nnx.Conv) or (isinstance(part, nnx.ConvTranspose) and part.transpose_kernel):
        spatial = len(part.kernel_size)
        return (spatial + 1, spatial, *range(spatial))
    return None


def _grows(part: nnx.Module, variable: Any) -> bool:
    return isinstance(part, TensorQuantizer) and variable[...].size == 0


def in_torch_layout(array: Tensor, axes: tuple[int, ...] | None) -> Tensor:
    """An array of flax, by the axes of its `Entry`."""
    return array if axes is None else np.ascontiguousarray(array.transpose(axes))


def fitting(name: str, tensor: Tensor, entry: Entry) -> jax.Array:
    """A tensor in flax layout, if it fits the variable."""
    held = entry.variable[...]
    wanted = held.shape if entry.axes is None else tuple(held.shape[axis] for axis in entry.axes)
    if tensor.shape != wanted and not entry.grows:
        raise ValueError(f"`{name}` must have shape {wanted}, got {tensor.shape}")
    if tensor.dtype == np.int64 and held.dtype == np.uint32:  # torch has hardly any unsigned integers
        outside = tensor[(tensor < 0) | (tensor > 0xFFFFFFFF)]
        if outside.size:
            raise ValueError(f"`{name}` must lie in [0, 2**32), got {outside.flat[0]}")
        tensor = tensor.astype(np.uint32)
    if tensor.dtype != held.dtype:
        raise TypeError(f"`{name}` must have dtype {held.dtype.name}, got {tensor.dtype.name}")
    return jnp.asarray(tensor if entry.axes is None else tensor.transpose(np.argsort(entry.axes)))
