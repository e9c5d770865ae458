"""What the layers have in common: the quantizers that they hold, and contractions over codes or over values."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from ...core.descriptions import Quantizer
from ...core.granularity import PerAxis
from ..arrays import is_concrete
from ..packed import PackedWeight
from ..tensor_quantizer import TensorQuantizer, quantizer_of
from .kept import Kept, standing_in

Quant = str | Quantizer | TensorQuantizer | None  # what the arguments `*_quant` take, and
Held = TensorQuantizer | None  # what becomes of them
PARTS = ("format", "scale", "arithmetic", "learned_rounding")  # of a quantizer, with fields of their own


def hold(layer: nn.Module, keywords: Mapping[str, Any], **quant: Any) -> None:
    """Sets ``layer.<role>_quant`` to what a layer keeps for each of its quantizers: once, after its parameters.

    Args:
        layer: what holds them. Its ``weight`` and ``bias`` exist already.
        keywords: further keywords of the layer: ``<role>_<field>`` for a field of that quantizer, or of its format,
            scale rule, arithmetic or learned rounding; of ``act`` also without the prefix.
        quant: the argument ``<role>_quant`` of each role: weight, bias, input, output, act.
    Raises:
        TypeError: a keyword of another prefix or field, or one for a quantizer that is None or an instance, which
            others may share. The message names the class of the layer, the keyword and what is allowed.
        TypeError, KeyError, ValueError: what `held` raises.
    """
    kind = type(layer).__name__
    overrides: dict[str, dict[str, Any]] = {role: {} for role in quant}
    for keyword, value in keywords.items():
        role, _, name = keyword.partition("_")
        if (role not in quant or not name) and "act" in quant:
            role, name = "act", keyword
        if role not in quant or not name:
            prefixes = ", ".join(f"`{role}_`" for role in quant)
            raise TypeError(f"{kind} has no keyword `{keyword}`; fields of its quantizers have the prefix {prefixes}")
        overrides[role][name] = value
    modules = {role: held(role, value, layer, overrides[role]) for role, value in quant.items()}
    for role, module in modules.items():
        setattr(layer, f"{role}_quant", module)


def held(role: str, value: Any, layer: nn.Module, overrides: Mapping[str, Any]) -> Any:
    """What ``layer`` keeps for the argument ``<role>_quant``: the only place where one becomes the other.

    Args:
        role: weight, bias, input, output or act.
        value: a catalog name, a `Quantizer`, a `TensorQuantizer` (then shared), or None.
        overrides: fields of the quantizer, its format, scale rule, arithmetic or learned rounding, to replace.
    Returns:
        None, or a module with ``quantizer``, ``qparams(x)``, ``waits()``, ``quantized(x, qparams, waits)``,
        ``bit_width`` and ``forward(x)``, as `TensorQuantizer` has them.
    Raises:
        TypeError: a value of another type, or overrides that are no fields or have nothing to change.
        KeyError: a name that is not in the catalog. ValueError: as `TensorQuantizer` and `Quantizer`.
    """
    argument, kind = f"{role}_quant", type(layer).__name__
    if value is None or isinstance(value, TensorQuantizer):
        if overrides:
            what = "None" if value is None else "an instance, which others may share"
            raise TypeError(f"{kind} cannot use `{role}_{next(iter(overrides))}`: `{argument}` is {what}")
        return value
    try:
        q = _replaced(quantizer_of(argument, value), role, overrides)
        if role != "weight":
            return TensorQuantizer(q)
        if q.granularity == PerAxis(0):  # per channel, wherever this weight has its channels
            q = q.replace(granularity=PerAxis(channel_axis(layer)))
        weight: Any = layer.weight
        return TensorQuantizer(q, tuple(weight.shape)).to(weight.device)
    except (TypeError, ValueError, KeyError) as error:
        raise type(error)(f"{kind}, `{argument}`: {error.args[0]}") from error


def channel_axis(layer: nn.Module) -> int:
    """The axis of a weight that runs over the outputs."""
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0


def _replaced(q: Quantizer, role: str, overrides: Mapping[str, Any]) -> Quantizer:
    """The quantizer with these fields. TypeError for others."""
    allowed = {f.name for part in (q, *(getattr(q, name) for name in PARTS)) for f in fields(part) if f.init}
    for name in overrides:
        if name not in allowed:
            raise TypeError(
                f"no field `{name}`, so no keyword `{role}_{name}`; fields are {', '.join(sorted(allowed))}"
            )
    return q.replace(**overrides)


def contract(
    q_x: TensorQuantizer | None,
    x: Tensor,
    q_w: TensorQuantizer | None,
    weight: Tensor,
    over_values: Callable[..., Tensor],
    over_codes: Callable[..., Tensor],
) -> Tensor:
    """A layer over what quantizers make of its operands; over values where one of these is not quantized."""
    q_x, q_w = standing_in(q_x), standing_in(q_w)
    learned = any(q is not None and q.bit_width is not None for q in (q_x, q_w))
    if q_x is None or q_w is None or learned:
        return over_values(or_same(q_x, x), or_same(q_w, weight))
    x_waits, w_waits = q_x.waits(), q_w.waits()
    if isinstance(q_w, Kept) and x_waits is None and w_waits is None:
        packed = q_w.packed(q_x.quantizer, weight)
        if isinstance(packed, PackedWeight):
            return over_codes(q_x.quantizer, x, q_x.qparams(x), q_w.quantizer, packed, packed.qparams)
    x_qparams, w_qparams = q_x.qparams(x), q_w.qparams(weight)
    if x_waits is None and w_waits is None:
        return over_codes(q_x.quantizer, x, x_qparams, q_w.quantizer, weight, w_qparams)
    y = over_values(q_x.quantized(x, x_qparams, x_waits), q_w.quantized(weight, w_qparams, w_waits))
    waits = x_waits if w_waits is None else w_waits if x_waits is None else x_waits | w_waits
    if waits is None or is_concrete(waits):
        return y
    return torch.where(waits, y, over_codes(q_x.quantizer, x, x_qparams, q_w.quantizer, weight, w_qparams))


def or_same(quantizer: TensorQuantizer | None, x: Tensor) -> Tensor:
    """``x`` quantized, or as it is where nothing is to quantize it."""
    return x if quantizer is None else standing_in(quantizer)(x)
