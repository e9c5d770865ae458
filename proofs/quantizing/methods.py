"""The methods that need nothing but weights, by name, as configs of `samebits.core.configs`."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from ...core import configs
from ...core.configs import Config
from ...core.granularity import PerGroup

NONE = "none"  # a layer that stays as it is
GROUPS = (128, 64, 32)  # sizes that are tried, the largest first


def _ungrouped(name: str, make: Callable[[], Config]) -> Callable[[int | None], Config]:
    def config(group_size: int | None) -> Config:
        if group_size is not None:
            raise ValueError(f"`group_size` must be left out for {name}, whose blocks are fixed, got {group_size}")
        return make()

    return config


def _grouped(make: Callable[[int], Config], default: int) -> Callable[[int | None], Config]:
    return lambda group_size: make(default if group_size is None else group_size)


_FIXED: Mapping[str, Callable[[], Config]] = {
    "int8_dynamic_activation_int8_weight": configs.int8_dynamic_activation_int8_weight,
    "float8_weight_only": configs.float8_weight_only,
    "float8_dynamic_activation_float8_weight": configs.float8_dynamic_activation_float8_weight,
    **{format: partial(configs.mx, format) for format in configs.MX},
    "nvfp4": configs.nvfp4,
}
METHODS: Mapping[str, Callable[[int | None], Config]] = MappingProxyType(
    {
        "int8_weight_only": lambda group_size: configs.int8_weight_only(group_size),
        "int4_weight_only": _grouped(configs.int4_weight_only, 128),
        "int8_dynamic_activation_int4_weight": _grouped(configs.int8_dynamic_activation_int4_weight, 32),
        **{name: _ungrouped(name, make) for name, make in _FIXED.items()},
    }
)


def config_of(name: str, group_size: int | None = None) -> Config:
    """The config of a method.

    Args:
        name: one of `METHODS`.
        group_size: inputs that share a scale; None for the method's own.
    Raises:
        KeyError: no such method; all are listed. TypeError, ValueError: a group size that is
            no positive int, or one for a method whose blocks are fixed.
    """
    if name not in METHODS:
        raise KeyError(f"unknown method {name!r}; methods are {', '.join(METHODS)}")
    return METHODS[name](group_size)


def group_of(config: Config) -> int | None:
    """How many inputs share a scale; None if all do."""
    granularity = config.weight.granularity
    return granularity.size if isinstance(granularity, PerGroup) else None
