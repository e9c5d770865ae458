"""What components say about the quantizer that they make up, and how they come to know it.

Each says its share as ``fields``, in the names of `Quantizer.replace`. What takes them puts these together, and tells
those that look at more than their own share: ``part.join(quantizer)``.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ...core.descriptions import Quantizer, ZeroPoint
from ...core.formats import Format, IntegerFormat
from ...core.granularity import Granularity, PerAxis, PerTensor
from ...core.scales import Denominator
from ..scaling import divisor

FOREIGN = {"source": "learned"}  # of scales that somebody else's module gives: not the statistic of a tensor


class Joins(Protocol):
    """A component that has to know the whole quantizer."""

    def join(self, quantizer: Quantizer) -> None:
        """Learns which quantizer it is part of."""


def described(format: Format, scaling_impl: nn.Module, *parts: nn.Module) -> Quantizer:
    """The quantizer that these make up.

    Numbers that a scale begins with or is at least (``scaling_init``, ``scaling_min_val``) are magnitudes here: they
    are divided as a statistic would be, in float32.

    Raises:
        TypeError, ValueError: fields that do not go together, as `Quantizer`.
    """
    if not isinstance(scaling_impl, nn.Module):
        raise TypeError(f"`scaling_impl` must be a module that gives the scale of a tensor, got {scaling_impl!r}")
    fields = fields_of(*parts, scaling_impl) | ({} if says(scaling_impl) else FOREIGN)
    affine = fields.get("zero_point", ZeroPoint.NONE) is not ZeroPoint.NONE
    if affine:
        fields["denominator"] = Denominator.HI
    plain = Quantizer(format=format).replace(denominator=fields.get("denominator", Denominator.HI))
    divided = np.float32(format.hi - format.lo if affine else divisor(plain))
    for name, given in (("scale_value", "scaling_init"), ("floor", "scaling_min_val")):
        magnitude = getattr(scaling_impl, given, None)
        if magnitude is not None and not isinstance(magnitude, Tensor):
            fields[name] = float(np.float32(magnitude) / divided)
    granularity = getattr(scaling_impl, "granularity", PerTensor())
    return Quantizer(format=format, granularity=granularity).replace(**fields)


def alone(scaling_impl: nn.Module) -> Quantizer:
    """What a scaling describes that is part of nothing: of codes from -1 to 1, so that scales are magnitudes."""
    return described(IntegerFormat(2, narrow=True), scaling_impl)


def join(quantizer: Quantizer, *parts: Any) -> Quantizer:
    """Tells the parts which quantizer they make up; this quantizer."""
    for part in parts:
        if hasattr(part, "join"):
            part.join(quantizer)
    return quantizer


def fields_of(*parts: nn.Module | None) -> dict[str, Any]:
    """What components say together; of two that say the same, the last counts."""
    found: dict[str, Any] = {}
    for part in parts:
        found |= getattr(part, "fields", {})
    return found


def says(part: nn.Module) -> bool:
    """Whether a module is a component, which says its share of a description."""
    return isinstance(getattr(part, "fields", None), dict)


def check_says(name: str, part: object, *allowed: str) -> None:
    """TypeError unless a part says its share: codes and values must be those of a description."""
    if not (isinstance(part, nn.Module) and says(part)):
        raise TypeError(
            f"`{name}` must be a component, like {', '.join(allowed)}, since codes have to be those of a "
            f"description; got {part!r}"
        )


def granularity_of(shape: tuple[int, ...]) -> Granularity:
    """Which elements share a scale of this shape: ``()`` all, ``(1, 4, 1)`` those of an index of axis 1.

    A scale with one number and axes, as ``(1, 1)`` has, is that of axis 0.

    Raises:
        ValueError: more than one axis that is longer than 1.
    """
    long = [axis for axis, n in enumerate(shape) if n != 1]
    if len(long) > 1:
        raise ValueError(
            "`scaling_shape` must be () or have one axis that is longer than 1, as (out, 1, 1, 1) has; give a "
            f"`granularity` for groups and blocks; got {shape}"
        )
    return PerAxis(long[0] if long else 0) if shape else PerTensor()


def precise(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What moves state, but never to 16 bits: an average would stop there, and a learned scale."""

    def moved(t: Tensor) -> Tensor:
        there = fn(t)
        return t.to(there.device) if there.dtype in (torch.bfloat16, torch.float16) else there

    return moved


def number(value: Tensor | float) -> Tensor:
    """A number or tensor as float32, without its history: state keeps its precision, whatever the default dtype is."""
    if isinstance(value, Tensor):
        return value.detach().clone().to(torch.float32)
    return torch.tensor(float(value), dtype=torch.float32)
