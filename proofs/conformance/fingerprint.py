"""Which arithmetic a black box computes: the fields of a description that give all its answers, bit for bit.

`samebits.core` judges: a candidate is a `Quantizer`, and what it answers is computed by the specification. Questions
are chosen as the answers come, each among the knife edges at which the candidates that are left differ, so that few are
needed; a sample of others confirms. Then come NaN, infinities, zeros and subnormal numbers, the gradient, and, where
the target chooses its own scale, the scale rule (`scale_search`). At last every alternative value of every field is
given the input that excludes it, or is said to be undetermined.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import Quantizer
from ...core.formats import FloatFormat, IntegerFormat
from . import lattice
from .alternatives import alternatives, asked_where_they_differ, equal_dialects
from .asking import Block, Fault, ask, keys
from .conduct import conduct, slopes
from .questions import (
    SCALES,
    blocks,
    numpy_dtype,
    plain_key,
    pool,
    predict_pool,
    prediction_keys,
    special_blocks,
    special_questions,
    splitting,
)
from .record import Answers, Record
from .scale_search import ENDS, find_scale_rule, observed
from .targets import Target, resolve
from .verdicts import Verdict

Array = NDArray[Any]
AT_ONCE = 12  # questions of one query
SMALLEST_NORMAL = 2.0**-126
SAMPLE = 16  # questions of a block that confirm


def fingerprint(target: Target | str, like: str | None = None) -> Verdict:
    """What a target computes; see the module and `Verdict`.

    A target that raises, prints, answers in another shape or dtype or not always the same has that as its verdict.

    Args:
        target: a `Target`, or the name of one as `targets.resolve` takes it.
        like: what a plain function of that name claims to be.

    Raises:
        KeyError, ImportError, ValueError: a name, as `targets.resolve`.
    """
    known = resolve(target, like) if isinstance(target, str) else target
    record = Record(known)
    try:
        return _verdict(record)
    except Fault as fault:
        return Verdict(known.name, fault=fault.what, fault_at=fault.where, asked=record.asked)


def _verdict(record: Record) -> Verdict:
    target = record.target
    q = lattice.plain(target.quantizer)
    found = _blocks(record, q)
    candidates = lattice.common(q, target.dtype)
    _steady(record, found[0], candidates)
    if not target.chooses:
        _steady_at_the_ends(record, found[0])
    left = _eliminate(record, candidates, found)
    _sample(record, found, q)
    survivors = _special(record, left or [_best(record, candidates)], found, _special_blocks(record, q))
    best = survivors[0]
    best = slopes(record, best)
    scale_fields: dict[str, str] = {}
    if target.chooses:
        best, scale_fields, scale_mistakes = find_scale_rule(record, best)
    else:
        scale_mistakes = None
    names, count = _names(q, target), len(candidates) * len(lattice.special(q, target.dtype))
    fields, undetermined, excluded = alternatives(record, best, names, found, survivors)
    mistakes = record.mistakes(best)
    smallest = record.first_mistake(best) if mistakes else scale_mistakes
    answers = sum(len(a.x) for a in record.answers)
    fields = {name: value for name, value in fields.items() if name not in undetermined} | scale_fields
    return Verdict(
        target.name,
        recognised=not mistakes and scale_mistakes is None,
        fields=fields,
        undetermined=undetermined,
        excluded=tuple(excluded),
        conduct=conduct(record),
        dialects=tuple(equal_dialects(record, best, found)) if not mistakes else (),
        candidates=count,
        asked=record.asked,
        exhaustive=count * _edges(candidates[0], found, target),
        supporting=answers - mistakes,
        unexplained=mistakes,
        smallest=smallest,
        quantizer=best,
    )


def _names(q: Quantizer, target: Target) -> list[str]:
    values = lattice.values_of(q, target.dtype)
    return [name for name in (*lattice.COMMON, *lattice.SPECIAL) if len(values.get(name, ())) > 1]


def _blocks(record: Record, q: Quantizer) -> list[Block]:
    """Blocks to ask ordinary questions in."""
    target = record.target
    if target.chooses:
        found = [observed(record, ends) for ends in ENDS]
        # A scale with the sign of the peak is a rule to be found, but no scale to ask ordinary questions with
        kept = [block for block in found if block is not None and block.scale >= SMALLEST_NORMAL]
        if not kept:
            raise Fault("chooses no positive normal scale", f"blocks of ordinary size, {target.dtype}")
        return kept
    return blocks(q, target.dtype, target.scales or SCALES)


def _special_blocks(record: Record, q: Quantizer) -> list[Block]:
    target = record.target
    if target.chooses:
        return []
    return blocks(q, target.dtype, target.scales) if target.scales else special_blocks(q, target.dtype)


def _steady(record: Record, block: Block, candidates: Sequence[Quantizer]) -> None:
    """Fault unless a target answers deciding questions the same twice, and wherever in the array they stand."""
    table = np.stack([_ordinary_keys(q, block, record) for q in candidates])
    columns = splitting(table, AT_ONCE)
    x = pool(plain_key(candidates[0]), block, record.target.dtype)
    few = np.concatenate([x[columns], _spread(x, 3)])
    some = np.concatenate([few, few, few[::-1]])  # the most deciding ones last: what a vector loop leaves over
    first = record.ask(block, some)
    again = keys(ask(record.target, block, some))
    record.extra += len(some)
    _, place = np.unique(keys(some), return_inverse=True)
    other = first.keys[np.array([np.flatnonzero(place == p)[-1] for p in place])]
    for got, what in ((again, "is not deterministic"), (other, "depends on the place in the array")):
        differ = np.flatnonzero(got != first.keys)
        if len(differ):
            evidence = record.evidence(candidates[0], first, int(differ[0]))
            raise Fault(what, f"{evidence.x}, {block}: {evidence.got}, and another answer")


def _steady_at_the_ends(record: Record, block: Block) -> None:
    """Fault unless three infinities are answered alike: packed codes of an odd number of them end in one alone."""
    for value in (np.inf, -np.inf):
        x = np.full(3, value).astype(numpy_dtype(record.target.dtype))
        record.extra += len(x)
        try:
            got = ask(record.target, block, x)
        except Fault:
            continue  # a target may refuse infinity
        if len(set(keys(got).tolist())) > 1:
            raise Fault("depends on the place in the array", f"three times {value}, {block}: {got.tolist()}")


def _eliminate(record: Record, candidates: Sequence[Quantizer], found: Sequence[Block]) -> list[Quantizer]:
    """The candidates that explain all ordinary answers, of which no question tells any two apart any more."""
    target, left = record.target, list(candidates)
    for known in list(record.answers):
        left = [q for q in left if _agrees(record, q, known)]
    for block in found:
        x = pool(plain_key(left[0]), block, target.dtype) if left else None
        while left and x is not None and len(left) > 1:
            table = np.stack([_ordinary_keys(q, block, record) for q in left])
            columns = splitting(table, AT_ONCE)
            if not columns:
                break
            answers = record.ask(block, x[columns])
            got = _unsigned(answers)
            left = [q for q, row in zip(left, table[:, columns], strict=True) if (row == got).all()]
    return left


def _sample(record: Record, found: Sequence[Block], q: Quantizer) -> None:
    """Asks what no candidate is told by: places spread over the pools, both ends of the range, and all around 0.

    There ``floor(x / s + 1/2)`` in floating point parts from every rounding: 0.49999997 + 0.5 is 1.
    """
    for block in found:
        x = pool(plain_key(q), block, record.target.dtype)
        if len(x):
            record.ask(block, _spread(x, SAMPLE))
    exact = [block for block in found if np.frexp(block.scale)[0] in (0.5, 0.75)] or found[:2]
    for block in exact:
        x = pool(plain_key(q), block, record.target.dtype)
        near = x[np.abs(x.astype(np.float64)) <= 1.1 * block.scale]
        if len(near):
            record.ask(block, near)


def _best(record: Record, candidates: Sequence[Quantizer]) -> Quantizer:
    """The candidate with the fewest ordinary mistakes, the first of several."""
    wrong = [sum(int((~_agreeing(record, q, a)).sum()) for a in record.answers) for q in candidates]
    return candidates[int(np.argmin(wrong))]


def _special(
    record: Record, left: Sequence[Quantizer], found: Sequence[Block], extremes: Sequence[Block]
) -> list[Quantizer]:
    """The candidates, with special fields too, that explain most, and that no question tells apart any more."""
    dtype = record.target.dtype
    for block in extremes:
        x = special_questions(left[0], block, dtype)
        wide = x.astype(np.float64)
        for part in (x[np.isfinite(wide)], x[np.isposinf(wide)], x[np.isneginf(wide)], x[np.isnan(wide)]):
            record.ask(block, np.resize(part, max(2, len(part))), special=True)  # arrays of one number may be special
    if record.target.chooses:
        for block in found:
            record.ask(block, np.array([0.0, -0.0], record.answers[0].x.dtype))
    candidates = [q for common in left for q in lattice.special(common, dtype)]
    kept = record.fewest_mistakes(candidates)
    looked_at = set()
    for other in kept[1:]:
        ordinary = other if _overflows_to_nan(other) else other.replace(nan=kept[0].arithmetic.nan)
        if ordinary in looked_at or ordinary == kept[0]:
            continue  # on numbers alone they are the same
        looked_at.add(ordinary)
        if asked_where_they_differ(record, kept[0], other, found):
            kept = record.fewest_mistakes(kept)
    return kept


def _overflows_to_nan(q: Quantizer) -> bool:
    """Whether a number may become NaN, and then what the rule for NaN says."""
    return isinstance(q.format, FloatFormat) and q.format.has_nan and not q.format.saturate


def _agrees(record: Record, q: Quantizer, answers: Answers) -> bool:
    return bool(_agreeing(record, q, answers).all())


def _agreeing(record: Record, q: Quantizer, answers: Answers) -> Array:
    expected = record.expected(q, answers)
    return np.asarray(_without_sign(expected, record) == _unsigned(answers))


def _ordinary_keys(q: Quantizer, block: Block, record: Record) -> Array:
    kind = record.target.kind
    return prediction_keys(predict_pool(q, block, record.target.dtype, kind), kind, signed_zero=False)


def _unsigned(answers: Answers) -> Array:
    assert answers.raw is not None
    return keys(answers.raw, signed_zero=False)


def _without_sign(found: Array, record: Record) -> Array:
    """Keys with those of -0 made that of +0."""
    if record.target.kind.value == "codes":
        return found
    minus = keys(np.asarray([-0.0], record.answers[0].x.dtype))[0]
    return np.where(found == minus, 0, found)


def _spread(x: Array, count: int) -> Array:
    """So many of a list, anywhere in it but always the same, both ends among them."""
    places = np.random.default_rng(0).permutation(len(x))[: max(0, count - 2)]
    return np.asarray(x[np.unique([0, *places, len(x) - 1])]) if len(x) else x


def _edges(q: Quantizer, found: Sequence[Block], target: Target) -> int:
    """Inputs of a comparison with one candidate: its knife edges in each block, five for every boundary."""
    if isinstance(q.format, IntegerFormat):
        return 5 * (q.format.hi - q.format.lo + 2) * len(found)
    return len(pool(plain_key(q), found[0], target.dtype)) * len(found)
