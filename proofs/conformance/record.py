"""What a target was asked and answered, and which candidates explain it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import Quantizer
from ..inputs.compare import describe
from .asking import REFUSED, Block, Fault, ask, keys
from .questions import predict, prediction_keys
from .targets import Kind, Target
from .verdicts import Evidence

Array = NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """Questions of one block, 1-D, and the answers, as they came (None where there was none) and as keys."""

    block: Block
    x: Array
    raw: Array | None
    special: bool

    @property
    def keys(self) -> Array:
        """Keys of the answers; `REFUSED` where the target raised."""
        return np.full(self.x.shape, REFUSED) if self.raw is None else keys(self.raw)


@dataclass
class Record:
    """All that was asked of a target so far."""

    target: Target
    answers: list[Answers] = field(default_factory=list)
    extra: int = 0  # inputs asked once more, or for another purpose
    notes: dict[str, str] = field(default_factory=dict)  # what to say of the target beside its fields
    _kept: tuple[int, int, list[tuple[Block, Array, Array]]] = field(default_factory=lambda: (0, 0, []))
    _counted: dict[Quantizer, tuple[int, int]] = field(default_factory=dict)  # answers looked at, mistakes in them

    @property
    def asked(self) -> int:
        """How many inputs the target was asked."""
        return self.extra + sum(len(a.x) for a in self.answers)

    def ask(self, block: Block, x: Array, *, special: bool = False) -> Answers:
        """Asks, and keeps the answers.

        Args:
            special: a target may refuse these; then that is its answer.

        Raises:
            Fault: as `asking.ask`, unless ``special``.
        """
        raw: Array | None
        try:
            raw = ask(self.target, block, x)
        except Fault as fault:
            if not (special and fault.what.startswith("raises")):
                raise
            raw = None
        found = Answers(block, x, raw, special)
        self.answers.append(found)
        return found

    def explains(self, q: Quantizer, answers: Answers) -> Array:
        """Which answers of a candidate are those of the target, all bits counted."""
        return np.asarray(self.expected(q, answers) == answers.keys)

    def expected(self, q: Quantizer, answers: Answers) -> Array:
        """Keys of what a candidate answers."""
        kind = self.target.kind
        return prediction_keys(predict(q, answers.block, answers.x, kind), kind)

    def mistakes(self, q: Quantizer) -> int:
        """How many answers a candidate does not explain."""
        seen, wrong = self._counted.get(q, (0, 0))
        if seen < len(self.answers):  # of the answers that came since
            wrong += sum(self._wrong(q, block, x, got) for block, x, got in self._merged(seen))
            self._counted[q] = len(self.answers), wrong
        return wrong

    def fewest_mistakes(self, candidates: Sequence[Quantizer]) -> list[Quantizer]:
        """The candidates that explain most; where some explain everything, the others are looked at no longer."""
        left = [q for q in candidates if not self._counted.get(q, (0, 0))[1]]
        for block, x, got in self._merged():
            left = [q for q in left if not self._wrong(q, block, x, got)]
        if left:
            return left
        wrong = [self.mistakes(q) for q in candidates]
        return [q for q, count in zip(candidates, wrong, strict=True) if count == min(wrong)]

    def _wrong(self, q: Quantizer, block: Block, x: Array, got: Array) -> int:
        kind = self.target.kind
        return int((prediction_keys(predict(q, block, x, kind), kind) != got).sum())

    def _merged(self, first: int = 0) -> list[tuple[Block, Array, Array]]:
        """The answers from some on, of every block in one array, those of special ones first, which tell most apart."""
        if self._kept[:2] != (first, len(self.answers)):
            by_block: dict[Block, list[Answers]] = {}
            for a in sorted(self.answers[first:], key=lambda a: not a.special):
                by_block.setdefault(a.block, []).append(a)
            merged = [
                (block, np.concatenate([a.x for a in own]), np.concatenate([a.keys for a in own]))
                for block, own in by_block.items()
            ]
            self._kept = first, len(self.answers), merged
        return self._kept[2]

    def first_mistake(self, q: Quantizer, unless: Quantizer | None = None) -> Evidence | None:
        """The smallest input whose answer a candidate does not explain, an ordinary one where there is one.

        Args:
            unless: only inputs whose answers this one explains.
        """
        found: tuple[tuple[bool, float], Answers, int] | None = None
        for a in self.answers:
            wrong = ~self.explains(q, a)
            if unless is not None:
                wrong &= self.explains(unless, a)
            for i in np.flatnonzero(wrong):
                size = abs(float(a.x[i]))
                rank = a.special, np.inf if np.isnan(size) else size
                if found is None or rank < found[0]:
                    found = rank, a, int(i)
        return None if found is None else self.evidence(q, found[1], found[2])

    def evidence(self, q: Quantizer, answers: Answers, i: int) -> Evidence:
        """One answer beside that of a candidate, in words."""
        predicted = predict(q, answers.block, answers.x[[i]], self.target.kind)[0]
        got = "an exception" if answers.raw is None else worded(answers.raw[i], self.target.kind)
        return Evidence(describe(answers.x[i]), str(answers.block), got, worded(predicted, self.target.kind))


def worded(value: Any, kind: Kind) -> str:
    """An answer or a prediction in words."""
    if kind is Kind.CODES:
        return "an exception" if np.isnan(float(value)) else f"code {int(value)}"
    return describe(value)
