"""More faults to plant (see `tests.planted`): in every format but plain integers, its numbers and codes.

`tests.planted_scales` has those of scales and masks.

Most are a wrong formula from quotients to numbers, planted in every route; the others are verbs that both rooms have
under one name. Where a fault is the right formula of another description, the room's own verbs compute it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import torch

from samebits.core import PerGroup, Quantizer, formats

from .examine import quantizer
from .planted import JAX, ROUTES, TORCH, Fault, Make, to

Formula = Callable[[Any, Any, Any], Any]  # of (m, q, u): numbers of the format for quotients u
Builder = Callable[[str, Any, Any], dict[str, Any]]  # of (room, m, original): faulty functions by name

BINARY, TERNARY = quantizer("binary_per_tensor"), quantizer("ternary_per_tensor")
OTHER_TERNARY = quantizer("ternary_per_channel", threshold=0.7)
E4M3, E5M2 = quantizer("float8_e4m3fn_per_tensor"), quantizer("float8_e5m2_per_channel")
E4M3_NAN, E5M2_INF = quantizer("float8_e4m3fn_overflow_per_tensor"), quantizer("float8_e5m2_overflow_per_tensor")
FNUZ = quantizer("float8_e4m3fnuz_per_tensor", saturate=False)
E3M2, E2M1, E3M4 = (quantizer(f"{n}_per_tensor") for n in ("float6_e3m2", "float4_e2m1", "float8_e3m4"))
CODEBOOK = quantizer("nf4_per_group64").replace(granularity=PerGroup(32))
MX_INT, MX_FOUR = quantizer("mxint8"), quantizer("mxfp4_e2m1")


def _room(m: Any) -> str:
    return TORCH if m is torch else JAX


def verb(m: Any, name: str) -> Any:
    """A function ("file.function") of the room of a framework."""
    file, function = name.split(".")
    return getattr(import_module(f"samebits.{_room(m)}.{file}"), function)


def right(m: Any, q: Any, u: Any) -> Any:
    """What is right, by the verbs of the room."""
    return verb(m, "grid.limit_to_grid")(q, verb(m, "grid.round_to_grid")(q, u))


# --- from quotients to numbers ---------------------------------------------------------------------------------------


def numbers_by(formula: Formula, route: str) -> tuple[str, Make]:
    """A plant that makes the numbers of a format by a formula."""

    def torch_eager(original: Any) -> Any:
        def to_grid(q: Any, u: Any, z: Any) -> None:
            u.copy_(formula(torch, q, u.clone()))

        return to_grid

    def torch_func(original: Any) -> Any:
        def codes_of(q: Quantizer, value: Any, *others: Any) -> Any:
            quotient, unclamped, _ = original(q, value, *others)
            numbers = formula(torch, q, quotient)
            return quotient, unclamped, numbers + 0.0 if isinstance(q.format, formats.IntegerFormat) else numbers

        return codes_of

    def jax_eager(original: Any) -> Any:
        def codes(q: Quantizer, x: Any, scale: Any, zero_point: Any, noise: Any = None, **_: Any) -> Any:
            quotients = import_module(f"samebits.{JAX}.kernels").unclamped_codes
            return formula(ROUTES["jax eager"][1], q, quotients(q, x, scale, None, subnormals=True)[0])

        return codes

    return {
        "torch eager": (f"{TORCH}.in_place.to_grid", torch_eager),
        "torch func": (f"{TORCH}.elementwise.codes_of", torch_func),
        "jax eager": (f"{JAX}.kernels.codes", jax_eager),
    }[route]


def _described(**changes: Any) -> Formula:
    """The right formula of another description."""
    return lambda m, q, u: right(m, q.replace(**changes), u)


def _before(step: Formula) -> Formula:
    """The right formula after something that should not be done."""
    return lambda m, q, u: right(m, q, step(m, q, u))


def _where(wrong: Formula, number: Formula) -> Formula:
    """``number`` where ``wrong``, else what is right."""
    return lambda m, q, u: m.where(wrong(m, q, u), number(m, q, u), right(m, q, u))


def _keep_nan(formula: Formula) -> Formula:
    return lambda m, q, u: m.where(m.isnan(u), u, formula(m, q, u))


def _number(value: float) -> Formula:
    return lambda m, q, u: m.full_like(u, value)


def _ends(m: Any, q: Any, u: Any) -> Any:
    return m.where(u > 0, float(q.format.hi), float(q.format.lo))


def _listed(q: Any, below: Callable[[Any, float], Any], u: Any, m: Any, ends: Any, first: int = 0) -> Any:
    """A codebook's number by counting the ends that are below."""
    values = q.format.values
    number = m.full_like(u, values[first])
    for end, value in zip(ends, values[first + 1 :], strict=False):
        number = m.where(below(u, end), value, number)
    return m.where(m.isnan(u), u, number)


