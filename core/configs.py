"""Post-training methods for a layer, as frozen values: what becomes of its weight, and of what it is multiplied with.

`WeightOnly` stores codes and multiplies with their values. `DynamicActivation` quantizes the other operand as well, at
every call; where `samebits.core.contraction.contracts_codes` allows it, codes are contracted, exactly. The functions
below make them under the names that users of torchao know, of quantizers of the catalog; `dialect` takes the arithmetic
of another system (`samebits.core.dialects`) in the place of ours. Weights are ``(out, in)``; groups lie along ``in``.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from .arithmetic import ZeroPointDomain
from .catalog import catalog
from .choice import check_int
from .descriptions import Quantizer, ZeroPoint
from .dialects import dialects
from .formats import IntegerFormat
from .granularity import Granularity, PerAxis, PerGroup, Shape, qparams_shape
from .scales import ScaleSource

Made = TypeVar("Made")
LAYOUTS = ("plain", "packed")
ZERO_POINTS = ("none", "integer", "float")
MX = ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4_e2m1", "mxint8")
DEFAULT = "_default"


def quantizer(name: str, value: object) -> Quantizer:
    """The quantizer that ``value`` is, or names in the catalog, if its scale and codes follow from the tensor alone.

    Raises:
        TypeError: neither. KeyError: a name that the catalog does not have.
        ValueError: rounding that draws or learns, or scales that are learned or averaged.
    """
    q = catalog[value] if isinstance(value, str) else value
    if not isinstance(q, Quantizer):
        raise TypeError(f"`{name}` must be a Quantizer or a name of the catalog, got {value!r}")
    if not q.deterministic or q.learned_bits is not None:
        raise ValueError(f"`{name}` must round deterministically to a fixed width, got '{q.rounding}'")
    if q.scale.source not in (ScaleSource.STATISTIC, ScaleSource.CONSTANT):
        raise ValueError(f"`{name}` must take its scale from the tensor or be constant, got '{q.scale.source}'")
    return q


def check_layout(layout: object) -> None:
    """ValueError unless it is one of `LAYOUTS`."""
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {', '.join(map(repr, LAYOUTS))}; got {layout!r}")


def check_parts(q: object, act_quant: object, layout: object) -> None:
    """Whether these describe a stored weight, however its codes were found.

    Raises:
        TypeError: what is no Quantizer. ValueError: a weight whose width is learned, ``act_quant`` as `quantizer`, and
            as `check_layout`.
    """
    for name, value in (("q", q), ("act_quant", act_quant)):
        if not isinstance(value, Quantizer) and (value is not None or name == "q"):
            raise TypeError(f"`{name}` must be a Quantizer (see samebits.core.catalog), got {value!r}")
    if isinstance(q, Quantizer) and q.learned_bits is not None:
        raise ValueError(f"`q` must have a fixed width, got `learned_bits` {q.learned_bits}")
    if act_quant is not None:
        quantizer("act_quant", act_quant)
    check_layout(layout)


@dataclass(frozen=True, init=False)
class WeightOnly:
    """The weight alone: ``y = x @ dequantize(codes).T + bias``, in floating point.

    Args:
        weight: a `Quantizer` or a name of the catalog.
        layout: ``"plain"``, one code in each element; ``"packed"``, codes of less than 8 bits in as few bytes as they
            need (`samebits.core.packing`).
    Raises:
        TypeError, KeyError, ValueError: as `quantizer`; ValueError for a layout that there is not.
    """

    weight: Quantizer
    layout: str

    def __init__(self, weight: Quantizer | str, layout: str = "plain") -> None:
        check_layout(layout)
        object.__setattr__(self, "weight", quantizer("weight", weight))
        object.__setattr__(self, "layout", layout)

    @property
    def act_quant(self) -> None:
        """None: what the weight is multiplied with stays as it is."""
        return


@dataclass(frozen=True, init=False)
class DynamicActivation:
    """The weight, and at every call what it is multiplied with: ``y = linear(codes(x), codes(w)) + bias``.

    Args:
        activation: of ``x``, per tensor or per token; a `Quantizer` or a name of the catalog.
        weight, layout: as `WeightOnly`.
    Raises:
        TypeError, KeyError, ValueError: as `WeightOnly`.
    """

    activation: Quantizer
    weight: Quantizer
    layout: str

    def __init__(self, activation: Quantizer | str, weight: Quantizer | str, layout: str = "plain") -> None:
        check_layout(layout)
        object.__setattr__(self, "activation", quantizer("activation", activation))
        object.__setattr__(self, "weight", quantizer("weight", weight))
        object.__setattr__(self, "layout", layout)

    @property
    def act_quant(self) -> Quantizer:
        """The quantizer of what the weight is multiplied with."""
        return self.activation


Config = WeightOnly | DynamicActivation


def config_of(value: Config | Quantizer | str) -> Config:
    """A config, or for a quantizer or its name in the catalog that of the weight alone.

    Raises:
        TypeError, KeyError, ValueError: as `quantizer`.
    """
    return value if isinstance(value, Config) else WeightOnly(quantizer("q", value))


@dataclass(frozen=True, init=False)
class ModuleConfigs:
    """Which layer gets which config: by its exact name, else by a pattern, else ``"_default"``; None leaves it alone.

    A key that begins with ``"re:"`` is a regular expression for whole names; of several that fit, the first counts.
    Layers that no key fits stay as they are.

    Args:
        configs: configs by key.
    Raises:
        TypeError: no mapping of str to configs or None. ValueError: a pattern that is no regular expression.
    """

    configs: tuple[tuple[str, Config | None], ...]

    def __init__(self, configs: Mapping[str, Config | None]) -> None:
        if not isinstance(configs, Mapping):
            raise TypeError(f"`configs` must be a mapping of names to configs, got {configs!r}")
        for key, config in configs.items():
            if not isinstance(key, str) or not (config is None or isinstance(config, Config)):
                raise TypeError(
                    f"`configs` must map names to WeightOnly, DynamicActivation or None, got {key!r}: {config!r}"
                )
            if key.startswith("re:"):
                _pattern(key)
        object.__setattr__(self, "configs", tuple(configs.items()))


def _pattern(key: str) -> re.Pattern[str]:
    try:
        return re.compile(key.removeprefix("re:"))
    except re.error as error:
        raise ValueError(f"`configs` has the key {key!r}, whose pattern is no regular expression: {error}") from None


def chosen(config: object, names: Iterable[str]) -> dict[str, Config]:
    """The config of each layer that gets one, in the order of ``names``.

    Raises:
        TypeError: ``config`` is none. ValueError: no names, or keys that no name fits.
    """
    found = list(names)
    if not found:
        raise nothing_to_quantize()
    if isinstance(config, Config):
        return dict.fromkeys(found, config)
    if not isinstance(config, ModuleConfigs):
        raise TypeError(f"`config` must be a WeightOnly, a DynamicActivation or ModuleConfigs, got {config!r}")
    missed = [key for key, _ in config.configs if key != DEFAULT and not any(_fits(key, name) for name in found)]
    if missed:
        raise ValueError(f"{', '.join(map(repr, missed))} of `configs` fits no layer; layers are {', '.join(found)}")
    of_each = {name: _of_name(config.configs, name) for name in found}
    return {name: own for name, own in of_each.items() if own is not None}


def _of_name(configs: tuple[tuple[str, Config | None], ...], name: str) -> Config | None:
    by_key = dict(configs)
    fitting = [key for key in (name, *by_key) if key in by_key and _fits(key, name)]
    return by_key[fitting[0]] if fitting else by_key.get(DEFAULT)


def _fits(key: str, name: str) -> bool:
    return key == name or (key.startswith("re:") and _pattern(key).fullmatch(name) is not None)


def check_weight(name: str, q: Quantizer, shape: Shape) -> None:
    """ValueError, with the name of the layer, unless a weight ``(out, in, ...)`` can be quantized by ``q``."""
    group = q.granularity
    if len(shape) < 2:
        raise ValueError(f"layer '{name}': a weight must have at least two axes, got shape {shape}")
    if isinstance(group, PerGroup) and len(shape) == 2 and group.axis in (-1, 1) and shape[1] % group.size:
        raise ValueError(
            f"layer '{name}': `in_features` must be a multiple of the group size {group.size}, got {shape[1]}; "
            "take another group size, or leave the layer out by `filter_fn` or with None in ModuleConfigs"
        )
    try:
        qparams_shape(group, shape)
    except ValueError as error:
        raise ValueError(f"layer '{name}': {error}") from None


def checked(name: str, make: Callable[[], Made]) -> Made:
    """What ``make`` gives; ValueError and TypeError of it name the layer."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer '{name}': {error}") from error


