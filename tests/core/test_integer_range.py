"""Ranges of integers after arithmetic: every result lies within, the ends are met, and the width has room for them."""

import itertools
from collections.abc import Callable, Iterable

import pytest

from samebits.core.formats import BinaryFormat, FloatFormat, IntegerFormat, TernaryFormat
from samebits.core.integer_range import CARRIERS, IntegerRange, integer_range

Range = IntegerRange
FORMATS = [
    IntegerFormat(b, s, n)
    for b, s, n in itertools.product((1, 2, 3, 4), (True, False), (True, False))
    if b > 1 or not n
]
RANGES = [*map(integer_range, FORMATS), IntegerRange(-1, 1, 2, True), IntegerRange(0, 2, 5, True)]

UNARY: dict[str, tuple[Callable[[Range], Range], Callable[[int], int]]] = {
    "negated": (Range.negated, lambda a: -a),
    "magnitude": (Range.magnitude, abs),
    "rectified": (Range.rectified, lambda a: max(a, 0)),
}
BINARY: dict[str, tuple[Callable[[Range, Range], Range], Callable[[int, int], Iterable[int]]]] = {
    "plus": (Range.plus, lambda a, b: (a + b,)),
    "minus": (Range.minus, lambda a, b: (a - b,)),
    "times": (Range.times, lambda a, b: (a * b,)),
    "joined": (Range.joined, lambda a, b: (a, b)),
    "contracted": (lambda r, s: r.contracted(s, 3), lambda a, b: (0, a * b, 3 * a * b)),
}


def integers(r: Range) -> range:
    return range(r.lo, r.hi + 1)


def check(r: Range, results: set[int]) -> None:
    """Both ends are met and no result lies outside, nor outside what the name of the range allows."""
    assert (r.lo, r.hi) == (min(results), max(results))
    assert r.ends[0] <= r.lo <= r.hi <= r.ends[1]
    assert r.ends == ((-(2 ** (r.bits - 1)), 2 ** (r.bits - 1) - 1) if r.signed else (0, 2**r.bits - 1))


@pytest.mark.parametrize("name", UNARY)
def test_ranges_of_one(name: str) -> None:
    derived, computed = UNARY[name]
    for r in RANGES:
        assert r is not None
        check(derived(r), {computed(a) for a in integers(r)})


@pytest.mark.parametrize("name", BINARY)
def test_ranges_of_two(name: str) -> None:
    derived, computed = BINARY[name]
    for r, s in itertools.product(RANGES, RANGES):
        assert r is not None
        assert s is not None
        check(derived(r, s), {c for a in integers(r) for b in integers(s) for c in computed(a, b)})


def test_sums_and_centred_codes() -> None:
    for r in RANGES:
        assert r is not None
        check(r.summed(5), {0, *(5 * a for a in integers(r))})
        check(r.centred(), {a - z for a in integers(r) for z in integers(r)})


@pytest.mark.parametrize(
    ("r", "bits"),
    [
        (Range(-8, 7, 4, True).negated(), 5),  # -(-8) has no place in 4 bits, and Brevitas gives it 4
        (Range(-7, 7, 4, True).negated(), 4),
        (Range(-8, 7, 4, True).magnitude(), 4),  # 8 in 4 unsigned bits; Brevitas gives it 3
        (Range(0, 15, 4, False).negated(), 5),
        (Range(-8, 7, 4, True).plus(Range(-8, 7, 4, True)), 5),
        (Range(-8, 7, 4, True).plus(Range(0, 15, 4, False)), 6),  # 22; Brevitas gives it 5 signed bits
        (Range(-128, 127, 8, True).times(Range(-128, 127, 8, True)), 16),
        (Range(0, 255, 8, False).contracted(Range(-127, 127, 8, True), 8), 19),
        (Range(0, 1, 1, False).contracted(Range(-128, 127, 8, True), 257), 17),  # -32896; Brevitas gives it 16
        (Range(0, 255, 8, False).summed(4), 10),
    ],
)
def test_widths(r: Range, bits: int) -> None:
    assert r.bits == bits


def test_formats_and_carriers() -> None:
    assert integer_range(FloatFormat(4, 3)) is None
    assert integer_range(BinaryFormat()) == integer_range(TernaryFormat()) == IntegerRange(-1, 1, 2, True)
    assert [Range(-n, n, 1, True).carrier for _, n in CARRIERS] == [name for name, _ in CARRIERS]
    assert Range(-(2**22) - 1, 0, 1, True).carrier == "float64"
    assert Range(0, 2**51 + 1, 1, False).carrier is None
    names = [(8, True), (8, False), (9, False), (31, False), (32, False), (32, True), (33, True)]
    stored = [Range(0, 0, b, s).storage for b, s in names]
    assert stored == ["int8", "uint8", "int32", "int32", "int64", "int32", "int64"]


@pytest.mark.parametrize("ends", [(1, 0, 8, True), (-1, 0, 8, False)])
def test_refused(ends: tuple[int, int, int, bool]) -> None:
    with pytest.raises(ValueError, match="must be ends of a range"):
        IntegerRange(*ends)