def _bfloat16(m: Any, q: Any, u: Any) -> Any:
    return to(m, u, "bfloat16", "float32")


def _float16(m: Any, q: Any, u: Any) -> Any:
    return to(m, u, "float16", "float32")


def _bits(**by: int) -> Formula:
    """Another width of exponent or significand, or another bias, with the ends of the right format."""

    def formula(m: Any, q: Any, u: Any) -> Any:
        f = q.format
        changes = {name: getattr(f, "offset" if name == "bias" else name) + more for name, more in by.items()}
        rounded = verb(m, "minifloat.round_to_float")(u, replace(f, **changes), q.rounding)
        return verb(m, "minifloat.overflow")(rounded, f)

    return formula


def _without_subnormals(m: Any, q: Any, u: Any) -> Any:
    number = right(m, q, u)
    return m.where(m.abs(number) < 2.0**q.format.min_exponent, m.zeros_like(u), number)


def _one_zero(m: Any, q: Any, u: Any) -> Any:
    number = right(m, q, u)
    return m.where(number == 0, m.zeros_like(u), number)


def _signed_zero(m: Any, q: Any, u: Any) -> Any:
    number = right(m, q, u)
    return m.where((number == 0) & (u < 0), m.full_like(u, -0.0), number)


def _nearest(m: Any, q: Any, u: Any) -> Any:
    """By distance, computed in float32, the later of two: other decisions than those of float32 midpoints."""
    number, distance = m.full_like(u, q.format.values[0]), m.abs(u - q.format.values[0])
    for value in q.format.values[1:]:
        nearer = m.abs(u - value) <= distance
        number, distance = m.where(nearer, value, number), m.where(nearer, m.abs(u - value), distance)
    return m.where(m.isnan(u), u, number)


