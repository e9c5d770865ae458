"""What a run of `tests.matrix` found in each environment, and docs/versions.md of it. Standard library only."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

BEGIN, END = "<!-- made by `make matrix` -->", "<!-- end of what `make matrix` made -->"
SHOWN = ("Python", "numpy", "ml_dtypes", "torch", "jax", "flax", "safetensors", "hypothesis", "rich", "typer")
LISTED = 12  # failing tests that a page names


@dataclass(frozen=True)
class Result:
    """What came of one environment.

    Args:
        name: of the environment; ``words``: what it is.
        versions: of Python and of the libraries that are installed.
        passed, failed, skipped: tests; ``failures``: names of those that failed, and steps that could not be run.
        compared, differing: results of `samebits check`; ``ours``: results of ours that differ in `samebits diverge`.
        divergence: textbook results that differ, by the program and the two modes.
        checked: the quantizers that `samebits check` took, in words.
        left_out: test files that were not run, with the libraries that they need.
    """

    name: str
    words: str
    versions: Mapping[str, str] = field(default_factory=dict)
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: tuple[str, ...] = ()
    compared: int = 0
    differing: int = 0
    ours: int = 0
    divergence: Mapping[str, int] = field(default_factory=dict)
    checked: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether everything ran, nothing failed and nothing of ours differs."""
        ran = self.passed and self.compared and self.divergence
        return bool(ran) and not (self.failed or self.failures or self.differing or self.ours)


def save(result: Result, path: Path) -> None:
    """Write a result as JSON."""
    path.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Result | None:
    """A result as `save` wrote it; None where there is no such file."""
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    return Result(**{**data, "failures": tuple(data["failures"])})


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns after the first are set to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in (head, rule, *rows))


def environments(results: Sequence[Result]) -> str:
    """Which releases each environment holds."""
    names = [name for name in SHOWN if any(name in result.versions for result in results)]
    rows = [[name, *(result.versions.get(name, "-") for result in results)] for name in names]
    return table(["", *(f"{result.name}" for result in results)], rows)


def outcomes(results: Sequence[Result]) -> str:
    """What was run in each environment and what came of it."""
    rows: list[list[object]] = [
        ["tests passed", *(f"{result.passed:,}" for result in results)],
        ["tests failed", *(f"{result.failed:,}" for result in results)],
        ["tests skipped", *(f"{result.skipped:,}" for result in results)],
        ["`samebits check`: results that differ", *(_share(result) for result in results)],
        ["`samebits diverge`: results of ours that differ", *(_ours(result) for result in results)],
    ]
    return table(["", *(result.name for result in results)], rows)


def differences(results: Sequence[Result]) -> dict[str, tuple[int | None, ...]]:
    """The programs whose count of differing textbook results is not the same in every environment that has it."""
    keys = dict.fromkeys(key for result in results for key in result.divergence)
    counts = {key: tuple(result.divergence.get(key) for result in results) for key in keys}
    return {key: found for key, found in counts.items() if len(set(found) - {None}) > 1}


def generated(results: Sequence[Result]) -> str:
    """The part of the page that a run makes."""
    parts = [f"- **{result.name}**: {result.words}" for result in results]
    parts = ["\n".join(parts), environments(results), outcomes(results)]
    left_out = {file: needs for result in results for file, needs in result.left_out.items()}
    names = ", ".join(f"`{file}` ({needs})" for file, needs in sorted(left_out.items()))
    checked = "; ".join(dict.fromkeys(result.checked for result in results if result.checked)) or "nothing"
    parts.append(
        f"`samebits check` took {checked}, in every mode. The tests are those of `tests/core`, `tests/torch_frontend` "
        f"and `tests/jax_backend`" + (f" but the files that need other libraries: {names}." if names else ".")
    )
    failures = [f"- {result.name}: {_elsewhere(line)}" for result in results for line in result.failures[:LISTED]]
    parts.append("### What failed\n\n" + ("\n".join(failures) or "Nothing."))
    rows = [[key, *("-" if n is None else f"{n:,}" for n in found)] for key, found in differences(results).items()]
    head = ["textbook results that differ", *(result.name for result in results)]
    same = len({key for result in results for key in result.divergence}) - len(rows)
    said = f"Of the counts that `samebits diverge` gives for textbook code, {same} are the same in all environments"
    parts.append(f"### What behaves differently\n\n{said}{', these are not:' if rows else '.'}")
    return "\n\n".join([*parts, table(head, rows)] if rows else parts)


def page(text: str, made: str) -> str:
    """A page with the part between the two markers replaced; everything outside them stays.

    Raises:
        ValueError: the markers are not there exactly once, in this order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the page must hold the lines {BEGIN} and {END} once, in this order")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}"


def _elsewhere(line: str) -> str:
    """A line without the folders that stand before names of files: they are those of one machine."""
    return re.sub(r"(?<![\w./-])/(?:[\w.+-]+/)+", "", line)


def _share(result: Result) -> str:
    return f"{result.differing:,} of {result.compared:,}" if result.compared else "did not run"


def _ours(result: Result) -> str:
    return f"{result.ours:,}" if result.divergence else "did not run"
