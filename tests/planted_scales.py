"""More faults to plant (see `tests.planted`): in scales that are powers of two or quantized, and in masks."""

from collections.abc import Iterator
from typing import Any

import torch

from samebits.core import PerGroup, Quantizer, Rounding, formats

from .examine import quantizer
from .planted import ROUTES, TORCH, Fault
from .planted_formats import BINARY, CODEBOOK, E2M1, E4M3, E5M2_INF, MX_FOUR, TERNARY, Builder, named, verb
from .planted_sums import _interval, without_shortcut

MX_CEIL, MX_EVEN = quantizer("mxfp4_e2m1_ceil"), quantizer("mxfp4_e2m1_even")
NV = quantizer("nvfp4").replace(granularity=PerGroup(32))
NV_ONE = quantizer("nvfp4_one_level").replace(granularity=PerGroup(32))


# --- scales ----------------------------------------------------------------------------------------------------------


def _shared(room: str, m: Any, original: Any) -> dict[str, Any]:
    def ruled(restriction: str) -> Any:
        return lambda q, magnitude: original(q.replace(restriction=restriction), magnitude)

    def by_log2(q: Any, magnitude: Any) -> Any:
        return m.exp2(m.floor(m.log2(m.clip(magnitude, 2.0**-100, None))) - 2)

    return {
        "exponent one too small at powers of two": lambda q, v: original(q, v * (1 - 2.0**-24)),
        "exponent one too large below powers of two": lambda q, v: original(q, v * (1 + 2.0**-23)),
        "exponent by log2": by_log2,
        "exponent of the largest number left out": lambda q, v: original(q.replace(format=formats.NF4), v),
        "floor for ceil": ruled("power_of_two_floor"),
        "floor for even: no carry": ruled("power_of_two_floor"),
        "ceil for even": ruled("power_of_two_ceil"),
        "even with one bit more": lambda q, v: original(q.replace(format=formats.FLOAT6_E2M3), v),
        "absmax over the largest number for floor": lambda q, v: original(
            q.replace(restriction="power_of_two_ceil"), v / q.format.hi * 4
        ),
    }


SHARED = {
    "exponent one too small at powers of two": MX_FOUR,
    "exponent one too large below powers of two": MX_FOUR,
    "exponent by log2": MX_FOUR,
    "exponent of the largest number left out": MX_FOUR,
    "floor for ceil": MX_CEIL,
    "floor for even: no carry": MX_EVEN,
    "ceil for even": MX_EVEN,
    "even with one bit more": MX_EVEN,
    "absmax over the largest number for floor": MX_FOUR,
}


def _quantized(room: str, m: Any, original: Any) -> dict[str, Any]:
    format = formats.FLOAT8_E4M3FN

    def scale(
        q: Quantizer,
        v: Any,
        *,
        low: float = 2.0**format.min_exponent,
        high: float = format.hi,
        rounding: Rounding | None = Rounding.TIES_TO_EVEN,
        divisor: float = 6.0 * format.hi,
        reciprocal: bool = False,
    ) -> Any:
        smallest = 2.0**-126
        level, tensor = m.clip(v / m.full_like(v, 6.0), smallest, None), m.ones_like(v)
        if q.scale.two_level:
            tensor = m.clip(v.max() / m.full_like(v, divisor), smallest, None)
            level = level * (1 / tensor) if reciprocal else level / tensor
        level = m.clip(level, low, high)
        if rounding is not None:
            level = verb(m, "minifloat.round_to_float")(level, format, rounding)
        return level * tensor

    def faulty(**fault: Any) -> Any:
        return lambda q, v: scale(q, v, **fault)

    return {
        "scales in e4m3 not clamped above": faulty(high=2.0**100),
        "scales in e4m3 not clamped below": faulty(low=0.0),
        "scales in e4m3 not rounded": faulty(rounding=None),
        "scales in e4m3 rounded upwards": faulty(rounding=Rounding.TOWARD_POSITIVE),
        "scales in e4m3 by halves away": faulty(rounding=Rounding.TIES_TO_AWAY),
        "tensor scale left out": lambda q, v: original(q.replace(two_level=False), v),
        "tensor scale without the largest number": faulty(divisor=format.hi),
        "tensor scale by its reciprocal": faulty(reciprocal=True),
    }


QUANTIZED = dict.fromkeys(_quantized(TORCH, torch, None), NV) | {
    "scales in e4m3 not clamped above": NV_ONE,
    "scales in e4m3 not clamped below": NV_ONE,
}


def _restricted(room: str, m: Any, original: Any) -> dict[str, Any]:
    return {"floor of a power of two missing": lambda q, scale: scale}


def scale_faults() -> Iterator[Fault]:
    """Of the rules of scales, in the routes that choose parameters by themselves."""
    kinds: list[tuple[str, Builder, dict[str, Quantizer]]] = [
        ("shared_exponent_scale", _shared, SHARED),
        ("quantized_scale", _quantized, QUANTIZED),
        ("restrict_scale", _restricted, {"floor of a power of two missing": E4M3}),
    ]
    for route in ("torch eager", "jax eager"):
        room, m = ROUTES[route]
        for target, builder, quantizers in kinds:
            for name, q in quantizers.items():
                plants = [(f"{room}.scaling.{target}", named(builder, room, m, name)), *without_shortcut(route)]
                yield Fault(name, route, plants, q, frozenset({"scale"}))


# --- masks -----------------------------------------------------------------------------------------------------------


def _mask(room: str, m: Any, original: Any) -> dict[str, Any]:
    return {
        "mask of floats without their ends": lambda q, u: ~(m.abs(u) >= q.format.hi),
        "mask of floats one step wider": lambda q, u: ~(m.abs(u) > q.format.hi * 1.08),
        "mask of floats stops NaN": lambda q, u: m.abs(u) <= q.format.hi,
        "mask of binary numbers passes everywhere": lambda q, u: m.isfinite(u) | True,
        "mask of binary numbers without its ends": lambda q, u: ~(m.abs(u) >= 1),
        "mask of ternary numbers at the threshold": lambda q, u: ~(m.abs(u) > q.format.threshold),
        "mask of a codebook on one side": lambda q, u: ~(u > q.format.hi),
        "mask of what overflows": lambda q, u: m.ones_like(u) > 0,
    }


MASKS = {
    "mask of floats without their ends": E4M3,
    "mask of floats one step wider": E4M3,
    "mask of floats stops NaN": E2M1,
    "mask of binary numbers passes everywhere": BINARY,
    "mask of binary numbers without its ends": BINARY,
    "mask of ternary numbers at the threshold": TERNARY,
    "mask of a codebook on one side": CODEBOOK,
    "mask of what overflows": E5M2_INF,
}


def mask_faults() -> Iterator[Fault]:
    """Of the mask in every route; of the interval that stands for it in eager torch."""
    for route, (room, m) in ROUTES.items():
        for name, q in MASKS.items():
            plants = [(f"{room}.ste.clip_mask", named(_mask, room, m, name))]
            yield Fault(name, route, plants, q, frozenset({"dx"}))
    for name, shift in (("interval of floats too wide", float("inf")), ("interval of floats too narrow", 0.0)):
        interval = (f"{TORCH}.thresholds.passing_interval", _interval(shift))
        yield Fault(name, "torch eager", [interval], E4M3, frozenset({"dx_alone"}))
