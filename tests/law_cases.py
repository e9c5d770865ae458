"""Arrays of one shape on which the laws are tried in every mode, and which quantizers and dtypes are tried in which."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samebits.core import QParams, Quantizer, catalog
from samebits.core.granularity import qparams_shape
from samebits.proofs.inputs.knife_edges import knife_edges
from samebits.proofs.inputs.numbers import places_of_zero, zero_points
from samebits.proofs.inputs.strategies import DTYPES, KINDS, near
from samebits.proofs.laws import parameters as laws_of_parameters
from samebits.proofs.laws.blockwise import owners, per_element
from samebits.proofs.laws.catalog_of_laws import LAWS, applies
from samebits.proofs.modes.execution import Case, Implementation, Results, implementation, run_all, run_together

Array = NDArray[Any]
LawCase = tuple[Array, QParams, Array]

SHAPE = (32, 128)  # every group and block of the catalog divides it; more than 4096 elements would compile differently
TOGETHER = 4  # quantizers in one program that torch compiles
SCALES = (0.1, 2.0**-126, 1 - 2.0**-24, 3.3e-3, 1.0, 2.0**-20 + 2.0**-43, 5e4, 2.0**-10, 7e-39 + 2.0**-126, 1e30, 0.3)

_BASE, _TENSOR = catalog["int8_per_channel"], catalog["uint8_affine_per_tensor"]
_GROUPS = catalog["uint4_affine_per_group32"]
VARIANTS: dict[str, Quantizer] = {
    "ties_to_away": _BASE.replace(rounding="ties_to_away"),
    "ties_toward_positive": _BASE.replace(rounding="ties_toward_positive", gradient="pass_through"),
    "toward_zero": _BASE.replace(rounding="toward_zero", gradient="learned_scale"),
    "toward_positive": catalog["uint8_affine_per_channel"].replace(rounding="toward_positive"),
    "toward_negative": _TENSOR.replace(rounding="toward_negative", gradient="learned_scale"),
    "dpu": catalog["int8_affine_per_token"].replace(rounding="dpu", gradient="pass_through"),
    "stochastic": _GROUPS.replace(rounding="stochastic"),
    "half_range": catalog["int4_per_group32"].replace(denominator="half_range", floor=1e-3),
    "lo": catalog["int2_per_channel"].replace(denominator="lo"),
    "larger": catalog["int8_per_block"].replace(denominator="larger"),
    "power_of_two_affine": catalog["uint4_affine_per_group32"].replace(
        restriction="power_of_two", gradient="learned_scale"
    ),
}


# What is tried where. A mode that has the bits of the specification keeps its laws, so in the modes of the frameworks
# every law is tried where their programs differ: on the integers of every granularity, and on one entry for every kind
# of function of an element. All others keep `equals_specification`, and the laws of chosen parameters, on float32. The
# specification itself keeps every law on every entry.
INTEGERS = (
    "int8_per_tensor",
    "int8_per_channel",
    "int8_narrow_per_channel",
    "int8_per_token",
    "int8_per_block",
    "int8_power_of_two_per_tensor",
    "int8_affine_per_token",
    "uint8_per_tensor",
    "uint8_affine_per_tensor",
    "uint8_affine_per_channel",
    "int4_per_channel",
    "int4_per_group32",
    "int4_per_group128",
    "uint4_affine_per_group32",
    "int2_per_channel",
    "int16_per_tensor",
)
KINDS_OF_ELEMENTS = (
    "binary_per_tensor",
    "ternary_per_channel",
    "float8_e4m3fn_per_channel",  # saturates, has NaN and no infinity
    "float8_e5m2_overflow_per_tensor",  # has infinities, and gives them
    "float8_e4m3fnuz_per_tensor",  # one zero
    "float4_e2m1_per_channel",  # neither NaN nor infinity
    "mxfp8_e5m2",
    "nvfp4",
    "nf4_per_group64",
)
ALL_DTYPES = ("float32", "bfloat16", "float16")
COMPILED_DTYPES = {"int8_per_tensor": ALL_DTYPES, "uint4_affine_per_group32": ("float32", "bfloat16")}
COMPILED_VARIANTS = ("toward_negative", "ties_toward_positive")
KIND_DTYPES = {"float8_e4m3fn_per_channel": ("float32", "bfloat16")}


def dtypes_for(mode: str, name: str) -> tuple[str, ...]:
    """Compilers take seconds for every dtype, so 16-bit ones there for some quantizers only."""
    if mode == "numpy" and (name in INTEGERS or name in KINDS_OF_ELEMENTS):
        return ALL_DTYPES
    if name in INTEGERS:
        return COMPILED_DTYPES.get(name, ("float32", "bfloat16") if mode.endswith("eager") else ("float32",))
    if mode == "numpy" or (name in VARIANTS and mode.endswith("eager")):
        return ("float32", "bfloat16")
    if name in VARIANTS:
        return ("float32",)
    return ("float32",) if mode == "torch compiled" else KIND_DTYPES.get(name, ("float32",))


def tried(mode: str) -> dict[str, Quantizer]:
    """Quantizers by name: the catalog and `VARIANTS`; for inductor those tried in full, and two of the variants."""
    if mode != "torch compiled":
        return {**catalog, **VARIANTS}
    few = {name: VARIANTS[name] for name in COMPILED_VARIANTS}
    return {**{name: catalog[name] for name in (*INTEGERS, *KINDS_OF_ELEMENTS)}, **few}


def in_full(mode: str, name: str) -> bool:
    """Whether every law is tried on a quantizer in a mode."""
    if name in VARIANTS:
        return mode != "jax jit" or name in COMPILED_VARIANTS
    return mode == "numpy" or name in INTEGERS or name in KINDS_OF_ELEMENTS


def laws_for(mode: str, name: str) -> list[str]:
    """The laws that are promised for a quantizer and tried in a mode."""
    promised = [law for law in LAWS if applies(law, tried(mode)[name])]
    if in_full(mode, name):
        return promised
    return [law for law in promised if law == "equals_specification" or LAWS[law] in PARAMETER_LAWS]


PARAMETER_LAWS = tuple(law for law in LAWS.values() if law.__module__ == laws_of_parameters.__name__)


@cache
def implementation_for(mode: str) -> Implementation:
    """Our functions in a mode: for ``torch compiled`` all of one program, but `dequantize`, which takes any code."""
    alone = implementation(mode)
    if mode != "torch compiled":
        return alone

    def run(q: Quantizer, x: Array, g: Array | None = None, qparams: QParams | None = None) -> Results:
        return _compiled(q, x, np.zeros_like(x) if g is None else g, qparams)

    return Implementation(
        mode,
        lambda q, x: run(q, x).qparams,
        lambda q, x, qparams: run(q, x, None, qparams).codes,
        alone.dequantize,
        lambda q, x, qparams=None: run(q, x, None, qparams).fake,
        lambda q, x, qparams, g: run(q, x, g, qparams).gradients,
        refuses=False,
    )


def _compiled(q: Quantizer, x: Array, g: Array, qparams: QParams | None) -> Results:
    """`run_all`, in one program with some neighbours of ``q`` that are tried with its dtype: they compile once."""
    alike = [
        other for name, other in tried("torch compiled").items() if x.dtype.name in dtypes_for("torch compiled", name)
    ]
    if x.shape != SHAPE or q not in alike:
        return run_all("torch compiled", q, x, g, qparams)
    start = alike.index(q) // TOGETHER * TOGETHER
    group = alike[start : start + TOGETHER]
    cases = [
        Case(q, x, g, qparams) if other is q else Case(other, *_placeholder(other, x.dtype.name)) for other in group
    ]
    return run_together("torch compiled", cases)[group.index(q)]


@cache
def _placeholder(q: Quantizer, dtype: str) -> tuple[Array, Array, QParams]:
    x, qparams, g = cases_of(q, dtype)[0]
    return x, g, qparams


@cache
def cases_of(q: Quantizer, dtype: str, seed: int = 0) -> tuple[LawCase, LawCase]:
    """Two arrays with parameters and gradient: knife edges of the scales of their blocks, and all kinds of numbers."""
    random = np.random.default_rng([seed, *map(ord, f"{q}{dtype}")])
    return _knife_edges(random, q, DTYPES[dtype]), _kinds(random, q, DTYPES[dtype])


def _parameters(random: np.random.Generator, q: Quantizer, first: int) -> QParams:
    shape = qparams_shape(q.granularity, SHAPE)
    scale = np.resize(np.roll(np.array(SCALES, np.float32), -first), shape).reshape(shape)
    if q.scale.restriction == "power_of_two":
        scale = np.ldexp(np.float32(1), np.frexp(scale)[1] - 1)
    if q.scale.signed:
        scale.reshape(-1)[::3] *= -1
    if not q.affine:
        return QParams(scale)
    zero = random.integers(q.format.lo, q.format.hi + 1, shape).astype(np.int32)
    zero.reshape(-1)[1::4] = q.format.lo
    zero.reshape(-1)[2::4] = q.format.hi
    if q.arithmetic.has_float_zeros:
        return QParams(scale, zero_points(q, zero + random.normal(0, 4, shape) * random.integers(0, 2, shape), scale))
    return QParams(scale, zero)


def _knife_edges(random: np.random.Generator, q: Quantizer, dtype: Any) -> LawCase:
    """In every block as many edges of its scale as it holds, drawn from all of them."""
    qparams = _parameters(random, q, 0)
    x = np.zeros(SHAPE, dtype)
    zeros = None if qparams.zero_point is None else qparams.zero_point.reshape(-1)
    for number, (row, scale) in enumerate(zip(owners(q.granularity, SHAPE), qparams.scale.reshape(-1), strict=True)):
        edges = knife_edges(q, scale, None if zeros is None else zeros[number], dtype)
        x.reshape(-1)[row] = random.choice(edges, len(row), replace=len(row) > len(edges))
    return x, qparams, random.standard_normal(SHAPE).astype(dtype)


def _kinds(random: np.random.Generator, q: Quantizer, dtype: Any) -> LawCase:
    """Every kind of the strategies, element by element; a gradient that holds zeros of both signs."""
    qparams = _parameters(random, q, 3)
    scale, zero = per_element(q, qparams, SHAPE)
    numbers = near(random, q, places_of_zero(q, zero, scale))
    with np.errstate(all="ignore"):
        every = np.stack([kind(random, scale, numbers, dtype) for kind in KINDS.values()])
    x = np.take_along_axis(every, random.integers(0, len(every), (1, *SHAPE)), 0)[0]
    g = random.standard_normal(SHAPE).astype(dtype)
    g[::5, ::3] = 0
    g[::7, ::4] *= -1
    return x, qparams, g


def laws_tried(*modes: str) -> list[tuple[str, str, str]]:
    """All triples (mode, name of the quantizer, law) to try."""
    return [(mode, name, law) for mode in modes for name in tried(mode) for law in laws_for(mode, name)]


def check_law(mode: str, name: str, law: str) -> None:
    """A law on the cases of every dtype; AssertionError when it is broken."""
    q = tried(mode)[name]
    for dtype in dtypes_for(mode, name):
        for x, qparams, g in cases_of(q, dtype):
            LAWS[law](implementation_for(mode), q, x, qparams, g)
