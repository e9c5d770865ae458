"""Keywords of layers that replace single fields of their quantizers: ``weight_bits=4``. Nouns only."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from .descriptions import Quantizer
from .formats import IntegerFormat
from .granularity import PerAxis
from .scales import ScaleSource

OF_DECLARATIONS = {  # what fields of a `Quantizer` are called in declarations
    "bit_width": "bits",
    "narrow_range": "narrow",
    "float_to_int_impl_type": "rounding",
    "quant_delay_steps": "delay",
    "restrict_scaling_type": "restriction",
}
PARTS = ("format", "scale", "arithmetic", "learned_rounding")  # of a quantizer, with fields of their own


def by_role(kind: str, keywords: Mapping[str, Any], roles: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Keywords without their prefix, for each role; of ``act`` also those without a prefix.

    Args:
        kind: the class of the layer, for the message.
    Raises:
        TypeError: a prefix that is none.
    """
    overrides: dict[str, dict[str, Any]] = {role: {} for role in roles}
    for keyword, value in keywords.items():
        role, _, name = keyword.partition("_")
        if (role not in overrides or not name) and "act" in overrides:
            role, name = "act", keyword
        if role not in overrides or not name:
            prefixes = ", ".join(f"`{role}_`" for role in overrides)
            raise TypeError(f"{kind} has no keyword `{keyword}`; fields of its quantizers have the prefix {prefixes}")
        overrides[role][name] = value
    return overrides


def check_changeable(kind: str, role: str, value: Any, overrides: Mapping[str, Any]) -> None:
    """TypeError for fields of a quantizer that is None, or an instance, which others may share."""
    if overrides:
        what = "None" if value is None else "an instance, which others may share"
        raise TypeError(f"{kind} cannot use `{role}_{next(iter(overrides))}`: `{role}_quant` is {what}")


def with_fields(q: Quantizer, role: str, overrides: Mapping[str, Any]) -> Quantizer:
    """The quantizer with these fields, its own or of its format, scale rule, arithmetic or learned rounding.

    Raises:
        TypeError: others. ValueError: what `Quantizer.replace` refuses.
    """
    allowed = {f.name for part in (q, *(getattr(q, name) for name in PARTS)) for f in fields(part) if f.init}
    for name in overrides:
        if name not in allowed:
            ours = OF_DECLARATIONS.get(name)
            hint = "" if ours is None else f"; `{name}` is of declarations, here it is `{role}_{ours}`"
            raise TypeError(
                f"no field `{name}`, so no keyword `{role}_{name}`{hint}; fields are {', '.join(sorted(allowed))}"
            )
    return q.replace(**overrides)


def quantizer_of_bias(q: Quantizer) -> Quantizer:
    """The quantizer of a bias: its scales come from those of input and weight, one for each output.

    Raises:
        ValueError: no symmetric integers, a delay, or scales from elsewhere.
    """
    if not isinstance(q.format, IntegerFormat) or q.affine or q.delay or q.scale.source is not ScaleSource.STATISTIC:
        raise ValueError(
            "must be of symmetric integers without a delay, whose scale is that of the input times that of the weight, "
            f"got {q.format}{' affine' if q.affine else ''}, scale={q.scale.source}, delay={q.delay}"
        )
    return q.replace(granularity=PerAxis(0))
