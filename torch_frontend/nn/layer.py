"""What the layers have in common: the quantizers that they hold, and contractions over codes or over values."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from ...core.descriptions import QParams, Quantizer
from ...core.formats import IntegerFormat
from ...core.granularity import PerAxis, PerTensor
from ...core.inject import Declaration
from ...core.scales import ScaleSource
from ..arrays import is_concrete
from ..loading import load_state_dict as load_state_dict
from ..packed import PackedWeight
from ..quantized import quantized_tensor
from ..tensor_quantizer import TensorQuantizer, quantizer_of
from .kept import Kept, standing_in
from .proxies import proxy
from .proxies_of_given_scales import BiasQuantProxy
from .proxy import QuantProxy

Quant = str | Quantizer | TensorQuantizer | Declaration | QuantProxy | None  # what the arguments `*_quant` take, and
Held = TensorQuantizer | QuantProxy | None  # what becomes of them
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
        value: a catalog name, a `Quantizer`, an `Injector`, or None; a `TensorQuantizer` or a proxy of another layer
            is shared.
        overrides: fields of the quantizer, its format, scale rule, arithmetic or learned rounding, to replace.
    Returns:
        None, or a module with ``quantizer``, ``qparams(x)``, ``waits()``, ``quantized(x, qparams, waits)``,
        ``bit_width`` and ``forward(x)``, as `TensorQuantizer` has them.
    Raises:
        TypeError: a value of another type, or overrides that are no fields or have nothing to change.
        KeyError: a name that is not in the catalog. ValueError: as `TensorQuantizer` and `Quantizer`.
    """
    if isinstance(value, QuantProxy | Declaration):
        return proxy(role, value, layer, overrides)
    argument, kind = f"{role}_quant", type(layer).__name__
    if value is None or isinstance(value, TensorQuantizer):
        if overrides:
            what = "None" if value is None else "an instance, which others may share"
            raise TypeError(f"{kind} cannot use `{role}_{next(iter(overrides))}`: `{argument}` is {what}")
        return value
    try:
        q = _replaced(quantizer_of(argument, value), role, overrides)
        if role == "bias":
            return TensorQuantizer(_of_bias(q))
        if role != "weight":
            return TensorQuantizer(q)
        if q.granularity == PerAxis(0):  # per channel, wherever this weight has its channels
            q = q.replace(granularity=PerAxis(channel_axis(layer)))
        weight: Any = layer.weight
        return TensorQuantizer(q, tuple(weight.shape)).to(weight.device)
    except (TypeError, ValueError, KeyError) as error:
        raise type(error)(f"{kind}, `{argument}`: {error.args[0]}") from error


