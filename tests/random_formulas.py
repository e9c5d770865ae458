"""Formulas drawn at random, over all primitives, and the arrays that they are asked about.

A formula is a list of lines ``v = <operation of earlier values>``, so that values are used several times, and gradients
meet. Values have the shape of ``x``, of its rows, its columns, or none.
"""

import linecache
import random
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samebits.core import formats
from samebits.core import formula as p
from samebits.core.prototype import Prototype
from samebits.proofs import prototype

from .exact import DTYPES

Array = NDArray[Any]
ROWS, COLUMNS = SHAPE = (8, 12)
NUMBERS = (
    *("0.0", "-0.0", "1.0", "-1.0", "0.5", "2.0", "-1.5", "3.0", "0.1", "7.0", "-128.0", "127.0", "16777217.0", "1e-5"),
    *("1e-45", "1e-40", "-1e-39", "1.1754944e-38", "1e-30", "6e-8", "1e20", "3e38", "-7e4", "inf", "-inf", "nan"),
)
TAME = ("0.0", "-0.0", "1.0", "0.5", "2.0", "-1.5", "3.0", "0.1", "7.0", "-128.0", "127.0")
SPECIAL = (0, -0.0, 1e-45, -1e-45, 1e-39, -5e-39, np.inf, -np.inf, np.nan, 1.1754944e-38, -1.1754942e-38, 3.4e38, 3e-5)
DIRECTIONS = ("ties_to_even", "ties_to_away", "ties_toward_positive", "toward_zero", "toward_positive", "dpu")
FORMATS = {
    "int4": formats.IntegerFormat(4),
    "e4m3": formats.FLOAT8_E4M3FN,
    "e2m1": formats.FLOAT4_E2M1,
    "binary": formats.BinaryFormat(),
    "ternary": formats.TernaryFormat(0.5),
    "nf4": formats.NF4,
}
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
FUNCTIONS = ("exp", "exp2", "log", "log2", "tanh", "sigmoid", "erf", "sqrt")
SIGNS = ("-{a}", "abs({a})", "p.sign({a})")
WHOLE = ("p.floor({a})", "p.ceil({a})", "p.trunc({a})", "round({a})", "p.exponent({a})", "p.significand({a})")
REDUCED = ("absmax", "amax", "amin", "sum", "mean")
ELEMENTWISE = "elementwise"  # one of the kinds of formulas: those that go by pieces in torch
_names = count()


class Line(NamedTuple):
    """A value: what it is computed by, of operands by name (or numbers), and its shape."""

    name: str
    text: str  # with {a}, {b}, ... in the place of operands
    operands: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def code(self) -> str:
        """As Python."""
        return self.text.format(**dict(zip("abcdef", self.operands, strict=False)))


