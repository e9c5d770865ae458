"""Quantizers as text: what files and traced programs hold in the place of a description. Nouns only.

The text is JSON of the fields that differ from their defaults; parts of a description say their kind:

    {"format": {"kind": "IntegerFormat", "bits": 4}, "granularity": {"kind": "PerGroup", "size": 32}}

Equal quantizers have one text. A field that is added later with a default changes no text.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from . import arithmetic, directions, formats, granularity, scales
from .descriptions import Quantizer

KINDS: Mapping[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        formats.IntegerFormat,
        formats.FloatFormat,
        formats.BinaryFormat,
        formats.TernaryFormat,
        formats.CodebookFormat,
        granularity.PerTensor,
        granularity.PerAxis,
        granularity.PerToken,
        granularity.PerGroup,
        granularity.PerBlock,
        scales.ScaleRule,
        arithmetic.Arithmetic,
        directions.LearnedRounding,
    )
}


@lru_cache(maxsize=1024)
def text_of(q: Quantizer) -> str:
    """The text of a quantizer. TypeError for what is none."""
    if not isinstance(q, Quantizer):
        raise TypeError(f"`q` must be a Quantizer, got {q!r}")
    return json.dumps(_differing(q), sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=1024)
def quantizer_of_text(text: str) -> Quantizer:
    """The quantizer of a text.

    Raises:
        TypeError: ``text`` is no str. ValueError: it is not what `text_of` gives.
    """
    if not isinstance(text, str):
        raise TypeError(f"`text` must be a str, got {text!r}")
    try:
        described = json.loads(text)
        known = {f.name for f in fields(Quantizer) if f.init}
        if not isinstance(described, dict) or not set(described) <= known:
            raise ValueError("unknown fields")
        return Quantizer(**{name: _made(value) for name, value in described.items()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"`text` must be that of a quantizer (samebits.core.described), got {text!r}: {error}"
        ) from error


def _differing(value: Any) -> dict[str, Any]:
    """The fields of a description that are not as they are by default, as JSON."""
    found = {}
    for f in fields(value):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if f.init and getattr(value, f.name) != default:
            found[f.name] = _plain(getattr(value, f.name))
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__, **_differing(value)}
    if isinstance(value, StrEnum):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _made(value: Any) -> Any:
    if isinstance(value, dict):
        inside = {name: _made(v) for name, v in value.items() if name != "kind"}
        return KINDS[value["kind"]](**inside)
    return tuple(map(_made, value)) if isinstance(value, list) else value
