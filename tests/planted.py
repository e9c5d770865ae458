"""Faults to plant in the verbs of `samebits.torch_frontend` and `samebits.jax_backend`, as data.

A plant replaces one function of a room wherever the room has imported it. What many rooms share is written once, with
``m`` for the framework (`torch` or `jax.numpy`). All of them are faults that systems of the field have had, or could.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import jax.numpy as jnp
import pytest
import torch

from samebits import jax_backend
from samebits.core import Quantizer

from .examine import quantizer

Make = Callable[[Any], Any]  # from the function to the one that replaces it
Formula = Callable[[Any, Quantizer, Any, Any, Any], Any]  # of (m, q, x, s, z): codes
TORCH, JAX = "torch_frontend", "jax_backend"
ROUTES: Mapping[str, tuple[str, Any]] = {
    "torch eager": (TORCH, torch),
    "torch func": (TORCH, torch),
    "jax eager": (JAX, jnp),
}

INT8, UINT8 = quantizer("int8_per_tensor"), quantizer("uint8_affine_per_tensor")
FLOAT8 = quantizer("float8_e4m3fn_per_tensor")
CHANNELS, GROUPS = quantizer("int8_per_channel"), quantizer("uint4_affine_per_group32")
NARROW, POWER = quantizer("int8_narrow_per_channel"), quantizer("int8_power_of_two_per_tensor")
LEARNED, PASSING = CHANNELS.replace(gradient="learned_scale"), INT8.replace(gradient="pass_through")
DOWN = UINT8.replace(rounding="toward_negative")


@dataclass(frozen=True)
class Fault:
    """A fault in one route.

    Attributes:
        name: what is wrong.
        route: of `ROUTES`.
        plants: function ("room.file.function") and what makes the wrong one of it.
        q, dtype: the quantizer and dtype under which it must show.
        breaks: answers (`examine.Answers`) that must be found to differ.
    """

    name: str
    route: str
    plants: Sequence[tuple[str, Make]]
    q: Quantizer
    breaks: frozenset[str]
    dtype: str = "float32"


def plant(patch: pytest.MonkeyPatch, target: str, make: Make) -> None:
    """Replace a function in its module and wherever its room imported it from there.

    Raises:
        AttributeError: there is no such function any more; the fault needs a new place.
    """
    path, name = target.rsplit(".", 1)
    original = getattr(import_module(f"samebits.{path}"), name)
    replacement = make(original)
    room = f"samebits.{path.split('.')[0]}"
    for module in [m for n, m in sys.modules.items() if n == room or n.startswith(f"{room}.")]:
        for attribute in [a for a, value in vars(module).items() if value is original]:
            patch.setattr(module, attribute, replacement)


def to(m: Any, x: Any, *dtypes: str) -> Any:
    """``x`` cast to one dtype after the other."""
    for dtype in dtypes:
        x = x.to(getattr(torch, dtype)) if m is torch else x.astype(dtype)
    return x


# --- codes -----------------------------------------------------------------------------------------------------------


def codes_by(formula: Formula, route: str) -> tuple[str, Make]:
    """A plant that makes codes by a formula; ``s`` and ``z`` broadcast against ``x``, all in the wide dtype."""

    def torch_eager(original: Any) -> Any:
        def codes_into(work: Any, q: Quantizer, x: Any, s: Any, z: Any) -> None:
            work.copy_(formula(torch, q, x.to(work.dtype), s, 0 if z is None else z))

        return codes_into

    def torch_func(original: Any) -> Any:
        def codes_of(q: Quantizer, value: Any, s: Any, z: Any, *others: Any) -> Any:
            return (*original(q, value, s, z, *others)[:2], formula(torch, q, value, s, 0 if z is None else z))

        return codes_of

    def jax_eager(original: Any) -> Any:
        def codes(q: Quantizer, x: Any, scale: Any, zero_point: Any, noise: Any = None, **_: Any) -> Any:
            value, expand = jax_backend.arrays.widen(x), jax_backend.blocks.expand_blocks
            z = 0 if zero_point is None else expand(zero_point.astype(value.dtype), q.granularity, x.shape)
            return formula(jnp, q, value, expand(scale, q.granularity, x.shape), z)

        return codes

    return {
        "torch eager": (f"{TORCH}.eager._codes_into", torch_eager),
        "torch func": (f"{TORCH}.elementwise.codes_of", torch_func),
        "jax eager": (f"{JAX}.kernels.codes", jax_eager),
    }[route]


def clip(m: Any, q: Quantizer, codes: Any) -> Any:
    return m.clip(codes, q.format.lo, q.format.hi)


def _right(m: Any, q: Quantizer, x: Any, s: Any, z: Any) -> Any:
    return clip(m, q, m.round(x / s) + z)


def _cast_first(m: Any, q: Quantizer, x: Any, s: Any, z: Any) -> Any:
    return clip(m, q, to(m, m.round(x / s) + z, "int32", "int8", "float32"))


FORMULAS: Mapping[str, tuple[Formula, Quantizer]] = {
    "reciprocal for division": (lambda m, q, x, s, z: clip(m, q, m.round(x * (1 / s)) + z), INT8),
    "halves away from zero": (lambda m, q, x, s, z: clip(m, q, m.floor(m.abs(x / s) + 0.5) * m.sign(x) + z), INT8),
    "floor(x + 1/2)": (lambda m, q, x, s, z: clip(m, q, m.floor(x / s + 0.5) + z), INT8),
    "truncation": (lambda m, q, x, s, z: clip(m, q, m.trunc(x / s) + z), INT8),
    "cast before the clamp": (_cast_first, INT8),
    "one code too many": (lambda m, q, x, s, z: m.clip(m.round(x / s) + z, q.format.lo, q.format.hi + 1), CHANNELS),
    "one code too few": (lambda m, q, x, s, z: m.clip(m.round(x / s) + z, q.format.lo + 1, q.format.hi), INT8),
    "narrow range ignored": (lambda m, q, x, s, z: _right(m, q.replace(narrow=False), x, s, z), NARROW),
    "infinity to lo": (lambda m, q, x, s, z: m.where(m.isinf(x), float(q.format.lo), _right(m, q, x, s, z)), INT8),
    "NaN to zero": (lambda m, q, x, s, z: m.where(m.isnan(x), 0.0, _right(m, q, x, s, z)), INT8),
    "NaN to hi": (lambda m, q, x, s, z: m.where(m.isnan(x), float(q.format.hi), _right(m, q, x, s, z)), INT8),
    "subnormals flushed": (lambda m, q, x, s, z: _right(m, q, m.where(m.abs(x) < 2.0**-126, 0.0, x), s, z), INT8),
    "quotient in bfloat16": (lambda m, q, x, s, z: clip(m, q, m.round(to(m, x / s, "bfloat16", "float32")) + z), INT8),
    "quotient in float16": (lambda m, q, x, s, z: clip(m, q, m.round(to(m, x / s, "float16", "float32")) + z), INT8),
    "zero point before rounding": (lambda m, q, x, s, z: clip(m, q, m.round(x / s + z)), UINT8),
    "zero point after the clamp": (lambda m, q, x, s, z: clip(m, q, m.round(x / s)) + z, UINT8),
    "zero point left out": (lambda m, q, x, s, z: clip(m, q, m.round(x / s)), UINT8),
}


def code_faults() -> Iterator[Fault]:
    """Every formula in every route. Codes of NaN are not compared, so those show in the values alone."""
    for route in ROUTES:
        for name, (formula, q) in FORMULAS.items():
            yield Fault(
                name, route, [codes_by(formula, route)], q, frozenset({"fake"} if "NaN" in name else {"codes", "fake"})
            )


# --- values and blocks -----------------------------------------------------------------------------------------------


def _negative_zero(original: Any) -> Any:
    def fake_quantize(q: Quantizer, x: torch.Tensor, *parameters: Any) -> torch.Tensor:
        out = original(q, x, *parameters)
        return torch.where((out == 0) & (x < 0), -out, out)

    return fake_quantize


def _through_float16(original: Any) -> Any:
    return lambda q, x, *parameters: original(q, x.float(), *parameters).half().to(x.dtype)


def _interleaved(original: Any) -> Any:
    """Groups of every n-th element instead of neighbours."""
    return lambda granularity, shape: tuple(v[:-2] + v[:-3:-1] for v in map(list, original(granularity, shape)))


def _tiled(original: Any) -> Any:
    return lambda p, granularity, shape: jnp.tile(p, [n // k for n, k in zip(shape, p.shape, strict=True)])


def _other_axis(original: Any) -> Any:
    return lambda granularity, shape: (original(granularity, shape)[0], original(granularity, shape)[1][::-1])


def value_faults() -> Iterator[Fault]:
    """Each route has its own place for these."""
    fake, both = frozenset({"fake"}), frozenset({"codes", "fake"})
    zero = "negative zero kept"
    yield Fault(zero, "torch eager", [(f"{TORCH}.eager.fake_quantize", _negative_zero)], INT8, fake)
    yield Fault(zero, "torch func", [(f"{TORCH}.elementwise.nearest", lambda _: lambda x: x.round())], INT8, fake)
    yield Fault(
        zero,
        "jax eager",
        [(f"{JAX}.arrays.short_product", lambda _: lambda code, scale, **how: code * scale)],
        INT8,
        fake,
    )

    twice = "bfloat16 reached through float16"
    yield Fault(twice, "torch eager", [(f"{TORCH}.eager.fake_quantize", _through_float16)], INT8, fake, "bfloat16")
    narrowed = (f"{TORCH}.arrays.narrowed", lambda _: lambda value, dtype: to(torch, value, "float16").to(dtype))
    yield Fault(twice, "torch func", [narrowed], INT8, fake, "bfloat16")
    narrow = (f"{JAX}.arrays.narrow", lambda _: lambda value, dtype: to(jnp, value, "float16").astype(dtype))
    yield Fault(twice, "jax eager", [narrow], INT8, fake, "bfloat16")

    point = "zero point not subtracted"
    values = (f"{TORCH}.elementwise.values_of", lambda _: lambda q, codes, s, z: codes * s)
    yield Fault(point, "torch func", [values], UINT8, fake)
    centred = (f"{JAX}.kernels.centred", lambda _: lambda q, codes, scale, zero_point: codes)
    yield Fault(point, "jax eager", [centred], UINT8, frozenset({"fake", "values"}))

    groups, axis = "groups interleaved", "scales along the other axis"
    for route in ("torch eager", "torch func"):
        yield Fault(groups, route, [(f"{TORCH}.arrays.broadcast_views", _interleaved)], GROUPS, both)
        yield Fault(axis, route, [(f"{TORCH}.arrays.broadcast_views", _other_axis)], CHANNELS, both)
    yield Fault(groups, "jax eager", [(f"{JAX}.blocks.expand_blocks", _tiled)], GROUPS, both)
    turned = (f"{JAX}.blocks.expand_blocks", lambda original: lambda p, g, shape: original(p.T, g, shape))
    yield Fault(axis, "jax eager", [turned], CHANNELS, both)


# --- faults that only a compiler brings out --------------------------------------------------------------------------


def _folded(original: Any) -> Any:
    """Rounding whose large number, below the format's normal numbers, is a constant that the compiler sees."""

    def nearest(u: Any, format: Any) -> Any:
        large = u.dtype.type(1.5 * 2.0 ** (format.min_exponent + 23 - format.mantissa_bits))
        return jnp.where(jnp.abs(u) < 2.0**format.min_exponent, (u + large) - large, original(u, format))

    return nearest