class Drawn:
    """Draws lines, one after the other."""

    def __init__(self, rng: random.Random, dtype: str, elementwise: bool, functions: bool) -> None:
        self.rng, self.dtype, self.elementwise, self.functions = rng, dtype, elementwise, functions
        self.tame = rng.random() < 0.6  # as quantizers are: what plain arithmetic and pieces are for
        self.lines: list[Line] = []
        self.shapes: dict[str, tuple[int, ...]] = {"x": SHAPE, "s": ()}
        if not elementwise:
            self.shapes |= {"r": (ROWS, 1)}

    def value(self, full: bool = False) -> str:
        """The name of a value, a late one more often than not."""
        names = [n for n, shape in self.shapes.items() if shape == SHAPE or not full]
        return self.rng.choice(names[-3:] if self.rng.random() < 0.6 else names)

    def operand(self) -> str:
        if self.tame and self.rng.random() < 0.25:
            return "s"
        return self.rng.choice(TAME if self.tame else NUMBERS) if self.rng.random() < 0.35 else self.value()

    def put(self, text: str, *operands: str, shape: tuple[int, ...] | None = None) -> str:
        name = f"v{len(self.lines)}"
        if shape is None:
            shape = np.broadcast_shapes(*(self.shapes.get(one, ()) for one in operands))
        self.lines.append(Line(name, text, operands, shape))
        self.shapes[name] = shape
        return name

    def pair(self) -> tuple[str, str]:
        """Of which one at least is a value."""
        pair = [self.value(), self.operand()]
        self.rng.shuffle(pair)
        return pair[0], pair[1]

    def condition(self, depth: int = 1) -> tuple[str, list[str]]:
        """Text with {} for operands."""
        if depth and not self.elementwise and self.rng.random() < 0.2:
            (a, of_a), (b, of_b) = self.condition(0), self.condition(0)
            return f"({a}) {self.rng.choice('&|')} ({b})", [*of_a, *of_b]
        if self.rng.random() < 0.15:
            return self.rng.choice(("p.is_nan({})", "p.is_finite({})")), [self.value()]
        return "{} " + self.rng.choice(COMPARISONS) + " {}", list(self.pair())

    def select(self) -> str:
        text, compared = self.condition()
        letters = iter("abcd")
        text = text.format(*("{" + next(letters) + "}" for _ in compared))
        others = [self.rng.choice(compared) if self.rng.random() < 0.5 else self.operand() for _ in range(2)]
        if all(one in NUMBERS for one in others):
            others[0] = self.value()
        return self.put(
            f"p.where({text}, {{{'abcdef'[len(compared)]}}}, {{{'abcdef'[len(compared) + 1]}}})", *compared, *others
        )

    def reduction(self) -> str:
        a, name = self.value(full=True), self.rng.choice(REDUCED)
        match self.rng.randrange(5):
            case 0:
                return self.put(f"p.{name}({{a}})", a, shape=())
            case 1:
                return self.put(f"p.{name}({{a}}, 1, True)", a, shape=(ROWS, 1))
            case 2:
                return self.put(f"p.{name}({{a}}, axis=0)", a, shape=(COLUMNS,))
            case 3:
                return self.put(f"p.percentile({{a}}, {self.rng.choice((0, 40, 99.5))}, 1, True)", a, shape=(ROWS, 1))
            case _:
                operator, size = self.rng.choice("+-*/"), self.rng.choice((2, 4, 3, 24))
                blocks = f"({{a}}).reshape(-1, {size})"
                whole = f"({blocks} {operator} p.{name}({blocks}, -1, True)).reshape{SHAPE}"
                return self.put(whole, a)

    def moved(self) -> str:
        a = self.value(full=True)
        text = self.rng.choice(
            (
                "{a}.transpose().reshape(8, 12)",
                "p.broadcast_to({a}[3:4], (8, 12))",
                "p.broadcast_to({a}[:, ::12], (8, 12)) * {a}",
                "p.take(p.constant((0.5, -1e-40, 3.0, -0.0), x), {a})",
                "p.take(p.constant((0.5, -1.0, 3.0, -0.0), x) * s, {a})",
                "p.take({a}[:, 1], {a})",
            )
        )
        return self.put(text, a, *(["s"] if " s" in text else []), shape=SHAPE)

    def cast(self) -> str:
        other = self.rng.choice([d for d in ("bfloat16", "float16", "float32") if d != self.dtype])
        text = self.rng.choice(
            (
                "p.cast({a}, '%s')",
                "p.cast({a}, '%s') * 0.3",
                "p.clamp(p.cast({a}, '%s'), -0.7, 2.0)",
                "abs(p.cast({a}, '%s') / 3.0 - 1.0)",
            )
        )
        return self.put(f"p.cast({text % other}, '{self.dtype}')", self.value())

    def line(self) -> str:
        """One more value."""
        rng = self.rng
        others = (30, 8, 8, 10, 8, 6, 6, 5 * self.functions, 12, 4, 6, 3, 3 * (not self.elementwise))
        tame = (40, 6, 14, 16, 5, 2, 2, 0, 12, 1, 4, 1, not self.elementwise)
        match rng.choices(range(13), tame if self.tame else others)[0]:
            case 0:
                return self.put("{a} " + rng.choice("+-*/") + " {b}", *self.pair())
            case 1:
                return self.put(f"p.{rng.choice(('minimum', 'maximum'))}({{a}}, {{b}})", *self.pair())
            case 2:
                return self.put("p.clamp({a}, {b}, {c})", self.value(), self.operand(), self.operand())
            case 3:
                return self.put("round({a})" if self.tame and rng.random() < 0.7 else rng.choice(WHOLE), self.value())
            case 4:
                return self.put(rng.choice(SIGNS), self.value())
            case 5:
                return self.put(f"p.round({{a}}, '{rng.choice(DIRECTIONS)}')", self.value())
            case 6:
                named = f"p.to_format({{a}}, FORMATS['{rng.choice(list(FORMATS))}'])"
                third = rng.choice(
                    ("p.copysign({a}, {b})", "p.scale_by_power({a}, {b})", "p.straight_through({a}, {b})")
                )
                return self.put(named, self.value()) if rng.random() < 0.3 else self.put(third, *self.pair())
            case 7:
                a = self.value()
                if rng.random() < 0.2:
                    return self.put("{a} ** {b}", a, self.operand())
                return self.put(f"p.{rng.choice(FUNCTIONS)}({{a}})", a)
            case 8:
                return self.select()
            case 9:
                return self.cast()
            case 10:
                return self.reduction() if not self.elementwise else self.select()
            case 11:
                return self.put("p.fused_multiply_add({a}, {b}, {c})", *self.pair(), self.operand())
            case _:
                return self.moved()


