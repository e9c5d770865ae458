"""`samebits verify`: another implementation's answers to test vectors, judged section by section.

Codes, values, scales and zero points must have the bits of the vectors, any NaN equal to any NaN; gradients of scales
and zero points, which are sums, must lie within the bound that the vectors state.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import Quantizer
from ..inputs.compare import describe
from .elements import Asked, unlike
from .results import parse
from .rules import Likeness, broken_rule, broken_scale_rule, likeness
from .vector_files import read
from .vectors import Section

Array = NDArray[Any]


@dataclass(frozen=True)
class Example:
    """The first answer of a column that is not right.

    Args:
        row: of the table, from 0; ``part``: where the row comes from; ``place``: in an array of a row, else None.
        inputs: by column, in decimal, as hexadecimal float and in bits; those that are arrays stay away.
        expected, got: in the same way. ``bound``: how far they may lie apart, where they are sums.
        rule: that is broken.
    """

    row: int
    part: str
    place: int | None
    inputs: Mapping[str, str]
    expected: str
    got: str
    bound: float | None
    rule: str


@dataclass(frozen=True)
class Judged:
    """One column of one section: how many answers were compared and how many are not right; or not answered."""

    section: str
    column: str
    answered: bool
    compared: int = 0
    differing: int = 0
    example: Example | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of it.

    Args:
        name: of the quantizer; ``dialect``: of it, or None.
        columns: every column of every section that expects answers, in the order of the vectors.
        like: by section of elements that was answered, which dialects have these answers.
    """

    name: str
    dialect: str | None
    columns: tuple[Judged, ...]
    like: Mapping[str, Likeness]

    @property
    def same(self) -> bool:
        """Whether something was answered and nothing is wrong."""
        return self.answered > 0 and not any(one.differing for one in self.columns)

    @property
    def answered(self) -> int:
        """How many columns were."""
        return sum(one.answered for one in self.columns)


def verify(folder: Path, results: Path) -> Verdict:
    """Judge a file of results by the vectors of a directory.

    Raises:
        VectorError: a directory whose digests are wrong or that has no vectors; a file of results that cannot be read,
            names what is not there, or has another number of rows.
    """
    vectors = read(folder)
    answered = parse(results, vectors.sections)
    columns, like = [], {}
    for name, section in vectors.sections.items():
        got = answered.get(name, {})
        columns += list(_judge(vectors.quantizer, section, got))
        if name.startswith("elements.") and got:
            defined = None if "code" not in section.undefined else ~section.undefined["code"]
            flat = {column: values[:, 0] for column, values in got.items()}
            like[name] = likeness(vectors.quantizer, _asked(section), flat, defined)
    return Verdict(vectors.name, vectors.dialect, tuple(columns), like)


def _judge(q: Quantizer, section: Section, got: Mapping[str, Array]) -> Iterator[Judged]:
    for column in section.columns:
        if column.role != "expected":
            continue
        if column.name not in got:
            yield Judged(section.name, column.name, False)
            continue
        expected, answer = section.data[column.name], got[column.name]
        wrong = unlike(expected, answer)
        bound = section.data.get(f"{column.name}_bound")
        if bound is not None:
            with np.errstate(all="ignore"):
                wrong &= ~(np.abs(expected.astype(np.float64) - answer.astype(np.float64)) <= bound)
        asked = np.ones(wrong.shape, np.bool_)
        if column.name in section.undefined:
            asked &= ~section.undefined[column.name][:, None]
        wrong &= asked
        count = int(np.count_nonzero(wrong))
        example = _example(q, section, column.name, answer, np.argwhere(wrong)[0]) if count else None
        yield Judged(section.name, column.name, True, int(np.count_nonzero(asked)), count, example)


def _example(q: Quantizer, section: Section, column: str, got: Array, where: Array) -> Example:
    row, place = int(where[0]), int(where[1])
    expected, bound = section.data[column], section.data.get(f"{column}_bound")
    inputs = {}
    for given in section.columns:
        values = section.data[given.name]
        if given.role == "given" and given.count in (1, expected.shape[1]):
            inputs[given.name] = describe(values[row, place if given.count > 1 else 0])
    limit = None if bound is None else float(bound[row, place])
    return Example(
        row,
        next(part.what for part in section.parts if part.first <= row < part.first + part.rows),
        place if section.shape is not None else None,
        inputs,
        describe(expected[row, place]),
        describe(got[row, place]),
        limit,
        _rule(q, section, column, got, row),
    )


def _rule(q: Quantizer, section: Section, column: str, got: Array, row: int) -> str:
    kind = section.name.partition(".")[0]
    if kind == "parameters":
        return broken_scale_rule(q, section.data["x"], section.shape or (), column, got, row)
    if kind == "gradients":
        return "sum: of exactly these terms, each operation rounded, within the bound"
    if kind == "codes":
        return "value: must be (code - zero_point) * scale, rounded once"
    return broken_rule(q, _asked(section), column, section.data[column][:, 0], got[:, 0], row)


def _asked(section: Section) -> Asked:
    zero = section.data.get("zero_point")
    return Asked(
        section.data["x"][:, 0],
        section.data["scale"][:, 0],
        None if zero is None else zero[:, 0],
        section.data["g"][:, 0],
    )


def example_lines(example: Example) -> list[str]:
    """An example in words, one line for each number."""
    place = "" if example.place is None else f", number {example.place}"
    lines = [f"row {example.row}{place} ({example.part})"]
    lines += [f"{name:<10} {text}" for name, text in example.inputs.items()]
    lines += [f"{'expected':<10} {example.expected}", f"{'got':<10} {example.got}"]
    if example.bound is not None:
        lines.append(f"{'bound':<10} {example.bound!r}")
    return [*lines, f"{'rule':<10} {example.rule}"]