FORMULAS: Mapping[str, tuple[Formula, Quantizer]] = {
    "binary: zero has no sign": (_keep_nan(lambda m, q, u: m.sign(u)), BINARY),
    "binary: zero is negative": (_keep_nan(lambda m, q, u: m.where(u > 0, 1.0, -1.0)), BINARY),
    "binary: -0.0 is negative": (_keep_nan(lambda m, q, u: m.where(m.signbit(u), -1.0, 1.0)), BINARY),
    "binary: the least quotients are zero": (_before(lambda m, q, u: m.where(m.abs(u) <= 2.0**-126, 0.0, u)), BINARY),
    "binary: NaN is negative": (lambda m, q, u: m.where(u >= 0, 1.0, -1.0), BINARY),
    "ternary: at the threshold": (
        _keep_nan(lambda m, q, u: m.where(m.abs(u) >= q.format.threshold, m.sign(u), 0.0)),
        TERNARY,
    ),
    "ternary: at the lower threshold": (_where(lambda m, q, u: u == -q.format.threshold, _number(-1.0)), TERNARY),
    "ternary: no threshold": (_keep_nan(lambda m, q, u: m.sign(u)), TERNARY),
    "ternary: rounded to nearest": (_keep_nan(lambda m, q, u: m.clip(m.round(u), -1, 1)), OTHER_TERNARY),
    "ternary: threshold in bfloat16": (_described(threshold=float(torch.tensor(0.7).bfloat16())), OTHER_TERNARY),
    "ternary: NaN is zero": (lambda m, q, u: m.where(m.abs(u) > q.format.threshold, m.sign(u), 0.0), TERNARY),
    "float: ties away": (_described(rounding="ties_to_away"), E4M3),
    "float: ties upwards": (_described(rounding="ties_toward_positive"), E5M2),
    "float: truncated": (_described(rounding="toward_zero"), E3M4),
    "float: subnormals flushed": (_without_subnormals, E4M3),
    "float: subnormals of six bits flushed": (_without_subnormals, E3M2),
    "float: subnormals of four bits flushed": (_without_subnormals, E2M1),
    "float: no end to small exponents": (_bits(exponent_bits=4, bias=100), E3M2),
    "float: subnormals one exponent lower": (_bits(bias=1), E4M3),
    "float: one bit too few": (_bits(mantissa_bits=-1), E4M3),
    "float: one bit too many": (_bits(mantissa_bits=1), E3M4),
    "float: overflow before rounding": (_where(lambda m, q, u: m.abs(u) > q.format.hi, _number(np.nan)), E4M3_NAN),
    "float: overflow at the largest number": (
        _where(lambda m, q, u: m.abs(right(m, q, u)) >= q.format.hi, lambda m, q, u: u * np.inf),
        E5M2_INF,
    ),
    "float: saturation for overflow": (_described(saturate=True), E4M3_NAN),
    "float: saturation for infinity": (_described(saturate=True), E5M2_INF),
    "float: overflow for saturation": (_described(saturate=False), E5M2),
    "float: infinity for NaN": (
        _where(lambda m, q, u: m.isnan(right(m, q, u)) & ~m.isnan(u), lambda m, q, u: u * np.inf),
        E4M3_NAN,
    ),
    "float: NaN for infinity": (_where(lambda m, q, u: m.isinf(right(m, q, u)), _number(np.nan)), E5M2_INF),
    "float: infinity does not saturate": (_where(lambda m, q, u: m.isinf(u), lambda m, q, u: u), E4M3),
    "float: ends of IEEE formats": (_described(specials="ieee"), E4M3),
    "float: rounded in bfloat16 first": (_before(_bfloat16), E4M3),
    "float: rounded in float16 first": (_before(_float16), E4M3),
    "float: four bits from float16": (_before(_float16), E2M1),
    "float: -0.0 lost": (_one_zero, E4M3),
    "float: -0.0 where there is none": (_signed_zero, FNUZ),
    "float: bias of fn for fnuz": (_described(bias=7), FNUZ),
    "float: NaN is zero": (_where(lambda m, q, u: m.isnan(u), _number(0.0)), E4M3),
    "float: NaN is the largest": (_where(lambda m, q, u: m.isnan(u), _ends), E2M1),
    "codebook: midpoints go up": (
        lambda m, q, u: _listed(q, lambda u, end: u >= end, u, m, q.format.midpoints),
        CODEBOOK,
    ),
    "codebook: midpoints in bfloat16": (
        lambda m, q, u: _listed(
            q, lambda u, end: u > end, u, m, torch.tensor(q.format.midpoints).bfloat16().float().tolist()
        ),
        CODEBOOK,
    ),
    "codebook: the number below": (
        lambda m, q, u: _listed(q, lambda u, end: u >= end, u, m, q.format.values[1:]),
        CODEBOOK,
    ),
    "codebook: the next number": (
        lambda m, q, u: _listed(q, lambda u, end: u > end, u, m, q.format.midpoints, 1),
        CODEBOOK,
    ),
    "codebook: nearest by distance": (_nearest, CODEBOOK),
    "codebook: NaN is the smallest": (_where(lambda m, q, u: m.isnan(u), _number(-1.0)), CODEBOOK),
    "mx integers: narrow": (_described(narrow=True), MX_INT),
    "mx: ties away": (_described(rounding="ties_to_away"), MX_FOUR),
}


