"""The instruments that must find documented faults: what each says of a function, in one line.

"" is what an instrument says of a function that is right. The words are those of the instrument; only examples (numbers
of one input) are left out, since the tables of the instruments' own tests hold them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from samebits import core
from samebits.core import QParams, Quantizer, catalog
from samebits.core.granularity import qparams_shape
from samebits.proofs import LAWS, Implementation, applies, conformance, fingerprint
from samebits.proofs.conformance.files import attribute
from samebits.proofs.conformance.rules import broken_scale_rule
from samebits.proofs.conformance.targets import Target
from samebits.proofs.conformance.verdicts import Verdict
from samebits.proofs.divergence.causes import Explanation, Program, explain, explained, run, trace

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


def conforms(wrong: Function, right: Function, like: str | Quantizer = "int8_per_tensor", **how: Any) -> Question:
    """Both asked by `samebits.proofs.conformance` at knife edges of the quantizer alone: rules broken, each once.

    Edges of the function itself add rules that hold for a part of the fault (32 bits of "32 or 64").
    """

    def asked(function: Function) -> str:
        report = conformance(function, like, **{"spacing": 0, **how})
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
    """Scales of the rows of x, asked as `samebits verify` does: the rule that the first wrong one breaks."""
    q = catalog[like] if isinstance(like, str) else like
    shape = (1, x.shape[1])
    expected = np.stack([np.asarray(core.choose_qparams(q, row.reshape(shape)).scale).reshape(-1) for row in x])

    def asked(scale: Function) -> str:
        got = np.stack([np.asarray(scale(row)).reshape(-1) for row in x]).astype(expected.dtype)
        differ = np.flatnonzero((got != expected).any(1))
        return _without_numbers(broken_scale_rule(q, x, shape, "scale", got, int(differ[0]))) if len(differ) else ""

    return Question("verify", lambda: asked(wrong), lambda: asked(right))


def written(wrong: Any, right: Any) -> Question:
    """Files of int8 rows with codes from float32 scales, which are stored in these dtypes: what `attribute` says."""
    x = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    scale = np.abs(x).max(1, keepdims=True) / np.float32(127)

    def asked(dtype: Any) -> dict[str, str]:
        with TemporaryDirectory() as folder:
            quantized, original = (Path(folder) / f"{name}.safetensors" for name in ("quantized", "original"))
            save_file({"w": x}, original)
            codes = np.clip(np.rint(x / scale), -128, 127).astype(np.int8)
            save_file({"w": codes, "w_scale": scale.astype(dtype)}, quantized)
            (found,) = attribute(quantized, original)
        return found.fields | ({} if found.explained == 1 else {"explained": "in part"})

    def different() -> str:
        known = asked(right)
        return ", ".join(f"{name}={value}" for name, value in asked(wrong).items() if value != known.get(name))

    return Question("fingerprint of a file", different, lambda: asked(right).get("explained", ""))


def compiled(wrong: Program, right: Program, mode: str) -> Question:
    """Both asked by `causes.explain`: what the mode does to the program, or the first operation it cannot explain."""

    def asked(program: Program) -> str:
        return _said_of(explain(program, mode))

    return Question(f"causes, {mode}", lambda: asked(wrong), lambda: asked(right))


def planted_in(program: Program, framework: str, wrong: Function) -> Question:
    """The same for results that a function of NumPy gives in place of the program."""

    def asked(got: list[Array]) -> str:
        return _said_of(explained(program, f"{framework} eager", trace(program, framework), got))

    return Question(
        "causes", lambda: asked([wrong(*program.arguments)]), lambda: asked(run(program, f"{framework} eager"))
    )


def _said_of(found: Explanation) -> str:
    said = [cause.change.kind for cause in found.causes]
    return ", ".join([*said, *([f"unexplained, first {found.first}"] if found.unexplained else [])])


def obeys(
    q: Quantizer | str, x: Array, *, choose: Function | None = None, vjp: Function | None = None, scale: float = 0.05
) -> Question:
    """Our specification with one function replaced, asked by all laws that apply: those that it breaks.

    Args:
        choose: ``(q, x) -> QParams``; ``vjp``: as `core.fake_quantize_vjp`.
        scale: of all blocks, where none is chosen.
    """
    known = catalog[q] if isinstance(q, str) else q
    given = QParams(np.full(qparams_shape(known.granularity, x.shape), scale, np.float32))
    g = np.random.default_rng(1).standard_normal(x.shape).astype(x.dtype)

    def asked(mine: Implementation) -> str:
        broken = []
        for name, law in LAWS.items():
            if name == "equals_specification" or not applies(name, known):
                continue
            try:
                law(mine, known, x, given, g)
            except AssertionError:
                broken.append(name)
        return ", ".join(broken)

    changed = CORE
    if choose is not None:
        changed = replace(
            changed,
            choose_qparams=choose,
            fake_quantize=lambda q, x, p=None: core.fake_quantize(q, x, p or choose(q, x)),
        )
    if vjp is not None:
        changed = replace(changed, fake_quantize_vjp=vjp)
    return Question("laws", lambda: asked(changed), lambda: asked(CORE))


@cache
def _print(target: Target) -> Verdict:
    return fingerprint(target)


def _without_numbers(rule: str) -> str:
    """The rule without the quotient of the example and without counts."""
    rule = re.sub(r" in \d+ of \d+ blocks", "", rule)
    return re.sub(r"(; |: )x / scale is [-+.e0-9infa]+, the code must be.*", "", rule)