def _of_bias(q: Quantizer) -> Quantizer:
    """The quantizer of a bias: its scales come from those of input and weight, one for each output."""
    if not isinstance(q.format, IntegerFormat) or q.affine or q.delay or q.scale.source is not ScaleSource.STATISTIC:
        raise ValueError(
            "must be of symmetric integers without a delay, whose scale is that of the input times that of the weight, "
            f"got {q.format}{' affine' if q.affine else ''}, scale={q.scale.source}, delay={q.delay}"
        )
    return q.replace(granularity=PerAxis(0))


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
    layer: Any,
    x: Tensor,
    over_values: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    over_codes: Callable[[Quantizer, Tensor, QParams, Quantizer, Any, QParams, Tensor | None], Tensor],
) -> Tensor:
    """A layer over what its quantizers make of its operands; over values where one of these is not quantized.

    Args:
        layer: with ``weight``, ``bias``, ``input_quant``, ``weight_quant``, ``bias_quant``.
        over_values: of input, weight, bias.
        over_codes: of the quantizer of the input, the input and its parameters, the same of the weight (which may be
            a `PackedWeight`), and the bias.
    Raises:
        ValueError: a bias to be quantized without scales to do it with.
    """
    q_x, q_w = standing_in(layer.input_quant), standing_in(layer.weight_quant)
    weight, bias = layer.weight, layer.bias
    q_b = None if bias is None else layer.bias_quant
    if isinstance(q_b, BiasQuantProxy) and not q_b.requires_input_scale:
        bias, q_b = q_b(bias), None
    if q_b is not None and not _is_prescaled(layer):
        q_b = None
    if q_x is None or q_w is None or q_x.quantizer is None or q_w.quantizer is None:
        return over_values(or_same(q_x, x), or_same(q_w, weight), bias)
    x_waits, w_waits = q_x.waits(), q_w.waits()
    operand = q_w.packed(q_x.quantizer, weight) if isinstance(q_w, Kept) and w_waits is None else weight
    x_qparams = q_x.qparams(x)
    w_qparams = operand.given if isinstance(operand, PackedWeight) else q_w.qparams(weight)
    waits = x_waits if w_waits is None else w_waits if x_waits is None else x_waits | w_waits
    if q_b is not None:
        bias = q_b.quantized(bias, _prescaled(layer, x_qparams, w_qparams), waits)
    learned = q_x.quantizer.learned_bits is not None or q_w.quantizer.learned_bits is not None
    if waits is None and not learned:
        return over_codes(q_x.quantizer, x, x_qparams, q_w.quantizer, operand, w_qparams, bias)
    y = over_values(q_x.quantized(x, x_qparams, x_waits), q_w.quantized(weight, w_qparams, w_waits), bias)
    if waits is None or learned or is_concrete(waits):
        return y
    return torch.where(waits, y, over_codes(q_x.quantizer, x, x_qparams, q_w.quantizer, weight, w_qparams, bias))


def _is_prescaled(layer: Any) -> bool:
    """Whether there is a scale for a bias: not while a quantizer of input or weight is off.

    Raises:
        ValueError: they have not the scales that it comes from: one, and one or one for each channel.
    """
    name = f"{type(layer).__name__}, `bias_quant`"
    on = True
    for role, allowed in (("input", (PerTensor(),)), ("weight", (PerTensor(), PerAxis(channel_axis(layer))))):
        held_one = getattr(layer, f"{role}_quant")
        if held_one is None:
            raise ValueError(f"{name}: has no scale, since `{role}_quant` is None")
        if held_one.quantizer is None:
            on = False
        elif held_one.quantizer.granularity not in allowed:
            raise ValueError(f"{name}: `{role}_quant` must be {allowed[-1]}, got {held_one.quantizer.granularity}")
    return on


def _prescaled(layer: Any, x_qparams: QParams, w_qparams: QParams) -> QParams:
    """``max(fl(s_x * s_w), smallest normal number)`` for each output, by which sums are scaled too."""
    s_x, s_w, outputs = x_qparams.scale, w_qparams.scale, len(layer.bias)
    s_w = s_w.reshape(-1).repeat(outputs // s_w.numel()) if s_w.ndim else s_w.expand(outputs)
    return QParams((s_x * s_w).clamp(min=torch.finfo(s_x.dtype).smallest_normal))


def quant_weight(layer: Any) -> Tensor:
    """The weight of a layer quantized, with its codes, scale and zero point: a `QuantTensor`.

    A float tensor where nothing quantizes it or what does gives no codes. Nothing is learned or counted.
    """
    held_one, weight = layer.weight_quant, layer.weight
    if held_one is None or held_one.quantizer is None:
        return or_same(held_one, weight)
    with unlearned(held_one):
        qparams = held_one.qparams(weight)
    return quantized_tensor(held_one.quantizer, weight, qparams, layer.training)


@contextmanager
def unlearned(module: nn.Module) -> Iterator[None]:
    """While it lasts nothing is learned or counted: the quantizers inside are in evaluation mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(False)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def or_same(quantizer: Held, x: Tensor) -> Tensor:
    """``x`` quantized, or as it is where nothing is to quantize it."""
    return x if quantizer is None else standing_in(quantizer)(x)