def number_faults() -> Iterator[Fault]:
    """Every formula in every route. Codes of NaN are not compared; eager torch finds codebooks' codes without numbers.

    Eager torch also adds 0.0 where a format has no -0.0: there the fault is that it does not.
    """
    for route in ROUTES:
        for name, (formula, q) in FORMULAS.items():
            values_alone = ": NaN is" in name or (route == "torch eager" and q is CODEBOOK)
            plants, breaks = [numbers_by(formula, route)], frozenset({"fake"} if values_alone else {"codes", "fake"})
            if route == "torch eager" and formula is _signed_zero:
                plants, breaks = [(f"{TORCH}.eager._needs_one_zero", lambda _: lambda q: False)], frozenset({"fake"})
            yield Fault(name, route, plants, q, breaks)


# --- codes -----------------------------------------------------------------------------------------------------------


def _encode(room: str, m: Any, original: Any) -> dict[str, Any]:
    def changed(where: Callable[[Any, Any], Any], code: Callable[[Any, Any], Any]) -> Any:
        def encode_float(values: Any, format: Any) -> Any:
            right = original(values.clone() if m is torch else values, format)  # which may overwrite them
            wrong = to(m, code(to(m, right, "int32"), format), str(format.storage))
            return m.where(where(values, format), wrong, right)

        return encode_float

    return {
        "code of NaN with the sign": changed(lambda v, f: m.isnan(v), lambda code, f: code ^ (1 << (f.bits - 1))),
        "code of NaN one lower": changed(lambda v, f: m.isnan(v), lambda code, f: code - 1),
        "code of infinity is NaN": changed(lambda v, f: m.isinf(v), lambda code, f: code + 1),
        "code of -0.0 without sign": changed(lambda v, f: v == 0, lambda code, f: code * 0),
        "codes of subnormals one lower": changed(
            lambda v, f: (v != 0) & (m.abs(v) < 2.0**f.min_exponent), lambda code, f: code - 1
        ),
    }


def _decode(room: str, m: Any, original: Any) -> dict[str, Any]:
    def changed(where: Callable[[Any, Any], Any], value: Callable[[Any, Any], Any]) -> Any:
        def decode_float(codes: Any, format: Any) -> Any:
            right = original(codes, format)
            return m.where(where(right, format), value(right, format), right)

        return decode_float

    return {
        "subnormals decoded as normal": changed(
            lambda v, f: (v != 0) & (m.abs(v) < 2.0**f.min_exponent),
            lambda v, f: v + m.sign(v) * 2.0 ** (f.min_exponent - 1),
        ),
        "infinity decoded as NaN": changed(lambda v, f: m.isinf(v), lambda v, f: v * np.nan),
        "NaN decoded as a number": changed(lambda v, f: m.isnan(v), lambda v, f: m.full_like(v, 480.0)),
        "-0.0 decoded as 0.0": changed(lambda v, f: v == 0, lambda v, f: m.abs(v)),
        "the largest number decoded as NaN": changed(lambda v, f: m.abs(v) == f.hi, lambda v, f: v * np.nan),
    }


CODES = {
    "code of NaN with the sign": E4M3_NAN,
    "code of NaN one lower": FNUZ,
    "code of infinity is NaN": E5M2_INF,
    "code of -0.0 without sign": E4M3,
    "codes of subnormals one lower": E3M2,
    "subnormals decoded as normal": E3M4,
    "infinity decoded as NaN": E5M2_INF,
    "NaN decoded as a number": E4M3_NAN,
    "-0.0 decoded as 0.0": E2M1,
    "the largest number decoded as NaN": E4M3,
}


def named(builder: Builder, room: str, m: Any, name: str) -> Make:
    return lambda original: builder(room, m, original)[name]


def code_faults() -> Iterator[Fault]:
    """Of the verbs between numbers and codes, in every route."""
    for route, (room, m) in ROUTES.items():
        for target, builder, breaks in (("encode_float", _encode, "codes"), ("decode_float", _decode, "values")):
            for name in builder(room, m, None):
                plants = [(f"{room}.minifloat.{target}", named(builder, room, m, name))]
                if route == "torch eager" and target == "encode_float":  # what holds no NaN it encodes in place
                    plants.append((f"{room}.in_place._encode_float", named(builder, room, m, name)))
                yield Fault(name, route, plants, CODES[name], frozenset({breaks}))
