"""The command `samebits atlas`: one page that says which libraries agree with yours, and where the others part."""

import json as as_json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

NEAR = 3.0  # the part of the number line that is drawn
WIDTH, HEIGHT = 900, 40  # of a plot


def atlas(
    out: Annotated[Path, typer.Option(help="The page.", metavar="FILE.html")] = Path("atlas.html"),
    target: Annotated[list[str] | None, typer.Option(help="Only these ready targets; may be repeated.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the rows as one JSON object, too.")] = False,
) -> None:
    """Ask every ready target that is installed, and write one self-contained page of what they compute."""
    from ..conformance import atlas as rows_of
    from .commands import AGREEMENT, _refuse, _shown

    if not out.parent.is_dir():
        _refuse(f"{out}: no such directory: {out.parent}")
    wanted = tuple(target or rows_of.installed())
    unknown = [name for name in wanted if name not in rows_of.installed()]
    if unknown:
        _refuse(f"{unknown[0]!r} is no ready target that is installed; `samebits fingerprint` lists them")
    found = dict(_shown("asking", len(wanted), rows_of.rows(wanted), quiet=json))
    out.write_text(page(found), encoding="utf-8")
    if json:
        print(as_json.dumps(found, indent=1, allow_nan=False))
    raise typer.Exit(AGREEMENT)


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, as HTML that refers to nothing outside itself.

    Args:
        rows: of `samebits.proofs.conformance.atlas.rows`, by target.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from ..conformance.atlas import COLUMNS, cells
    from ..conformance.number_line import SCALE, SPECIFICATION, lines
    from ..modes.environment import versions
    from .commands import _command

    found = lines(rows)
    plots, examples = dict.fromkeys(rows, ""), dict.fromkeys(rows, "")
    for line in found:
        for name in line.codes:
            if name != SPECIFICATION and line.differing(name, SPECIFICATION):
                plots[name] = plot(line.x, line.codes[name] != line.codes[SPECIFICATION])
                examples[name] = example(name, line.x, line.codes[name], line.codes[SPECIFICATION])
    pages = Environment(loader=PackageLoader("samebits.proofs.cli"), autoescape=True, undefined=StrictUndefined)
    return pages.get_template("atlas.html").render(
        lines=found,
        scale=SCALE,
        columns=COLUMNS,
        table={name: cells(name, dict(row)) for name, row in rows.items()},
        rows=rows,
        plots=plots,
        examples=examples,
        known={name for line in found for name in line.codes},
        command=_command(),
        versions=versions(),
    )


def plot(x: Any, differs: Any) -> str:
    """A number line as SVG: a mark at every input that differs."""
    import numpy as np

    near = (np.abs(x.astype(np.float64)) <= NEAR) & differs
    places = (x[near].astype(np.float64) + NEAR) / (2 * NEAR) * WIDTH
    marks = "".join(f'<path d="M{place:.1f} 6V22" stroke="#cf222e"/>' for place in places)
    ticks = "".join(
        f'<path d="M{place:.1f} 22v4" stroke="#000"/>'
        f'<text x="{place:.1f}" y="36" text-anchor="middle">{number:g}</text>'
        for number in np.arange(-NEAR + 1, NEAR)
        for place in [(number + NEAR) / (2 * NEAR) * WIDTH]
    )
    label = f"{int(differs.sum())} of {len(x)} inputs differ"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<path d="M0 22H{WIDTH}" stroke="#000"/>{ticks}{marks}</svg>'
    )


def example(name: str, x: Any, codes: Any, usual: Any) -> str:
    """Code that shows the smallest input at which a target leaves the default arithmetic."""
    import numpy as np

    differs = np.flatnonzero(codes != usual)
    at = differs[np.argmin(np.abs(x[differs].astype(np.float64)))]
    kind = x.dtype.name
    home = "ml_dtypes" if kind == "bfloat16" else "np"
    made = f"np.array([{float(x[at])!r}], {home}.{kind})"
    imports = "import ml_dtypes, numpy as np" if home == "ml_dtypes" else "import numpy as np"
    return "\n".join(
        [
            imports,
            "from samebits.core import QParams",
            "from samebits.proofs.conformance.targets import resolve",
            f"target = resolve({name!r})",
            "zero_point = np.int32(3) if target.quantizer.affine else None",
            f"x = {made}  # code {codes[at]}; the default: {usual[at]}",
            "print(target(x, QParams(np.float32(0.1), zero_point)))",
        ]
    )
