"""Quantized torch models in files, in the layout of `samebits.core.quantized_files`, which JAX reads too."""

from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor, nn

from ...core.bytes_of_codes import is_packed
from ...core.descriptions import QParams
from ...core.quantized_files import Entry, check_names, entries_of, metadata_of, parts_of
from ...core.requirements import lacking
from ..arrays import dtype_name
from . import weight_operators as weight_operators
from .quant_weight import QuantWeight, unpacked_codes, weight_of_codes

Path = str | PathLike[str]
COUNTER = "num_batches_tracked"  # of batch normalization; flax has none


def save_quantized(model: nn.Module, path: Path) -> None:
    """Writes the parameters and buffers of a model, those that are in its ``state_dict``, as a safetensors file.

    Raises:
        As `write_quantized`.
    """
    write_quantized(model.state_dict(), path)


def write_quantized(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors by name, `QuantWeight` among them, as a safetensors file; `read_quantized` gives them back.

    Raises:
        ImportError: without safetensors (``pip install 'samebits[files]'``). ValueError: a transposed weight.
    """
    require()
    from safetensors.torch import save_file

    entries: dict[str, Entry] = {}
    stored: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not isinstance(value, QuantWeight):
            stored[name] = value
            continue
        if value.transposed:
            raise ValueError(f"`{name}` must not be transposed to be saved")
        entry = Entry(value.quantizer, value.act_quant, value.code_layout, value.length, dtype_name(value.dtype))
        parts = (value.codes, value.scale, *([] if value.zero_point is None else [value.zero_point]))
        entries[name] = entry
        stored |= zip(parts_of(name, entry), parts, strict=True)
    save_file(unshared(stored), path, metadata_of(entries))


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each with storage of its own, as a file has them."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        own[name] = tensor.detach().clone().contiguous() if pointer in seen else tensor.detach().contiguous()
        seen.add(pointer)
    return own


def read_quantized(path: Path) -> dict[str, Tensor]:
    """What a file holds, by name: a `QuantWeight` for each weight that is codes, else tensors.

    Raises:
        ImportError: as `save_quantized`. FileNotFoundError: no such file. ValueError: a file of something else, of
            another version, or damaged; codes that are none, scales of another shape. TypeError: another dtype.
    """
    require()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"`path` must be a safetensors file, got {path}: {error}") from error
    entries = entries_of(path, metadata, tensors)
    weights = {name: _weight(name, entry, tensors) for name, entry in entries.items()}
    parts = {part for name, entry in entries.items() for part in parts_of(name, entry)}
    return {name: tensor for name, tensor in tensors.items() if name not in parts} | weights


def load_quantized(model: nn.Module, path: Path) -> None:
    """Sets the parameters and buffers of a model from a file; weights that are codes there become `QuantWeight`.

    The model may be the float model, or quantized, in any way. It is as it was if anything raises.

    Raises:
        As `read_quantized`; and ValueError for tensors that the model does not have, that are missing, or of another
        shape, TypeError for another dtype. All name the tensor.
    """
    put(model, read_quantized(path))


def put(model: nn.Module, found: dict[str, Tensor]) -> None:
    """Sets the parameters and buffers of a model to these; errors as `load_quantized`."""
    own = model.state_dict(keep_vars=True)
    own = {name: value for name, value in own.items() if name in found or name.rpartition(".")[2] != COUNTER}
    check_names(own, found, {})
    made: dict[int, Tensor] = {}  # what was shared stays shared
    for name, value in own.items():
        _check(name, found[name], value)
        if isinstance(value, QuantWeight) or isinstance(found[name], QuantWeight):
            made.setdefault(id(value), nn.Parameter(found[name].to(value.device), requires_grad=False))
    for name, value in own.items():
        if id(value) in made:
            path, _, key = name.rpartition(".")
            model.get_submodule(path)._parameters[key] = made[id(value)]  # type: ignore[assignment]
        else:
            with torch.no_grad():
                value.copy_(found[name])


def _check(name: str, tensor: Tensor, old: Tensor) -> None:
    if tensor.shape != old.shape:
        raise ValueError(f"`{name}` must have shape {tuple(old.shape)}, got {tuple(tensor.shape)} in the file")
    if tensor.dtype != old.dtype:
        raise TypeError(f"`{name}` must have dtype {dtype_name(old.dtype)}, got {dtype_name(tensor.dtype)} in the file")


def _weight(name: str, entry: Entry, tensors: dict[str, Tensor]) -> QuantWeight:
    codes, scale, *zero = (tensors[part] for part in parts_of(name, entry))
    q, dtype = entry.quantizer, getattr(torch, entry.dtype)
    try:
        if is_packed(q, entry.layout):
            codes = unpacked_codes(q, codes, entry.length)
        qparams = QParams(scale, zero[0] if zero else None)
        return weight_of_codes(q, codes, qparams, dtype, entry.act_quant, entry.layout)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{name}` of the file: {error}") from error


def require() -> None:
    """ImportError, with the line that says what to install, without safetensors."""
    if line := lacking("files", "a file of quantized weights"):
        raise ImportError(line)
