"""A documented fault, and the instruments that must find it: what each says of a function, in one line.

"" is what an instrument says of a function that is right. The words are those of the instrument; only examples (numbers
of one input) are left out, since the tables of the instruments' own tests hold them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samebits import core
from samebits.core import QParams, Quantizer, catalog
from samebits.proofs import LAWS, Implementation, applies, conformance, fingerprint
from samebits.proofs.conformance.rules import broken_scale_rule
from samebits.proofs.conformance.targets import Target
from samebits.proofs.conformance.verdicts import Verdict
from samebits.proofs.divergence.causes import Program, explain

Array = NDArray[Any]
Function = Callable[..., Any]
CORE = Implementation(
    "core", core.choose_qparams, core.quantize, core.dequantize, core.fake_quantize, core.fake_quantize_vjp
)


@dataclass(frozen=True)
class Question:
    """What is asked: both functions return the verdict of the instrument, of the fault and of the same without it."""

    instrument: str
    wrong: Callable[[], str]
    right: Callable[[], str]


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Args:
        id: its name here; ``system``: whose fault it was; ``source``: where it is documented.
        words: the fault, in one line.
        question: with which instrument it is found.
        verdict: what the instrument says, exactly.
        live: whether an installed library shows it, or a function that was written to have it.
        unnamed: why the verdict does not name the fault; "" where it does.
    """

    id: str
    system: str
    source: str
    words: str
    question: Question
    verdict: str
    live: bool = field(default=False, kw_only=True)
    unnamed: str = field(default="", kw_only=True)


def conforms(wrong: Function, right: Function, like: str | Quantizer = "int8_per_tensor", **how: Any) -> Question:
    """Both asked by `samebits.proofs.conformance`: the rules that are broken, each once."""

    def asked(function: Function) -> str:
        report = conformance(function, like, **how)
        rules = [example[-1].partition(" ")[2].strip() for finding in report.findings for example in finding.examples]
        return " | ".join(dict.fromkeys(_without_numbers(rule) for rule in rules))

    return Question("conformance", lambda: asked(wrong), lambda: asked(right))


def computes(wrong: Target, right: Target, *conduct: str) -> Question:
    """Both asked by `samebits.proofs.fingerprint`: the fields that the wrong one has otherwise.

    Args:
        conduct: what of its conduct is to be said, too.
    """

    def different() -> str:
        verdict, known = _print(wrong), _print(right)
        if verdict.fault:
            return verdict.fault
        said = [
            f"{name}={value}"
            for name, value in verdict.fields.items()
            if value not in known.undetermined.get(name, (known.fields.get(name),))
        ]
        said += [f"{name}: {verdict.conduct[name]}" for name in conduct if name in verdict.conduct]
        return ", ".join([*said, *([] if verdict.recognised else ["none of the candidates"])])

    def none() -> str:
        known = _print(right)
        return known.fault if known.fault else "" if known.recognised else known.words

    return Question("fingerprint", different, none)


def chooses(wrong: Function, right: Function, like: str | Quantizer, x: Array) -> Question:
    """Scales of the rows of x, asked by what `samebits verify` has for them: the rule that the first wrong one breaks."""
    q = catalog[like] if isinstance(like, str) else like
    shape = (1, x.shape[1])
    expected = np.stack([np.asarray(core.choose_qparams(q, row.reshape(shape)).scale).reshape(-1) for row in x])

    def asked(scale: Function) -> str:
        got = np.stack([np.asarray(scale(row)).reshape(-1) for row in x]).astype(expected.dtype)
        differ = np.flatnonzero((got != expected).any(1))
        return broken_scale_rule(q, x, shape, "scale", got, int(differ[0])) if len(differ) else ""

    return Question("verify", lambda: asked(wrong), lambda: asked(right))


def compiled(wrong: Program, right: Program, mode: str) -> Question:
    """Both asked by `divergence.causes.explain`: what the mode does to which operation."""

    def asked(program: Program) -> str:
        found = explain(program, mode)
        said = [cause.change.kind for cause in found.causes]
        return ", ".join([*said, *([f"{found.unexplained} unexplained"] if found.unexplained else [])])

    return Question(f"causes, {mode}", lambda: asked(wrong), lambda: asked(right))


def obeys(q: Quantizer | str, x: Array, qparams: QParams | None = None, right: Any = None, **wrong: Function) -> Question:
    """Our specification with functions replaced, asked by all laws that apply: those that it breaks.

    Args:
        right: what takes their place without the fault, by name; None for our own.
        wrong: by name of the field of `Implementation`.
    """
    known = catalog[q] if isinstance(q, str) else q
    given = qparams or core.choose_qparams(known, x)
    g = np.random.default_rng(1).standard_normal(x.shape).astype(x.dtype)

    def asked(functions: dict[str, Function]) -> str:
        mine = replace(CORE, **functions)  # type: ignore[arg-type]
        broken = []
        for name, law in LAWS.items():
            if name == "equals_specification" or not applies(name, known):
                continue
            try:
                law(mine, known, x, given, g)
            except AssertionError:
                broken.append(name)
        return ", ".join(broken)

    return Question("laws", lambda: asked(wrong), lambda: asked(right or {}))


@cache
def _print(target: Target) -> Verdict:
    return fingerprint(target)


def _without_numbers(rule: str) -> str:
    """The rule without the quotient of the example."""
    return re.sub(r"(; |: )x / scale is [-+.e0-9infa]+, the code must be.*", "", rule)
