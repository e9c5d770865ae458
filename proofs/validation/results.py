"""What a validation says: a verdict on every output and on what a module computes between its parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Any

Model = Callable[..., Any]
Inputs = Mapping[str, Any] | Sequence[Any] | Any
FAR = 1e20  # times a bound that is nothing but the smallest number


class ValidationError(ValueError):
    """Models that cannot be compared: not paired, inputs that do not fit, an exception inside; one line that says what.

    It is a `ValueError`; the command line ends with exit code 2.
    """


class Verdict(StrEnum):
    """What is said of a place."""

    SAME = "same bits"
    WITHIN = "within the bound"
    BEYOND = "beyond the bound"
    UNBOUNDED = "no bound known"
    """An operation of torch has no rule in `bounds`, and the bits are not the same."""


@dataclass(frozen=True)
class Example:
    """The element beyond its bound whose input is smallest.

    Attributes:
        index: in the value of torch.
        torch, jax: what either side computes there.
        bound: how far apart they may be.
        inputs: the slice that went in, of that row: its first numbers in row-major order; empty where none belongs to
            the row.
        row: index of that row along the first axis: this row of the model's inputs shows the difference alone, unless
            the model mixes rows.
    """

    index: tuple[int, ...]
    torch: float
    jax: float
    bound: float
    inputs: tuple[float, ...] = ()
    row: int | None = None


@dataclass(frozen=True)
class Row:
    """One place of the two models, in the order in which torch gets there.

    Attributes:
        torch, jax: path of the module in either model; "" is the model itself.
        what: "output" of the module, or "input": what the module around it hands to it.
        kind: class of the torch module.
        verdict: see `Verdict`.
        distance: largest ``|torch - jax|``, infinite where shapes or special values differ.
        ratio: largest ``|torch - jax| / bound``; None where no bound is known.
        differing, compared: elements of other bits, of all.
        reason: of a difference that is none of numbers: shape, dtype, or the operation that has no bound.
        explanations: usual mistakes that give the numbers of JAX within their bound, the likeliest first.
        hints: of a row within its bound, mistakes with which it would be much nearer; a worst case hides small ones.
        example: of a row beyond its bound.
    """

    torch: str
    jax: str
    what: str
    kind: str
    verdict: Verdict
    distance: float = 0.0
    ratio: float | None = 0.0
    differing: int = 0
    compared: int = 0
    reason: str = ""
    explanations: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    example: Example | None = None

    @property
    def place(self) -> str:
        """Where it is, in words."""
        name = self.torch or "the model"
        return name if self.what == "output" else f"input of {name}"


@dataclass(frozen=True)
class Validation:
    """What came of comparing two models.

    Attributes:
        rows: in order of execution.
        pairs: path in torch, path in JAX.
        unpaired: paths of layers without a partner, of either model: they are part of what is around them.
        whole: largest distance between the results of the two models, each on its own.
        stopped: why the port was not followed to its end, or "".
        torch_model, jax_model: what they are called.
    """

    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, str], ...]
    unpaired: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    whole: float = 0.0
    stopped: str = ""
    torch_model: str = field(default="", compare=False)
    jax_model: str = field(default="", compare=False)

    @property
    def beyond(self) -> tuple[Row, ...]:
        """The rows that rounding does not explain, in order of execution."""
        return tuple(row for row in self.rows if row.verdict is Verdict.BEYOND)

    @property
    def hinted(self) -> tuple[Row, ...]:
        """Rows within their bound that a mistake would bring much nearer."""
        return tuple(row for row in self.rows if row.hints)

    @property
    def first(self) -> Row | None:
        """The first of them."""
        return next(iter(self.beyond), None)

    @property
    def right(self) -> bool:
        """Whether the port computes what torch computes, but for rounding, wherever a bound is known."""
        judged = all(row.verdict in (Verdict.SAME, Verdict.WITHIN) for row in self.rows)
        return judged and not self.stopped and bool(self.rows)

    @property
    def mistakes(self) -> tuple[str, ...]:
        """Every explanation that comes first somewhere, in order of execution."""
        return tuple(dict.fromkeys(row.explanations[0] for row in self.rows if row.explanations))

    def __str__(self) -> str:
        counts = {verdict: sum(row.verdict is verdict for row in self.rows) for verdict in Verdict}
        lines = [", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)]
        lines += [_line(row) for row in self.rows if row.verdict in (Verdict.BEYOND, Verdict.UNBOUNDED)]
        lines += [f"{row.place}: within its bound, but nearer with {' or '.join(row.hints)}" for row in self.hinted]
        return "\n".join(lines + ([f"stopped: {self.stopped}"] if self.stopped else []))


def _line(row: Row) -> str:
    return f"{row.place}: {distance_in_words(row)}; {_explained(row.explanations)}"


def distance_in_words(row: Row) -> str:
    """How far apart a row is: in multiples of its bound where that says something."""
    if row.reason:
        return row.reason
    if row.ratio is None:
        return "no bound is known"
    if row.ratio > FAR:
        return "other numbers, where nothing is rounded" if row.distance < inf else "special values on one side alone"
    return f"{row.ratio:.3g} times its bound"


def _explained(explanations: Sequence[str]) -> str:
    return f"explained by: {' or: '.join(explanations)}" if explanations else "no usual mistake explains it"
