"""What the command line prints: tables for people. Colour only where the terminal has it."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...core import Statistic, catalog
from ..check.check import REFERENCE, CheckResult, Row
from ..check.tally import Example
from ..divergence.divergence import INPUTS, PAIRS, PAIRS_OF_A_GPU, TARGETS, Divergence, modes_on
from ..modes import execution
from ..modes.devices import ACCELERATED
from ..modes.environment import switches
from .guarantees import GUARANTEE, oracle

SHOWN = 8  # differences shown in full


def show_check(result: CheckResult, seconds: float) -> None:
    """The table of `samebits check`, what was left out and why, the smallest examples, and the verdict."""
    console = console_of()
    console.print(_check_table(result))
    for tensor in result.tensors:
        if tensor.skipped:
            console.print(f"skipped {tensor.name}: {tensor.skipped}", style="dim")
    for reason in dict.fromkeys(f"{row.mode} was not run: {row.missing}" for row in result.rows if row.missing):
        console.print(reason, style="yellow")
    wrong = [row for row in result.rows if not row.tally.same]
    for row in wrong[:SHOWN]:
        console.print(_difference(row))
    if len(wrong) > SHOWN:
        console.print(f"and {len(wrong) - SHOWN} more rows differ; --json shows every one")
    for switch in switches() if not result.same and any(mode.startswith("jax") for mode in result.modes) else ():
        console.print(f"XLA_FLAGS has {switch}, with which modes of JAX are not promised the same bits", style="yellow")
    if result.digits:
        console.print(_digits_line(result))
    console.print(_verdict(result, seconds))


def show_catalog() -> None:
    """One line for each quantizer of the catalog."""
    table = _table("quantizer", "format", "granularity", "scale", "zero point", "rounding", "gradient", "oracle")
    for name, q in catalog.items():
        statistic = "" if q.scale.statistic is Statistic.EXTREMES else f" {q.scale.statistic}"
        scale = f"{q.scale.source}{statistic}, {q.scale.restriction}"
        nouns = (q.format, q.granularity, scale, q.zero_point, q.rounding, q.gradient)
        table.add_row(name, *map(str, nouns), oracle(q))
    table.caption = f"guarantee, of every entry: {GUARANTEE}"
    console_of().print(table)


def show_divergence(found: Sequence[Divergence]) -> None:
    """Shares of differing elements, largest distances, and the smallest example of each kind of difference."""
    console = console_of()
    for name, target in TARGETS.items():
        rows = [row for row in found if row.target == name]
        if rows:
            console.print(f"\n{name}: {target.formula}", style="bold")
            console.print(f"share of differing elements on {', '.join(INPUTS)} inputs; largest distance", style="dim")
            console.print(_divergence_table(rows))
            for row in _first_of_each_pair(rows):
                console.print(_divergence_example(row))
    of_a_gpu = any(mode in ACCELERATED for row in found for mode in (row.left, row.right))
    for mode in modes_on("cuda" if of_a_gpu else "cpu"):
        if not any(mode in (row.left, row.right) for row in found):
            console.print(f"{mode} was not run: {execution.unavailable(mode)}", style="yellow")


def _check_table(result: CheckResult) -> Table:
    """A line for each quantizer, a column for each mode: how many results differ from the specification."""
    modes = [mode for mode in result.modes if mode != REFERENCE]
    table = _table("quantizer", "compared per mode, at least", *modes, right=range(1, 2 + len(modes)))
    rows = {(row.quantizer, row.mode): row for row in result.rows}
    for name in dict.fromkeys(row.quantizer for row in result.rows):
        own = [rows[name, mode] for mode in modes]
        compared = min((row.tally.compared + row.tally.sums for row in own if not row.missing), default=0)
        table.add_row(name, f"{compared:,}", *map(_cell, own))
    table.title = None if result.dialect is None else f"dialect {result.dialect}"
    table.caption = "results that differ from the specification (mode numpy), bit for bit"
    return table


def _cell(row: Row) -> Text:
    if row.missing:
        return Text("not run", "yellow")
    count = row.tally.differing + row.tally.outside
    return Text(f"{count:,}", "bold red" if count else "green")


def _difference(row: Row) -> Text:
    """One quantizer and mode that differ, with the smallest example."""
    parts = ", ".join(f"{name} {count:,}" for name, count in row.tally.parts)
    text = Text.assemble(
        (f"\n{row.quantizer}, {row.mode}: ", "bold red"),
        f"{row.tally.differing + row.tally.outside:,} of {row.tally.compared + row.tally.sums:,} differ ({parts})",
    )
    for label, value in _example_lines(row.tally.example) if row.tally.example else ():
        text.append(f"\n  {label:<11}{value}")
    return text


def _example_lines(example: Example) -> Iterable[tuple[str, str]]:
    """What there is to say of an example, label by label."""
    lines = (
        ("function", example.function),
        ("tensor", f"{example.tensor} as {example.dtype}"),
        ("input", example.x),
        ("scale", example.scale),
        ("zero point", example.zero_point),
        ("expected", example.expected),
        ("got", example.got),
    )
    return ((label, value) for label, value in lines if value)


def _digits_line(result: CheckResult) -> Text:
    ran = [row for row in result.digits if not row.missing]
    modes, sizes = len({row.mode for row in ran}), sorted({row.batch_size for row in ran})
    wrong = [row for row in ran if row.differing]
    text = Text(f"digits network: logits of 1,797 images, {modes} modes, batch {' and '.join(map(str, sizes))}: ")
    if not wrong:
        return text.append("the same bits", "green")
    where = ", ".join(f"{row.mode} at batch {row.batch_size}: {row.differing:,} of {row.compared:,}" for row in wrong)
    return text.append(f"different ({where})", "bold red")


def _verdict(result: CheckResult, seconds: float) -> Text:
    tallies = [row.tally for row in result.rows]
    compared, differing = sum(t.compared for t in tallies), sum(t.differing for t in tallies)
    sums, outside = sum(t.sums for t in tallies), sum(t.outside for t in tallies)
    text = Text(f"{differing:,} of {compared:,} results differ", "green" if result.same else "bold red")
    text.append(f"; {outside:,} of {sums:,} gradients of scales and zero points lie beyond the bound of a sum")
    tensors = sum(not tensor.skipped for tensor in result.tensors)
    taken = ", ".join(f"{count} as {dtype}" for dtype, count in result.dtypes.items())
    return text.append(f" ({tensors} tensors; quantizers: {taken}; {seconds:.0f} s)")


def _divergence_table(rows: Sequence[Divergence]) -> Table:
    """A line for each program, a column for each pair of modes."""
    pairs = [pair for pair in (*PAIRS, *PAIRS_OF_A_GPU) if any((row.left, row.right) == pair for row in rows)]
    table = _table("scale", "dtype", "program", *(f"{left}\n{right}" for left, right in pairs))
    for scale, dtype, around in dict.fromkeys((row.scale, row.dtype, row.surroundings) for row in rows):
        cells = [
            _divergence_cell(
                [
                    row
                    for row in rows
                    if (row.scale, row.dtype, row.surroundings) == (scale, dtype, around)
                    and (row.left, row.right) == pair
                ]
            )
            for pair in pairs
        ]
        table.add_row(scale, dtype, around, *cells)
    return table


def _divergence_cell(rows: Sequence[Divergence]) -> Text:
    if not any(row.differing for row in rows):
        return Text("0", "green")
    shares = " / ".join(_percent(row) for row in rows)
    codes, ulps = max(row.largest_codes for row in rows), max(row.largest_ulps for row in rows)
    return Text(f"{shares}\n{codes:.2g} codes, {ulps:,} ulp", "red")


def _percent(row: Divergence) -> str:
    return "0" if not row.differing else f"{100 * row.differing / row.compared:.2g}%"


def _first_of_each_pair(rows: Sequence[Divergence]) -> list[Divergence]:
    """For each pair of modes and dtype the first program with a difference."""
    first: dict[tuple[str, str, str], Divergence] = {}
    for row in rows:
        if row.example:
            first.setdefault((row.left, row.right, row.dtype), row)
    return list(first.values())


def _divergence_example(row: Divergence) -> Text:
    example = row.example
    assert example is not None
    program = f"{row.scale} scale, {row.dtype}, {row.surroundings}, {row.inputs} input"
    text = Text.assemble((f"\n{row.left} / {row.right}: ", "bold"), program)
    lines = (
        ("x", example.x),
        ("s", example.scale),
        ("b", example.b),
        (row.left, example.left),
        (row.right, example.right),
    )
    for label, value in lines:
        if value:
            text.append(f"\n  {label:<15}{value}")
    return text


def _table(*columns: str, right: Iterable[int] = ()) -> Table:
    table = Table(caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i in right else "left", no_wrap=i == 0)
    return table


def console_of() -> Console:
    """On a terminal as wide as it is; elsewhere wide enough that no table breaks, and without colour.

    Without markup: the brackets of ``pip install 'samebits[jax]'`` are no tags.
    """
    console = Console(highlight=False, soft_wrap=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, width=160, markup=False)
