"""Which certificates are kept, and the table of them in ``docs/certificates.md``.

    python -m samebits.proofs.certificates.kept boundary            # entries whose every input and scale is certified
    python -m samebits.proofs.certificates.kept scales              # entries whose scale rule is
    python -m samebits.proofs.certificates.kept docs/certificates   # the rows of the table again, from the files

A file that does not hold together ends it with the reason.
"""

import sys
from pathlib import Path

from ...core import catalog
from ...core.formats import CodebookFormat, Format, IntegerFormat
from .certificate import RESULTS, Certificate, load
from .request import Request

HEAD = "| certificate | engine | modes | tiles | results per mode | result |\n|---|---|---:|---:|---:|---|\n"


def boundary() -> list[str]:
    """Entries of the boundary engine that cost minutes: integers of up to 8 bits, binary, ternary and float4."""
    return [
        name
        for name, q in catalog.items()
        if (q.format.bits <= 8 if isinstance(q.format, IntegerFormat) else _is_small(q.format))
        and _has_plan(Request(name, q))
    ]


def scales() -> list[str]:
    """Of the entries that the scale engine takes, the first of each rule."""
    first: dict[str, str] = {}
    for name, q in catalog.items():
        if _has_plan(Request(name, q, engine="scales")):
            first.setdefault(q.scale.restriction, name)
    return list(first.values())


def _is_small(format: Format) -> bool:
    """Whether steps are few, and those with subnormal inputs, which some modes compute slowly, very few."""
    return format.bits <= 4 and not isinstance(format, CodebookFormat)


def _has_plan(request: Request) -> bool:
    try:
        request.plan()
    except ValueError:
        return False
    return True


def row(name: str, found: Certificate) -> str:
    """A line of the table; the files lie in the folder ``certificates`` beside the page."""
    tiles, results = (sum(part[key] for part in found["domain"]) for key in ("tiles", RESULTS))
    request, result = found["request"], found["statement"]["result"]
    modes = len(request["modes"])
    cells = (f"[{name}](certificates/{name}.json)", request["engine"], modes, f"{tiles:,}", f"{results:,}", result)
    return f"| {' | '.join(map(str, cells))} |\n"


def rewrite(page: str, rows: str) -> str:
    """The page with other rows under the head of its table.

    Raises:
        ValueError: a page without that head, or with more than one.
    """
    before, *after = page.split(HEAD)
    if len(after) != 1:
        raise ValueError(f"the page must hold one table of certificates, got {len(after)}")
    lines = after[0].splitlines(keepends=True)
    old = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return before + HEAD + rows + "".join(lines[old:])


def main() -> None:
    """Print names, or read the folder that is the argument and write the page beside it."""
    if sys.argv[1] in ("boundary", "scales"):
        print(*(boundary() if sys.argv[1] == "boundary" else scales()))
        return
    folder = Path(sys.argv[1]).absolute()
    found = {path.stem: load(path)[0] for path in sorted(folder.glob("*.json")) if path.name != "schema.json"}
    rows = "".join(row(name, certificate) for name, certificate in found.items())
    page = folder.parent / "certificates.md"
    page.write_text(rewrite(page.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
