"""The atlas: a table of what every ready target computes, and its data as JSON, for the versions that were asked."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .fingerprint import fingerprint
from .peers import PEERS, missing
from .targets import names, resolve
from .verdicts import Verdict

Row = dict[str, Any]
DISTRIBUTIONS = {
    "aqt": "aqtp",
    "optimum.quanto": "optimum-quanto",
    "compressed_tensors": "compressed-tensors",
    "ai_edge_litert": "ai-edge-litert",
    "ai_edge_quantizer": "ai-edge-quantizer",
}  # where the name differs from what is imported
COLUMNS = (
    "target",
    "x / s",
    "ties and direction",
    "zero point",
    "NaN",
    "-0",
    "+inf",
    "subnormals",
    "gradient",
    "same as",
)
BEFORE = """# What libraries compute

One row for each ready target of `samebits fingerprint`: the arithmetic that gives every answer, bit for bit. Where none
does, the row says how many answers the nearest one leaves unexplained, and at which input first. "or" stands between
values that no input tells apart. How a verdict comes about: [fingerprint.md](fingerprint.md).

This page and `atlas.json` beside it are written by `samebits fingerprint --atlas docs/atlas.md`.

"""
GROUPS = [*dict.fromkeys(peer.extra.removeprefix("peers-") for peer in PEERS if peer.apart)]
APART = (
    "## Libraries in environments of their own",
    "",
    "`make atlas-GROUP` makes one and writes its rows anew, for the groups",
    f"{', '.join(GROUPS)}.",
    "Tests do not ask these libraries; golden answers of some are in `tests/data/peers.json`.",
    "",
)


def installed() -> list[str]:
    """Names of the ready targets whose libraries are here."""
    return [name for peer in PEERS if missing(peer) is None for name in peer.targets]


def rows(wanted: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """The row of each target, by name."""
    for name in wanted:
        yield name, row(fingerprint(resolve(name)), name)


def row(verdict: Verdict, name: str) -> Row:
    """A verdict as the atlas keeps it: what was found, without what was excluded on the way."""
    library = next(peer.library for peer in PEERS if name in peer.targets)
    return {
        "version": _version(library),
        "recognised": verdict.recognised,
        "fields": dict(verdict.fields),
        "undetermined": {field: list(values) for field, values in verdict.undetermined.items()},
        "conduct": dict(verdict.conduct),
        "dialects": list(verdict.dialects),
        "unexplained": verdict.unexplained,
        "smallest": None if verdict.smallest is None else str(verdict.smallest),
        "fault": verdict.fault,
    }


def write(page: Path, found: Mapping[str, Row]) -> None:
    """Writes the table, and the JSON file of the same name; rows that were not asked for now stay."""
    data = page.with_suffix(".json")
    known: dict[str, Row] = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    merged = {name: {**known, **found}[name] for name in names() if name in {**known, **found}}
    data.write_text(json.dumps(merged, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page.write_text(markdown(merged), encoding="utf-8")


def markdown(known: Mapping[str, Row]) -> str:
    """The page."""
    away = {name for peer in PEERS if peer.apart for name in peer.targets}
    beside, apart = ({name: row for name, row in known.items() if (name in away) is own} for own in (False, True))
    unexplained = [
        f"- `{name}`: {_count(row['unexplained'])} unexplained, {row['smallest']}"
        for name, row in known.items()
        if row["smallest"]
    ]
    parts = [*_table(beside), *(["", *APART, *_table(apart)] if apart else [])]
    return BEFORE + "\n".join([*parts, "", "## Where the nearest arithmetic fails", "", *unexplained]) + "\n"


def _table(known: Mapping[str, Row]) -> list[str]:
    """Rows as lines, and the versions behind them."""
    versions = ", ".join(dict.fromkeys(row["version"] for row in known.values()))
    head = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    return [*head, *(_line(cells(name, row)) for name, row in known.items()), "", f"Versions: {versions}."]


def cells(name: str, row: Row) -> list[str]:
    """What stands in the `COLUMNS`."""
    conduct = row["conduct"]
    order = "" if _is_symmetric(row) else _value(row, "zero_point_order").replace("_", " ")
    fused = ", fused" if row["fields"].get("fused_multiply_add") == "True" else ""
    same = ", ".join(row["dialects"]) if row["recognised"] else "none explains all"
    return [
        f"`{name}`",
        _value(row, "division")
        + ("" if "compute_dtype" in row["undetermined"] else f", {_value(row, 'compute_dtype')}"),
        _value(row, "rounding"),
        order + fused,
        *(conduct.get(key, "") for key in ("NaN", "-0", "+inf")),
        {"True": "flushed", "False": "kept"}.get(_value(row, "flush_subnormals"), "not seen"),
        conduct.get("gradient", ""),
        same or "no dialect",
    ]


def _count(unexplained: int) -> str:
    return f"{unexplained} answer{'s' * (unexplained > 1)}" if unexplained else "a chosen scale"


def _is_symmetric(row: Row) -> bool:
    """Whether the row is of a target without a zero point, of which no order is seen but in the sign of zero."""
    return "fused_multiply_add" not in row["fields"] and "fused_multiply_add" not in row["undetermined"]


def _value(row: Row, field: str) -> str:
    return str(row["fields"].get(field) or " or ".join(row["undetermined"].get(field, ())))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _version(library: str) -> str:
    name = DISTRIBUTIONS.get(library, library)
    try:
        return f"{name} {version(name).partition('+')[0]}"
    except PackageNotFoundError:
        return name
