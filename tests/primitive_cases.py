"""Calls of every primitive, and the numbers they are called with: special ones against each other, random ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samebits.core.formats import BinaryFormat, CodebookFormat, FloatFormat, IntegerFormat, TernaryFormat
from samebits.core.partial_derivatives import RULES
from samebits.proofs.inputs.knife_edges import special_values

from .exact import DTYPES

Array = NDArray[Any]
Call = Callable[..., Any]  # of (primitives of a room, a, b, c)
UNARY = ("sqrt", "absolute", "negative", "sign", "floor", "ceil", "trunc", "exponent", "significand", "stop_gradient")
FUNCTIONS = ("exp", "exp2", "log", "log2", "tanh", "sigmoid", "erf")
BINARY = ("add", "subtract", "multiply", "divide", "minimum", "maximum", "copysign", "scale_by_power", "power")
BINARY += ("straight_through",)
COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
DIRECTIONS = ("ties_to_even", "ties_to_away", "ties_toward_positive", "toward_zero", "toward_positive", "dpu")
FORMATS = (
    IntegerFormat(8),
    FloatFormat(4, 3),
    FloatFormat(5, 2),
    BinaryFormat(),
    TernaryFormat(0.5),
    CodebookFormat((-1.0, -0.25, 0.0, 0.5, 1.0)),
)
SOME = (  # one of each way that results come about, where a mode takes long
    *("add", "multiply", "divide", "sqrt", "fused_multiply_add", "maximum", "sign", "less", "where", "scale_by_power"),
    *("exp", "log", "to_format 1", "round toward_positive", "cast float16", "sum", "amax last", "take"),
)


def operands(dtype: str) -> tuple[Array, Array, Array]:
    """Three arrays: every special value against every other, numbers of all exponents, and numbers that cancel."""
    d, random = DTYPES[dtype], np.random.default_rng(0)
    special = np.concatenate([special_values(d), np.array([0.5, -0.5, 2, -2, 3, -3, 1.5, 2.5, 127.5, -128.5], d)])
    drawn = random.integers(0, 2 ** (8 * d.itemsize), (3, 1500), dtype=np.uint64).astype(f"u{d.itemsize}").view(d)
    with np.errstate(over="ignore"):
        near = (random.standard_normal((3, 1500)) * random.choice([0.1, 1, 10, 60], (3, 1500))).astype(d)
    pairs = [v.ravel() for v in np.meshgrid(special, special)]
    third = random.permutation(pairs[0])
    made = zip((*pairs, third), drawn, near, strict=True)
    a, b, c = (np.concatenate([s, r, n, -n[:500]]) for s, r, n in made)
    b[-500:] = near[0][:500]  # beside -a
    return a, b, c


def calls() -> dict[str, Call]:
    """Every primitive by name; those with options under several."""
    found: dict[str, Call] = {n: lambda p, a, b, c, n=n: getattr(p, n)(a) for n in (*UNARY, *FUNCTIONS)}
    found |= {n: lambda p, a, b, c, n=n: getattr(p, n)(a, b) for n in (*BINARY, *COMPARISONS)}
    found |= {n: lambda p, a, b, c, n=n: getattr(p, n)(a, b, c) for n in ("fused_multiply_add", "clamp")}
    found |= {f"round {r}": lambda p, a, b, c, r=r: p.round(a, r) for r in DIRECTIONS}
    found |= {f"to_format {i}": lambda p, a, b, c, f=f: p.to_format(a, f) for i, f in enumerate(FORMATS)}
    found |= {f"cast {d}": lambda p, a, b, c, d=d: p.cast(a, d) for d in DTYPES}
    found["is_nan"] = lambda p, a, b, c: p.is_nan(a)
    found["is_finite"] = lambda p, a, b, c: p.is_finite(a)
    found["where"] = lambda p, a, b, c: p.where(p.less(a, b), a, c)
    found["numbers"] = lambda p, a, b, c: p.add(p.multiply(a, 0.1), -0.0)
    found["broadcast_to"] = lambda p, a, b, c: p.broadcast_to(a[:50, None], (50, 3))
    found["take"] = lambda p, a, b, c: p.take(a[:7], b)
    for n in ("amax", "amin", "absmax", "sum", "mean"):
        found[n] = lambda p, a, b, c, n=n: getattr(p, n)(a[:1500].reshape(50, 5, 6), (0, 2))
        found[f"{n} last"] = lambda p, a, b, c, n=n: getattr(p, n)(a[-600:].reshape(100, 6), -1, keepdims=True)
    found["percentile"] = lambda p, a, b, c: p.percentile(a[-2000:].reshape(10, 200), 99.0, 1)
    return found


def moving() -> dict[str, int]:
    """How many operands each elementwise primitive takes that has a derivative."""
    apart = ("spread", "added", "nth", "looked_up", "cast", "where")
    three = ("fused_multiply_add", "clamp")
    return {n: 3 if n in three else 2 if n in BINARY else 1 for n in RULES if n not in apart}