def nothing_to_quantize() -> ValueError:
    """The error for a model of which no layer is chosen."""
    return ValueError(
        "no layer to quantize: `filter_fn` takes none of them, or the model has none, or they are quantized already"
    )


def quantized_already(name: str, weight: object) -> ValueError:
    """The error for a layer whose weight is codes where one of floats is asked for."""
    return ValueError(f"layer '{name}' is quantized already: {weight!r}; leave it out, or begin with the float model")


def _spoken(q: Quantizer, dialect: str | None) -> Quantizer:
    return q if dialect is None else q.replace(**dialects[dialect])


def _along_rows(group_size: int | None) -> Granularity:
    return PerAxis(0) if group_size is None else PerGroup(group_size)


def int8_weight_only(group_size: int | None = None, dialect: str | None = None) -> WeightOnly:
    """Symmetric int8, one scale for each output channel, or for every ``group_size`` inputs of it."""
    q = catalog["int8_per_channel"].replace(granularity=_along_rows(group_size))
    return WeightOnly(_spoken(q, dialect))


def int8_dynamic_activation_int8_weight(dialect: str | None = None) -> DynamicActivation:
    """Symmetric int8 per token of activations and per output channel of weights; codes are contracted."""
    activation, weight = (_spoken(catalog[name], dialect) for name in ("int8_per_token", "int8_per_channel"))
    return DynamicActivation(activation, weight)


