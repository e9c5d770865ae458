"""The documentation: links lead somewhere, programs print what the pages say, nothing names somebody's machine."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .source import FOLDERS, ROOT


def project_files() -> list[Path]:
    """Text files of the project: those of its folders and those beside them."""
    files = [path for folder in (*FOLDERS, ".ci") for path in (ROOT / folder).rglob("*")]
    beside = [path for path in ROOT.iterdir() if path.name not in {".git", ".installed"}]
    binary = {".safetensors", ".png", ".npz"}
    return [p for p in files + beside if p.is_file() and "__pycache__" not in p.parts and p.suffix not in binary]


def test_no_file_names_a_path_of_somebody_s_machine() -> None:
    roots = "|".join(("work", "home", "root", "Users", "opt", "mnt"))
    absolute = re.compile(rf"(?<![\w./-])/({roots})/\w")
    assert absolute.search("see /" + "home/someone/notes"), "the pattern itself"
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in project_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if absolute.search(line)
    ]
    assert not found


def test_links_in_the_documentation_lead_somewhere() -> None:
    for path in project_files():
        if path.suffix == ".md":
            for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
                assert target.startswith("https://") or (path.parent / target).exists(), f"{path}: {target}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_has_a_readme(folder: str) -> None:
    lines = (ROOT / folder / "README.md").read_text().splitlines()
    assert 5 <= len(lines) <= 60


README_PROGRAMS = re.findall(r"```python\n(.+?)```\n\n```text\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_readme_shows_what_its_programs_print() -> None:
    assert len(README_PROGRAMS) == (ROOT / "README.md").read_text().count("```python") >= 3


@pytest.mark.parametrize(("program", "output"), README_PROGRAMS, ids=range(len(README_PROGRAMS)))
def test_readme_programs_print_what_the_readme_says(program: str, output: str) -> None:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    error = result.stderr[result.stderr.rfind("AssertionError") :] if result.returncode else ""
    assert result.stdout + error == output, result.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_examples_in_the_documentation(path: Path) -> None:
    assert doctest.testfile(str(path), module_relative=False).failed == 0
