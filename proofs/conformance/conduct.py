"""What becomes of special values and beyond the ends, and where the gradient passes."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.arithmetic import ZeroPointDomain
from ...core.descriptions import Quantizer
from ..inputs.bits import neighbours
from ..inputs.knife_edges import boundaries
from . import lattice
from .asking import Block, Fault, arranged, checked, given, keys, shown
from .questions import SCALES, blocks, numpy_dtype, predicted_slopes
from .record import Answers, Record, worded
from .targets import Kind

Array = NDArray[Any]


def conduct(record: Record) -> dict[str, str]:
    """What NaN, infinities, -0 and numbers far outside become at an ordinary scale, and which codes were seen."""
    found: dict[str, str] = dict(record.notes)
    specials = [a for a in record.answers if a.special]
    first = specials[0].block if specials else None
    for a in specials:
        if a.block != first:
            if a.raw is None and len(a.x) > 1:
                found[f"at {a.block}"] = "an exception"
            continue
        for i, value in enumerate(a.x.astype(np.float64)):
            name = _name_of(value)
            if name:
                found.setdefault(name, _answer(a, i, record))
    low, high = _codes_seen(record)
    if low is not None:
        found["codes"] = f"{low} to {high}"
    return found


def slopes(record: Record, best: Quantizer) -> Quantizer:
    """The candidate with the gradient rule and clamp order that explain the target's gradient; a note says which."""
    target = record.target
    if target.gradient is None:
        return best
    q = lattice.plain(target.quantizer)
    candidates = lattice.slopes(best, target.dtype)
    wrong, anything = np.zeros(len(candidates), int), False
    for block in blocks(q, target.dtype, SCALES[:2]):
        x = _gradient_questions(q, block, target.dtype)
        g = np.ones_like(x)
        got = _gradient(record, block, x, g)
        record.extra += len(x)
        anything |= bool(got.any())
        for i, candidate in enumerate(candidates):
            wrong[i] += int((predicted_slopes(candidate, block, x, g) != got).sum())
    other = np.array([c.arithmetic.clamp_order is not best.arithmetic.clamp_order for c in candidates])
    winner = int(np.lexsort((other, wrong))[0])
    if not anything:
        record.notes["gradient"] = "zero everywhere"
        return best
    if wrong[winner]:
        record.notes["gradient"] = f"none of the candidates: {wrong[winner]} inputs unexplained"
        return best
    orders: dict[str, list[str]] = {}
    for c, count in zip(candidates, wrong, strict=True):
        if not count:
            orders.setdefault(str(c.gradient), []).append(str(c.arithmetic.clamp_order))
    words = (name if len(own) > 1 else f"{name} (clamp {own[0]})" for name, own in orders.items())
    record.notes["gradient"] = " or ".join(words)
    return candidates[winner]


def _gradient_questions(q: Quantizer, block: Block, dtype: str) -> Array:
    """Both sides of the ends of the range, and of some edges between; no zeros and no special values."""
    wide = boundaries(q, block.scale, block.zero)
    ends = (
        np.array([q.format.lo, q.format.hi, q.format.hi + 1, q.format.lo - 1], float) - (block.zero or 0)
    ) * block.scale
    real = q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER
    some = np.concatenate([wide[:2], wide[-2:], wide[len(wide) // 2 :][:2], wide[:0] if real else ends])
    return neighbours(some.astype(numpy_dtype(dtype)), 2)


def _gradient(record: Record, block: Block, x: Array, g: Array) -> Array:
    target = record.target
    assert target.gradient is not None
    whole, places = arranged(target.quantizer, x, ())
    ones = np.ones_like(whole) * g[0]
    qparams = given(target.quantizer, whole.shape, block, target.dtype)
    try:
        found = target.gradient(whole, qparams, ones)
    except Exception as error:
        raise Fault(f"the gradient raises {type(error).__name__}: {error}", shown(x)) from None
    values = replace(target, kind=Kind.VALUES)
    return keys(checked(values, whole, found).reshape(-1)[places], signed_zero=False)


def _name_of(value: float) -> str:
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return "+inf" if value > 0 else "-inf"
    return "-0" if value == 0 and np.signbit(value) else ""


def _answer(a: Answers, i: int, record: Record) -> str:
    return "an exception" if a.raw is None else worded(a.raw[i], record.target.kind).partition(" = ")[0]


def _codes_seen(record: Record) -> tuple[int | None, int | None]:
    """Smallest and largest code among the answers; None of values that are no integers times the scale."""
    if record.target.kind is not Kind.CODES:
        return None, None
    every = [a.raw for a in record.answers if a.raw is not None]
    return min(int(r.min()) for r in every), max(int(r.max()) for r in every)