COMPILED: Sequence[Fault] = [
    Fault(
        "product left to be fused with a sum",
        "jax jit",
        [(f"{JAX}.arrays.short_product", lambda _: lambda code, scale, **how: code * scale)],
        INT8.replace(momentum=0.5),  # momentum changes no bits, but makes programs of their own
        frozenset({"sum"}),
    ),
    Fault(
        "division left to be rewritten",
        "jax jit",
        [(f"{JAX}.arrays.barrier", lambda _: lambda x: x)],
        INT8.replace(momentum=0.25),
        frozenset({"fake"}),
    ),
    Fault(
        "product of floats left to be fused with a sum",
        "jax jit",
        [(f"{JAX}.arrays.short_product", lambda _: lambda code, scale, **how: code * scale)],
        FLOAT8.replace(momentum=0.5),
        frozenset({"sum"}),
    ),
    Fault(
        "sum left to be folded",
        "jax jit",
        [(f"{JAX}.minifloat._nearest", _folded)],
        FLOAT8.replace(momentum=0.25),
        frozenset({"fake"}),
    ),
    Fault(
        "narrowing left to be dropped",
        "torch compiled",
        [(f"{TORCH}.arrays.narrowed", lambda _: lambda value, dtype: value.to(dtype))],
        INT8.replace(momentum=0.5),
        frozenset({"sum"}),
        "bfloat16",
    ),
]
