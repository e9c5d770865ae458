"""`samebits check --networks`: the table, the JSON object and the page of whole networks."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.text import Text

from ..modes.environment import versions
from ..networks.compare import NetworkRow
from .display import _table, console_of


def show_networks(found: Sequence[NetworkRow], seconds: float) -> None:
    """A line for each network and run: accuracy, and how many logits differ at each batch size."""
    console, sizes = console_of(), _sizes(found)
    table = _table("network", "run", "accuracy", *(f"batch {n}" for n in sizes), right=range(2, 3 + len(sizes)))
    for (network, run), rows in _lines(found).items():
        accuracy = next((f"{row.accuracy:.2f} %" for row in rows if row.accuracy is not None), "")
        table.add_row(network, run, accuracy, *map(_cell, rows))
    table.caption = "logits that differ from the specification (numpy, all digits at once), bit for bit"
    console.print(table)
    for reason in dict.fromkeys(f"{row.run} was not run: {row.missing}" for row in found if row.missing):
        console.print(reason, style="yellow")
    for row in found:
        if row.example:
            console.print(f"{row.network}, {row.run}, batch {row.batch_size}: {row.example}", style="red")
    differing, compared = sum(row.differing for row in found), sum(row.compared for row in found)
    verdict = f"{differing:,} of {compared:,} logits differ ({seconds:.0f} s)"
    console.print(Text(verdict, "bold red" if differing else "green"))


def networks_json(found: Sequence[NetworkRow], command: str, seconds: float) -> str:
    """One JSON object: the request, what it ran on, an entry for each network, run and batch size."""
    whole = {
        "command": command,
        "same": same(found),
        "seconds": round(seconds, 1),
        "versions": versions(),
        "rows": [asdict(row) for row in found],
    }
    return json.dumps(whole, indent=1, allow_nan=False)


def networks_page(found: Sequence[NetworkRow], command: str, seconds: float) -> str:
    """The page, as HTML that refers to nothing outside itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(loader=PackageLoader("samebits.proofs.cli"), autoescape=True, undefined=StrictUndefined)
    return pages.get_template("networks.html").render(
        lines=_lines(found),
        sizes=_sizes(found),
        found=found,
        same=same(found),
        versions=versions(),
        command=command,
        seconds=seconds,
    )


def same(found: Sequence[NetworkRow]) -> bool:
    """Whether no run that was possible differs anywhere."""
    return not any(row.differing for row in found)


def _sizes(found: Sequence[NetworkRow]) -> list[int]:
    return sorted({row.batch_size for row in found})


def _lines(found: Sequence[NetworkRow]) -> dict[tuple[str, str], list[NetworkRow]]:
    """Rows that are one line of the table, by batch size."""
    lines: dict[tuple[str, str], list[NetworkRow]] = {}
    for row in found:
        lines.setdefault((row.network, row.run), []).append(row)
    return lines


def _cell(row: NetworkRow) -> Text:
    if row.missing:
        return Text("not run", "yellow")
    return Text(f"{row.differing:,} of {row.compared:,}", "bold red" if row.differing else "green")
