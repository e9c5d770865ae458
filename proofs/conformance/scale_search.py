"""Which scale rule a target has that chooses its own scale: asked with blocks of known ends.

A target that gives codes gives its parameters with them. Of one that gives values, the scale is seen in the smallest
positive value of a block that holds numbers all around one step; with a codebook, in the value of its peak.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import QParams, Quantizer
from ...core.formats import CodebookFormat, FloatFormat, Format
from ...core.granularity import PerGroup, PerTensor
from ...core.quantizer import choose_qparams
from ...core.scales import Restriction
from . import lattice
from .asking import Block, Fault, arranged, ask, checked, raw_answer, shown
from .chosen import said_of_scales
from .lattice import field_of
from .questions import numpy_dtype
from .record import Record
from .targets import Kind, Target
from .verdicts import Evidence

Array = NDArray[Any]
Ends = tuple[float, float]

# Ordinary ranges: uneven ones first, then ties of zero points, powers of two and significands around 1.75
ENDS: tuple[Ends, ...] = (
    (-1.0, 0.3),
    (-0.7, 1.9),
    (-3.1, 5.3),
    (-127.5, 127.5),
    (-126.5, 128.5),
    (-6.9375, 7.9375),
    (-0.0271, 0.0154),
    (-0.5, 254.5),
    (-1000.0, 0.1),
    (-2.75, 2.0),
    (-7.984375, 3.1),
)
SHIFTED: tuple[Ends, ...] = ((5.0, 6.0), (-6.0, -5.0), (0.0, 4.0), (-4.0, 0.0), (0.1, 1.7), (-1.75, 0.5))
SMALL_ENDS: tuple[Ends, ...] = (
    (0.0, 0.0),
    (-1e-45, 0.0),
    (-1e-40, 3e-41),
    (-1e-30, 1e-30),
    (-3e-20, 1e-20),
    (-1e-15, 1e-15),
    (-3e-11, 2e-11),
    (-1e-8, 1e-8),
    (-3e-6, 2e-6),
    (-1e-4, 2e-4),
    (-5e-3, 6e-3),
)
RAMP = 20
MANY = 16  # rules that ordinary ranges do not tell apart


def observed(record: Record, ends: Ends) -> Block | None:
    """The parameters that the target chooses for a block with these ends; None where they cannot be seen.

    Raises:
        Fault: as `asking.ask`.
    """
    target = record.target
    rounded = np.asarray(ends).astype(numpy_dtype(target.dtype))
    known: Ends = (float(rounded[0]), float(rounded[1]))
    if target.kind is Kind.CODES:
        x, _ = arranged(target.quantizer, rounded[:1], known)
        record.extra += x.size
        found = raw_answer(target, x, None)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], QParams)):
            raise Fault("returns no pair of codes and QParams", shown(x))
        checked(target, x, found[0])
        scale = float(np.asarray(found[1].scale).reshape(-1)[0])
        zero = None if found[1].zero_point is None else float(np.asarray(found[1].zero_point).reshape(-1)[0])
        return Block(scale, zero, known)
    unit = _smallest(target.quantizer.format)
    ramp = rounded if unit is None else _ramp(target, known, unit)
    record.extra += len(ramp)
    values = ask(target, Block(1.0, None, known), ramp).astype(np.float64)
    steps = values[np.isfinite(values) & (values > 0)] if unit is not None else np.abs(values[np.isfinite(values)])
    if not len(steps) or target.quantizer.affine:
        return None
    scale = steps.max() / target.quantizer.format.hi if unit is None else steps.min() / unit
    return Block(float(scale), None, known) if scale else None


def find_scale_rule(record: Record, best: Quantizer) -> tuple[Quantizer, dict[str, str], Evidence | None]:
    """The candidate with the scale rule that chooses what the target chooses; what was found, and what it leaves open.

    Returns:
        the quantizer; the fields of the rule, with all values that no block told apart; and the first block that no
        candidate explains, or None.
    """
    ordinary = _observations(record, (*ENDS, *SHIFTED))
    rules = lattice.scale_rules(best)
    left, wrong = _surviving(rules, ordinary, record)
    small = _observations(record, SMALL_ENDS)
    if wrong is not None:
        return left[0], _fields(left) | _nearly(left[0], ordinary, record), wrong
    names, winner, least = _small_rule(left[0], small, record)
    if least and len(left) > 1:  # small ranges may tell apart what ordinary ones do not
        others = [(q, _small_rule(q, small, record)) for q in left[:MANY]]
        if any(found[2] < least for _, found in others):
            least = min(found[2] for _, found in others)
            left = [q for q, found in others if found[2] == least]
            names, winner, _ = next(found for _, found in others if found[2] == least)
    fields = _fields(left) | {"small ranges": " or ".join(names)}
    first = next((b for b in small if not _chooses(winner, b, record)), None)
    return winner, fields, None if first is None else _evidence(winner, first, record)


def _small_rule(q: Quantizer, small: list[Block], record: Record) -> tuple[list[str], Quantizer, int]:
    """The names of the rules for small ranges that fit best, the quantizer with one, and how many blocks it fails."""
    named = lattice.small_rules(q)
    counts = {name: sum(not _chooses(rule, b, record) for b in small) for name, rule in named.items()}
    least = min(counts.values())
    names = [name for name, count in counts.items() if count == least]
    names = [name for name in names if name.partition(", subnormal")[0] not in names or ", subnormal" not in name]
    return names, named[names[0] if not least else names[-1]], least  # of those that fail, the one that says more


def block_of(q: Quantizer, ends: Ends, dtype: str) -> Array:
    """Two blocks with these ends, as an array."""
    row = np.asarray(ends).astype(numpy_dtype(dtype))
    return row if isinstance(q.granularity, PerTensor) else np.stack([row, row])


def _smallest(format: Format) -> float | None:
    """The smallest positive number of a format; None of a codebook, where a multiple of it need not tell the scale."""
    match format:
        case CodebookFormat():
            return None
        case FloatFormat():
            return 2.0 ** (format.min_exponent - format.mantissa_bits)
        case _:
            return 1.0


def _ramp(target: Target, ends: Ends, unit: float) -> Array:
    """Numbers around one step of any scale that the ends may have, up to the ends."""
    peak = max(abs(ends[0]), abs(ends[1]))
    hi = max(target.quantizer.format.hi, 1)
    steps = np.concatenate([np.linspace(0.4, 3.2, RAMP - 6) * (unit / hi), [1 / 4, 1 / 3, 1 / 2, 2 / 3, 0.9, 1.0]])
    return np.minimum(steps * peak, max(ends[1], 0.0)).astype(numpy_dtype(target.dtype))


def _observations(record: Record, many: tuple[Ends, ...]) -> list[Block]:
    found = []
    for ends in many:
        try:
            block = observed(record, ends)
        except Fault as fault:
            if not fault.what.startswith("raises"):
                raise
            record.notes[f"range {ends[0]:g} to {ends[1]:g}"] = "an exception"
            continue
        if block is not None:
            found.append(block)
    return found


def _surviving(rules: list[Quantizer], seen: list[Block], record: Record) -> tuple[list[Quantizer], Evidence | None]:
    """The rules that choose what was seen; where there is none, the one that does most often, and a block it fails."""
    left = rules
    for block in seen:
        kept = [q for q in left if _chooses(q, block, record)]
        if not kept:
            counts = [sum(not _chooses(q, b, record) for b in seen) for q in rules]
            nearest = rules[int(np.argmin(counts))]
            first = next(b for b in seen if not _chooses(nearest, b, record))
            return [nearest], _evidence(nearest, first, record)
        left = kept
    return left, None


def _nearly(nearest: Quantizer, seen: list[Block], record: Record) -> dict[str, str]:
    """What is to be said of scales that no rule gives."""
    if nearest.affine or record.target.kind is Kind.VALUES:
        return {}
    work = np.float64 if record.target.dtype == "float64" else np.float32
    sizes = np.array([max(map(abs, block.ends)) for block in seen], work)
    scales, chosen = (
        np.array(s, work) for s in zip(*((b.scale, _chosen(nearest, b, record)[0]) for b in seen), strict=True)
    )
    return said_of_scales(sizes, scales, chosen)


def _chosen(q: Quantizer, block: Block, record: Record) -> tuple[float, float | None]:
    tensor = q if isinstance(q.granularity, PerTensor) else q.replace(granularity=PerGroup(2))
    x = block_of(tensor, (block.ends[0], block.ends[1]), record.target.dtype)
    with np.errstate(all="ignore"):
        found = choose_qparams(tensor, x)
    scale = np.asarray(found.scale).reshape(-1)[0]
    zero = None if found.zero_point is None else float(np.asarray(found.zero_point).reshape(-1)[0])
    return float(scale), zero


def _chooses(q: Quantizer, block: Block, record: Record) -> bool:
    scale, zero = _chosen(q, block, record)
    if record.target.kind is Kind.VALUES:  # which are rounded to the dtype
        work = numpy_dtype(record.target.dtype)
        return bool(np.asarray(scale).astype(work) == np.asarray(block.scale).astype(work))
    return scale == block.scale and zero == block.zero


def _evidence(q: Quantizer, block: Block, record: Record) -> Evidence:
    scale, zero = _chosen(q, block, record)
    got, expected = (
        f"scale {s!r}" + ("" if z is None else f", zero point {z:g}")
        for s, z in ((block.scale, block.zero), (scale, zero))
    )
    return Evidence(f"the range {block.ends[0]:g} to {block.ends[1]:g}", "chosen by the target", got, expected)


def _fields(left: list[Quantizer]) -> dict[str, str]:
    """The fields of the rule, each with the values that are left."""
    names = ["scale_dtype", "scale_division"]
    names += ["range", "zero_point_rule", "zero_point_rounding"] if left[0].affine else ["denominator", "restriction"]
    if not left[0].affine:
        names.append("statistic")
        names += ["two_level"] if left[0].scale.restriction is Restriction.QUANTIZED else []
    found = {}
    for name in names:
        values = list(dict.fromkeys(str(field_of(q, name)) for q in left))
        if len(values) < 3 or name in ("denominator", "range"):
            found[name] = " or ".join(values)
    return found
