"""From a declaration (`samebits.core.inject.Injector`) to the quantizer that a layer holds, with every refusal.

A declaration is resolved once, when the layer is made, with the layer as ``module``: ``module.weight`` is the weight as
its quantizer sees it. What is used is its attribute ``quantizer``, a `Quantizer`. A declaration of components
(``tensor_quant``, which `samebits.torch_frontend.quant` adds to those of `samebits.core.quant`) or with a class for
what holds it (``proxy_class``) means modules of torch, and is refused.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from ...core.descriptions import Quantizer
from ...core.inject import Declaration, DependencyError, Resolution, known_names
from ...core.scales import ScaleSource
from ..bias_quantizer import BiasQuantizer
from ..quantizer import choose_qparams
from ..tensor_quantizer import TensorQuantizer

OWN_NAMES = {"module", "quantizer", "signed", "role"}  # that are asked for here
OF_TORCH = ("tensor_quant", "proxy_class")
OF_LAYERS = ("min_val", "max_val")  # of `QuantHardTanh`: where its quantizer begins, unless that says something else
KINDS = {"weight": "weights", "bias": "biases", "trunc": "truncation", "clamp": "accumulators"}  # others: activations


def proxy(role: str, value: Declaration, layer: Any, overrides: Mapping[str, Any]) -> TensorQuantizer | BiasQuantizer:
    """What a layer holds for a declaration.

    Activations have their channels last where the layer quantizes them as they lie, so there ``channel_axis`` is -1.
    A learned scale of a weight begins at the statistic of the weight as it is now.

    Args:
        role: weight, bias; everything else is an activation.
        overrides: attributes of the declaration to replace.
    Raises:
        TypeError: a declaration for another kind of tensor, one that means modules of torch, or an override that
            nothing asks for.
        DependencyError, TypeError, ValueError: what making the quantizer raises.
    """
    kind, argument = type(layer).__name__, f"{role}_quant"
    check_declaration(role, value, kind)
    given = {name: getattr(layer, name) for name in OF_LAYERS if hasattr(layer, name) and name not in value}
    as_it_lies = role not in KINDS and not getattr(layer, "channels_first", False)
    if as_it_lies and "per_channel_broadcastable_shape" not in {*value, *overrides}:
        given["channel_axis"] = -1
    resolution = Resolution(value.let(**given | dict(overrides), module=layer), "quantizer")
    with named(f"{kind}, `{argument}`"):
        q = resolution.root()
        if not isinstance(q, Quantizer):
            raise TypeError(f"{value!r}.quantizer must be a Quantizer, got {q!r}")
        _check_asked(role, value, kind, overrides, resolution.asked)
        if role == "bias":
            prescaled = "requires_input_scale" in value and value.let(**overrides).requires_input_scale
            return BiasQuantizer(q) if prescaled else TensorQuantizer(q, tuple(layer.bias[...].shape))
        if role != "weight":
            return TensorQuantizer(q)
        weight = layer.weight
        starts = q.scale.source is ScaleSource.LEARNED and q.scale.scale_value is None
        return TensorQuantizer(q, tuple(weight.shape), qparams=choose_qparams(q, weight) if starts else None)


def check_declaration(role: str, value: Declaration, kind: str) -> None:
    """TypeError unless a declaration is one of a `Quantizer` for this kind of tensor."""
    if "role" in value and KINDS.get(value.role, "activations") != KINDS.get(role, "activations"):
        raise TypeError(
            f"{kind}: `{role}_quant` must be a quantizer of {KINDS.get(role, 'activations')}, got {value!r}, one of "
            f"`{value.role}`"
        )
    for name in OF_TORCH:
        if name in value:
            raise TypeError(
                f"{kind}: `{role}_quant` must be declared by fields of samebits.core.quant, got {value!r}, whose "
                f"`{name}` means modules of torch"
            )
    if "quantizer" not in value:
        raise TypeError(f"{kind}: `{role}_quant` must declare a `quantizer`, got {value!r}, which has none")


def _check_asked(role: str, value: Declaration, kind: str, overrides: Mapping[str, Any], asked: set[str]) -> None:
    """TypeError for an override that nothing in the declaration asks for."""
    known = known_names(value, asked) | OWN_NAMES
    for name in overrides:
        if name not in known:
            shown = name if role == "act" else f"{role}_{name}"
            near = ", ".join(get_close_matches(name, sorted(known), n=3))
            raise TypeError(
                f"no keyword `{shown}`: nothing in {value!r} asks for `{name}`"
                + (f"; did you mean {near}?" if near else "")
            )


@contextmanager
def named(place: str) -> Iterator[None]:
    """Says in errors of the inside which quantizer of which layer they are about."""
    try:
        yield
    except DependencyError as error:
        raise DependencyError(f"{place}: {error}", error.missing) from error
    except (TypeError, ValueError, KeyError) as error:
        raise type(error)(f"{place}: {error.args[0]}") from error
