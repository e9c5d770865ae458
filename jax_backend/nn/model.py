"""Float flax nnx models made quantized, in place: layers become those of this package, their parameters stay."""

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import lax

from ...core.rules import Rules, check_rules, given_rules, keywords_of
from . import activation, attention, conv, conv_transpose, embedding, linear
from .layer import become, check_single, hold

CONTRACTED = ("weight", "bias", "input", "output")
ATTENTION = (*CONTRACTED, "query", "key", "value", "attention", "softmax", "context")
USUAL = {  # options of layers of flax that quantized ones do not have, and what these compute
    "dot_general": (lax.dot_general,),
    "conv_general_dilated": (lax.conv_general_dilated,),
    "mask": (None,),
    "precision": (None, lax.Precision.HIGHEST),
    "preferred_element_type": (None,),
}


class Kind(NamedTuple):
    """What a layer of flax becomes, which quantizers rules give it, and the attributes that it has beside."""

    layer: type[nnx.Module]
    roles: tuple[str, ...] = CONTRACTED
    sizes: Callable[[Any], dict[str, Any]] = lambda layer: {}
    hold: Callable[..., None] = hold


class Place(NamedTuple):
    """A layer or function of a model, its name, and what holds it as which attribute."""

    name: str
    part: Any
    roles: tuple[str, ...]
    around: Any
    attribute: str


def _sizes(names: Sequence[str], layer: Any) -> dict[str, Any]:
    """The sizes of a convolution as quantized ones keep them; ValueError, TypeError for those that these refuse."""
    n = len(conv.kernel_lengths(layer.kernel_size))
    if hasattr(layer, "input_dilation") and set(conv.lengths("input_dilation", layer.input_dilation, n)) != {1}:
        raise ValueError(f"`input_dilation` must be 1, got {layer.input_dilation!r}")
    return {
        "steps": conv.lengths("strides", layer.strides, n),
        "spread": conv.lengths("kernel_dilation", layer.kernel_dilation, n),
        "margins": conv.margins(layer.padding, n, (*names, *(("CAUSAL",) if n == 1 and len(names) > 2 else ()))),
    }


def _checked_attention(layer: Any) -> dict[str, Any]:
    """ValueError for options of attention that quantized one does not have."""
    if layer.decode:
        raise ValueError(f"`decode` must be False, got {layer.decode!r}")
    if layer.attention_fn is not nnx.dot_product_attention:
        raise ValueError(f"`attention_fn` must be nnx.dot_product_attention, got {layer.attention_fn!r}")
    return {}


KINDS: dict[type[nnx.Module], Kind] = {
    nnx.Linear: Kind(linear.QuantLinear),
    nnx.Conv: Kind(conv.QuantConv, CONTRACTED, partial(_sizes, ("SAME", "VALID", *conv.AROUND))),
    nnx.ConvTranspose: Kind(conv_transpose.QuantConvTranspose, CONTRACTED, partial(_sizes, ("SAME", "VALID"))),
    nnx.Embed: Kind(embedding.QuantEmbed, ("weight", "output")),
    nnx.MultiHeadAttention: Kind(
        attention.QuantMultiHeadAttention, ATTENTION, _checked_attention, attention.hold_attention
    ),
}
FUNCTIONS: dict[Any, Callable[..., nnx.Module]] = {  # as parts of an `nnx.Sequential`
    jax.nn.relu: activation.QuantReLU,
    jax.nn.relu6: partial(activation.QuantHardTanh, min_val=0.0, max_val=6.0),
    jax.nn.hard_tanh: activation.QuantHardTanh,
    jax.nn.sigmoid: activation.QuantSigmoid,
    jax.nn.tanh: activation.QuantTanh,
    jax.nn.gelu: partial(activation.QuantGELU, approximate="tanh"),
    jax.nn.silu: activation.QuantSiLU,
    jax.nn.identity: activation.QuantIdentity,
}


