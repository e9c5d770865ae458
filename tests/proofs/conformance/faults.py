"""Faults that others have documented, or that their libraries show: what each is, and what must be said of it.

The words stand in `faults.toml`; what is asked, under the same name, in `questions_of_*.py`. The page of them:

    python -m tests.proofs.conformance.faults        # writes docs/rediscovery.md
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from ...project.source import ROOT
from . import questions_of_codes, questions_of_floats, questions_of_programs, questions_of_scales
from .instruments import Question

PAGE = ROOT / "docs" / "rediscovery.md"
QUESTIONS: dict[str, Question] = {
    **questions_of_codes.QUESTIONS,
    **questions_of_floats.QUESTIONS,
    **questions_of_scales.QUESTIONS,
    **questions_of_programs.QUESTIONS,
}


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Args:
        name: its name here; ``system``: whose fault it was.
        source: where it is documented: an issue, a commit, or the release that was seen to do it.
        fault: what is wrong, in one line.
        verdict: what the instrument says, exactly.
        live: whether an installed library shows it, or a function that was written to have it.
        unnamed: why the verdict does not name the fault; "" where it does.
    """

    name: str
    system: str
    source: str
    fault: str
    verdict: str
    live: bool = False
    unnamed: str = ""


FAULTS = tuple(
    Fault(name, **row) for name, row in tomllib.loads(Path(__file__).with_suffix(".toml").read_text()).items()
)

HEAD = """# Rediscovery

Quantizers have gone wrong in many ways. Those that are documented are planted here, one at a time, in a function that
is right but for that; or an installed library shows them, live. An instrument is asked what the function computes, and
must say exactly what stands in the last column; of the same function without the fault it must say that nothing
differs. The tests check both.

{count} faults, {live} of them live; {unnamed} are found without being named.

Found by: `conformance` is `samebits.proofs.conformance` ([conformance](conformance.md)), `fingerprint` is
`samebits fingerprint` ([fingerprint](fingerprint.md)), `verify` is what `samebits verify` says of chosen scales
([vectors](vectors.md)), `causes` is `samebits diverge --cause` ([numerics](numerics.md)), `laws` are
`samebits.proofs.LAWS` ([the tutorial](tutorials/test_your_quantizer.md)). A bar stands between the rules that different
inputs break. A source is an issue or a commit, or the release that was seen to do it.

The table is written by `python -m tests.proofs.conformance.faults`.

| fault | of | source | | found by | verdict |
|---|---|---|---|---|---|
"""
UNNAMED = """
## Found, not named

| fault | why |
|---|---|
"""


def page() -> str:
    """The page, from the data alone."""
    unnamed = [fault for fault in FAULTS if fault.unnamed]
    live = sum(fault.live for fault in FAULTS)
    rows = [
        (
            fault.fault,
            fault.system,
            fault.source,
            "live" if fault.live else "planted",
            QUESTIONS[fault.name].instrument,
            fault.verdict,
        )
        for fault in FAULTS
    ]
    text = HEAD.format(count=len(FAULTS), live=live, unnamed=len(unnamed)) + "".join(map(_row, rows))
    return text + UNNAMED + "".join(_row((fault.fault, fault.unnamed)) for fault in unnamed)


def _row(cells: tuple[str, ...]) -> str:
    return (
        "| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_") for cell in cells) + " |\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page())
