"""Programs in pages: what a page shows is run, and must print what the page says.

A block marked ``python`` is run; the blocks of a page run in order, in one process, over the same names. A block marked
``text`` right behind it holds what it prints, an exception's last line included. A block marked ``console`` holds
commands behind ``$``, each followed by what it prints, where ``...`` stands for what differs from run to run. A block
that begins with ``>>>`` is left to doctest.

    python tests/project/snippets.py docs/tutorials/certify.md      # in an empty directory; prints complaints as JSON
"""

import doctest
import io
import json
import linecache
import os
import re
import shlex
import subprocess
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
KINDS = {"python", "console", "text", "doctest"}


class Block(NamedTuple):
    """A block of a page: its mark, the line it begins at, what it holds, what it must print if the page says so."""

    kind: str
    line: int
    source: str
    output: str | None


def blocks(page: str) -> list[Block]:
    """The marked blocks of a page; outputs are part of the program that they follow."""
    return [
        Block(
            "doctest" if found[2].startswith(">>> ") else found[1],
            page.count("\n", 0, found.start(2)) + 1,
            found[2],
            found[3] if found[1] == "python" else None,
        )
        for found in FENCE.finditer(page)
    ]


def complaints(page: str, name: str = "page") -> list[str]:
    """Runs the blocks of a page in this process; what does not print what the page says."""
    names: dict[str, object] = {"__name__": "__main__"}
    found = []
    for block in blocks(page):
        place = f"{name}:{block.line}"
        match block.kind:
            case "python":
                printed, unexpected = run_python(block, place, names)
                if unexpected or block.output not in (None, printed):
                    found.append(f"{place}: the page says\n{block.output or 'nothing'}\nbut it prints\n{printed}")
            case "console":
                found += [f"{place}: {text}" for text in run_console(block.source)]
            case "text" | "doctest":
                pass
            case kind:
                found.append(f"{place}: nothing runs a block marked {kind!r}")
    return found


def run_python(block: Block, place: str, names: dict[str, object]) -> tuple[str, bool]:
    """What a program prints, and whether it ended with an exception that the page does not show.

    Of an exception that the page shows, the message is printed, else the traceback.
    """
    printed, unexpected = io.StringIO(), False
    file, source = place.partition(":")[0], "\n" * (block.line - 1) + block.source
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for errors that show a line
    with redirect_stdout(printed):
        try:
            exec(compile(source, file, "exec"), names)
        except Exception as error:
            last = "".join(traceback.format_exception_only(error))
            unexpected = last not in (block.output or "")
            print(traceback.format_exc() if unexpected else last, end="")
    return printed.getvalue(), unexpected


def run_console(source: str) -> list[str]:
    """Runs the `samebits` commands of a block; those that fail or print something else, spaces and ``...`` aside."""
    same = doctest.OutputChecker().check_output
    found = []
    for command, _, said in (part.partition("\n") for part in re.split(r"^\$ ", source, flags=re.MULTILINE)[1:]):
        program, *arguments = shlex.split(command)
        if program != "samebits":
            found.append(f"only samebits is run here, got {command}")
            continue
        result = subprocess.run(
            [str(Path(sys.executable).with_name(program)), *arguments],
            env={**os.environ, "COLUMNS": "120"},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode or not same(said, result.stdout, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE):
            found.append(f"{command}\nthe page says\n{said}\nbut it prints\n{result.stdout}{result.stderr}")
    return found


if __name__ == "__main__":
    path = Path(sys.argv[1])
    print(json.dumps(complaints(path.read_text(encoding="utf-8"), path.name)))
