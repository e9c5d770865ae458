"""What `samebits diverge --cause` shows: for each program and mode, why it has the bits that it has."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table
from rich.text import Text

from ..divergence.causes import MODES, Explanation, Program, explain_all
from ..divergence.switches import switches_of
from ..modes.execution import unavailable
from .display import console_of

NOTHING = "as it is written"


@dataclass(frozen=True)
class Found:
    """The explanation of a mode, and the switches that take the difference away."""

    explanation: Explanation
    switches: tuple[tuple[str, ...], ...]


def causes_of(programs: Sequence[Program]) -> Iterator[tuple[Found, ...]]:
    """Program by program, in every mode it is written for."""
    for program in programs:
        yield tuple(
            Found(found, switches_of(program, found.mode) if found.differing else ()) for found in explain_all(program)
        )


def causes_json(found: Sequence[Found], command: str) -> str:
    """One JSON object."""
    return json.dumps({"command": command, "explanations": [asdict(one) for one in found]}, default=str)


def show_causes(found: Sequence[Found]) -> None:
    """A table for each program."""
    console = console_of()
    for name in dict.fromkeys(one.explanation.program for one in found):
        rows = [one for one in found if one.explanation.program == name]
        table = Table(title=Text(name), title_justify="left", show_lines=True)
        for column in ("mode", "differ", "why", "not with"):
            table.add_column(column, justify="right" if column == "differ" else "left")
        for row in rows:
            one = row.explanation
            table.add_row(one.mode, f"{one.differing:,} of {one.compared:,}", _why(one), _switches(row))
        console.print(table)
    for mode in MODES:
        if reason := unavailable(mode):
            console.print(f"{mode} was not run: {reason}", style="yellow")


def _why(one: Explanation) -> Text:
    if not one.differing:
        return Text(NOTHING, "green")
    lines = [f"{cause}; without it {cause.without:,} differ" for cause in one.causes]
    if one.unexplained:
        lines.append(f"{one.unexplained:,} unexplained" + (f"; the first operation: {one.first}" if one.first else ""))
    if one.example:
        lines.append(f"e.g. {one.example}")
    return Text("\n".join(lines))


def _switches(row: Found) -> str:
    return "\nor ".join(" and ".join(names) for names in row.switches)
