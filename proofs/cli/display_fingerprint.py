"""What `samebits fingerprint` prints: verdicts with their evidence, the list of targets, and who made a file."""

from collections.abc import Mapping, Sequence

from rich.text import Text

from ..conformance.files import Attribution
from ..conformance.verdicts import Verdict
from .display import _table, console_of


def show_verdicts(verdicts: Sequence[tuple[Verdict, float]], absent: Mapping[str, str], *, evidence: bool) -> None:
    """A table for each target: fields found, what was excluded by which input, conduct, dialects, and the count."""
    console = console_of()
    for verdict, seconds in verdicts:
        console.print(_heading(verdict))
        if not verdict.fault:
            console.print(_fields(verdict, evidence=evidence))
            for line in _lines(verdict, seconds):
                console.print(line)
    for name, reason in absent.items():
        console.print(Text(f"\n{name}: {reason}", "yellow"))


def show_targets(rows: Sequence[tuple[str, str, str | None]]) -> None:
    """Every ready target, and whether its library is there."""
    table = _table("target", "library", "installed")
    for name, library, line in rows:
        table.add_row(name, library, Text("yes", "green") if line is None else Text(line, "yellow"))
    table.caption = "your own: package.module:function"
    console_of().print(table)


def show_attributions(found: Sequence[Attribution]) -> None:
    """Which quantizer made each tensor, and the share of codes and scales that it explains."""
    table = _table("tensor", "layout", "made by", "codes explained", "scales explained", right=(3, 4))
    for one in found:
        style = "green" if one.explained == 1 else "yellow"
        shares = (
            Text(_share(share, total), style) for share, total in ((one.codes, one.elements), (one.scales, one.blocks))
        )
        table.add_row(one.tensor, one.layout, one.words, *shares)
    table.caption = "bit for bit; a share below 1 leaves codes or scales that no candidate gives"
    console_of().print(table)


def _share(share: float, total: int) -> str:
    right = round(share * total)
    return f"{right:,} of {total:,}"


def _heading(verdict: Verdict) -> Text:
    if verdict.fault:
        return Text.assemble((f"\n{verdict.target}: ", "bold"), (verdict.fault, "bold red"), f" at {verdict.fault_at}")
    if verdict.recognised:
        return Text.assemble((f"\n{verdict.target}: ", "bold"), ("recognised", "green"))
    share = f"none of the candidates; the nearest leaves {verdict.shortfall}"
    return Text.assemble((f"\n{verdict.target}: ", "bold"), (share, "bold red"))


def _fields(verdict: Verdict, *, evidence: bool) -> object:
    table = _table("field", "found", "excluded, by the input")
    for name, value in verdict.fields.items():
        own = [e for e in verdict.excluded if e.field == name]
        lines = [f"{e.value}: {e.evidence}" for e in own[: None if evidence else 1]]
        table.add_row(name, Text(value, "bold"), Text("\n".join(lines)))
    for name, values in verdict.undetermined.items():
        table.add_row(name, Text(" or ".join(values), "dim"), Text("no input tells", "dim"))
    return table


def _lines(verdict: Verdict, seconds: float) -> list[Text]:
    lines = []
    if verdict.smallest is not None:
        lines.append(Text(f"smallest unexplained input: {verdict.smallest}", "red"))
    if verdict.conduct:
        lines.append(Text("; ".join(f"{name}: {value}" for name, value in verdict.conduct.items())))
    if verdict.dialects:
        lines.append(Text(f"the same as: {', '.join(verdict.dialects)}"))
    lines.append(
        Text(
            f"{verdict.asked:,} inputs asked ({verdict.exhaustive:,} to compare with each of {verdict.candidates:,} "
            f"candidates), {verdict.supporting:,} answers explained, {seconds:.1f} s",
            "dim",
        )
    )
    return lines
