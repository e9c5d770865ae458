"""Float models made quantized: their layers are swapped, their parameters stay."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple

from torch import nn

from ...core.rules import Rules, check_rules, given_rules, keywords_of
from . import activation, attention, conv, conv_transpose, embedding, linear, recurrent
from .layer import adopted, hold


class Kind(NamedTuple):
    """What a layer of torch becomes, which quantizers rules give it, and what is checked of it."""

    layer: type[nn.Module]
    roles: tuple[str, ...] = ("act",)
    check: Callable[[Any], None] | None = None
    hold: Callable[..., None] = hold


CONTRACTED = ("weight", "bias", "input", "output")
ATTENTION = (*CONTRACTED, "query", "key", "value", "attention", "softmax", "context")
KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind(linear.QuantLinear, CONTRACTED),
    nn.Conv1d: Kind(conv.QuantConv1d, CONTRACTED, conv.check),
    nn.Conv2d: Kind(conv.QuantConv2d, CONTRACTED, conv.check),
    nn.Conv3d: Kind(conv.QuantConv3d, CONTRACTED, conv.check),
    nn.ConvTranspose1d: Kind(conv_transpose.QuantConvTranspose1d, CONTRACTED, conv_transpose.check),
    nn.ConvTranspose2d: Kind(conv_transpose.QuantConvTranspose2d, CONTRACTED, conv_transpose.check),
    nn.ConvTranspose3d: Kind(conv_transpose.QuantConvTranspose3d, CONTRACTED, conv_transpose.check),
    nn.Embedding: Kind(embedding.QuantEmbedding, ("weight", "output"), embedding.check),
    nn.RNN: Kind(recurrent.QuantRNN, ("weight", "input", "hidden"), None, recurrent.hold_recurrent),
    nn.LSTM: Kind(recurrent.QuantLSTM, ("weight", "input", "hidden", "cell"), None, recurrent.hold_recurrent),
    nn.MultiheadAttention: Kind(attention.QuantMultiheadAttention, ATTENTION, None, attention.hold_attention),
    nn.Identity: Kind(activation.QuantIdentity),
    nn.ReLU: Kind(activation.QuantReLU),
    nn.ReLU6: Kind(activation.QuantHardTanh),
    nn.Hardtanh: Kind(activation.QuantHardTanh),
    nn.Sigmoid: Kind(activation.QuantSigmoid),
    nn.Tanh: Kind(activation.QuantTanh),
    nn.GELU: Kind(activation.QuantGELU),
    nn.SiLU: Kind(activation.QuantSiLU),
}
QUANTIZED = {kind.layer for kind in KINDS.values()}


def quantize_model(model: nn.Module, rules: Rules | None = None, *, exclude: Sequence[str] = ()) -> nn.Module:
    """Swaps layers of a float model for quantized ones, in place; those of `KINDS`, not subclasses of them.

    Parameters stay the same objects: an optimizer that was made before still trains them, and a ``state_dict`` of the
    float model loads before and after (after with ``strict=False`` where quantizers have states). Hooks stay as well.

    Args:
        model: its layers may be shared; what is quantized already stays.
        rules: keywords for the layers whose name, or that of a module around them, fits a pattern: `Rule` after `Rule`,
            or a mapping, as `samebits.core.rules` says, also for models of JAX. All that fit apply in their order. A
            layer takes the keywords of its roles (``weight_bits``: of layers with a weight). An activation is swapped
            if it gets one (``act_quant``), every other layer with its defaults at least; for None instead of keywords
            it stays. None: no rules.
        exclude: patterns of layers that stay.
    Returns:
        The model; where it is itself such a layer, what it becomes.
    Raises:
        ValueError: a pattern that fits no layer. TypeError: a keyword that no layer takes, or what are no rules.
        TypeError, ValueError, KeyError: what the layers raise, with their name. The model is then as it was.
    """
    given, places = given_rules(rules, exclude), list(quantizable(model))
    check_rules(given, [(name, KINDS[type(layer)].roles) for name, layer in places])
    swapped: dict[int, tuple[nn.Module, dict[str, Any] | None]] = {}
    for name, layer in places:
        keywords = keywords_of(name, KINDS[type(layer)].roles, given)
        if id(layer) in swapped and swapped[id(layer)][1] != keywords:
            raise ValueError(f"'{name}': is a layer that has another name too, with other rules for it")
        if id(layer) not in swapped:
            swapped[id(layer)] = (layer if keywords is None else _quantized(name, layer, keywords)), keywords
    for module in list(model.modules()):
        for child, old in module._modules.items():
            if id(old) in swapped:
                module._modules[child] = swapped[id(old)][0]
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer):
            use_layers(module)
    return swapped[id(model)][0] if id(model) in swapped else model


def use_layers(encoder: Any) -> None:
    """Keeps torch from reading weights past quantized layers, and from nested tensors, which only that path takes."""
    if any(type(layer) in QUANTIZED for layer in encoder.modules()):
        if isinstance(encoder, nn.TransformerEncoder):
            encoder.use_nested_tensor = False
        else:
            encoder.activation_relu_or_gelu = 0


def quantizable(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers that can be swapped, with their names; not what is inside of them."""
    if type(model) in KINDS:
        yield name, model
        return
    for child, module in model._modules.items():
        if module is not None:
            yield from quantizable(module, f"{name}.{child}" if name else child)


def _quantized(name: str, layer: nn.Module, keywords: Mapping[str, Any]) -> nn.Module:
    """The quantized layer with the attributes of this one: parameters, hooks, mode."""
    kind = KINDS[type(layer)]
    new = adopted(kind.layer, layer)
    usual = {p.name: p.default for p in signature(kind.layer.__init__).parameters.values()}
    quant = {role: keywords.get(f"{role}_quant", usual[f"{role}_quant"]) for role in kind.roles}
    others = {role: None for role in ("input",) if f"{role}_quant" in usual and role not in quant}
    fields = {keyword: value for keyword, value in keywords.items() if not keyword.endswith("_quant")}
    try:
        kind.hold(new, fields, **quant, **others)
        if kind.check is not None:
            kind.check(new)
    except (TypeError, ValueError, KeyError) as error:
        raise type(error)(f"'{name}': {error.args[0]}") from error
    return new.train(layer.training)
