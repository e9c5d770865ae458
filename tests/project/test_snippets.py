"""Programs in the documentation print what the pages say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .snippets import KINDS, blocks, complaints
from .source import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_PROGRAMS = [
    page for page in PAGES if any(block.kind in ("python", "console") for block in blocks(page.read_text()))
]


def test_every_tutorial_has_programs() -> None:
    tutorials = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
    assert len(tutorials) >= 5
    assert {ROOT / "README.md", ROOT / "docs" / "README.md", *tutorials} <= set(WITH_PROGRAMS)
    for page in tutorials:
        text = page.read_text()
        assert 0 < text.index("```") < text.find("\n|") % len(text), "an example before a table"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_are_of_a_kind_that_runs(page: Path) -> None:
    text = page.read_text()
    assert {block.kind for block in blocks(text)} <= KINDS
    fences = sum(line.startswith("```") for line in text.splitlines())
    outputs = sum(block.output is not None for block in blocks(text))
    assert fences == 2 * (len(blocks(text)) + outputs), "a fence without a mark, indented or not closed"


@pytest.mark.parametrize("page", WITH_PROGRAMS, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "project" / "snippets.py"), str(page)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert not found, "\n".join(found)


def program(source: str, output: str | None = None) -> str:
    """A page that holds a program, and what it prints."""
    page = f"# Page\n\n```python\n{source}\n```\n"
    return page if output is None else f"{page}\n```text\n{output}\n```\n"


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        (program("print(1)", "2"), "page:4: the page says\n2\n\nbut it prints\n1\n"),
        (program("print(1)\nprint(2)", "1"), "the page says\n1\n\nbut it prints\n1\n2\n"),
        (program("1 / 0"), "ZeroDivisionError"),
        (program("print(1)\n1 / 0", "1"), "ZeroDivisionError"),
        (program("x = 1", "1"), "the page says\n1\n\nbut it prints\n"),
        (program("print(x)"), "NameError"),
        (program("x = ("), "SyntaxError"),
        ("```sh\nls\n```\n", "page:2: nothing runs a block marked 'sh'"),
        ("```console\n$ ls\n```\n", "page:2: only samebits is run here, got ls"),
        ("```console\n$ samebits nothing\n```\n", "No such command 'nothing'"),
        ("```console\n$ samebits --version\nanother\n```\n", "the page says\nanother\n"),
    ],
)
def test_a_page_that_is_wrong_is_complained_of(page: str, complaint: str) -> None:
    (found,) = complaints(page)
    assert complaint in found


@pytest.mark.parametrize(
    "page",
    [
        program("print(1)", "1"),
        program("print(1)"),
        program("x = 1") + program("print(x)", "1"),
        program("print(1)\n1 / 0", "1\nZeroDivisionError: division by zero"),
        program("1 / 0", "ZeroDivisionError: division by zero") + program("print(2)", "2"),
        "```console\n$ samebits --version\n...\n```\n",
        "```text\nanything\n```\n",
        program(">>> 1 + 1\n3\n"),
    ],
)
def test_a_page_that_is_right_is_not(page: str) -> None:
    assert complaints(page) == []
