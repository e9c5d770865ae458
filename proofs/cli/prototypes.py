"""What `samebits diverge FILE.py:NAME` shows: the textbook code of a prototype, mode by mode, beside its primitives."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from ..divergence.of_prototypes import MERGED, TEXTBOOK, Parted
from ..modes.environment import versions
from .display import console_of


def same(found: Iterable[Parted]) -> bool:
    """Whether the formula of primitives has the bits of the specification everywhere."""
    return not any(row.differing for row in found if row.program != TEXTBOOK)


def prototypes_json(found: Sequence[Parted], command: str) -> str:
    """One JSON object: an entry for each prototype, program, mode, dtype and kind of input."""
    rows = [asdict(row) for row in found]
    whole = {"command": command, "same": same(found), "versions": versions(), "rows": rows}
    return json.dumps(whole, indent=1, allow_nan=False)


def show_prototypes(found: Sequence[Parted]) -> None:
    """A table for each prototype and dtype, and for each mode the first primitive that parts."""
    console = console_of()
    for name, dtype in dict.fromkeys((row.prototype, row.dtype) for row in found):
        rows = [row for row in found if (row.prototype, row.dtype) == (name, dtype)]
        kinds = list(dict.fromkeys(row.inputs for row in rows))
        table = Table(title=Text(f"{name}, {dtype}"), title_justify="left", caption_justify="left")
        for column in ("program", "mode", *kinds):
            table.add_column(column, justify="right" if column in kinds else "left")
        for program, mode in dict.fromkeys((row.program, row.mode) for row in rows):
            own = {row.inputs: row for row in rows if (row.program, row.mode) == (program, mode)}
            table.add_row(program, mode, *(_cell(own[kind]) for kind in kinds))
        table.caption = "elements that differ from the formula in mode numpy; the largest distance"
        console.print(table)
        shown = set[tuple[str, str]]()
        for row in rows:
            if row.differing and (row.program, row.mode) not in shown:
                shown.add((row.program, row.mode))
                console.print(_told(row))


def _cell(row: Parted) -> Text:
    if not row.differing:
        return Text("0", "green")
    return Text(f"{row.differing:,} of {row.compared:,}, {row.largest_ulps:,} ulp", "red")


def _told(row: Parted) -> Text:
    text = Text.assemble((f"\n{row.program}, {row.mode}: ", "bold"), row.first)
    if row.example and (row.first == MERGED or row.program != TEXTBOOK):
        for label, value in zip(("input", "expected", "got"), row.example, strict=True):
            text.append(f"\n  {label:<16}{value}")
    return text