def int4_weight_only(group_size: int = 128, zero_point: str = "float", layout: str = "packed") -> WeightOnly:
    """Unsigned 4 bits by group, two to a byte.

    Args:
        zero_point: ``"float"``, a number, the value of code 8 (tinygemm); ``"integer"``, a code; ``"none"``, signed
            symmetric codes.
    Raises:
        ValueError: another zero point.
    """
    _check_zero_point(zero_point)
    if zero_point == "none":
        return WeightOnly(catalog["int4_per_group128"].replace(granularity=PerGroup(group_size)), layout)
    domain = ZeroPointDomain.FLOAT if zero_point == "float" else ZeroPointDomain.INTEGER
    q = catalog["uint4_affine_per_group128"].replace(granularity=PerGroup(group_size), zero_point_domain=domain)
    return WeightOnly(q, layout)


def int8_dynamic_activation_int4_weight(group_size: int = 32, layout: str = "packed") -> DynamicActivation:
    """ "8da4w": affine int8 per token of activations, symmetric int4 by group of weights, two to a byte."""
    weight = catalog["int4_per_group32"].replace(granularity=PerGroup(group_size))
    return DynamicActivation(catalog["int8_affine_per_token"], weight, layout)


def intx_weight_only(
    bits: int, group_size: int | None = None, zero_point: str | None = None, layout: str = "packed"
) -> WeightOnly:
    """Integers of 1 to 8 bits, per output channel or by group.

    Args:
        zero_point: ``"none"``, signed symmetric codes; ``"integer"``, a code of signed ones; None for the first, but of
            1 bit the second: its symmetric codes -1 and 0 have no positive one.
    Raises:
        TypeError, ValueError: ``bits`` is no int, or not in 1..8; another zero point, or ``"none"`` for 1 bit.
    """
    check_int("bits", bits)
    if not 1 <= bits <= 8:
        raise ValueError(f"`bits` must be in 1..8, got {bits}")
    zero_point = ("integer" if bits == 1 else "none") if zero_point is None else zero_point
    _check_zero_point(zero_point, ZERO_POINTS[:2])
    if bits == 1 and zero_point == "none":
        raise ValueError("`zero_point` must be 'integer' for 1 bit, whose signed codes are -1 and 0, got 'none'")
    affine = ZeroPoint.MIN_MAX if zero_point == "integer" else ZeroPoint.NONE
    q = Quantizer(format=IntegerFormat(bits), granularity=_along_rows(group_size), zero_point=affine)
    return WeightOnly(q, layout)


def float8_weight_only(weight: str = "float8_e4m3fn_per_channel") -> WeightOnly:
    """Float8 of weights, per output channel; another ``weight`` of the catalog for another format or granularity."""
    return WeightOnly(catalog[weight])


def float8_dynamic_activation_float8_weight(
    activation: str = "float8_e4m3fn_per_token", weight: str = "float8_e4m3fn_per_channel"
) -> DynamicActivation:
    """Float8 per token of activations and per output channel of weights, each named in the catalog."""
    return DynamicActivation(catalog[activation], catalog[weight])


def mx(format: str = "mxfp8_e4m3", activation: str | None = None, layout: str = "packed") -> Config:
    """OCP microscaling: blocks of 32 along the inputs, one power of two each; codes of 4 and 6 bits are packed.

    Args:
        format: of the weight: ``"mxfp8_e4m3"``, ``"mxfp8_e5m2"``, ``"mxfp6_e3m2"``, ``"mxfp6_e2m3"``,
            ``"mxfp4_e2m1"`` or ``"mxint8"``.
        activation: of what it is multiplied with, likewise; None for the weight alone.
    Raises:
        ValueError: another format.
    """
    for name, value in (("format", format), ("activation", activation)):
        if value not in MX and not (value is None and name == "activation"):
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, MX))}; got {value!r}")
    weight = catalog[format]
    return WeightOnly(weight, layout) if activation is None else DynamicActivation(catalog[activation], weight, layout)


def nvfp4(dynamic: bool = False, layout: str = "packed") -> Config:
    """NVFP4: blocks of 16, scales that are float8_e4m3fn numbers times one number of the whole tensor, two to a byte.

    Args:
        dynamic: whether activations are quantized so as well.
    """
    weight = catalog["nvfp4"]
    return DynamicActivation(weight, weight, layout) if dynamic else WeightOnly(weight, layout)


def _check_zero_point(value: object, allowed: tuple[str, ...] = ZERO_POINTS) -> None:
    if value not in allowed:
        raise ValueError(f"`zero_point` must be one of {', '.join(map(repr, allowed))}; got {value!r}")
