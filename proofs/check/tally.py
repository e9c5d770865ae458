"""Counting how far the results of one mode are those of the specification on one piece; the best example is kept."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...core.arithmetic import ZeroPointDomain
from ...core.descriptions import Quantizer
from ...core.operations import working_dtype
from ...core.quantizer import choose_qparams
from ..inputs.bits import is_float
from ..inputs.compare import Comparison, describe, differences
from ..modes.constants import with_constants
from ..modes.execution import Results
from .pieces import Piece, piece_shape

Array = NDArray[Any]

FUNCTIONS: Mapping[str, str] = MappingProxyType(
    {
        "qparams.scale": "choose_qparams: scale",
        "qparams.zero_point": "choose_qparams: zero point",
        "codes": "quantize",
        "values": "dequantize",
        "fake": "fake_quantize",
        "gradients.x": "gradient of x",
        "x_alone": "gradient of x alone",
        "gradients.scale": "gradient of the scale",
        "gradients.zero_point": "gradient of the zero point",
    }
)
PER_BLOCK = ("qparams.scale", "qparams.zero_point")
PER_ELEMENT = ("codes", "values", "fake", "gradients.x", "x_alone")
SUMS = ("gradients.scale", "gradients.zero_point")
POINTS = 500  # differing elements kept for a plot
ROWS = 8  # of a piece that are tried as constants
ROW = 64  # terms that a mode adds in one go before it adds the sums


@dataclass(frozen=True)
class Example:
    """One difference. Numbers in decimal, as hexadecimal float and in bits.

    Args:
        function: which result of which of the five functions.
        tensor: where the input comes from; ``dtype``: of the input.
        x: the input; None where the result belongs to a whole block.
        scale, zero_point: of its block, as the specification has them.
        expected: what the specification gives; ``got``: what the mode gives.
        size: magnitude of the input, by which the smallest example is found; infinite when there is no single input.
    """

    function: str
    tensor: str
    dtype: str
    x: str | None
    scale: str
    zero_point: str | None
    expected: str
    got: str
    size: float


@dataclass(frozen=True)
class Tally:
    """What came of comparing one mode with the specification. Tallies add up.

    Args:
        compared: results compared bit for bit, of all functions; ``differing``: those that differ.
        sums: gradients of scales and zero points compared; ``outside``: those beyond `sum_bound`.
        parts: results that differ or lie outside, by name of the function.
        example: the difference of smallest input.
        points: ``x / s`` and the distance of the two results in steps of the scale, of some of the differing elements.
    """

    compared: int = 0
    differing: int = 0
    sums: int = 0
    outside: int = 0
    parts: tuple[tuple[str, int], ...] = ()
    example: Example | None = None
    points: tuple[tuple[float, float], ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.differing and not self.outside

    def __add__(self, other: "Tally") -> "Tally":
        examples = [example for example in (self.example, other.example) if example]
        counts = dict(self.parts)
        for name, count in other.parts:
            counts[name] = counts.get(name, 0) + count
        return Tally(
            self.compared + other.compared,
            self.differing + other.differing,
            self.sums + other.sums,
            self.outside + other.outside,
            tuple(counts.items()),
            min(examples, key=lambda example: example.size, default=None),
            (self.points + other.points)[:POINTS],
        )


@dataclass(frozen=True)
class _Part:
    """Some results of one function: those of the elements or blocks that are real, side by side.

    Args:
        owner: the block each belongs to; ``x``: the input of each, None where it belongs to a whole block.
        scale, zero: of all blocks of the piece.
    """

    name: str
    piece: Piece
    expected: Array | None
    got: Array | None
    owner: Array
    x: Array | None
    scale: Array
    zero: Array | None


def tally(q: Quantizer, piece: Piece, g: Array, expected: Results, got: Results, *, sums: bool = True) -> Tally:
    """Every result of one mode on one piece, where the piece is real; without ``sums``, those of single elements alone.

    ``g``: the incoming gradient of both.
    """
    where, blocks = np.flatnonzero(piece.real), np.unique(piece.block[piece.real])
    x, owner = piece.x.reshape(-1)[where], piece.block.reshape(-1)[where]
    scale, zero = _parameters(expected)

    def part(name: str) -> _Part:
        per_element = name in PER_ELEMENT
        at = where if per_element else blocks
        first, second = (_result(results, name) for results in (expected, got))
        if np.shape(first) == np.shape(second):  # else the comparison sees the shapes as they are
            first, second = _at(first, at), _at(second, at)
        blocks_of, inputs = (owner, x) if per_element else (blocks, None)
        return _Part(name, piece, first, second, blocks_of, inputs, scale, zero)

    total = Tally()
    per_element = PER_ELEMENT if got.x_alone is not None else PER_ELEMENT[:-1]
    for name in (*(PER_BLOCK[: 1 + q.affine] if piece.qparams is None else ()), *per_element):
        total += _same(part(name))
    for name in SUMS[: 1 + q.affine] if sums else ():
        total += _close(part(name), sum_bound(q, piece, g, expected, name)[blocks])
    return total


def tally_of_constants(mode: str, q: Quantizer, piece: Piece, b: Array) -> Tally:
    """What differs when operands are constants of a program, on the first rows of a piece.

    ``b``: normal numbers of the shape and dtype of the piece, which are added.
    """
    rows = piece_shape(q.granularity, ROWS)[0]
    x, b, total = piece.x[:rows], b[:rows], Tally()
    qparams = choose_qparams(q, x)
    expected, got = (with_constants(m, q, x, b, qparams) for m in ("numpy", mode))
    for name, want in expected.items():
        found = differences(want, got[name], inputs=x)
        if found.same:
            total += Tally(found.compared)
            continue
        scale = "of the first rows of the piece, chosen from them"
        values = ("", "") if found.index is None else (describe(found.expected), describe(found.got))
        given = None if found.index is None else describe(x[found.index])
        size = math.inf if found.index is None else abs(float(x[found.index]))
        example = Example(name, piece.sources[0], x.dtype.name, given, scale, None, *values, size)
        total += Tally(found.compared, found.differing, parts=((name, found.differing),), example=example)
    return total


def refused(piece: Piece, error: Exception) -> Tally:
    """A mode that raises where the specification has results: of every element that is real one differs."""
    elements = int(np.count_nonzero(piece.real))
    source = piece.sources[int(piece.block[piece.real][0])]
    reason = f"{type(error).__name__}: {error}"
    example = Example("all of them", source, piece.x.dtype.name, None, "", None, "results", reason, math.inf)
    return Tally(elements, elements, parts=((f"raised {type(error).__name__}", elements),), example=example)


def sum_bound(q: Quantizer, piece: Piece, g: Array, expected: Results, name: str) -> Array:
    """How far a mode's gradient of scale or zero point may lie from the correctly rounded sum, for each block. float64.

    ``64 * ceil(log64 n) * 2**-24 * sum(|terms|)`` for n float32 terms added in rows of at most 64, and then the sums of
    the rows in the same way, in any order, which also covers sums in float64; ``n * 2**-126`` for terms flushed to
    zero; and one unit in the last place for the roundings of both results. Of float64 terms 2**-53 and 2**-1022. Where
    an arithmetic rounds sums to 16 bits, two units in the last place of those.
    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 4.2.
    """
    scale, zero = _parameters(expected)
    x, cotangent, owner = piece.x.astype(np.float64), g.astype(np.float64), piece.block
    passes = (np.asarray(expected.gradients.x) != 0) | (g == 0)
    offset: Any = 0 if zero is None else zero[owner]
    per_zero = scale[owner]
    with np.errstate(all="ignore"):
        match q.arithmetic.zero_point_domain:
            case ZeroPointDomain.INTEGER:
                pass
            case ZeroPointDomain.FLOAT:
                x = (piece.x.astype(scale.dtype) - offset).astype(np.float64)
                offset, per_zero = (q.format.lo + q.format.hi + 1) // 2, np.ones_like(per_zero)
            case ZeroPointDomain.SHIFT:
                x = (piece.x.astype(scale.dtype) + offset).astype(np.float64)
                offset, per_zero = 0, np.ones_like(per_zero)
        distance = expected.codes.astype(np.float64) - offset - np.where(passes, x / scale[owner].astype(np.float64), 0)
        terms = np.abs(cotangent * (distance if name == SUMS[0] else np.where(passes, 0, per_zero)))
    total = np.bincount(owner.reshape(-1), terms.reshape(-1), len(scale))
    n = owner.size // len(scale)
    size = np.abs(_result(expected, name).reshape(-1))
    ulp = np.spacing(size).astype(np.float64)
    work = working_dtype(q.arithmetic, piece.x.dtype)
    if work.itemsize == 2:
        ulp = ulp + 2 * float(ml_dtypes.finfo(work).eps) * size.astype(np.float64)  # type: ignore[no-untyped-call]
    of_terms = np.finfo(scale.dtype)
    unit, flushed = float(of_terms.eps) / 2, float(of_terms.smallest_normal)
    return np.asarray(ROW * math.ceil(math.log(n, ROW)) * unit * total + n * flushed + ulp)


def _parameters(results: Results) -> tuple[Array, Array | None]:
    scale, zero = results.qparams[:2]
    return np.asarray(scale).reshape(-1), None if zero is None else np.asarray(zero).reshape(-1)


def _result(results: Results, name: str) -> Any:
    value: Any = results
    for step in name.split("."):
        value = getattr(value, step)
    return value


def _at(value: Array | None, where: Array) -> Array | None:
    """The elements at flat indices; a result that is too small stays whole, so that the comparison sees its shape."""
    if value is None:
        return None
    flat = np.asarray(value).reshape(-1)
    return flat[where] if flat.size > where[-1] else flat


def _same(part: _Part) -> Tally:
    """Bit for bit."""
    found = differences(part.expected, part.got, inputs=part.x)
    if found.same:
        return Tally(compared=found.compared)
    parts = ((FUNCTIONS[part.name], found.differing),)
    return Tally(found.compared, found.differing, parts=parts, example=_example(part, found), points=_points(part))


def _close(part: _Part, bound: Array) -> Tally:
    """Within the bound; what is not finite must be the same."""
    found = differences(part.expected, part.got)
    if part.expected is not None and part.got is not None and (found.same or found.index is not None):
        expected, got = part.expected.astype(np.float64), part.got.astype(np.float64)
        with np.errstate(invalid="ignore"):
            near = np.abs(expected - got) <= bound
        apart = np.flatnonzero(~(near | (expected == got) | (np.isnan(expected) & np.isnan(got))))
        if not apart.size:
            return Tally(sums=expected.size)
        at = int(apart[0])
        reason = "beyond the bound of a sum"
        found = Comparison(expected.size, apart.size, "", (at,), part.expected[at], part.got[at], reason)
    parts = ((FUNCTIONS[part.name], found.differing),)
    return Tally(sums=found.compared, outside=found.differing, parts=parts, example=_example(part, found))


def _example(part: _Part, found: Comparison) -> Example:
    name, sources, dtype = FUNCTIONS[part.name], part.piece.sources, part.piece.x.dtype.name
    if found.index is None:  # another dtype or shape, or nothing at all
        block = int(part.owner[0])
        return Example(name, sources[block], dtype, None, describe(part.scale[block]), None, "", found.reason, math.inf)
    at = found.index[0]
    block = int(part.owner[at])
    size = math.inf if part.x is None else abs(float(part.x[at]))
    return Example(
        name,
        sources[block],
        dtype,
        None if part.x is None else describe(part.x[at]),
        describe(part.scale[block]),
        None if part.zero is None else describe(part.zero[block]),
        describe(found.expected),
        describe(found.got),
        math.inf if math.isnan(size) else size,
    )


def _points(part: _Part) -> tuple[tuple[float, float], ...]:
    """Position and distance of differing codes and values, in steps of the scale; nothing for other results."""
    if part.x is None or part.name in ("gradients.x", "x_alone") or part.expected is None or part.got is None:
        return ()
    if part.expected.shape != part.got.shape:
        return ()
    step = part.scale[part.owner].astype(np.float64)
    unit = step if is_float(part.expected.dtype) else np.ones_like(step)
    with np.errstate(all="ignore"):
        apart = (part.got.astype(np.float64) - part.expected.astype(np.float64)) / unit
        place = part.x.astype(np.float64) / step
    shown = np.flatnonzero(np.isfinite(apart) & (apart != 0) & np.isfinite(place))[:POINTS]
    return tuple((float(place[i]), float(apart[i])) for i in shown)
