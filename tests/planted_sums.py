"""More faults to plant (see `tests.planted`): in the choice of parameters, in masks and in sums of gradients.

Most of these verbs have one name in both rooms: a builder gives the faulty functions by name, for a room and its
framework ``m``.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from samebits import jax_backend
from samebits.core import Quantizer

from .planted import (
    CHANNELS,
    DOWN,
    INT8,
    JAX,
    LEARNED,
    NARROW,
    PASSING,
    POWER,
    ROUTES,
    TORCH,
    UINT8,
    Fault,
    Make,
    clip,
    to,
)

# --- parameters: verbs that both rooms have under one name -----------------------------------------------------------

Builder = Callable[[str, Any, Any], dict[str, Any]]  # of (room, m, original): faulty functions by name


def _extremes(room: str, m: Any, x: Any, granularity: Any) -> tuple[Any, Any]:
    """Smallest and largest element of each block, not widened to 0."""
    blocks = import_module(f"samebits.{room}.blocks").split_blocks(x, granularity)
    return (blocks.amin(-1), blocks.amax(-1)) if m is torch else (blocks.min(-1), blocks.max(-1))


def _absmax(room: str, m: Any, original: Any) -> dict[str, Any]:
    smallest = import_module(f"samebits.{room}.statistics").min_max
    return {
        "negative elements ignored": lambda x, granularity: smallest(x, granularity)[1],
        "positive elements ignored": lambda x, granularity: -smallest(x, granularity)[0],
    }


def _min_max(room: str, m: Any, original: Any) -> dict[str, Any]:
    return {"range not widened to zero": lambda x, granularity: _extremes(room, m, x, granularity)}


def _symmetric_scale(room: str, m: Any, original: Any) -> dict[str, Any]:
    return {
        "absmax / 127.5": lambda q, low, high: m.maximum(-low, high) / 127.5,
        "absmax / 128": lambda q, low, high: m.maximum(-low, high) / 128,
        "absmax * (1 / 127)": lambda q, low, high: m.maximum(-low, high) * m.asarray(1 / 127, dtype=m.float32),
        "scale in bfloat16": lambda q, low, high: to(m, original(q, low, high), "bfloat16", "float32"),
    }


def _affine_scale(room: str, m: Any, original: Any) -> dict[str, Any]:
    return {
        "range / 256": lambda q, low, high: original(q, low, high) * 255 / 256,
        "overflow of the range": lambda q, low, high: (high - low) / m.full_like(high, 255),
    }


def _restrict_scale(room: str, m: Any, original: Any) -> dict[str, Any]:
    def floored(q: Quantizer, scale: Any) -> Any:
        return original(q.replace(restriction="float"), scale)

    return {
        "floor raised to 2**-7": lambda q, scale: original(q.replace(floor=2.0**-7), scale),
        "floor missing": lambda q, scale: scale,
        "power of two by log2": lambda q, scale: m.exp2(m.ceil(m.log2(floored(q, scale)))),
        "power of two downwards": lambda q, scale: original(q, floored(q, scale) * 0.5000001),
    }


def _affine_zero_point(room: str, m: Any, original: Any) -> dict[str, Any]:
    def clipped(q: Quantizer, code: Any) -> Any:
        return to(m, clip(m, q, code), "int32")

    return {
        "zero point truncated": lambda q, low, scale: clipped(q, q.format.lo - m.trunc(low / scale)),
        "zero point one too high": lambda q, low, scale: clipped(q, q.format.lo + 1 - m.round(low / scale)),
        "zero point in the direction of the codes": lambda q, low, scale: clipped(
            q, q.format.lo - m.floor(low / scale)
        ),
        "zero point by halves away": lambda q, low, scale: clipped(q, q.format.lo + m.floor(-low / scale + 0.5)),
    }


PARAMETERS: Sequence[tuple[str, Builder, Quantizer, str]] = [
    ("statistics.absmax", _absmax, INT8, "scale"),
    ("statistics.min_max", _min_max, UINT8, "scale"),
    ("scaling.symmetric_scale", _symmetric_scale, INT8, "scale"),
    ("scaling.affine_scale", _affine_scale, UINT8, "scale"),
    ("scaling.restrict_scale", _restrict_scale, POWER, "scale"),
    ("zero_point.affine_zero_point", _affine_zero_point, DOWN, "zero_point"),
]


def _of_shortcut(name: str) -> Make:
    return lambda original: _shortcut(original)[name]


def _named(builder: Builder, room: str, m: Any, name: str) -> Make:
    return lambda original: builder(room, m, original)[name]


def without_shortcut(route: str) -> list[tuple[str, Make]]:
    """Eager torch chooses the most frequent scale past the verbs: not where these are at fault."""
    return [("torch_frontend.eager_scales.takes_absmax", lambda _: lambda q: False)] if route == "torch eager" else []


def _shortcut(original: Any) -> dict[str, Any]:
    return {
        "shortcut of a tensor: one step too high": lambda q, x: torch.nextafter(original(q, x), torch.tensor(9.0)),
        "shortcut of a tensor: positive elements ignored": lambda q, x: original(q, x.clamp(max=0)),
        "shortcut of channels: scale in bfloat16": lambda q, x: original(q, x).bfloat16().float(),
        "shortcut of channels: floor missing": lambda q, x: torch.threshold(original(q, x), 2.0**-126, 0.0),
    }


def parameter_faults() -> Iterator[Fault]:
    """Every builder's faults, in the routes that choose parameters by themselves."""
    for name in _shortcut(None):
        plants = [("torch_frontend.eager_scales.scale_of_absmax", _of_shortcut(name))]
        yield Fault(name, "torch eager", plants, CHANNELS if "channels" in name else INT8, frozenset({"scale"}))
    for target, builder, q, breaks in PARAMETERS:
        for route in ("torch eager", "jax eager"):
            room, m = ROUTES[route]
            for name in builder(room, m, None):
                plants = [(f"{room}.{target}", _named(builder, room, m, name)), *without_shortcut(route)]
                yield Fault(name, route, plants, q, frozenset({breaks}))


