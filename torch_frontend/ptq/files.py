"""Quantized torch models in files, in the layout of `samebits.core.quantized_files`, which JAX reads too."""

from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ...core.bytes_of_codes import code_width, is_packed
from ...core.descriptions import QParams
from ...core.quantized_files import Entry, check_names, entries_of, metadata_of, parts_of
from ...core.requirements import lacking
from ..arrays import dtype_name
from . import weight_operators as weight_operators
from .packing import unpack
from .quant_weight import QuantWeight, weight_of_codes

Path = str | PathLike[str]


def save_quantized(model: nn.Module, path: Path) -> None:
    """Writes the parameters and buffers of a model, those that are in its ``state_dict``, as a safetensors file.

    Raises:
        ImportError: without safetensors (``pip install 'samebits[files]'``). ValueError: a transposed weight.
    """
    _require()
    from safetensors.torch import save_file

    entries: dict[str, Entry] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, QuantWeight):
            tensors[name] = value
            continue
        if value.transposed:
            raise ValueError(f"`{name}` must not be transposed to be saved")
        entry = Entry(value.quantizer, value.act_quant, value.code_layout, value.length, dtype_name(value.dtype))
        parts = (value.codes, value.scale, *([] if value.zero_point is None else [value.zero_point]))
        entries[name] = entry
        tensors |= zip(parts_of(name, entry), parts, strict=True)
    seen: set[int] = set()
    for name, tensor in tensors.items():  # a file has no shared storage
        pointer = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.detach().clone().contiguous() if pointer in seen else tensor.detach().contiguous()
        seen.add(pointer)
    save_file(tensors, path, metadata_of(entries))


def load_quantized(model: nn.Module, path: Path) -> None:
    """Sets the parameters and buffers of a model from a file; weights that are codes there become `QuantWeight`.

    The model may be the float model, or quantized, in any way. It is as it was if anything raises.

    Raises:
        ImportError: as `save_quantized`. FileNotFoundError: no such file. ValueError: a file of something else, of
            another version, or damaged; tensors that the model does not have, or that are missing; codes that are none,
            scales of another shape. TypeError: another dtype. All name the tensor.
    """
    tensors, metadata = _read(path)
    entries = entries_of(path, metadata, tensors)
    own = model.state_dict(keep_vars=True)
    check_names(own, tensors, entries)
    new = {name: _weight(name, entry, tensors, own[name]) for name, entry in entries.items()}
    for name, value in own.items():
        if name not in entries:
            new[name] = _fitting(name, tensors[name], value)
    made: dict[int, Tensor] = {}  # what was shared stays shared
    for name, value in own.items():
        new[name] = made.setdefault(id(value), new[name])
    for name, value in own.items():
        _set(model, name, value, new[name])


def _set(model: nn.Module, name: str, old: Tensor, new: Tensor) -> None:
    path, _, key = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(old, QuantWeight) or isinstance(new, QuantWeight):
        gradient = old.requires_grad and not isinstance(new, QuantWeight)
        module._parameters[key] = new if isinstance(new, nn.Parameter) else nn.Parameter(new, requires_grad=gradient)
        return
    with torch.no_grad():
        old.copy_(new)


def _require() -> None:
    if line := lacking("files", "a file of quantized weights"):
        raise ImportError(line)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    _require()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"`path` must be a safetensors file, got {path}: {error}") from error


def _weight(name: str, entry: Entry, tensors: dict[str, Tensor], old: Tensor) -> nn.Parameter:
    codes, scale, *zero = (tensors[part].to(old.device) for part in parts_of(name, entry))
    q, dtype = entry.quantizer, getattr(torch, entry.dtype)
    try:
        if is_packed(q, entry.layout):
            codes = unpack(codes, code_width(q), entry.length, q.format.storage == "int8")
        qparams = QParams(scale, zero[0] if zero else None)
        weight = weight_of_codes(q, codes, qparams, dtype, entry.act_quant, entry.layout)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{name}` of the file: {error}") from error
    if weight.shape != old.shape:
        raise ValueError(f"`{name}` must have shape {tuple(old.shape)}, got {tuple(weight.shape)} in the file")
    if weight.dtype != old.dtype:
        raise TypeError(f"`{name}` must have dtype {dtype_name(old.dtype)}, got {entry.dtype} in the file")
    return nn.Parameter(weight, requires_grad=False)


def _fitting(name: str, tensor: Tensor, old: Any) -> Tensor:
    if tensor.shape != old.shape:
        raise ValueError(f"`{name}` must have shape {tuple(old.shape)}, got {tuple(tensor.shape)} in the file")
    if tensor.dtype != old.dtype:
        raise TypeError(f"`{name}` must have dtype {dtype_name(old.dtype)}, got {dtype_name(tensor.dtype)} in the file")
    return tensor
