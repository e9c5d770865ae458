"""Quantizing the weights of pytrees and of flax nnx models, by `samebits.core.configs`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...core import checks
from ...core.configs import Config, ModuleConfigs, check_weight, checked, chosen
from ..interop import torch_path
from .modules import QuantizedLinear, set_kernel
from .qarray import QArray, quant_array

Array = jax.Array
Filter = Callable[[str, Any], bool]
IN_OUT = ("kernel", "w")  # names of weights that lie as (in, out): of flax, and of x @ w
NAMES = (*IN_OUT, "weight")


def is_weight(name: str, leaf: Any) -> bool:
    """The filter that `quantize_` has for pytrees: floats of two axes named ``kernel``, ``w`` or ``weight``."""
    floats = hasattr(leaf, "dtype") and jnp.dtype(leaf.dtype).name in checks.FLOATS
    return name.rpartition(".")[2] in NAMES and floats and not isinstance(leaf, QArray) and np.ndim(leaf) == 2


def is_nnx_linear(name: str, module: Any) -> bool:
    """The filter that `quantize_` has for nnx models: an ``nnx.Linear`` whose kernel is a float array."""
    plain = isinstance(module, nnx.Linear) and not isinstance(module, QuantizedLinear)
    return plain and not hasattr(module, "weight_quant")


def quantize_(model: Any, config: Config | ModuleConfigs, filter_fn: Filter | None = None) -> Any:
    """Makes weights `QArray`: of a pytree in a new one, of an nnx model in place, its layers `QuantizedLinear`.

    Weights named ``kernel`` or ``w`` lie as ``(in, out)``, and are quantized as ``(out, in)``: codes are those that
    torch has. Others lie as ``(out, in)``. A kernel that layers of an nnx model share stays shared where they get the
    same config.

    Args:
        config: of all of these weights, or by their names: keys and attributes joined by dots, in nnx models as
            `samebits.jax_backend.interop` says.
        filter_fn: which leaves of a pytree, or modules of an nnx model, by their names and themselves; None for
            `is_weight` or `is_nnx_linear`.
    Returns:
        The new pytree, or the model.
    Raises:
        TypeError: what is no config. ValueError: nothing that the filter takes, a name or pattern in ``config`` that
            fits nothing, or a weight that cannot be quantized so: no floats, quantized already, with a number of inputs
            that its group size does not divide, or with NaN or infinities. It is named, and nothing has changed.
    """
    if isinstance(model, nnx.Module):
        return _of_model(model, config, is_nnx_linear if filter_fn is None else filter_fn)
    return _of_tree(model, config, is_weight if filter_fn is None else filter_fn)


def model_size(model: Any) -> int:
    """Bytes of the arrays of a pytree, or of the variables of an nnx model: of a `QArray` those of all its parts."""
    if isinstance(model, nnx.Module):
        model = nnx.state(model)
    # not by way of NumPy's dtypes, which have none for PRNG keys
    return sum(int(np.size(a)) * a.dtype.itemsize for a in jax.tree.leaves(model) if hasattr(a, "dtype"))


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf: keys and attributes joined by dots."""
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def is_qarray(leaf: Any) -> bool:
    """Whether a node of a pytree is a `QArray`."""
    return isinstance(leaf, QArray)


def _quantized(config: Config, name: str, w: Any, turned: bool) -> QArray:
    """What takes the place of a weight, ``(in, out)`` if ``turned``. ValueError, TypeError: as `quant_array`, named."""
    lying = jnp.asarray(w).T if turned else w
    check_weight(name, config.weight, tuple(lying.shape))
    made = checked(name, lambda: quant_array(config.weight, lying, None, config.act_quant, config.layout))
    result: QArray = made.T if turned else made
    return result


def _of_tree(tree: Any, config: Config | ModuleConfigs, takes: Filter) -> Any:
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_qarray)
    named = [(path_name(path), leaf) for path, leaf in leaves]
    configs = chosen(config, [name for name, leaf in named if takes(name, leaf)])
    for name, leaf in named:
        if name in configs and (is_qarray(leaf) or not hasattr(leaf, "dtype") or np.ndim(leaf) == 0):
            raise ValueError(f"'{name}' must be an array of floats to be quantized, got {leaf!r}")
    turned = {name: name.rpartition(".")[2] in IN_OUT and np.ndim(leaf) == 2 for name, leaf in named}
    new = [_quantized(configs[name], name, leaf, turned[name]) if name in configs else leaf for name, leaf in named]
    return jax.tree.unflatten(structure, new)


def _of_model(model: nnx.Module, config: Config | ModuleConfigs, takes: Filter) -> nnx.Module:
    named = {".".join(torch_path(model, path)): part for path, part in nnx.iter_modules(model)}
    layers = {name: part for name, part in named.items() if takes(name, part)}
    configs = chosen(config, layers)
    new: dict[tuple[int, Config], QArray] = {}
    keys: dict[str, tuple[int, Config]] = {}
    for name, own in configs.items():
        layer: Any = layers[name]
        if not is_nnx_linear(name, layer):
            raise ValueError(f"layer '{name}' ({type(layer).__name__}) must be an nnx.Linear that is not quantized yet")
        if layer.kernel[...].ndim != 2:  # of layers that nnx.vmap made
            raise ValueError(f"layer '{name}' must have a kernel of two axes, got shape {layer.kernel[...].shape}")
        keys[name] = id(layer.kernel), own
        if keys[name] not in new:
            new[keys[name]] = _quantized(own, name, layer.kernel[...], True)
    variables: dict[tuple[int, Config], Any] = {}
    for name, key in keys.items():
        held: Any = layers[name]
        set_kernel(held, new[key])
        held.kernel = variables.setdefault(key, held.kernel)
    return model