# --- gradients -------------------------------------------------------------------------------------------------------


def _clip_mask(room: str, m: Any, original: Any) -> dict[str, Any]:
    return {
        "mask without its bounds": lambda q, u: ~((u <= q.format.lo) | (u >= q.format.hi)),
        "mask one code too wide": lambda q, u: ~((u < q.format.lo - 1) | (u > q.format.hi + 1)),
        "mask of the upper bound alone": lambda q, u: ~(u > q.format.hi),
        "mask that stops NaN": lambda q, u: (u >= q.format.lo) & (u <= q.format.hi),
        "mask of a wide range": lambda q, u: original(q.replace(narrow=False), u),
    }


def _factor(room: str, m: Any, original: Any) -> dict[str, Any]:
    return {
        "factor of the learned scale missing": lambda q, n: 1.0,
        "factor counts all elements": lambda q, n: original(q, 64 * n),
        "factor of 2**bits": lambda q, n: original(q.replace(bits=q.format.bits + 1), n),
    }


def _block_sum(room: str, m: Any, original: Any) -> dict[str, Any]:
    return {"sum over the next block": lambda terms, granularity: m.roll(original(terms, granularity), 1, 0)}


def _unrounded_mask(room: str) -> list[tuple[str, Make]]:
    """``lo <= x / s + z <= hi``: what differentiating a clamp before the rounding gives."""
    seen: dict[str, Any] = {}

    def mask(original: Any) -> Any:
        return lambda q, unclamped: ~((seen["codes"] < q.format.lo) | (seen["codes"] > q.format.hi))

    def codes_of(original: Any) -> Any:
        def remembered(q: Quantizer, value: Any, s: Any, z: Any, *noise: Any) -> Any:
            seen["codes"] = value / s + (0 if z is None else z)
            return original(q, value, s, z, *noise)

        return remembered

    def unclamped_codes(original: Any) -> Any:
        def remembered(q: Quantizer, x: Any, scale: Any, zero_point: Any, *noise: Any, **how: Any) -> Any:
            quotient, unclamped = original(q, x, scale, zero_point, *noise, **how)
            seen["codes"] = quotient + jax_backend.kernels.zero_points(q, zero_point, scale, x.shape)
            return quotient, unclamped

        return remembered

    before = (
        (f"{TORCH}.elementwise.codes_of", codes_of)
        if room == TORCH
        else (f"{JAX}.kernels.unclamped_codes", unclamped_codes)
    )
    return [before, (f"{room}.ste.clip_mask", mask)]


