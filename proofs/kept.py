"""The tables of kept certificates, in the README and in ``docs/certificates.md``, from the files themselves.

    python -m samebits.proofs.kept docs/certificates

Rewrites the rows of both tables. A file that does not hold together ends it with the reason.
"""

import sys
from pathlib import Path

from .certificate import RESULTS, Certificate, load

HEAD = "| certificate | engine | modes | tiles | results per mode | result |\n|---|---|---:|---:|---:|---|\n"


def row(name: str, found: Certificate, folder: str) -> str:
    """A line of a table; ``folder`` is where the file lies, seen from the page."""
    tiles, results = (sum(part[key] for part in found["domain"]) for key in ("tiles", RESULTS))
    request, result = found["request"], found["statement"]["result"]
    modes = len(request["modes"])
    return f"| [{name}]({folder}/{name}.json) | {request['engine']} | {modes} | {tiles:,} | {results:,} | {result} |\n"


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
    """Read the folder that is the argument; write both pages."""
    folder = Path(sys.argv[1]).absolute()
    found = {path.stem: load(path)[0] for path in sorted(folder.glob("*.json")) if path.name != "schema.json"}
    for page, place in (
        (folder.parent / "certificates.md", folder.name),
        (folder.parents[1] / "README.md", f"docs/{folder.name}"),
    ):
        rows = "".join(row(name, certificate, place) for name, certificate in found.items())
        page.write_text(rewrite(page.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
