"""What the layers have in common: the quantizers that they hold, and contractions over codes or over values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerAxis, PerTensor
from ...core.inject import Declaration
from ...core.keywords import by_role as keywords_by_role
from ...core.keywords import check_changeable, quantizer_of_bias, with_fields
from ...core.prototype import Prototype
from ..arrays import is_concrete
from ..loading import load_state_dict as load_state_dict
from ..prototype_quantizer import PrototypeQuantizer
from ..quant_tensor import QuantTensor
from ..quantized import quantized_tensor
from ..tensor_quantizer import TensorQuantizer, quantizer_of
from .given import CodedWeight
from .kept import Kept, standing_in
from .proxies import proxy
from .proxies_of_given_scales import BiasQuantProxy
from .proxy import QuantProxy

Quant = (  # what the arguments `*_quant` take, and
    str | Quantizer | TensorQuantizer | Declaration | QuantProxy | Prototype | PrototypeQuantizer | None
)
Held = TensorQuantizer | QuantProxy | PrototypeQuantizer | None  # what becomes of them
Kind = TypeVar("Kind", bound=nn.Module)
OverValues = Callable[[Tensor, Tensor, Tensor | None], Tensor]
OverCodes = Callable[[Quantizer, Tensor, QParams, Quantizer, Any, QParams, Tensor | None], Tensor]


def hold(layer: nn.Module, keywords: Mapping[str, Any], **quant: Any) -> None:
    """Sets ``layer.<role>_quant`` to what a layer keeps for each of its quantizers: once, after its parameters.

    Args:
        layer: what holds them.
        keywords: further keywords of the layer: ``<role>_<field>`` for a field of that quantizer, or of its format,
            scale rule, arithmetic or learned rounding; of ``act`` also without the prefix. And ``return_quant_tensor``,
            for layers that have it, False unless given: whether results are a `QuantTensor`, where they have codes.
        quant: the argument ``<role>_quant`` of each role.
    Raises:
        TypeError: a keyword of another prefix or field, or one for a quantizer that is None or an instance, which
            others may share. The message names the class of the layer, the keyword and what is allowed.
        TypeError, KeyError, ValueError: what `held` raises.
    """
    overrides = by_role(layer, keywords, quant)
    modules = {role: held(role, value, layer, overrides[role]) for role, value in quant.items()}
    if "return_quant_tensor" in keywords:
        layer.__dict__["return_quant_tensor"] = keywords["return_quant_tensor"]
    for role, module in modules.items():
        setattr(layer, f"{role}_quant", module)


def hold_each(layer: nn.Module, weights: Sequence[str], keywords: Mapping[str, Any], **quant: Any) -> None:
    """As `hold`, for a layer of several weights: ``layer.weight_quant`` is a ``ModuleDict`` of theirs, by name."""
    overrides, value = by_role(layer, keywords, quant), quant.pop("weight")
    each = {name: held("weight", value, layer, overrides["weight"], name) for name in weights}
    hold(layer, {key: v for key, v in keywords.items() if key.partition("_")[0] != "weight"}, **quant)
    layer.register_module("weight_quant", None if value is None else nn.ModuleDict(each))


def adopted(kind: type[Kind], layer: nn.Module) -> Kind:
    """A layer of this kind with the attributes of another: parameters, buffers, hooks, mode."""
    new = kind.__new__(kind)
    nn.Module.__init__(new)
    for attribute, value in vars(layer).items():
        new.__dict__[attribute] = value.copy() if isinstance(value, dict) else value
    return new


def by_role(layer: nn.Module, keywords: Mapping[str, Any], quant: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`core.keywords.by_role`, but for ``return_quant_tensor``. TypeError also where that is no bool."""
    kind, name = type(layer), "return_quant_tensor"
    if name in keywords and hasattr(kind, name):
        if not isinstance(keywords[name], bool):
            raise TypeError(f"{kind.__name__}, `{name}` must be a bool, got {keywords[name]!r}")
        keywords = {key: value for key, value in keywords.items() if key != name}
    return keywords_by_role(kind.__name__, keywords, quant)


