"""Every value that a field might have instead, with the input that excludes it; and which dialects are the same."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import Quantizer
from ...core.granularity import PerGroup, PerTensor
from ...core.quantizer import choose_qparams
from . import lattice
from .asking import Block
from .lattice import field_of
from .questions import plain_key, pool, predict_pool, predict_special, prediction_keys, special_questions
from .record import Record
from .scale_search import ENDS, SMALL_ENDS, block_of
from .verdicts import Excluded

Array = NDArray[Any]
Fields = dict[str, str]


def alternatives(
    record: Record, best: Quantizer, names: Sequence[str], blocks: Sequence[Block], left: Sequence[Quantizer]
) -> tuple[Fields, dict[str, tuple[str, ...]], list[Excluded]]:
    """What is determined, what is not (with the values that remain), and what is excluded by which input.

    Asks where an alternative differs only at inputs that were not asked yet.

    Args:
        best: the candidate found; ``left``: those that no question tells apart from it.
    """
    fields: Fields = {}
    undetermined: dict[str, tuple[str, ...]] = {}
    excluded: list[Excluded] = []
    for name in names:
        own, remaining = field_of(best, name), []
        for value in lattice.values_of(lattice.plain(best), record.target.dtype)[name]:
            if value == own:
                continue
            other = best.replace(**{name: value})
            evidence = record.first_mistake(other, unless=best)
            if evidence is None and asked_where_they_differ(record, best, other, blocks):
                evidence = record.first_mistake(other, unless=best)
            if evidence is None or any(field_of(q, name) == value for q in left):
                remaining.append(value)
            else:
                excluded.append(Excluded(name, str(value), evidence))
        if remaining:
            undetermined[name] = tuple(map(str, (own, *remaining)))
        fields[name] = str(own)
    return fields, undetermined, excluded


def equal_dialects(record: Record, best: Quantizer, blocks: Sequence[Block]) -> Iterator[str]:
    """Dialects that answer all questions, asked or in a pool, as the candidate does, and choose what it chooses."""
    claim = lattice.plain(record.target.quantizer)
    for name, q in (("samebits", claim), *lattice.in_dialects(claim)):
        same = not record.mistakes(q) and all(not len(_differing(record, best, q, block)) for block in blocks)
        if same and (not record.target.chooses or _choose_alike(record, best, q)):
            yield name


def _choose_alike(record: Record, a: Quantizer, b: Quantizer) -> bool:
    for ends in (*ENDS, *SMALL_ENDS):
        x = block_of(a, ends, record.target.dtype)
        one, other = (choose_qparams(_of_two(q), x) for q in (a, b))
        if not np.array_equal(one.scale, other.scale) or not np.array_equal(one.zero_point, other.zero_point):
            return False
    return True


def _of_two(q: Quantizer) -> Quantizer:
    """With blocks of two elements, as `block_of` makes them."""
    return q if isinstance(q.granularity, PerTensor) else q.replace(granularity=PerGroup(2))


def asked_where_they_differ(record: Record, best: Quantizer, other: Quantizer, blocks: Sequence[Block]) -> bool:
    """Asks one input at which two candidates differ; whether there was one."""
    for block in blocks:
        x = _differing(record, best, other, block)
        if len(x):
            record.ask(block, x[:1])
            return True
    return False


def _differing(record: Record, a: Quantizer, b: Quantizer, block: Block) -> Array:
    """Numbers at which two candidates differ: of the pool, and where there are none, of the special questions."""
    kind, dtype = record.target.kind, record.target.dtype
    one, other = (prediction_keys(predict_pool(q, block, dtype, kind), kind) for q in (a, b))
    if (one != other).any():
        return np.asarray(pool(plain_key(a), block, dtype)[one != other])
    x = special_questions(a, block, dtype)
    one, other = (prediction_keys(predict_special(q, block, dtype, kind), kind) for q in (a, b))
    wide = x.astype(np.float64)
    inside = (wide >= min(block.ends)) & (wide <= max(block.ends)) if block.ends else np.isfinite(wide)
    return np.asarray(x[(one != other) & inside])  # beyond its ends a block would have another scale