def drawn(seed: int, dtype: str = "float32", *, elementwise: bool = False, functions: bool = True) -> list[Line]:
    """A formula of four to ten lines, of which the last one depends on most."""
    rng = random.Random(seed)
    lines = Drawn(rng, dtype, elementwise, functions)
    for _ in range(rng.randint(3, 9)):
        last = lines.line()
    if lines.shapes[last] != SHAPE:
        lines.put("{a} " + rng.choice("+-*/") + " {b}", "x", last)
    return needed(lines.lines)


def needed(lines: Sequence[Line]) -> list[Line]:
    """Those on which the last one depends."""
    wanted, kept = {lines[-1].name}, []
    for line in reversed(lines):
        if line.name in wanted:
            wanted |= set(line.operands)
            kept.append(line)
    return kept[::-1]


def source(lines: Sequence[Line]) -> str:
    """A formula as Python."""
    used = {one for line in lines for one in line.operands}
    row = ", r=p.learned(lambda x: p.absmax(x, 1, True) / 7)" if "r" in used else ""
    body = "".join(f"    {line.name} = {line.code}\n" for line in lines)
    return f"def drawn(x, *, s=p.learned(0.3){row}):\n{body}    return {lines[-1].name}\n"


def formula(lines: Sequence[Line]) -> Prototype:
    """A formula as a prototype."""
    text, file = source(lines), f"<drawn {next(_names)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    named: dict[str, Any] = {"p": p, "FORMATS": FORMATS, "inf": float("inf"), "nan": float("nan")}
    exec(compile(text, file, "exec"), named)
    return prototype(named["drawn"])


class Inputs(NamedTuple):
    """What a formula is asked about: ``x``, the gradient of the result, and the parameters."""

    x: Array
    g: Array
    s: Array
    r: Array


def inputs(seed: int, dtype: str = "float32") -> Inputs:
    """Arrays in which numbers are ordinary, special, of any bits, halves, or at the bounds of plain arithmetic."""
    rng, kind = np.random.default_rng(seed), DTYPES[dtype]

    def array(shape: tuple[int, ...], sort: str) -> Array:
        near = rng.standard_normal(shape)
        match sort:
            case "near":
                value = near
            case "any bits":
                bits = rng.integers(0, 2**64, shape, dtype=np.uint64, endpoint=False)
                return np.where(rng.random(shape) < 0.2, near.astype(kind), bits.astype(f"u{kind.itemsize}").view(kind))
            case "halves":
                value = rng.integers(-9, 10, shape) / 2 * rng.choice([1, 1, 0.1], shape)
                value = np.where(value == 0, np.copysign(0, near), value)
            case "wide":
                value = near * np.exp2(rng.integers(-148, 127, shape))
            case "special":
                value = np.where(rng.random(shape) < 0.4, rng.choice(SPECIAL, shape), near)
            case _:  # from which on elements, scales and results are in bounds
                power = rng.choice([-64.0, -100, -24, 24, -126, -125, -62, 0, 1, 26, -26], shape)
                part = 1 + rng.integers(-3, 4, shape) * 2.0**-23
                value = (
                    np.sign(near)
                    * np.exp2(power if sort == "bounds" else np.abs(power).clip(0, 64) * np.sign(power))
                    * part
                )
                value = np.where(rng.random(shape) < 0.1, np.copysign(0, near), value)
                if sort == "in bounds":
                    value = np.where(np.abs(value) < 2.0**-64, np.copysign(2.0**-64, value), value)
        if not inside and rng.random() < 0.5:
            value = np.where(rng.random(shape) < 0.1, rng.choice(SPECIAL, shape), value)
        return value.astype(kind)

    inside = rng.random() < 0.3  # where plain arithmetic may do; its conditions are of scales first
    sorts = ("near", "halves", "in bounds") if inside else ("near", "any bits", "halves", "wide", "special", "bounds")
    of_x, of_g, of_r = rng.choice(sorts, 3)
    rows = array((ROWS, 1), of_r)
    if inside or rng.random() < 0.5:
        rows = np.where(np.isnan(rows), 1, np.clip(np.abs(rows.astype(np.float64)), 2.0**-24, 2.0**24)).astype(kind)
    ends = (0.3, 0.3, 7.0, 2.0**-24, 2.0**24, -(2.0**24), -1.0)
    others = (2.0**24 * (1 + 2.0**-23), 2.0**-24 * (1 - 2.0**-24), 1e-40, 0.0, np.nan, 1e30, -2.0)
    s = np.asarray(rng.choice(ends if inside or rng.random() < 0.6 else others)).astype(kind)
    return Inputs(array(SHAPE, of_x), array(SHAPE, of_g), s, rows)
