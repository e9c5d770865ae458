"""Results for machines (JSON) and as a self-contained page: table, plot of the differences, versions, exact command."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

from ...core import catalog
from ..check.check import REFERENCE, CheckResult, Row
from ..divergence.divergence import TARGETS, Divergence
from ..modes.environment import versions
from .guarantees import GUARANTEE, oracle

NEAR = 16  # steps up to which a plot of distances is linear


def check_json(result: CheckResult, command: str, seconds: float) -> str:
    """One JSON object: the request, what it ran on, each tensor, an entry for each quantizer and mode, the digits."""
    whole = {
        "command": command,
        "same": result.same,
        "checkpoint": result.checkpoint,
        "dialect": result.dialect,
        "modes": result.modes,
        "dtypes": result.dtypes,
        "seconds": round(seconds, 1),
        "versions": versions(),
        "tensors": [asdict(tensor) for tensor in result.tensors],
        "rows": [_row(row) for row in result.rows],
        "digits": [asdict(row) for row in result.digits],
    }
    return json.dumps(whole, indent=1, allow_nan=False)


def divergence_json(found: Sequence[Divergence], command: str) -> str:
    """One JSON object: the targets with their formulas, and one entry for each program, pair of modes and input."""
    names = dict.fromkeys(row.target for row in found)
    whole = {
        "command": command,
        "versions": versions(),
        "targets": {name: TARGETS[name].formula for name in names},
        "rows": [asdict(row) for row in found],
    }
    return json.dumps(whole, indent=1, allow_nan=False)


def catalog_json() -> str:
    """One JSON object: every quantizer by name, field by field, with its oracle and what is guaranteed."""
    said = {name: {"oracle": oracle(q), "guarantee": GUARANTEE} for name, q in catalog.items()}
    return json.dumps({name: _fields(q) | said[name] for name, q in catalog.items()}, indent=1)


def check_page(result: CheckResult, command: str, seconds: float) -> str:
    """The page, as HTML that refers to nothing outside itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(loader=PackageLoader("samebits.proofs.cli"), autoescape=True, undefined=StrictUndefined)
    modes = [mode for mode in result.modes if mode != REFERENCE]
    rows = {(row.quantizer, row.mode): row for row in result.rows}
    return pages.get_template("check.html").render(
        result=result,
        modes=modes,
        table={
            name: [rows[name, mode] for mode in modes] for name in dict.fromkeys(row.quantizer for row in result.rows)
        },
        wrong=[row for row in result.rows if not row.tally.same],
        missing=dict.fromkeys((row.mode, row.missing) for row in result.rows if row.missing),
        plot=_plot(result.rows),
        versions=versions(),
        command=command,
        seconds=seconds,
    )


def _row(row: Row) -> dict[str, Any]:
    tally = asdict(row.tally)
    del tally["points"]
    tally["parts"] = dict(tally["parts"])
    if tally["example"]:
        del tally["example"]["size"]
    return {"quantizer": row.quantizer, "mode": row.mode, "missing": row.missing, **tally}


def _fields(q: Any) -> dict[str, Any]:
    fields = asdict(q)
    fields["granularity"] = {"kind": type(q.granularity).__name__, **asdict(q.granularity)}
    return fields


def _plot(rows: Sequence[Row]) -> str | None:
    """Where differences lie: position ``x / s`` against distance in steps of the scale, a colour for each mode; SVG."""
    by_mode: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        by_mode.setdefault(row.mode, []).extend(row.tally.points)
    if not any(by_mode.values()):
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    for mode, points in by_mode.items():
        if points:
            places, distances = zip(*points, strict=True)
            axes.scatter(places, distances, s=8, alpha=0.5, label=mode)
    far = max(abs(distance) for points in by_mode.values() for _, distance in points) > NEAR
    axes.set(xlabel="position x / s", ylabel="distance of the result, in steps of s", xscale="symlog")
    axes.set(yscale="symlog" if far else "linear")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]
