"""Quantized models in the layout of compressed-tensors: a folder of a safetensors file and a ``config.json``.

A linear layer ``name`` whose weight is codes lies in these tensors, as compressed-tensors 0.20 reads them:

- ``pack-quantized``, integers whose inputs are floats: ``name.weight_packed``, int32, the codes plus ``2**(bits - 1)``
  one after the other from the lowest bit up, each row for itself; ``name.weight_shape``; ``name.weight_zero_point``,
  packed likewise along the outputs;
- ``int-quantized``, integers whose inputs are quantized: ``name.weight``, int8, and ``name.weight_zero_point``, int8;
- ``naive-quantized`` and ``float-quantized``: the same of float8_e4m3fn.

Each has ``name.weight_scale``, ``(out, 1)``, ``(out, groups)`` or ``(1,)``. Codes there are signed: unsigned ones and
their zero points are shifted, with the same values. ``config.json`` holds ``quantization_config``: by group the names
of the layers, the widths and strategies. Values are those of samebits; what quantizes inputs later is the reader's.

Source: compressed-tensors 0.20.0, ``compressors/pack_quantized`` and ``compressors/naive_quantized``, ``quantization``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.arithmetic import ZeroPointDomain
from ...core.descriptions import QParams, Quantizer, ZeroPoint
from ...core.formats import FLOAT8_E4M3FN, IntegerFormat
from ...core.granularity import Granularity, PerAxis, PerGroup, PerTensor, PerToken
from ..arguments import check_tensor
from . import weight_operators as weight_operators
from .files import Path as AnyPath
from .files import put, require, unshared
from .quant_weight import QuantWeight, codes_of, weight_of_codes

PACKED, INTEGERS, FLOATS, NAIVE = "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"
WEIGHTS, CONFIG, KEY = "model.safetensors", "config.json", "quantization_config"
PARTS = ("weight_packed", "weight_shape", "weight_scale", "weight_zero_point")


def save_compressed_tensors(model: nn.Module, folder: AnyPath) -> None:
    """Writes a quantized model as compressed-tensors reads it: ``model.safetensors`` and ``config.json`` in a folder.

    A ``config.json`` that is there keeps its other keys.

    Args:
        model: with `QuantWeight` as weights of linear layers: integers of 1 to 8 bits with scales per tensor, per
            channel or by group along the inputs, or float8_e4m3fn; inputs as floats or of int8 or float8 per token.
    Raises:
        ImportError: without safetensors. ValueError: weights or inputs that the layout has no words for, by name, or
            none that are codes. Nothing is written then.
    """
    require()
    from safetensors.torch import save_file

    groups: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, QuantWeight):
            tensors[name] = value
            continue
        layer, _, key = name.rpartition(".")
        try:
            if key != "weight" or value.transposed or not isinstance(model.get_submodule(layer), nn.Linear):
                raise ValueError("must be the weight of a linear layer")
            scheme = scheme_of(value)
            parts = parts_of(value, str(scheme["format"]))
        except ValueError as error:
            raise ValueError(f"`{name}`: {error.args[0]}") from error
        tensors |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
        groups.setdefault(json.dumps(scheme, sort_keys=True), scheme | {"targets": []})["targets"].append(layer)
    if not groups:
        raise ValueError("`model` must have weights that are codes: quantize_ it before")
    folder = Path(folder)
    known = json.loads((folder / CONFIG).read_text()) if (folder / CONFIG).exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(unshared(tensors), folder / WEIGHTS, {"format": "pt"})
    made = config_of(list(groups.values()), _others(model, groups))
    (folder / CONFIG).write_text(json.dumps({**known, KEY: made}, indent=2) + "\n")


def read_compressed_tensors(folder: AnyPath) -> dict[str, Tensor]:
    """What such a folder holds, by name: a `QuantWeight` for each weight that is codes, else tensors.

    Integers are read as signed ones. What inputs are quantized with are the catalog's ``int8_per_token`` and
    ``float8_e4m3fn_per_token``.

    Raises:
        ImportError: as `save_compressed_tensors`. FileNotFoundError: no such files. ValueError: a config of something
            else, a layer that no group, or no group that this reads, targets; tensors that are missing.
    """
    require()
    from safetensors.torch import load_file

    folder = Path(folder)
    config = json.loads((folder / CONFIG).read_text()).get(KEY, {})
    if config.get("quant_method") != "compressed-tensors":
        raise ValueError(f"`folder` must hold a config of compressed-tensors, got {config.get('quant_method')!r}")
    tensors = load_file(folder / WEIGHTS)
    schemes = {layer: group for group in config["config_groups"].values() for layer in group["targets"]}
    found = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part == "weight_scale":
            if layer not in schemes:
                raise ValueError(f"`folder`: no group has the name '{layer}' among its targets, got {sorted(schemes)}")
            own = {key: tensors[f"{layer}.{key}"] for key in (*PARTS, "weight") if f"{layer}.{key}" in tensors}
            try:
                found[f"{layer}.weight"] = _weight(
                    own, schemes[layer], schemes[layer].get("format") or config["format"]
                )
            except (KeyError, ValueError, TypeError) as error:
                raise ValueError(f"`folder`, layer '{layer}': {error.args[0]}") from error
        elif (part not in PARTS and f"{layer}.weight_scale" not in tensors) or part not in (*PARTS, "weight"):
            found[name] = tensor
    return found


def load_compressed_tensors(model: nn.Module, folder: AnyPath) -> None:
    """Sets the parameters and buffers of a model from such a folder; weights that are codes become `QuantWeight`.

    Raises:
        As `read_compressed_tensors`, and as `load_quantized` where tensors do not fit the model, which then is as it
        was.
    """
    put(model, read_compressed_tensors(folder))


def scheme_of(w: QuantWeight) -> dict[str, Any]:
    """The description of a weight and its inputs, without targets. ValueError for what there are no words for."""
    q, act = w.quantizer, w.act_quant
    integers = isinstance(q.format, IntegerFormat) and q.format.bits <= 8
    if not (integers or q.format == FLOAT8_E4M3FN) or q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:
        raise ValueError(
            f"must be integers of at most 8 bits or float8_e4m3fn, with zero points that are codes; got {q}"
        )
    match q.granularity:
        case PerTensor():
            strategy: dict[str, Any] = {"strategy": "tensor", "group_size": None}
        case PerToken() | PerAxis(axis=0):
            strategy = {"strategy": "channel", "group_size": None}
        case PerGroup(size=size, axis=-1 | 1):
            strategy = {"strategy": "group", "group_size": size}
        case _:
            raise ValueError(
                f"must have scales per tensor, per axis 0, or by group along the inputs, got {q.granularity}"
            )
    if w.dtype != torch.float32:
        raise ValueError(f"must stand for float32, since readers take the dtype of the scales; got {w.dtype}")
    weights = _arguments(q) | strategy | {"dynamic": False}
    if act is not None:
        known = act.format in (IntegerFormat(8), FLOAT8_E4M3FN) and act.granularity in (PerToken(), PerTensor())
        if not known or (act.format == FLOAT8_E4M3FN) == integers:
            raise ValueError(f"must have inputs of the kind of the weight, of 8 bits per token or tensor, got {act}")
        token = "token" if act.granularity == PerToken() else "tensor"
        inputs = _arguments(act) | {"strategy": token, "group_size": None, "dynamic": True}
    kind = (PACKED if integers else NAIVE) if act is None else INTEGERS if integers else FLOATS
    return {"weights": weights, "input_activations": None if act is None else inputs, "format": kind}


def _arguments(q: Quantizer) -> dict[str, Any]:
    kind = "int" if isinstance(q.format, IntegerFormat) else "float"
    return {"num_bits": q.format.bits, "type": kind, "symmetric": not q.affine}


def parts_of(w: QuantWeight, kind: str) -> dict[str, Tensor]:
    """The tensors of a weight in one of the formats, by the last part of their names."""
    codes, zero, rows = codes_of(w), w.zero_point, w.shape[0]
    scale = w.scale.reshape(1) if not w.scale.ndim else w.scale.reshape(rows, -1)
    if isinstance(w.quantizer.format, IntegerFormat):
        bits = w.quantizer.format.bits
        shift = 0 if w.quantizer.format.lo < 0 else 1 << (bits - 1)
        codes = (codes.to(torch.int16) - shift).to(torch.int8)
        zero = None if zero is None else (zero.to(torch.int16) - shift).to(torch.int8).reshape(scale.shape)
    else:
        bits, codes = 8, codes.view(torch.float8_e4m3fn)
    extra = {} if zero is None else {"weight_zero_point": zero}
    if kind != PACKED:
        return {"weight": codes, "weight_scale": scale, **extra}
    if zero is not None and scale.ndim == 2:
        extra = {"weight_zero_point": pack_words(zero.t(), bits).t()}
    shape = torch.tensor(w.shape)
    return {"weight_packed": pack_words(codes, bits), "weight_shape": shape, "weight_scale": scale, **extra}


def config_of(groups: list[dict[str, Any]], ignore: list[str]) -> dict[str, Any]:
    """``quantization_config`` of these groups of layers."""
    kinds = {group["format"] for group in groups}
    return {
        "config_groups": {f"group_{i}": {**group, "output_activations": None} for i, group in enumerate(groups)},
        "format": kinds.pop() if len(kinds) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Signed codes in int32 words, row by row: ``code + 2**(bits - 1)`` from the lowest bit up, without gaps.

    Args:
        codes: int8 ``(rows, n)``, each of ``bits`` bits, 1 to 8.
    Returns:
        int32 ``(rows, ceil(n * bits / 32))``.
    """
    check_tensor("codes", codes)
    rows, n = codes.shape
    digits = (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    stream = ((digits.unsqueeze(-1) >> torch.arange(bits, dtype=torch.uint8)) & 1).reshape(rows, n * bits)
    stream = torch.nn.functional.pad(stream, (0, -n * bits % 32)).reshape(rows, -1, 8)
    octets = (stream << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    weights = torch.arange(0, 32, 8, dtype=torch.int64)
    words = (octets.reshape(rows, -1, 4).to(torch.int64) << weights).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_words(words: Tensor, bits: int, length: int) -> Tensor:
    """The codes of `pack_words`, int8 ``(rows, length)``. ValueError for words of another number of codes."""
    if words.dtype != torch.int32 or words.shape[-1] != -(-length * bits // 32):
        raise ValueError(
            f"must be int32 words of {length} codes of {bits} bits, got {words.dtype} {tuple(words.shape)}"
        )
    places = torch.arange(32, dtype=torch.int32)
    stream = ((words.unsqueeze(-1) >> places) & 1).flatten(1)[:, : length * bits].reshape(len(words), length, bits)
    codes = (stream << torch.arange(bits, dtype=torch.int32)).sum(-1) - (1 << (bits - 1))
    return codes.to(torch.int8)


def _weight(parts: Mapping[str, Tensor], scheme: Mapping[str, Any], kind: str) -> Tensor:
    """The weight of its tensors."""
    of, inputs = scheme["weights"], scheme.get("input_activations")
    affine = ZeroPoint.NONE if of["symmetric"] else ZeroPoint.MIN_MAX
    q = Quantizer(format=_format(of), granularity=_granularity(of), zero_point=affine)
    scale, zero = parts["weight_scale"], parts.get("weight_zero_point")
    if kind == PACKED:
        rows, columns = (int(n) for n in parts["weight_shape"])
        codes = unpack_words(parts["weight_packed"], of["num_bits"], columns)
        if zero is not None and zero.dtype == torch.int32:
            zero = unpack_words(zero.t(), of["num_bits"], rows).t()
    elif kind in (INTEGERS, FLOATS, NAIVE):
        codes = parts["weight"] if of["type"] == "int" else parts["weight"].view(torch.uint8)
    else:
        raise ValueError(f"its format must be one of {PACKED}, {INTEGERS}, {FLOATS}, {NAIVE}, got {kind!r}")
    if q.affine and zero is None:
        raise ValueError("a weight that is not symmetric must have weight_zero_point")
    shape = () if isinstance(q.granularity, PerTensor) else (len(codes), -1)
    zeros = None if not q.affine or zero is None else zero.reshape(shape).to(torch.float32)
    act = None if inputs is None else Quantizer(format=_format(inputs), granularity=_granularity(inputs))
    return weight_of_codes(q, codes, QParams(scale.to(torch.float32).reshape(shape), zeros), scale.dtype, act)


def _format(of: Mapping[str, Any]) -> Any:
    if of["type"] == "int":
        return IntegerFormat(of["num_bits"])
    if of["num_bits"] != 8:
        raise ValueError(f"floats must have 8 bits, got {of['num_bits']}")
    return FLOAT8_E4M3FN


def _granularity(of: Mapping[str, Any]) -> Granularity:
    strategy = of["strategy"]
    if strategy == "group":
        return PerGroup(of["group_size"])
    known: dict[str, Granularity] = {"tensor": PerTensor(), "channel": PerAxis(0), "token": PerToken()}
    if strategy not in known:
        raise ValueError(f"its strategy must be tensor, channel, token or group, got {strategy!r}")
    return known[strategy]


def _others(model: nn.Module, groups: Mapping[str, Any]) -> list[str]:
    """Linear layers that are not quantized."""
    targets = {name for group in groups.values() for name in group["targets"]}
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name not in targets]