def held(role: str, value: Any, layer: nn.Module, overrides: Mapping[str, Any], weight: str = "weight") -> Any:
    """What ``layer`` keeps for the argument ``<role>_quant``: the only place where one becomes the other.

    Args:
        role: weight, bias, or an activation: input, output, act, ...
        value: a catalog name, a `Quantizer`, an `Injector`, or None; a `TensorQuantizer` or a proxy of another layer
            is shared. Or a prototype, whose overrides are its options and where its parameters begin.
        overrides: fields of the quantizer, its format, scale rule, arithmetic or learned rounding, to replace.
        weight: the attribute that is the weight.
    Returns:
        None, or a module with ``quantizer``, ``qparams(x)``, ``waits()``, ``quantized(x, qparams, waits)``,
        ``bit_width`` and ``forward(x)``, as `TensorQuantizer` has them.
    Raises:
        TypeError: a value of another type, or overrides that are no fields or have nothing to change.
        KeyError: a name that is not in the catalog. ValueError: as `TensorQuantizer` and `Quantizer`.
    """
    if isinstance(value, QuantProxy | Declaration):
        return proxy(role, value, layer, overrides, weight)
    argument, kind = f"{role}_quant", type(layer).__name__
    if isinstance(value, Prototype | PrototypeQuantizer) and role == "bias":
        raise TypeError(f"{kind}, `{argument}`: must not be a prototype, which has no codes to add to sums")
    if isinstance(value, Prototype):
        weights = getattr(layer, weight) if role == "weight" else None
        return PrototypeQuantizer(value, **{"like": weights, **overrides})
    if value is None or isinstance(value, PrototypeQuantizer | TensorQuantizer):
        check_changeable(kind, role, value, overrides)
        return value
    if not isinstance(value, str | Quantizer):
        raise TypeError(
            f"{kind}, `{argument}`: must be a catalog name or a Quantizer, a declaration (an Injector), a "
            f"prototype, the quantizer of another layer, or None; got {value!r}"
        )
    try:
        q = with_fields(quantizer_of(argument, value), role, overrides)
        if role == "bias":
            return TensorQuantizer(quantizer_of_bias(q))
        if role != "weight":
            return TensorQuantizer(q)
        if q.granularity == PerAxis(0):  # per channel, wherever this weight has its channels
            q = q.replace(granularity=PerAxis(channel_axis(layer)))
        tensor = getattr(layer, weight)
        return TensorQuantizer(q, tuple(tensor.shape)).to(tensor.device)
    except (TypeError, ValueError, KeyError) as error:
        raise type(error)(f"{kind}, `{argument}`: {error.args[0]}") from error


def channel_axis(layer: nn.Module) -> int:
    """The axis of a weight that runs over the outputs."""
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0


def watched(held: Any, value: Tensor) -> tuple[Held, Tensor]:
    """A tensor beside its quantizer, or as an observer passes it on that does not quantize."""
    return (None, held(value)) if getattr(held, "is_watching", False) else (held, value)


class Operand(NamedTuple):
    """A tensor that is contracted, and what its quantizer, if there is one, does to it at this step."""

    value: Tensor
    held: Held = None
    qparams: QParams = QParams(None)
    waits: Tensor | None = None

    def quantized(self) -> Tensor:
        """The values to contract."""
        if self.held is None or self.qparams.scale is None:
            return self.value if self.held is None else or_same(self.held, self.value)
        return self.held.quantized(self.value, self.qparams, self.waits)

    @property
    def quantizer(self) -> Quantizer | None:
        """What its codes are of; None where it has none."""
        return None if self.held is None else self.held.quantizer

    def coded(self) -> Tensor:
        """The same as a `QuantTensor`, where it has codes."""
        q = self.quantizer
        if self.held is None or q is None or self.waits is not None:
            return self.quantized() if self.held is not None else self.value
        value = self.quantized() if isinstance(self.held, CodedWeight) else self.value  # of codes: they are had again
        return quantized_tensor(q, value, self.qparams, self.held.training)


def operands(*pairs: tuple[Held, Tensor]) -> list[Operand]:
    """Tensors beside their quantizers, whose states learn from them: one step of each."""
    # what is observed, and not quantized yet, is seen once, however often it is contracted
    pairs = tuple(watched(held, value) for held, value in pairs)
    on = [None if held is None or held.quantizer is None else standing_in(held) for held, _ in pairs]
    waits = [None if one is None else one.waits() for one in on]
    return [
        Operand(value, held) if one is None else Operand(value, one, one.qparams(value), wait)
        for (held, value), one, wait in zip(pairs, on, waits, strict=True)
    ]


def contract(layer: Any, x: Tensor, over_values: OverValues, over_codes: OverCodes) -> Tensor:
    """`contracted`, of a layer with ``weight``, ``bias`` and quantizers for these and the input.

    A `QuantTensor` that no quantizer of the layer quantizes is contracted by its own codes. The result is one where the
    layer returns such, and its output is not quantized.
    """
    bias, axis = layer.bias, channel_axis(layer)
    q_b = None if bias is None else layer.bias_quant
    if isinstance(q_b, BiasQuantProxy) and not q_b.requires_input_scale:
        bias, q_b = q_b(bias), None
    given, as_codes = isinstance(x, QuantTensor), layer.return_quant_tensor and layer.output_quant is None
    if q_b is not None and (layer.input_quant is not None or not given):
        check_prescaled(layer, layer.input_quant, layer.weight_quant, axis)
    x = x.dequantize() if isinstance(x, QuantTensor) and layer.input_quant is not None else x
    a, b = operands((layer.input_quant, x), (layer.weight_quant, layer.weight))
    if as_codes or isinstance(x, QuantTensor):
        return contracted_codes(a, b, bias, q_b, over_values, as_codes)
    return contracted(a, b, bias, q_b, over_values, over_codes)


