"""`samebits vectors` and `samebits verify`: the specification as data, and the judge of answers to it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..conformance.verify import Verdict

AGREEMENT, DIFFERENCE = 0, 1
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")]


def vectors(
    name: Annotated[list[str] | None, typer.Argument(help="Catalog names.", metavar="NAME...")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The directory; of several names, one in it for each.", metavar="DIR")
    ] = None,
    level: Annotated[int, typer.Option(help="1: a few scales; 2: many; 3: every 16-bit input as well.")] = 1,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, bfloat16, float16 (these by default) or float64.")
    ] = None,
    dialect: Annotated[str | None, typer.Option(help="The arithmetic and scale rule of another system.")] = None,
    every: Annotated[bool, typer.Option("--all", help="The whole catalog.")] = False,
) -> None:
    """Write test vectors: inputs, parameters, and the codes, values and gradients that are expected of them."""
    from ...core.catalog import catalog
    from ..conformance.vector_files import VectorError, write, write_sums
    from ..conformance.vectors import USUAL
    from .commands import _refuse

    if out is None:
        _refuse("give the directory: --out DIR")
    if bool(name) == every:
        _refuse("give either catalog names or --all")
    names = tuple(dict.fromkeys(name or catalog))
    several = every or len(names) > 1
    try:
        for one in names:
            folder = out / one if several else out
            rows = write(one, folder, level, tuple(dtype or USUAL), dialect)
            print(f"{folder}: {rows:,} rows", flush=True)
        if several:
            write_sums(out, names)
    except (VectorError, KeyError, ValueError) as error:
        _refuse(error.args[0])
    except OSError as error:
        _refuse(f"{out}: {error.strerror}")


def verify(
    folder: Annotated[Path, typer.Argument(help="A directory that `samebits vectors` wrote.", metavar="DIR")],
    results: Annotated[Path | None, typer.Option(help="The answers: text, or .safetensors.", metavar="FILE")] = None,
    json: Json = False,
) -> None:
    """Judge another implementation's answers to test vectors; exit code 1 where one is not right."""
    from ..conformance.vector_files import VectorError
    from ..conformance.verify import verify as judge
    from .commands import _refuse

    if results is None:
        _refuse("give the answers: --results FILE")
    try:
        verdict = judge(folder, results)
    except (VectorError, KeyError, ValueError) as error:
        _refuse(error.args[0])
    if not verdict.answered:
        _refuse(f"{results}: answers no section of {folder}")
    print(_as_json(verdict) if json else "\n".join(_lines(verdict)))
    raise typer.Exit(AGREEMENT if verdict.same else DIFFERENCE)


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command()(vectors)
    app.command()(verify)


def _as_json(verdict: "Verdict") -> str:
    return json.dumps({"same": verdict.same, **asdict(verdict)}, indent=1)


def _lines(verdict: "Verdict") -> list[str]:
    """One line for each column, an example under those that differ, and what the answers are like."""
    from ..conformance.verify import example_lines

    width = max(len(f"{one.section} {one.column}") for one in verdict.columns)
    lines = []
    for one in verdict.columns:
        said = f"{one.differing:,} of {one.compared:,} differ" if one.answered else "not answered"
        lines.append(f"{f'{one.section} {one.column}':<{width}}  {said}")
        if one.example is not None:
            lines += [f"    {line}" for line in example_lines(one.example)]
    lines += [f"{section}: {like.words}" for section, like in verdict.like.items()]
    differing = sum(one.differing for one in verdict.columns)
    compared = sum(one.compared for one in verdict.columns)
    kind = verdict.name if verdict.dialect is None else f"{verdict.name} in the dialect {verdict.dialect}"
    missing = len(verdict.columns) - verdict.answered
    rest = f"; {missing} of {len(verdict.columns)} columns not answered" if missing else ""
    return [*lines, f"{kind}: {differing:,} of {compared:,} answers differ{rest}"]
