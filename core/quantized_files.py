"""The layout of files of quantized weights, for both frameworks: safetensors with a description of what is codes.

A weight ``name`` lies in the tensors ``name.codes``, ``name.scale`` and, if it has zero points, ``name.zero_point``; of
its layout, so packed codes as bytes. Other tensors lie under their own names. The metadata hold ``samebits``, JSON of
the version of this layout and of what the weights are:

    {"version": 1, "weights": {
        "fc1.weight": {"quantizer": ..., "act_quant": ..., "layout": "packed", "length": 64, "dtype": "float32"}}}

Quantizers are as in `described`. Names, and the axes of weights, ``(out, in)``, are those of torch. Nouns only.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .checks import check_float
from .choice import check_count
from .configs import check_parts
from .described import quantizer_of_text, text_of
from .descriptions import Quantizer

VERSION = 1


class Entry(NamedTuple):
    """What a weight is apart from its tensors; ``length`` is that of the last axis, ``dtype`` what it stands for."""

    quantizer: Quantizer
    act_quant: Quantizer | None
    layout: str
    length: int
    dtype: str


def parts_of(name: str, entry: Entry) -> list[str]:
    """The names of the tensors of a weight: codes, scale and, if it has them, zero points."""
    return [f"{name}.{part}" for part in ("codes", "scale", *(["zero_point"] if entry.quantizer.affine else []))]


def metadata_of(entries: Mapping[str, Entry]) -> dict[str, str]:
    """The metadata of a file with these weights."""
    described = {
        name: entry._replace(
            quantizer=json.loads(text_of(entry.quantizer)),
            act_quant=None if entry.act_quant is None else json.loads(text_of(entry.act_quant)),
        )._asdict()
        for name, entry in entries.items()
    }
    return {"samebits": json.dumps({"version": VERSION, "weights": described}, sort_keys=True)}


def entries_of(path: object, metadata: Mapping[str, str] | None, names: Iterable[str]) -> dict[str, Entry]:
    """The weights of a file, by its metadata and the names of its tensors.

    Raises:
        ValueError: a file of something else, or of another version of the layout; metadata that are damaged; a weight
            without its tensors.
    """
    found, metadata = set(names), metadata or {}
    if "samebits" not in metadata:
        raise ValueError(f"`path` must be a file that save_quantized wrote, got {path}: its metadata say of no weights")
    try:
        described = json.loads(metadata["samebits"])
        version, weights = described["version"], described["weights"]
        entries = {str(name): _entry(one) for name, one in weights.items()} if version == VERSION else {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"`path` must be a file that save_quantized wrote, got {path}: {error}") from error
    if version != VERSION:
        raise ValueError(f"`path` must have version {VERSION} of the layout, got {version!r} in {path}")
    missing = [part for name, entry in entries.items() for part in parts_of(name, entry) if part not in found]
    if missing:
        raise ValueError(
            f"`path` must hold the codes and scales of its weights, got {path} without {', '.join(missing)}"
        )
    return entries


def _entry(described: Mapping[str, Any]) -> Entry:
    act = described["act_quant"]
    own = quantizer_of_text(json.dumps(described["quantizer"]))
    act = None if act is None else quantizer_of_text(json.dumps(act))
    check_parts(own, act, described["layout"])
    check_count("length", described["length"], 0)
    check_float("dtype", described["dtype"])
    return Entry(own, act, described["layout"], described["length"], described["dtype"])


def check_names(wanted: Iterable[str], names: Iterable[str], entries: Mapping[str, Entry]) -> None:
    """ValueError unless a file of these tensors holds all that a model wants, and nothing else; the names are said."""
    parts = {part for name, entry in entries.items() for part in parts_of(name, entry)}
    held, needed = (set(names) - parts) | set(entries), set(wanted)
    missing, unexpected = sorted(needed - held), sorted(held - needed)
    if missing or unexpected:
        kinds = (("missing", missing), ("unexpected", unexpected))
        found = "; ".join(f"{kind} {', '.join(some)}" for kind, some in kinds if some)
        raise ValueError(f"the file must hold what the model holds, got {found}")
