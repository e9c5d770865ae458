"""The work of a certificate, cut into tiles: small frozen descriptions that any process can carry out by itself.

The list of tiles of a certificate follows from the quantizer and the engine alone (`boundary_plan`,
`exhaustive_plan`), so that a file can be checked against it and a part of it run again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import Gradient, Quantizer, ZeroPoint
from ...core.granularity import PerAxis, PerTensor
from ...core.scales import ScaleRule
from .steps import LARGEST, Steps, check_of_quotient, steps

ONE = 0x3F800000  # the bits of 1.0
BINADE = 1 << 23  # scales in a binade
FIELDS = range(1, 255)  # exponent fields of normal numbers
POINTS = 1 << 25  # inputs evaluated in a tile, about
CHUNK = 1 << 22  # inputs evaluated at a time, at most
NARROW = 64  # inputs at a scale, at least, as memory is reckoned
SECOND = 27  # exponent field of a second row of significands, 2**-100: small scales may take another path
SECOND_STRIDE, SECOND_COUNT = 31, 1 << 18
NORMAL_STRIDE, NORMAL_COUNT = 8127, 1 << 18  # a progression through all normal numbers, 1,032 in each binade
SWEEP_STRIDE, SWEEP_COUNT = 511, 1 << 22  # a progression through the magnitudes of float32
SWEEP_SCALES = (0.1, 2.0**-110, 3.0e-5, 700.0)
ZERO_STRIDE, ZERO_COUNT = 1_040_383, 2048  # the same for each zero point, 8 in each binade
BOTH_ENDS = 16  # codes, at most, where all significands meet the least and the largest zero point: twice the time
OWN, OWN_TILES = 64, 2  # scales in the quantizer's own granularity, and tiles of so many
BY_ROWS = PerAxis(0)
ITSELF = frozenset({"granularity", "whole", "blocks", "magnitudes"})  # kinds of tiles that run the quantizer itself
MOST_CRITICAL = 512  # magnitudes of thresholds and values whose overflow is looked at
CRITICAL = "the scales at which an input or a value begins to be subnormal or infinite"
SPECIALS = 6  # columns beside the steps: the infinities, the largest numbers, both zeros


@dataclass(frozen=True)
class Tile:
    """One piece of work.

    Attributes:
        kind: "scales": every step at each scale, on both sides; "critical": the same at scales near which an input or
            a value begins to overflow or to be subnormal; "zero point": at both; "inputs": consecutive inputs at one
            scale; "dtype": all inputs of a 16-bit dtype at each scale; "granularity": the knife edges of each scale, in
            the quantizer's own granularity instead of one scale per row; "whole": as "inputs", in a quantizer per
            tensor as it is; "magnitudes", "blocks": of scales, see `evaluate_scales`.
        first, count, stride: bits of the first scale (or input), how many, and the distance of their bits.
        zero_point: None when symmetric.
        steps: first and one past the last step; None for all of them and the special inputs.
        scale: bits of the scale, for "inputs".
        dtype: of the inputs.
    """

    kind: str
    first: int
    count: int
    stride: int = 1
    zero_point: int | None = None
    steps: tuple[int, int] | None = None
    scale: int = ONE
    dtype: str = "float32"

    def described(self) -> dict[str, Any]:
        """As JSON has it, without what is default."""
        plain = {f: v for f, v in asdict(self).items() if v != getattr(type(self), f, object())}
        return plain | ({"steps": list(self.steps)} if self.steps else {})


@dataclass(frozen=True)
class Part:
    """Tiles that belong together, and the statement that they establish."""

    name: str
    claim: str
    tiles: tuple[Tile, ...]

    @property
    def itself(self) -> bool:
        """Whether the tiles run the quantizer itself, not its elementwise function."""
        return self.tiles[0].kind in ITSELF


def elementwise(q: Quantizer) -> Quantizer:
    """What a quantizer does to one element when its scale and zero point are given, as a quantizer: a scale per row.

    The same for all that agree in format, rounding, arithmetic, whether there is a zero point and whether there is a
    mask. How scales are chosen, who shares one, and the gradients of parameters play no part in it.
    """
    return Quantizer(
        format=q.format,
        granularity=BY_ROWS,
        scale=ScaleRule(),
        zero_point=ZeroPoint.MIN_MAX if q.affine else ZeroPoint.NONE,
        rounding=q.rounding,
        gradient=Gradient.CLIPPED if q.gradient is Gradient.LEARNED_SCALE else q.gradient,
        arithmetic=q.arithmetic,
    )


def as_run(q: Quantizer, tile: Tile) -> Quantizer:
    """The quantizer that a tile runs."""
    return q if tile.kind in ITSELF else elementwise(q)


def boundary_plan(q: Quantizer) -> tuple[Part, ...]:
    """Every step at every significand, and what carries this to all scales; see ``docs/certificates.md``."""
    points = zero_points(q)
    found = steps(q, points[0])
    ends = points[:1] if len(points) == 1 else [points[0], points[-1]]
    parts = [
        Part(
            "significands",
            "both sides of every step, and the special inputs, at all 8,388,608 significands: every scale in [1, 2)"
            + (f", with the least {'and' if both_ends(q) else 'or'} the largest zero point" if q.affine else ""),
            tuple(_scales(found, ONE, BINADE, 1, ends, in_turn=not both_ends(q))),
        ),
        Part(
            "small scales",
            f"the same at {SECOND_COUNT:,} significands, scales in [2**{SECOND - 127}, 2**{SECOND - 126})",
            tuple(_scales(found, SECOND << 23, SECOND_COUNT, SECOND_STRIDE, ends)),
        ),
        Part(
            "exponents",
            f"the same at {NORMAL_COUNT:,} scales, 1,032 in each of the 254 binades",
            tuple(_scales(found, BINADE, NORMAL_COUNT, NORMAL_STRIDE, ends)),
        ),
        Part(
            "extremes",
            "all significands of every binade in which steps have subnormal inputs, at those steps (where a step lies "
            "beside zero, of 24 binades from 1 on)" + ("" if q.affine else f"; and {CRITICAL}"),
            (*_subnormal(q, ends), *(() if q.affine else (Tile("critical", 0, 0),))),
        ),
        Part(
            "zero points",
            f"every step at {ZERO_COUNT:,} scales, 8 in each binade, and at {CRITICAL}; with each of the {len(points)} "
            "zero points",
            tuple(Tile("zero point", BINADE, ZERO_COUNT, ZERO_STRIDE, z) for z in points) if q.affine else (),
        ),
        Part(
            "sweeps",
            f"every {SWEEP_STRIDE}th float32 at {len(SWEEP_SCALES)} scales, in order; "
            "all bfloat16 and float16 numbers at 64 scales",
            tuple(_sweeps(ends)),
        ),
        Part(
            "granularity",
            f"the quantizer itself, in its own granularity: the knife edges of {OWN * OWN_TILES} scales"
            + (f"; every {SWEEP_STRIDE}th float32 at one scale" if q.granularity == PerTensor() else ""),
            (*_own(points), *(_whole(points) if q.granularity == PerTensor() else ())),
        ),
    ]
    return tuple(part for part in parts if part.tiles)


def exhaustive_plan(
    q: Quantizer, scales: Sequence[float], dtype: str, zero_point: int | None = None
) -> tuple[Part, ...]:
    """Every bit pattern of a dtype at each scale of a list.

    Raises:
        ValueError: a scale that is no positive normal float32, a zero point missing or not wanted or no code.
    """
    check_of_quotient(q)
    if q.affine != (zero_point is not None):
        raise ValueError(f"`zero_point` must be {'given' if q.affine else 'None'} for this quantizer")
    if zero_point is not None and not q.format.lo <= zero_point <= q.format.hi:
        raise ValueError(f"`zero_point` must be in [{q.format.lo}, {q.format.hi}], got {zero_point}")
    tiles: list[Tile] = []
    kind = "whole" if q.granularity == PerTensor() else "inputs"
    for scale in scales:
        bits = int(np.float32(scale).view(np.uint32))
        if np.float32(scale) != scale or bits >> 23 not in FIELDS:
            raise ValueError(f"`scales` must hold positive normal float32 numbers, got {scale!r}")
        if dtype == "float32":
            tiles += (
                Tile(kind, first, POINTS // 2, 1, zero_point, scale=bits) for first in range(0, 2**32, POINTS // 2)
            )
        else:
            tiles.append(Tile("dtype", bits, 1, 1, zero_point, dtype=dtype))
    claim = f"every bit pattern of {dtype} at {len(tuple(scales))} scales"
    return (Part("inputs", claim, tuple(tiles)),)


def zero_points(q: Quantizer) -> list[int | None]:
    """All zero points, or None alone."""
    return list(range(int(q.format.lo), int(q.format.hi) + 1)) if q.affine else [None]


def both_ends(q: Quantizer) -> bool:
    """Whether every significand is evaluated with both ends of the zero points, and not with one of them."""
    return q.format.hi - q.format.lo < BOTH_ENDS


def columns(found: Steps) -> int:
    """Inputs evaluated at one scale."""
    return 2 * len(found.last) + SPECIALS


def rows_at_once(inputs: int) -> int:
    """How many scales of so many inputs each make one array: a power of two, so that few shapes occur.

    Fewer inputs than `NARROW` count as so many, since scales take memory and time of their own.
    """
    return 1 << max(0, (CHUNK // max(inputs, NARROW)).bit_length() - 1)


def critical_scales(found: Steps) -> list[int]:
    """Bits of the scales, with 2 neighbours on each side, at which a threshold or a value is about to overflow, or a
    threshold to be subnormal; and those at the ends of the range. Of formats of many values an even share."""
    bits: set[int] = {BINADE, 2 * BINADE, (254 << 23) + BINADE - 1}
    magnitudes = np.unique(np.abs(np.concatenate([found.middles, found.units.astype(np.float64)])))
    for magnitude in magnitudes[magnitudes > 0][:: -(-len(magnitudes) // MOST_CRITICAL)]:
        with np.errstate(over="ignore"):
            near = np.array([LARGEST / magnitude, 2.0**-126 / magnitude]).astype(np.float32)
        bits |= {int(b) for b in near[np.isfinite(near)].view(np.uint32)}
    around = {b + d for b in bits for d in range(-2, 3)}
    return sorted(b for b in around if b >> 23 in FIELDS)


def tiny_fields() -> range:
    """Exponent fields of the scales, from 1 on, at which an input beside a quotient of 2**-150 is subnormal."""
    return range(127, 127 + 24)


def _rows(found: Steps) -> int:
    return rows_at_once(columns(found))


def _scales(
    found: Steps, first: int, count: int, stride: int, zeros: Sequence[int | None], *, in_turn: bool = False
) -> Iterator[Tile]:
    """Tiles of all steps at scales whose bits are an arithmetic progression, each zero point or one in turn."""
    rows = max(1, POINTS // CHUNK) * _rows(found)
    for part, z in enumerate(zeros):
        for i, start in enumerate(range(0, count, rows)):
            if not in_turn or i % len(zeros) == part:
                yield Tile("scales", first + start * stride, min(rows, count - start), stride, z)


def _subnormal(q: Quantizer, ends: Sequence[int | None]) -> Iterator[Tile]:
    """Every binade of the scale at the steps whose inputs may be subnormal there: ``|x / s| * s < 2**-126``.

    A step beside zero itself, which directed roundings have, has subnormal inputs up to scales of 2**24; below 1 they
    are 0 and the smallest subnormal at every scale.
    """
    for z in ends:
        size = np.abs(steps(q, z).middles)
        for field in FIELDS:
            chosen = (size < 2.0 ** (1 - field)) & (size >= 2.0**-100)
            if not chosen.any():
                break
            yield from _binade(field, chosen, z)
        for field in tiny_fields():
            yield from _binade(field, (size < 2.0**-100) & (size > 0), z)


def _binade(field: int, chosen: NDArray[np.bool_], zero_point: int | None) -> Iterator[Tile]:
    """All significands of a binade at some of the steps."""
    for first, end in _runs(chosen):
        count = min(BINADE, max(1, POINTS // CHUNK) * rows_at_once(2 * (end - first)))
        for start in range(0, BINADE, count):
            yield Tile("scales", (field << 23) + start, count, 1, zero_point, (first, end))


def _runs(chosen: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First and one past the last of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]])))
    yield from ((int(a), int(b)) for a, b in edges.reshape(-1, 2))


def _whole(points: Sequence[int | None]) -> Iterator[Tile]:
    for first, z in ((0, points[0]), (1 << 31, points[-1])):
        yield Tile("whole", first, SWEEP_COUNT, SWEEP_STRIDE, z, scale=ONE + 0x4CCCCD)


def _sweeps(ends: Sequence[int | None]) -> Iterator[Tile]:
    for i, scale in enumerate(SWEEP_SCALES):
        bits, z = int(np.float32(scale).view(np.uint32)), ends[i % len(ends)]
        for first in (0, 1 << 31):
            yield Tile("inputs", first, SWEEP_COUNT, SWEEP_STRIDE, z, scale=bits)
    for i, dtype in enumerate(("bfloat16", "float16")):
        for field in range(100 + i, 132, 4):  # scales within the range of the dtype
            yield Tile("dtype", field << 23, 8, 1_000_003, ends[field // 4 % len(ends)], dtype=dtype)


def _own(points: Sequence[int | None]) -> Iterator[Tile]:
    for i in range(OWN_TILES):
        first = ((120 + 8 * i) << 23) + 101 * i
        yield Tile("granularity", first, OWN, 131_071, points[i * (len(points) - 1) // (OWN_TILES - 1)])
