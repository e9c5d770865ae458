"""Catalog: ready quantizers by name, ``<format>[_affine][_<restriction>]_<granularity>``. One line each."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import TypeVar

from .arithmetic import ZeroPointDomain
from .descriptions import Gradient, Quantizer, ZeroPoint
from .directions import Rounding
from .formats import (
    FLOAT4_E2M1,
    FLOAT6_E2M3,
    FLOAT6_E3M2,
    FLOAT8_E3M4,
    FLOAT8_E4M3FN,
    FLOAT8_E4M3FNUZ,
    FLOAT8_E5M2,
    FLOAT8_E5M2FNUZ,
    NF4,
    BinaryFormat,
    Format,
    IntegerFormat,
    TernaryFormat,
)
from .granularity import Granularity, PerAxis, PerBlock, PerGroup, PerTensor, PerToken
from .scales import Restriction, ScaleRule, ScaleSource, Statistic

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


def _tinygemm(bits: int, granularity: Granularity) -> Quantizer:
    """Zero points that are numbers, the values of the middle code: those of tinygemm, over a range that holds 0."""
    return _affine(bits, granularity, signed=False).replace(zero_point_domain=ZeroPointDomain.FLOAT)


def _of(format: Format, granularity: Granularity) -> Quantizer:
    return Quantizer(format=format, granularity=granularity)


def _mx(format: Format, restriction: Restriction = Restriction.POWER_OF_TWO_FLOOR) -> Quantizer:
    """OCP Microscaling Formats 1.0: blocks of 32 along the last axis, one power of two each."""
    return Quantizer(format=format, granularity=PerGroup(32), scale=ScaleRule(restriction=restriction))


def _nvfp4(*, two_level: bool) -> Quantizer:
    rule = ScaleRule(restriction=Restriction.QUANTIZED, scale_format=FLOAT8_E4M3FN, two_level=two_level)
    return Quantizer(format=FLOAT4_E2M1, granularity=PerGroup(16), scale=rule)


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
        "int8_affine_per_tensor": _affine(8, PerTensor(), signed=True),
        "int8_power_of_two_per_channel": _symmetric(8, PerAxis(0)).replace(restriction=Restriction.POWER_OF_TWO),
        "int4_narrow_per_channel": _symmetric(4, PerAxis(0), narrow=True),
        "int3_per_channel": _symmetric(3, PerAxis(0)),
        "uint4_affine_per_group128": _affine(4, PerGroup(128), signed=False),
        "uint4_affine_float_zero_per_group64": _tinygemm(4, PerGroup(64)),
        "uint2_affine_per_group32": _affine(2, PerGroup(32), signed=False),
        "int8_learned_per_tensor": _symmetric(8, PerTensor()).replace(
            gradient=Gradient.LEARNED_SCALE, source=ScaleSource.LEARNED
        ),
        "uint8_dpu_power_of_two_per_tensor": _symmetric(8, PerTensor(), signed=False).replace(
            rounding=Rounding.DPU, restriction=Restriction.POWER_OF_TWO
        ),
        "int8_toward_zero_per_channel": _symmetric(8, PerAxis(0)).replace(rounding=Rounding.TOWARD_ZERO),
        "binary_per_tensor": _of(BinaryFormat(), PerTensor()),
        "binary_per_channel": _of(BinaryFormat(), PerAxis(0)),
        "ternary_per_tensor": _of(TernaryFormat(), PerTensor()),
        "ternary_per_channel": _of(TernaryFormat(), PerAxis(0)),
        "float8_e4m3fn_per_tensor": _of(FLOAT8_E4M3FN, PerTensor()),
        "float8_e4m3fn_per_channel": _of(FLOAT8_E4M3FN, PerAxis(0)),
        "float8_e4m3fn_per_token": _of(FLOAT8_E4M3FN, PerToken()),
        "float8_e4m3fn_per_block": _of(FLOAT8_E4M3FN, PerBlock((32, 32))),
        "float8_e4m3fn_overflow_per_tensor": _of(replace(FLOAT8_E4M3FN, saturate=False), PerTensor()),
        "float8_e5m2_per_tensor": _of(FLOAT8_E5M2, PerTensor()),
        "float8_e5m2_per_channel": _of(FLOAT8_E5M2, PerAxis(0)),
        "float8_e5m2_overflow_per_tensor": _of(replace(FLOAT8_E5M2, saturate=False), PerTensor()),
        "float8_e4m3fnuz_per_tensor": _of(FLOAT8_E4M3FNUZ, PerTensor()),
        "float8_e5m2fnuz_per_tensor": _of(FLOAT8_E5M2FNUZ, PerTensor()),
        "float8_e3m4_per_tensor": _of(FLOAT8_E3M4, PerTensor()),
        "float6_e3m2_per_tensor": _of(FLOAT6_E3M2, PerTensor()),
        "float6_e2m3_per_tensor": _of(FLOAT6_E2M3, PerTensor()),
        "float4_e2m1_per_tensor": _of(FLOAT4_E2M1, PerTensor()),
        "float4_e2m1_per_channel": _of(FLOAT4_E2M1, PerAxis(0)),
        "mxfp8_e4m3": _mx(FLOAT8_E4M3FN),
        "mxfp8_e5m2": _mx(FLOAT8_E5M2),
        "mxfp6_e3m2": _mx(FLOAT6_E3M2),
        "mxfp6_e2m3": _mx(FLOAT6_E2M3),
        "mxfp4_e2m1": _mx(FLOAT4_E2M1),
        "mxint8": _mx(IntegerFormat(8)),
        "mxfp8_e4m3_rceil": _mx(FLOAT8_E4M3FN, Restriction.POWER_OF_TWO),
        "mxfp4_e2m1_ceil": _mx(FLOAT4_E2M1, Restriction.POWER_OF_TWO_CEIL),
        "mxfp4_e2m1_even": _mx(FLOAT4_E2M1, Restriction.POWER_OF_TWO_EVEN),
        "nvfp4": _nvfp4(two_level=True),
        "nvfp4_one_level": _nvfp4(two_level=False),
        "nf4_per_group64": _of(NF4, PerGroup(64)),
        "int8_percentile_per_tensor": _symmetric(8, PerTensor()).replace(
            statistic=Statistic.PERCENTILE, percentile=99.9
        ),
        "uint8_affine_percentile_per_tensor": _affine(8, PerTensor(), signed=False).replace(
            statistic=Statistic.PERCENTILE, percentile=99.9, low_percentile=0.1
        ),
        "ternary_absmean_per_tensor": _of(TernaryFormat(), PerTensor()).replace(statistic=Statistic.ABSMEAN),
    },
)
