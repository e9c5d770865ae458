"""What test vectors ask: parameters, knife edges of each, ranges at which parameters are decided, random numbers.

Nothing is drawn but by Threefry, from the names of streams, and every sum is exact: the same bits in every release of
every library.
"""

from collections.abc import Iterator, Sequence
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import Quantizer
from ...core.granularity import Granularity, PerAxis, PerBlock, PerGroup, PerTensor, PerToken, Shape
from ...core.scales import SHARED_EXPONENT, Restriction, Statistic
from ...core.threefry import threefry2x32
from ..inputs.bits import neighbours
from ..inputs.knife_edges import NEIGHBOURS, boundaries
from ..inputs.numbers import zero_points

Array = NDArray[Any]


def array_shape(q: Quantizer, elements: int) -> Shape:
    """Of the arrays in a table: two blocks where there can be, of ``elements`` where the granularity leaves it open.

    Percentiles need many elements to be other numbers than the extremes.
    """
    elements = 2048 if q.scale.statistic is Statistic.PERCENTILE else elements
    granularity: Granularity = q.granularity
    match granularity:
        case PerTensor():
            return (elements,)
        case PerToken():
            return (2, elements // 2)
        case PerBlock(shape):
            return (*shape[:-1], 2 * shape[-1])
        case PerAxis(axis) | PerGroup(_, axis):
            depth = max(2, axis + 1 if axis >= 0 else -axis)
            grouped = isinstance(granularity, PerGroup)
            other = 1 if grouped else elements // 2
            along = 2 * granularity.size if isinstance(granularity, PerGroup) else 2
            beside = 1 if axis % depth == 0 else 0
            return tuple(along if i == axis % depth else other if i == beside else 1 for i in range(depth))


def parameter_pairs(q: Quantizer, dtype: np.dtype[Any], count: int) -> Iterator[tuple[Any, Any]]:
    """So many pairs of scale and zero point: decimal fractions, ends of the domain, 7, then random significands.

    Under 7 halves of codes are numbers of 16 bits, too, of which products with the reciprocal miss some. Half of the
    random exponents lie where numbers of 16 bits are neither all clamped nor all 0. Zero points go through the ends,
    the middle and another code.
    """
    wide: np.dtype[Any] = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    info: Any = np.finfo(wide)
    powers = q.scale.restriction is Restriction.POWER_OF_TWO or q.scale.restriction in SHARED_EXPONENT
    first = [1.0, 0.125, info.smallest_normal, 2.0**40, 2.0**127] if powers else [0.1, 0.7, info.smallest_normal, 7.0]
    numbers = [wide.type(s) for s in (*first, *([] if powers else [info.max]))][:count]
    drawn = words("scales", 2 * count)
    for i, (exponent, bits) in enumerate(drawn.reshape(-1, 2)[len(numbers) :]):
        significand = 1.0 if powers else 1 + float(bits) / 2**32
        places = (40, -24) if i % 2 == 0 else (254, -126)
        numbers.append(wide.type(np.ldexp(significand, int(exponent % places[0]) + places[1])))
    lo, hi = int(q.format.lo), int(q.format.hi)
    for i, scale in enumerate(numbers):
        code = (lo, (lo + hi) // 2, hi, lo + int(drawn[i]) % (hi - lo + 1))[i % 4]
        yield scale, zero_points(q, np.asarray(code), np.asarray(scale))[()] if q.affine else None


def edges(q: Quantizer, scale: Any, zero: Any, dtype: np.dtype[Any], count: int) -> Array:
    """Boundaries with their neighbours, ascending; of many those at both ends and around the middle, and a share."""
    with np.errstate(over="ignore"):
        places = boundaries(q, scale, zero).astype(dtype)
    return neighbours(places[spread(len(places), count)], NEIGHBOURS)


def spread(size: int, count: int) -> Array:
    """At most ``count`` of the indices below ``size``: an eighth at each end and in the middle, the others spread."""
    if size <= count:
        return np.arange(size)
    eighth, middle = count // 8, size // 2
    near = [np.arange(eighth), np.arange(middle - eighth, middle + eighth), np.arange(size - eighth, size)]
    return np.unique(np.concatenate([*near, np.linspace(0, size - 1, count - 4 * eighth).astype(int)]))


def arrays_of_edges(
    q: Quantizer, dtype: np.dtype[Any], row: int, pairs: Sequence[tuple[Any, Any]], owner: Array
) -> Array:
    """An array whose blocks hold knife edges of their scales, and numbers at random, one as often as the other."""
    x = np.zeros(len(owner), dtype)
    count = int(owner.max()) + 1
    for block in range(count):
        scale, zero = pairs[row * count + block]
        where = np.flatnonzero(owner == block)
        near = edges(q, scale, zero, dtype, 64)
        reach = float(q.format.hi - q.format.lo) * float(scale)
        drawn = words(f"which {row} {block}", len(where))
        numbers = rounded(bell(f"sums {row} {block}", len(where)) * reach, dtype)
        x[where] = np.where(drawn % 2 == 0, numbers, near[(drawn >> 1) % len(near)])
    return x


def arrays_of_ranges(ranges: Array, owner: Array) -> Array:
    """Arrays whose blocks have these ranges, shape ``(rows, blocks, 2)``: both ends once, then parts of them."""
    rows, count, _ = ranges.shape
    x = np.zeros((rows, len(owner)), ranges.dtype)
    for block in range(count):
        where = np.flatnonzero(owner == block)
        drawn = words(f"ranges {block}", rows * len(where)).reshape(rows, -1)
        part = (drawn >> 8).astype(np.float64) / 2**24
        with np.errstate(under="ignore"):
            ends = np.take_along_axis(ranges[:, block], (drawn % 2).astype(np.int64), 1)
            inner = rounded(ends.astype(np.float64) * part, ranges.dtype)
        first = np.arange(rows) % (len(where) - 1 or 1)
        inner[np.arange(rows), first] = ranges[:, block, 0]
        inner[np.arange(rows), (first + 1) % len(where)] = ranges[:, block, 1]
        x[:, where] = inner
    return x


def random_arrays(stream: str, rows: int, owner: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers at random, in every block of another size."""
    blocks = words(f"sizes {stream}", rows * (int(owner.max()) + 1)).reshape(rows, -1)
    exponents = (blocks % 24).astype(np.int64)[:, owner] - 12
    return rounded(np.ldexp(bell(stream, rows * len(owner)).reshape(rows, -1), exponents), dtype)


def bell(stream: str, count: int) -> Array:
    """Numbers around 0, about as a normal distribution has them: sums of three uniform ones, exact in float64."""
    drawn = words(stream, 3 * count).astype(np.float64).reshape(count, 3)
    return np.asarray((drawn.sum(1) - 1.5 * 2**32) / 2**31)


def words(stream: str, count: int) -> Array:
    """Random words, uint32: Threefry, keyed by the name of the stream."""
    key = (np.asarray(crc32(stream.encode()), np.uint32), np.asarray(0, np.uint32))
    place = np.arange(count, dtype=np.uint32)
    return threefry2x32(key, (place, np.zeros_like(place)))[0]


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers in a dtype, those beyond it infinite."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(values.astype(dtype))