def _terms(room: str, m: Any, original: Any) -> dict[str, Any]:
    """Faults of the function that gives gradients of x, scale and zero point: of terms in torch, of sums in JAX."""

    def asked(gradient: str) -> Any:
        return lambda q, *rest: original(q.replace(gradient=gradient), *rest)

    def changed(*functions: Any) -> Any:
        def terms(*arguments: Any) -> Any:
            g, found = arguments[4], original(*arguments)
            parts = [d if d is None or f is None else f(d, g) for d, f in zip_longest(found, functions)]
            return type(found)(*parts) if m is torch else tuple(parts)

        return terms

    return {
        "pass-through ignored": asked("clipped"),
        "clipping ignored": asked("pass_through"),
        "masked gradient is g * 0": changed(lambda d, g: m.where(d == 0, g * 0, d), None, None),
        "gradient of the zero point with the wrong sign": changed(None, None, lambda d, g: -d),
        "gradient of the scale with the wrong sign": changed(None, lambda d, g: -d, None),
    }


TERMS = {
    "torch eager": "eager_gradients._with_parameters",
    "torch func": "elementwise.gradient_terms",
    "jax eager": "quantizer._gradients",
}
TERM_CASES = {
    "pass-through ignored": (PASSING, "dx"),
    "clipping ignored": (INT8, "dx"),
    "masked gradient is g * 0": (INT8, "dx"),
    "gradient of the zero point with the wrong sign": (UINT8, "d_zero_point"),
    "gradient of the scale with the wrong sign": (INT8, "d_scale"),
}


def _interval(shift: float) -> Make:
    """The comparison that stands for the mask in eager torch, one float32 to either side at both ends."""

    def make(original: Any) -> Any:
        def passing_interval(*arguments: Any) -> Any:
            ends = zip(original(*arguments), (-shift, shift), strict=True)
            return tuple(np.asarray(np.nextafter(end, end.dtype.type(toward))) for end, toward in ends)

        return passing_interval

    return make


def gradient_faults() -> Iterator[Fault]:
    """Masks, terms and sums."""
    for route, (room, m) in ROUTES.items():
        for name in _clip_mask(room, m, None):
            mask = [(f"{room}.ste.clip_mask", _named(_clip_mask, room, m, name))]
            yield Fault(name, route, mask, NARROW if "wide range" in name else INT8, frozenset({"dx"}))
        for name in _factor(room, m, None):
            factor = [(f"{room}.ste.learned_scale_factor", _named(_factor, room, m, name))]
            yield Fault(name, route, factor, LEARNED, frozenset({"d_scale"}))
        yield Fault("mask of codes not rounded", route, _unrounded_mask(room), INT8, frozenset({"dx"}))
        for name, (q, breaks) in TERM_CASES.items():
            terms = [(f"{room}.{TERMS[route]}", _named(_terms, room, m, name))]
            yield Fault(name, route, terms, q, frozenset({breaks}))
        if route != "torch eager":
            sums = [(f"{room}.ste.block_sum", _named(_block_sum, room, m, "sum over the next block"))]
            yield Fault("sum over the next block", route, sums, CHANNELS, frozenset({"d_scale"}))
    summed = (
        f"{TORCH}.eager_gradients._add_to",
        lambda original: lambda total, terms: original(total, terms.roll(1, 0)),
    )
    yield Fault("sum over the next block", "torch eager", [summed], CHANNELS, frozenset({"d_scale"}))
    for name, shift in (("interval of the mask too wide", float("inf")), ("interval of the mask too narrow", 0.0)):
        interval = (f"{TORCH}.thresholds.passing_interval", _interval(shift))
        yield Fault(name, "torch eager", [interval], INT8, frozenset({"dx_alone"}))