def contracted_codes(
    x: Operand, w: Operand, bias: Tensor | None, q_b: Held, over_values: OverValues, as_codes: bool
) -> Tensor:
    """A contraction over tensors with codes, where both have them: a `QuantTensor`, or the values of `contracted`.

    With codes, those of a bias are added to the sums, whose values then are rounded once instead of twice.
    """
    a, b = x.coded(), w.coded()
    if isinstance(a, QuantTensor) and isinstance(b, QuantTensor) and a.dtype != b.dtype:
        b = b.to(a.dtype)  # under autocast; codes and scale stay
    if q_b is not None and bias is not None and isinstance(a, QuantTensor) and isinstance(b, QuantTensor):
        x_qparams = QParams(a.scale) if x.held is None else x.qparams
        if x_qparams.scale.numel() != 1:
            raise ValueError(f"`bias_quant` needs an input of one scale, got {tuple(x_qparams.scale.shape)} of them")
        qparams = _prescaled(len(bias), x_qparams._replace(scale=x_qparams.scale.reshape(())), w.qparams)
        q = q_b.quantizer if as_codes else None
        each = None if q is None else q.replace(granularity=PerAxis(0))
        bias = q_b.quantized(bias, qparams, None) if each is None else quantized_tensor(each, bias, qparams)
    y = over_values(a, b, bias)
    return y if as_codes else or_same(None, y)


def contracted(
    x: Operand, w: Operand, bias: Tensor | None, q_b: Held, over_values: OverValues, over_codes: OverCodes
) -> Tensor:
    """A contraction over what quantizers make of its operands; over values where one of these is not quantized.

    Args:
        q_b: of the bias; `check_prescaled` has seen the others then.
        over_values: of input, weight, bias.
        over_codes: of the quantizer of the input, the input and its parameters, the same of the weight, and the bias.
    """
    q_x, q_w = x.quantizer, w.quantizer
    if q_x is None or q_w is None:
        return over_values(x.quantized(), w.quantized(), bias)
    waits = x.waits if w.waits is None else w.waits if x.waits is None else x.waits | w.waits
    if q_b is not None and bias is not None:
        bias = q_b.quantized(bias, _prescaled(len(bias), x.qparams, w.qparams), waits)
    kept: Any = w.value
    if isinstance(w.held, Kept) and waits is None:
        kept = w.held.packed(q_x, w.value)
    elif isinstance(w.held, CodedWeight):
        kept = w.held.packed(q_x, w.value, w.qparams)
    parts = q_x, x.value, x.qparams, q_w, kept, w.qparams, bias
    learned = q_x.learned_bits is not None or q_w.learned_bits is not None
    if waits is None and not learned:
        return over_codes(*parts)
    y = over_values(x.quantized(), w.quantized(), bias)
    return y if waits is None or learned or is_concrete(waits) else torch.where(waits, y, over_codes(*parts))


def check_prescaled(layer: nn.Module, q_x: Held, q_w: Held, axis: int = 0) -> None:
    """ValueError unless input and weight have the scales for a bias: one, and one or one for each channel."""
    name = f"{type(layer).__name__}, `bias_quant`"
    for role, one, allowed in (("input", q_x, (PerTensor(),)), ("weight", q_w, (PerTensor(), PerAxis(axis)))):
        if one is None:
            raise ValueError(f"{name}: has no scale, since `{role}_quant` is None")
        if one.quantizer is not None and one.quantizer.granularity not in allowed:  # None: it is off
            raise ValueError(f"{name}: `{role}_quant` must be {allowed[-1]}, got {one.quantizer.granularity}")


def _prescaled(outputs: int, x_qparams: QParams, w_qparams: QParams) -> QParams:
    """``max(fl(s_x * s_w), smallest normal number)`` for each output, by which sums are scaled too."""
    s_x, s_w = x_qparams.scale, w_qparams.scale
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


def or_same(quantizer: Held, x: Tensor, as_codes: bool = False) -> Tensor:
    """``x`` quantized, or as it is where nothing is to quantize it; a float tensor, or else ``as_codes``.

    During a delay it has none.
    """
    if quantizer is None:
        return x.dequantize() if isinstance(x, QuantTensor) and not as_codes else x
    x, held = x.dequantize() if isinstance(x, QuantTensor) else x, standing_in(quantizer)
    if not as_codes or held.quantizer is None:
        y: Tensor = held(x)
        return y
    waits, qparams = held.waits(), held.qparams(x)
    if waits is not None:
        z: Tensor = held.quantized(x, qparams, waits)
        return z
    return quantized_tensor(held.quantizer, x, qparams, held.training)
