"""Catalog: ready quantizers by name, ``<format>[_affine][_<restriction>]_<granularity>``. One line each."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TypeVar

from .descriptions import Quantizer, Restriction, ScaleRule, ZeroPoint
from .formats import IntegerFormat
from .granularity import Granularity, PerAxis, PerBlock, PerGroup, PerTensor, PerToken

Entry = TypeVar("Entry")


class Named(Mapping[str, Entry]):
    """A read-only mapping whose KeyError names what was asked for and what is nearest to it."""

    def __init__(self, kind: str, entries: Mapping[str, Entry]) -> None:
        self._kind, self._entries = kind, dict(entries)

    def __getitem__(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            near = get_close_matches(str(name), self._entries, n=3) or list(self._entries)
            raise KeyError(f"unknown {self._kind} {name!r}; did you mean {', '.join(near)}?") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _symmetric(bits: int, granularity: Granularity, *, signed: bool = True, narrow: bool = False) -> Quantizer:
    return Quantizer(format=IntegerFormat(bits, signed, narrow), granularity=granularity)


def _affine(bits: int, granularity: Granularity, *, signed: bool) -> Quantizer:
    return Quantizer(format=IntegerFormat(bits, signed), granularity=granularity, zero_point=ZeroPoint.MIN_MAX)


catalog: Mapping[str, Quantizer] = Named(
    "quantizer",
    {
        "int8_per_tensor": _symmetric(8, PerTensor()),
        "int8_per_channel": _symmetric(8, PerAxis(0)),
        "int8_narrow_per_channel": _symmetric(8, PerAxis(0), narrow=True),
        "int8_per_token": _symmetric(8, PerToken()),
        "int8_per_block": _symmetric(8, PerBlock((32, 32))),
        "int8_power_of_two_per_tensor": Quantizer(
            format=IntegerFormat(8), scale=ScaleRule(restriction=Restriction.POWER_OF_TWO)
        ),
        "int8_affine_per_token": _affine(8, PerToken(), signed=True),
        "uint8_per_tensor": _symmetric(8, PerTensor(), signed=False),
        "uint8_affine_per_tensor": _affine(8, PerTensor(), signed=False),
        "uint8_affine_per_channel": _affine(8, PerAxis(0), signed=False),
        "int4_per_channel": _symmetric(4, PerAxis(0)),
        "int4_per_group32": _symmetric(4, PerGroup(32)),
        "int4_per_group128": _symmetric(4, PerGroup(128)),
        "uint4_affine_per_group32": _affine(4, PerGroup(32), signed=False),
        "int2_per_channel": _symmetric(2, PerAxis(0)),
        "int16_per_tensor": _symmetric(16, PerTensor()),
    },
)
