"""From the argument of a layer to the proxy that it holds, with every refusal on the way."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from torch import nn

from ...core.inject import Declaration, DependencyError, known_names
from .proxies_of_given_scales import BiasQuantProxy, ClampQuantProxy, TruncQuantProxy
from .proxy import ActQuantProxy, OneWeight, QuantProxy, WeightQuantProxy

# Names that a proxy itself asks a declaration for
OWN_NAMES = {"module", "tensor_quant", "quantizer", "signed", "proxy_class", "role"}

OF_LAYERS = ("min_val", "max_val")  # of `QuantHardTanh`: where its quantizer begins, unless that says something else
ALL = (WeightQuantProxy, BiasQuantProxy, ActQuantProxy, TruncQuantProxy, ClampQuantProxy)
KINDS = {role: kind for kind in ALL for role in kind.roles}


def proxy(
    role: str, value: Declaration | QuantProxy, layer: nn.Module, overrides: Mapping[str, Any], weight: str = "weight"
) -> QuantProxy:
    """What a layer holds for a declaration, or for the proxy of another layer, which it shares from then on.

    Args:
        role: weight, bias, trunc, clamp; everything else is an activation.
        overrides: attributes of the declaration to replace.
        weight: the attribute that is the weight.
    Raises:
        TypeError: a declaration or proxy for another kind of tensor, an override that nothing asks for, or one of a
            proxy, which others share.
        DependencyError, TypeError, ValueError: what making the quantizer raises.
    """
    kind = type(layer).__name__
    if isinstance(value, QuantProxy):
        _check_kind(role, type(value), kind)
        if overrides:
            raise TypeError(f"{kind} cannot use `{role}_{next(iter(overrides))}`: `{role}_quant` is shared")
        with named(f"{kind}, `{role}_quant`"):
            value.add_tracked_module(whole(layer, role, weight))
        return value
    if "role" in value and KINDS.get(value.role, ActQuantProxy) is not KINDS.get(role, ActQuantProxy):
        raise TypeError(
            f"{kind}: `{role}_quant` must be a quantizer of {_kind_of(role)}, got {value!r}, one of `{value.role}`"
        )
    made_by = value.proxy_class if "proxy_class" in value else KINDS.get(role, ActQuantProxy)
    _check_kind(role, made_by, kind)
    given = {name: getattr(layer, name) for name in OF_LAYERS if hasattr(layer, name) and name not in value}
    declared = value.let(**given | dict(overrides)) if given or overrides else value
    with named(f"{kind}, `{role}_quant`"):
        made: QuantProxy = made_by(whole(layer, role, weight), declared)
    known = known_names(value, made._asked) | OWN_NAMES
    for name in overrides:
        if name not in known:
            shown = name if role == "act" else f"{role}_{name}"
            near = ", ".join(get_close_matches(name, sorted(known), n=3))
            raise TypeError(
                f"{kind} has no keyword `{shown}`: nothing in {value!r} asks for `{name}`"
                + (f"; did you mean {near}?" if near else "")
            )
    return made


@contextmanager
def named(place: str) -> Iterator[None]:
    """Says in errors of the inside which quantizer of which layer they are about."""
    try:
        yield
    except DependencyError as error:
        raise DependencyError(f"{place}: {error}", error.missing) from error
    except (TypeError, ValueError, KeyError) as error:
        raise type(error)(f"{place}: {error.args[0]}") from error


def whole(layer: nn.Module, role: str, weight: str) -> Any:
    """The layer, or of one with several weights what stands for one of them."""
    return layer if role != "weight" or weight == "weight" else OneWeight(layer, weight)


def _check_kind(role: str, made_by: Any, kind: str) -> None:
    if not (isinstance(made_by, type) and issubclass(made_by, KINDS.get(role, ActQuantProxy))):
        name = getattr(made_by, "__name__", repr(made_by))
        raise TypeError(f"{kind}: `{role}_quant` must be a quantizer of {_kind_of(role)}, got one with a {name}")


def _kind_of(role: str) -> str:
    return {"weight": "weights", "bias": "biases", "trunc": "truncation", "clamp": "accumulators"}.get(
        role, "activations"
    )
