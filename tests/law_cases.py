"""Arrays of one shape on which the laws are tried in every mode, and which quantizers and dtypes are tried in which."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samebits.core import QParams, Quantizer, catalog
from samebits.core.granularity import qparams_shape
from samebits.proofs.blockwise import owners, per_element
from samebits.proofs.execution import Implementation, implementation, run_all
from samebits.proofs.knife_edges import knife_edges
from samebits.proofs.strategies import DTYPES, KINDS, near

Array = NDArray[Any]
Case = tuple[Array, QParams, Array]

SHAPE = (32, 128)  # every group and block of the catalog divides it; more than 4096 elements would compile differently
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
    "half_range": catalog["int4_per_group32"].replace(denominator="half_range", floor=1e-3),
    "lo": catalog["int2_per_channel"].replace(denominator="lo"),
    "larger": catalog["int8_per_block"].replace(denominator="larger"),
    "power_of_two_affine": catalog["uint4_affine_per_group32"].replace(
        restriction="power_of_two", gradient="learned_scale"
    ),
}


def dtypes_for(mode: str, name: str) -> tuple[str, ...]:
    """What is tried where. Inductor takes seconds for every dtype, so 16-bit ones there for some quantizers only."""
    if mode != "torch compiled":
        return ("float32", "bfloat16", "float16")
    return {
        "int8_per_tensor": ("float32", "bfloat16", "float16"),
        "uint4_affine_per_group32": ("float32", "bfloat16"),
    }.get(name, ("float32",))


def tried(mode: str) -> dict[str, Quantizer]:
    """Quantizers by name: the catalog and `VARIANTS`, of which inductor gets two.

    And of several granularities of one format, and several formats with the same special codes, it gets one.
    """
    if mode != "torch compiled":
        return {**catalog, **VARIANTS}
    few = {name: VARIANTS[name] for name in ("toward_negative", "ties_toward_positive")}
    return {**{name: q for name, q in catalog.items() if name not in _LEFT_OUT}, **few}


_LEFT_OUT = (
    "binary_per_channel",
    "ternary_per_tensor",
    "float8_e4m3fn_per_tensor",
    "float8_e4m3fn_per_channel",
    "float8_e3m4_per_tensor",
    "float8_e4m3fnuz_per_tensor",
    "float6_e3m2_per_tensor",
    "float6_e2m3_per_tensor",
)


@cache
def implementation_for(mode: str) -> Implementation:
    """Our functions in a mode: for ``torch compiled`` all of one program, but `dequantize`, which takes any code."""
    alone = implementation(mode)
    if mode != "torch compiled":
        return alone

    def nothing(x: Array) -> Array:
        return np.zeros_like(x)

    return Implementation(
        mode,
        lambda q, x: run_all(mode, q, x, nothing(x)).qparams,
        lambda q, x, qparams: run_all(mode, q, x, nothing(x), qparams).codes,
        alone.dequantize,
        lambda q, x, qparams=None: run_all(mode, q, x, nothing(x), qparams).fake,
        lambda q, x, qparams, g: run_all(mode, q, x, g, qparams).gradients,
        refuses=False,
    )


@cache
def cases_of(q: Quantizer, dtype: str, seed: int = 0) -> tuple[Case, Case]:
    """Two arrays with parameters and gradient: knife edges of the scales of their blocks, and all kinds of numbers."""
    random = np.random.default_rng([seed, *map(ord, f"{q}{dtype}")])
    return _knife_edges(random, q, DTYPES[dtype]), _kinds(random, q, DTYPES[dtype])


def _parameters(random: np.random.Generator, q: Quantizer, first: int) -> QParams:
    shape = qparams_shape(q.granularity, SHAPE)
    scale = np.resize(np.roll(np.array(SCALES, np.float32), -first), shape).reshape(shape)
    if q.scale.restriction == "power_of_two":
        scale = np.ldexp(np.float32(1), np.frexp(scale)[1] - 1)
    if not q.affine:
        return QParams(scale)
    zero = random.integers(q.format.lo, q.format.hi + 1, shape).astype(np.int32)
    zero.reshape(-1)[1::4] = q.format.lo
    zero.reshape(-1)[2::4] = q.format.hi
    return QParams(scale, zero)


def _knife_edges(random: np.random.Generator, q: Quantizer, dtype: Any) -> Case:
    """In every block as many edges of its scale as it holds, drawn from all of them."""
    qparams = _parameters(random, q, 0)
    x = np.zeros(SHAPE, dtype)
    zeros = None if qparams.zero_point is None else qparams.zero_point.reshape(-1)
    for number, (row, scale) in enumerate(zip(owners(q.granularity, SHAPE), qparams.scale.reshape(-1), strict=True)):
        edges = knife_edges(q, scale, None if zeros is None else zeros[number], dtype)
        x.reshape(-1)[row] = random.choice(edges, len(row), replace=len(row) > len(edges))
    return x, qparams, random.standard_normal(SHAPE).astype(dtype)


def _kinds(random: np.random.Generator, q: Quantizer, dtype: Any) -> Case:
    """Every kind of the strategies, element by element; a gradient that holds zeros of both signs."""
    qparams = _parameters(random, q, 3)
    scale, zero = per_element(q, qparams, SHAPE)
    numbers = near(random, q, zero)
    with np.errstate(all="ignore"):
        every = np.stack([kind(random, scale, numbers, dtype) for kind in KINDS.values()])
    x = np.take_along_axis(every, random.integers(0, len(every), (1, *SHAPE)), 0)[0]
    g = random.standard_normal(SHAPE).astype(dtype)
    g[::5, ::3] = 0
    g[::7, ::4] *= -1
    return x, qparams, g
