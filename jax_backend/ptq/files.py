"""Quantized pytrees and nnx models in files, in the layout of `samebits.core.quantized_files`, as torch has them.

Names and axes are those of torch. Of nnx models as `samebits.jax_backend.interop` says; of a pytree a leaf ``kernel``
of two axes lies in the file as ``weight``, ``(out, in)``, and ``w`` as ``w``, ``(out, in)``.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...core.bytes_of_codes import is_packed
from ...core.descriptions import QParams
from ...core.quantized_files import Entry, check_names, entries_of, metadata_of, parts_of
from ...core.requirements import lacking
from .. import interop
from .configs import is_qarray, path_name
from .modules import QuantizedKernel, set_kernel
from .qarray import QArray, array_of_codes, unpacked_codes

Path = str | PathLike[str]
COUNTER = "num_batches_tracked"  # what torch's batch normalization has beside flax's


def save_quantized(model: Any, path: Path) -> None:
    """Writes the arrays of a pytree, or the variables of an nnx model, as a safetensors file.

    Raises:
        TypeError: a leaf that is no array. Else as `write_quantized`.
    """
    write_quantized(_named(model), path)


def write_quantized(tensors: Mapping[str, Any], path: Path) -> None:
    """Writes arrays by name, `QArray` ``(out, in)`` among them, as a safetensors file; `read_quantized` gives them.

    Names and layouts are those of the file.

    Raises:
        ImportError: without safetensors (``pip install 'samebits[files]'``). ValueError: a transposed weight.
    """
    _require()
    from safetensors.numpy import save_file

    entries: dict[str, Entry] = {}
    stored: dict[str, Any] = {}
    for name, value in tensors.items():
        if not isinstance(value, QArray):
            stored[name] = np.asarray(value, order="C")  # ascontiguousarray would give a scalar an axis
            continue
        if value.transposed:
            raise ValueError(f"`{name}` must not be transposed to be saved")
        entry = Entry(value.quantizer, value.act_quant, value.code_layout, value.length, jnp.dtype(value.dtype).name)
        parts = (value.codes, value.scale, *([] if value.zero_point is None else [value.zero_point]))
        entries[name] = entry
        stored |= zip(parts_of(name, entry), map(np.asarray, parts), strict=True)
    save_file(stored, path, metadata_of(entries))


def read_quantized(path: Path) -> dict[str, Any]:
    """What a file holds, by name: a `QArray` ``(out, in)`` for each weight that is codes, else NumPy arrays.

    Raises:
        ImportError: as `save_quantized`. FileNotFoundError: no such file. ValueError: a file of something else, of
            another version, or damaged; codes that are none, scales of another shape. TypeError: another dtype.
    """
    _require()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"`path` must be a safetensors file, got {path}: {error}") from error
    entries = entries_of(path, metadata, tensors)
    weights = {name: _weight(name, entry, tensors) for name, entry in entries.items()}
    parts = {part for name, entry in entries.items() for part in parts_of(name, entry)}
    return {name: tensor for name, tensor in tensors.items() if name not in parts} | weights


def load_quantized(model: Any, path: Path) -> Any:
    """The arrays of a file in the place of those of a pytree, in a new one; or of an nnx model, in place.

    The model may be the float model, or quantized, in any way. It is as it was if anything raises.

    Returns:
        The new pytree, or the model.
    Raises:
        As `read_quantized`; and ValueError for arrays that the model does not have, that are missing, or of another
        shape, TypeError for another dtype. All name the array.
    """
    found = {name: value for name, value in read_quantized(path).items() if name.rpartition(".")[2] != COUNTER}
    if not isinstance(model, nnx.Module):
        return _into_tree(model, found)
    held = interop.entries(model)
    check_names(held, found, {})
    new = {name: _fitting(name, found[name], entry) for name, entry in held.items()}
    layers = {".".join((*interop.torch_path(model, p), "weight")): part for p, part in nnx.iter_modules(model)}
    for name, value in new.items():
        if isinstance(value, QArray) or isinstance(held[name].variable, QuantizedKernel):
            set_kernel(layers[name], value.T)
        else:
            held[name].variable.set_value(value)
    return model


def _named(model: Any) -> dict[str, Any]:
    """The arrays of a model by the names and in the layouts of a file."""
    if isinstance(model, nnx.Module):
        return {name: _variable(entry) for name, entry in interop.entries(model).items()}
    leaves, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_qarray)
    named = {}
    for path, leaf in leaves:
        name, turned = _in_file(path_name(path), leaf)
        if is_qarray(leaf):
            leaf = leaf.T if leaf.transposed else leaf
        elif not hasattr(leaf, "dtype"):
            raise TypeError(f"`model` must hold arrays alone to be saved, got {leaf!r} as {name!r}")
        else:
            leaf = np.asarray(leaf).T if turned else np.asarray(leaf)
        named[name] = leaf
    return named


def _in_file(name: str, leaf: Any) -> tuple[str, bool]:
    """The name of a leaf in a file, and whether it lies there transposed."""
    before, _, last = name.rpartition(".")
    if last not in ("kernel", "w") or leaf.ndim != 2:
        return name, False
    renamed = "weight" if last == "kernel" else "w"
    return (f"{before}.{renamed}" if before else renamed), True


def _variable(entry: interop.Entry) -> Any:
    value = entry.variable.get_value()
    return value.T if isinstance(value, QArray) else interop.in_torch_layout(np.asarray(value), entry.axes)


def _into_tree(tree: Any, found: dict[str, Any]) -> Any:
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_qarray)
    names = [_in_file(path_name(path), leaf) for path, leaf in leaves]
    check_names([name for name, _ in names], found, {})
    new = []
    for (name, turned), (_, leaf) in zip(names, leaves, strict=True):
        value = found[name]
        value = value.T if turned else value
        _check(name, value, leaf)
        new.append(value if is_qarray(value) else jnp.asarray(value))
    return jax.tree.unflatten(structure, new)


def _fitting(name: str, value: Any, entry: interop.Entry) -> Any:
    """What a variable is to hold, if it fits it."""
    if isinstance(value, QArray):
        if entry.axes != (1, 0):
            raise ValueError(f"`{name}` must not be codes, got {value!r}: only the kernels of nnx.Linear may be")
        _check(name, value.T, entry.variable.get_value())
        return value
    if isinstance(entry.variable, QuantizedKernel):
        _check(name, value.T, entry.variable.get_value())
        return jnp.asarray(value)
    return interop.fitting(name, value, entry)


def _check(name: str, value: Any, held: Any) -> None:
    if value.shape != held.shape:
        raise ValueError(f"`{name}` must have shape {tuple(held.shape)}, got {tuple(value.shape)} in the file")
    if value.dtype != held.dtype:
        raise TypeError(f"`{name}` must have dtype {jnp.dtype(held.dtype).name}, got {value.dtype} in the file")


def _weight(name: str, entry: Entry, tensors: dict[str, Any]) -> QArray:
    codes, scale, *zero = (jnp.asarray(tensors[part]) for part in parts_of(name, entry))
    q = entry.quantizer
    try:
        if is_packed(q, entry.layout):
            codes = unpacked_codes(q, codes, entry.length)
        qparams = QParams(scale, zero[0] if zero else None)
        return array_of_codes(q, codes, qparams, entry.dtype, entry.act_quant, entry.layout)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{name}` of the file: {error}") from error


def _require() -> None:
    if line := lacking("files", "a file of quantized weights"):
        raise ImportError(line)
