"""What `samebits quantize` shows: a table of layers, one JSON object, a page with plots."""

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from rich.table import Table

from ..modes.environment import versions
from ..quantizing.quantize import Layer
from ..quantizing.recommend import NOTES, RULES, Recommendation
from .display import console_of

PLOTTED = 12  # layers whose histograms are drawn: those with the least SQNR


def show(result: Mapping[str, Any], layers: Sequence[Layer], advised: Recommendation | None) -> None:
    """The table, why layers stay as they are, the rules, and the sum."""
    console = console_of()
    columns = ("layer", "shape", "method", "bytes before", "after", "error / absmax", "SQNR, dB")
    table = Table(*columns)
    for i in range(3, 7):
        table.columns[i].justify = "right"
    for one in layers:
        if one.planned.config is not None:
            table.add_row(*_cells(one))
    if table.rows:
        console.print(table)
    for why, names in reasons(layers).items():
        console.print(f"left as they are, {why}: {', '.join(names)}" if len(names) < 4 else _many(why, names))
    if advised:
        console.print(f"\nadvised for the goal '{advised.goal}':")
        for name, words in rules(advised).items():
            console.print(f"  {name}: {words}")
    console.print(total(result, layers))


def as_data(result: Mapping[str, Any], layers: Sequence[Layer], advised: Recommendation | None) -> dict[str, Any]:
    """The request, versions, every tensor, and the rules that chose."""
    said = None if advised is None else {"goal": advised.goal, "rules": rules(advised)}
    return {**result, "versions": versions(), "recommended": said, "layers": [one.as_data() for one in layers]}


def page(result: Mapping[str, Any], layers: Sequence[Layer], advised: Recommendation | None) -> str:
    """The page, as HTML that refers to nothing outside itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(loader=PackageLoader("samebits.proofs.cli"), autoescape=True, undefined=StrictUndefined)
    taken = [one for one in layers if one.planned.config is not None]
    drawn = sorted((one for one in taken if one.sqnr is not None), key=lambda one: one.sqnr or 0)[:PLOTTED]
    return pages.get_template("quantize.html").render(
        result=result,
        rows=[_cells(one) for one in taken],
        reasons=reasons(layers),
        advised=advised,
        rules={} if advised is None else rules(advised),
        total=total(result, layers),
        errors=_errors(taken) if taken else None,
        histograms=[(one.planned.name, _histogram(one)) for one in drawn if one.histogram is not None],
        versions=versions(),
    )


def rules(advised: Recommendation) -> dict[str, str]:
    """The rules that chose, with the method and how often, and what else is to be said, by name."""
    said = {}
    for name, words in advised.rules.items():
        methods = [one.method for one in advised.layers if one.why == name]
        said[name] = f"{len(methods)} × {', '.join(dict.fromkeys(methods))}: {words}"
    return {**said, **{name: NOTES[name] for name in advised.notes}}


def reasons(layers: Iterable[Layer]) -> dict[str, list[str]]:
    """Layers that stay as they are, by the reason."""
    found: dict[str, list[str]] = {}
    for one in layers:
        if one.planned.config is None:
            why = RULES.get(one.planned.why, one.planned.why)
            found.setdefault(why, []).append(one.planned.name)
    return found


def total(result: Mapping[str, Any], layers: Sequence[Layer]) -> str:
    """How many bytes the tensors had and have, and where they are."""
    before, after = sum(one.before for one in layers), sum(one.after for one in layers)
    quantized = sum(one.planned.config is not None for one in layers)
    written = f"; written to {result['output']}" if result["output"] else "; nothing is written without --output"
    return f"{quantized} of {len(layers)} tensors quantized: {before:,} bytes, then {after:,}{written}"


def _many(why: str, names: Sequence[str]) -> str:
    return f"left as they are, {why}: {', '.join(names[:2])} and {len(names) - 2} more"


def _cells(one: Layer) -> tuple[str, ...]:
    group = "" if one.group_size is None else f", group {one.group_size}"
    shape = " × ".join(map(str, one.planned.shape))
    sqnr = "" if one.sqnr is None else f"{one.sqnr:.1f}"
    numbers = (f"{one.before:,}", f"{one.after:,}", f"{one.error or 0:.2e}", sqnr)
    return (one.planned.name, shape, one.planned.method + group, *numbers)


def _errors(layers: Sequence[Layer]) -> str:
    """Error and SQNR of every layer, from top to bottom; SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 0.22 * len(layers)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [one.planned.name for one in layers]
    left.barh(names, [one.error or 0 for one in layers], color="#cf222e")
    right.barh(names, [one.sqnr or 0 for one in layers], color="#0969da")
    left.set(xlabel="largest error / largest weight")
    right.set(xlabel="SQNR, dB")
    left.invert_yaxis()
    left.tick_params(axis="y", labelsize=7)
    return _svg(figure)


def _histogram(one: Layer) -> str:
    """The values of a weight before and after; SVG."""
    from matplotlib.figure import Figure

    held = one.histogram
    assert held is not None
    figure = Figure(figsize=(4.2, 2.2), layout="constrained")
    axes = figure.subplots()
    axes.stairs(held.before, held.edges, fill=True, alpha=0.4, label="before", color="#57606a")
    axes.stairs(held.after, held.edges, label="after", color="#0969da")
    axes.set(yscale="symlog")
    axes.set_title(one.planned.name, fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    return _svg(figure)


def _svg(figure: Any) -> str:
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]