def quantize_model(model: nnx.Module, rules: Rules | None = None, *, exclude: Sequence[str] = ()) -> nnx.Module:
    """Makes layers of a float model quantized ones, in place; those of `KINDS`, not subclasses of them.

    Layers and parameters stay the same objects: an optimizer that was made before still trains them. In training their
    weights and inputs are quantized at every call, with straight-through gradients; `samebits.jax_backend.ptq.freeze`
    then makes codes of the weights.

    Functions are swapped where they are parts of an ``nnx.Sequential``, and of `FUNCTIONS`; those that a module calls
    cannot be seen.

    Args:
        model: its layers may be shared; what is quantized already stays.
        rules: keywords for the layers whose name, or that of a module around them, fits a pattern: `Rule` after `Rule`,
            or a mapping, as `samebits.core.rules` says, also for models of torch. Names are those of torch: attributes
            joined by dots, parts of an ``nnx.Sequential`` numbered (`samebits.jax_backend.interop`). All that fit apply
            in their order. A layer takes the keywords of its roles (``weight_bits``: of layers with a weight). A
            function is swapped if it gets one (``act_quant``), every layer with its defaults at least; for None instead
            of keywords it stays. None: no rules.
        exclude: patterns of layers that stay.
    Returns:
        The model. Warns of layers with a matrix that no kind takes, and no rule excludes.
    Raises:
        ValueError: a pattern that fits no layer, an option of a layer that quantized ones do not have, or layers that
            ``nnx.vmap`` has stacked. TypeError: a keyword that no layer takes, or what are no rules or no nnx model.
        TypeError, ValueError, KeyError: what the layers raise, with their name. The model is then as it was.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"`model` must be an nnx.Module, got {type(model).__name__}")
    given, everything = given_rules(rules, exclude), list(parts(model))
    places = [place for place in everything if place.roles]
    check_rules(given, [(place.name, place.roles) for place in places])
    made: dict[int, tuple[Any, dict[str, Any] | None]] = {}
    new: list[tuple[Place, Any]] = []
    for place in places:
        keywords, shared = keywords_of(place.name, place.roles, given), isinstance(place.part, nnx.Module)
        if shared and id(place.part) in made and made[id(place.part)][1] != keywords:
            raise ValueError(f"'{place.name}': is a layer that has another name too, with other rules for it")
        if keywords is not None and not (shared and id(place.part) in made):
            new.append((place, _quantized(place, keywords)))
        made[id(place.part)] = place.part, keywords
    left = [place for place in everything if not place.roles and keywords_of(place.name, (), given) is not None]
    if left:
        shown = ", ".join(dict.fromkeys(f"'{place.name}' ({type(place.part).__name__})" for place in left))
        warnings.warn(f"left as they are, since nothing quantizes their kind: {shown}", stacklevel=2)
    for place, quantized in new:
        _put(place, quantized)
    return model


def parts(model: nnx.Module) -> Iterator[Place]:
    """What rules can name: layers and functions, with the roles of their quantizers; and other layers with a matrix."""
    yield from _parts(Place("", model, (), None, ""), ())


def _parts(place: Place, outside: tuple[int, ...]) -> Iterator[Place]:
    part = place.part
    if type(part) in KINDS:
        yield place._replace(roles=KINDS[type(part)].roles)
    elif id(part) not in outside and isinstance(part, nnx.Module | list | tuple | Mapping):
        inside = list(_attributes(part))
        if isinstance(part, nnx.Module) and not hasattr(part, "weight_quant") and any(_is_matrix(v) for _, v in inside):
            yield place
        for key, value in inside:
            here = Place(f"{place.name}.{key}".removeprefix("."), value, (), part, key)
            if isinstance(part, nnx.Sequential) and key == "layers":
                yield from _parts(here._replace(name=place.name), (*outside, id(part)))
            elif place.attribute == "layers" and isinstance(place.around, nnx.Sequential) and _is_function(value):
                yield here._replace(roles=("act",))
            else:
                yield from _parts(here, (*outside, id(part)))


def _attributes(part: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(part, nnx.Module):
        yield from ((key, value) for key, value in vars(part).items() if not key.startswith("_pytree__"))
    else:
        items = part.items() if isinstance(part, Mapping) else enumerate(part)
        yield from ((str(key), value) for key, value in items)


def _is_function(value: Any) -> bool:
    return isinstance(value, Hashable) and not isinstance(value, nnx.Module) and value in FUNCTIONS


def _is_matrix(value: Any) -> bool:
    return isinstance(value, nnx.Param) and getattr(value[...], "ndim", 0) > 1


def _quantized(place: Place, keywords: Mapping[str, Any]) -> nnx.Module:
    """The quantized layer, of the same variables, or that of a function."""
    try:
        is_layer = isinstance(place.part, nnx.Module)
        return _of_layer(place.part, keywords) if is_layer else FUNCTIONS[place.part](**keywords)
    except (TypeError, ValueError, KeyError) as error:
        raise type(error)(f"'{place.name}': {error.args[0]}") from error


def _of_layer(layer: Any, keywords: Mapping[str, Any]) -> nnx.Module:
    kind = KINDS[type(layer)]
    for option, usual in USUAL.items():
        if not any(getattr(layer, option, usual[0]) is value for value in usual):
            raise ValueError(f"`{option}` must be what flax layers have without it, got {getattr(layer, option)!r}")
    new: Any = copy(layer)
    become(new, kind.layer)
    for name, value in kind.sizes(layer).items():
        setattr(new, name, value)
    check_single(new)
    defaults = {p.name: p.default for p in signature(kind.layer.__init__).parameters.values()}
    quant = {role: keywords.get(f"{role}_quant", defaults[f"{role}_quant"]) for role in kind.roles}
    kind.hold(new, {key: value for key, value in keywords.items() if not key.endswith("_quant")}, **quant)
    made: nnx.Module = new
    return made


def _put(place: Place, quantized: Any) -> None:
    """Makes a layer what it becomes, or puts a layer in the place of a function."""
    if not isinstance(place.part, nnx.Module):
        setattr(place.around, place.attribute, nnx.data(quantized))
        return
    become(place.part, type(quantized))
    for name, value in vars(quantized).items():
        if not name.startswith("_pytree__") and vars(place.part).get(name, place) is not value:
            setattr(place.part, name, nnx.data(value) if isinstance(value, nnx.Module) else value)
