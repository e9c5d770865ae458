"""What `samebits validate` prints: the first difference, the mistake that explains it, and a table."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..validation.results import Row, Validation, Verdict, distance_in_words
from .display import console_of
from .validate import in_words

STYLES = {Verdict.SAME: "green", Verdict.WITHIN: "blue", Verdict.BEYOND: "bold red", Verdict.UNBOUNDED: "yellow"}


def show_validation(found: Validation, seconds: float, *, every: bool) -> None:
    """The table (what differs, unless every row is wanted), each difference in full, the verdict."""
    console = console_of()
    shown = [row for row in found.rows if every or row.verdict is not Verdict.SAME]
    if shown:
        console.print(_table(shown))
    for row in found.beyond:
        _show(console, row)
    for row in found.hinted:
        console.print(f"{row.place}: within its bound, but nearer with {' or '.join(row.hints)}", style="yellow")
    for side, paths in zip(("torch", "JAX"), found.unpaired, strict=True):
        if paths:
            console.print(f"without a partner in {side}: {', '.join(paths)}", style="yellow")
    if found.stopped:
        console.print(f"stopped: {found.stopped}", style="yellow")
    counts = {verdict: sum(row.verdict is verdict for row in found.rows) for verdict in Verdict}
    words = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    console.print(f"{words}; results of the models lie {in_words(found.whole)} apart ({seconds:.1f} s)")
    first = found.first
    if first:
        console.print(f"the first layer beyond its bound: {first.place}", style="bold red")
    elif found.right:
        console.print("rounding explains every difference", style="green")


def _table(rows: Sequence[Row]) -> Table:
    table = Table(caption_justify="left")
    for name in ("torch", "JAX", "what", "kind", "differ", "distance", "distance / bound", "verdict"):
        table.add_column(name, justify="right" if name in ("differ", "distance", "distance / bound") else "left")
    for row in rows:
        ratio = "" if row.ratio is None else in_words(row.ratio)
        names = row.torch or "(the model)", row.jax or "(the model)", row.what, row.kind
        differ = f"{row.differing:,} of {row.compared:,}"
        table.add_row(*names, differ, in_words(row.distance), ratio, Text(str(row.verdict), STYLES[row.verdict]))
    return table


def _show(console: Console, row: Row) -> None:
    console.print(f"\n{row.place}: {distance_in_words(row)}", style="bold")
    for word, name in zip(("explained by", *("or by",) * len(row.explanations)), row.explanations, strict=False):
        console.print(f"  {word}: {name}")
    if not row.explanations:
        console.print("  no usual mistake explains it")
    if row.example:
        one = row.example
        bound = f", at most {one.bound:.3g} apart" if one.bound else ""
        console.print(f"  at {one.index}: torch {one.torch:.9g}, JAX {one.jax:.9g}{bound}")
        if one.inputs:
            console.print(f"  smallest input, row {one.row}: {', '.join(f'{v:.6g}' for v in one.inputs)} ...")
