"""What becomes of each tensor of a checkpoint: its kind, its method, or why it stays as it is. Nothing is computed.

Without a description every matrix of floats whose name fits a pattern is the weight of a linear layer, ``(out, in)``.
Without a pattern either, names and shapes say what is what (`kind_of`), and linear layers alone are quantized. A
description is a JSON file of patterns, of which the last that fits a name counts:

    {"layers": {"*": {"method": "int8_weight_only"},
                "encoder.*": {"method": "int4_weight_only", "group_size": 64},
                "embeddings.*": {"kind": "embedding", "method": "none"}}}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.choice import fits
from ...core.configs import Config, check_weight
from .methods import NONE, config_of

KINDS = ("linear", "embedding", "convolution", "recurrent", "other")
FIELDS = ("kind", "method", "group_size")
UNEVEN = ("skip", "error")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Planned:
    """What becomes of a tensor.

    Args:
        name, shape: of it. ``kind``: one of `KINDS`.
        method: a name of `methods.METHODS`, or ``"none"``. ``config``: of that method; None if it stays as it is.
        why: it stays as it is, or the rule that chose the method, in words.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    method: str
    config: Config | None
    why: str = ""


def kind_of(name: str, shape: Sequence[int]) -> str:
    """What a tensor seems to be, by its name and shape: one of `KINDS`.

    Recurrent: ``weight_ih...`` and ``weight_hh...``. An embedding: "embed" in its name, or ``wte`` and ``wpe``. A
    convolution: three axes or more. Any other matrix is linear.
    """
    parts = name.lower().split(".")
    if len(shape) < 2:
        return "other"
    if len(shape) > 2:
        return "convolution"
    if parts[-1].startswith(("weight_ih", "weight_hh")):
        return "recurrent"
    return "embedding" if "embed" in name.lower() or {"wte", "wpe"} & set(parts) else "linear"


def plan(
    shapes: Shapes,
    method: str | None = None,
    patterns: Sequence[str] = (),
    group_size: int | None = None,
    description: Mapping[str, Mapping[str, Any]] | None = None,
    uneven: str = "skip",
) -> tuple[Planned, ...]:
    """What becomes of the float tensors of a checkpoint.

    Args:
        shapes: of these, by name.
        method, group_size: of every layer that a description says nothing else of; None: they stay as they are.
        patterns: of names (`samebits.core.choice.fits`): which matrices are linear layers to be quantized.
        description: as `read_description` gives it.
        uneven: what a layer means whose inputs the group size does not divide: ``"skip"`` or ``"error"``.
    Returns:
        An entry for each tensor, in their order.
    Raises:
        KeyError: an unknown method. TypeError, ValueError: a pattern that fits no matrix, a layer that cannot be
            quantized so, nothing that is quantized, a group size that is none, another ``uneven``.
    """
    if uneven not in UNEVEN:
        raise ValueError(f"`uneven` must be one of {', '.join(map(repr, UNEVEN))}; got {uneven!r}")
    if method not in (None, NONE):
        config_of(str(method), group_size)
    elif group_size is not None:
        raise ValueError("`group_size` must come with a method")
    described = dict(description or {})
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    for pattern in patterns:
        if not any(fits(pattern, name) for name in matrices):
            raise ValueError(f"the pattern {pattern!r} fits no matrix of floats; matrices are {_some(matrices)}")
    for pattern in described:
        if not any(fits(pattern, name) for name in shapes):
            raise ValueError(f"{pattern!r} of the description fits no tensor of floats; they are {_some([*shapes])}")
    found = []
    for name, shape in shapes.items():
        of_name = [own for pattern, own in described.items() if fits(pattern, name)]
        taken = any(fits(pattern, name) for pattern in patterns)
        kind = "linear" if taken and len(shape) == 2 else kind_of(name, shape)
        own = {"kind": kind, "method": method or NONE, "group_size": group_size, **(of_name[-1] if of_name else {})}
        if of_name and "method" in of_name[-1] and "group_size" not in of_name[-1]:
            own["group_size"] = None
        reason = "" if of_name or taken or (kind == "linear" and not patterns) else _left(kind, bool(patterns))
        found.append(_planned(name, shape, own, reason, uneven))
    if not any(one.config for one in found):
        told = sorted((one for one in found if one.kind != "other"), key=lambda one: one.kind != "linear")
        why = f": {told[0].name}: {told[0].why}" if told else ""
        raise ValueError(f"nothing to quantize{why}")
    return tuple(found)


def read_description(path: Path) -> dict[str, dict[str, Any]]:
    """The patterns of a description with what they say.

    Raises:
        ValueError: no such file, or no JSON of that form; with the path. KeyError: an unknown method.
    """
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    layers = read.get("layers") if isinstance(read, dict) else None
    if not isinstance(layers, dict) or not layers or read.keys() != {"layers"}:
        raise ValueError(f'{path}: must be an object {{"layers": {{PATTERN: {{...}}}}}}')
    for pattern, own in layers.items():
        if not isinstance(own, dict) or not own.keys() <= set(FIELDS):
            raise ValueError(f"{path}: {pattern!r} must be an object with {', '.join(FIELDS)} at most, got {own!r}")
        if own.get("kind", "linear") not in KINDS:
            raise ValueError(f"{path}: `kind` of {pattern!r} must be one of {', '.join(KINDS)}; got {own['kind']!r}")
        if own.get("method", NONE) != NONE:
            try:
                config_of(str(own["method"]), own.get("group_size"))
            except (KeyError, TypeError, ValueError) as error:
                raise type(error)(f"{path}: {pattern!r}: {error.args[0]}") from None
    return dict(layers)


def _planned(name: str, shape: tuple[int, ...], own: Mapping[str, Any], reason: str, uneven: str) -> Planned:
    kind, method = own["kind"], own["method"]
    if not reason and method != NONE:
        reason = _unfit(name, shape, kind, config_of(method, own["group_size"]), uneven)
    if reason or method == NONE:
        return Planned(name, shape, kind, NONE, None, reason or "it is to stay as it is")
    return Planned(name, shape, kind, method, config_of(method, own["group_size"]))


def _unfit(name: str, shape: tuple[int, ...], kind: str, config: Config, uneven: str) -> str:
    """Why a tensor cannot be quantized so, or nothing. ValueError for one that the group size does not divide."""
    if kind not in ("linear", "embedding") or len(shape) != 2:
        return _left(kind, False)
    if kind == "embedding" and config.act_quant is not None:
        return "an embedding is looked up, so that it has no inputs that a dynamic method could quantize"
    try:
        check_weight(name, config.weight, shape)
    except ValueError as error:
        if uneven == "error":
            raise
        return error.args[0].removeprefix(f"layer '{name}': ").partition(";")[0]  # type: ignore[no-any-return]
    return ""


def _left(kind: str, by_pattern: bool) -> str:
    """Why a tensor of a kind is left alone."""
    if by_pattern and kind != "other":
        return "no pattern fits it"
    return {
        "linear": "not a matrix of two axes",
        "embedding": "an embedding, by its name: name it in a description to quantize it",
        "convolution": "a convolution: prepare, calibrate and convert quantize those, with data",
        "recurrent": "a recurrent layer: quantize_dynamic quantizes those",
    }.get(kind, "not a matrix")


def _some(names: Sequence[str], shown: int = 6) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "none") + more
