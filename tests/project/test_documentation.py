"""The documentation: links lead somewhere, the site holds every public name, nothing names somebody's machine."""

import ast
import doctest
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from samebits.core import catalog

from .source import FOLDERS, ROOMS, ROOT, definitions, is_public, parsed

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
READMES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / folder / "README.md" for folder in FOLDERS)]
EXTENSIONS = "py|md|toml|txt|yml|json|html|safetensors"


def project_files() -> list[Path]:
    """Text files of the project: those of its folders and those beside them."""
    files = [path for folder in (*FOLDERS, ".ci") for path in (ROOT / folder).rglob("*")]
    beside = [path for path in ROOT.iterdir() if path.name not in {".git", ".installed"}]
    binary = {".safetensors", ".png", ".npz"}
    return [p for p in files + beside if p.is_file() and "__pycache__" not in p.parts and p.suffix not in binary]


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the rooms by its full name, packages too, with its file."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(("samebits", *(part for part in parts if part != "__init__"))), path


def public_names() -> set[str]:
    """Full names of the public modules, classes, functions, methods and constants of the rooms."""
    found = set()
    for module, path in modules():
        tree = parsed(path)
        names = [name for name, _ in definitions(tree)]
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
        found |= {module, *(f"{module}.{name}" for name in names if is_public(name))}
    return found


def unknown_paths(text: str, folder: Path) -> list[str]:
    """Files that a page of a folder names between backticks and that are not there; a ``*`` stands for any characters.

    A path is one from the page or from the root. A name alone may also be anywhere in the folder, and on a page of the
    root in any folder of the project.
    """
    named = re.findall(rf"`([\w./*-]+\.(?:{EXTENSIONS}))`", text)
    within = [ROOT / name for name in FOLDERS] if folder == ROOT else [folder]
    return [
        path
        for path in named
        if not any(folder.glob(path))
        and not any(ROOT.glob(path))
        and ("/" in path or not any(found for place in within for found in place.rglob(path)))
    ]


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


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_readme_names_are_there(path: Path) -> None:
    assert not unknown_paths(path.read_text(), path.parent)


def test_a_file_that_is_not_there_is_seen() -> None:
    text = "`core/formats.py`, `formats.py`, `codes.py`, `laws/c*.py`, `nn/`, `no.py`, `core/no.py`, `dequantize(x)`"
    assert unknown_paths(text, ROOT / "proofs") == ["formats.py", "no.py", "core/no.py"]
    assert unknown_paths(text, ROOT) == ["laws/c*.py", "no.py", "core/no.py"]


@pytest.mark.parametrize("folder", ROOMS)
def test_the_readme_of_a_room_names_its_files(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    held = {path.name for path in (ROOT / folder).rglob("*.py")} - {"__init__.py"}
    held |= {f"{path.parent.name}/" for path in (ROOT / folder).glob("*/__init__.py")}
    assert {name for name in held if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_in_the_documentation(path: Path) -> None:
    assert doctest.testfile(str(path), module_relative=False).failed == 0


def test_the_table_of_the_check_is_of_the_catalog() -> None:
    table = (DOCS / "check.md").read_text()
    assert re.findall(r"^│ (\w+) ", table, re.MULTILINE) == list(catalog)
    shown = re.search(r"```text\n(┏.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert len(shown[1].splitlines()) == 10
    assert set(shown[1].splitlines()) <= set(table.splitlines())


def test_examples_of_the_readme_are_short() -> None:
    programs = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(programs) == 4
    for program in programs:
        assert len([line for line in program.splitlines() if line]) <= 10


# --- the site ---------------------------------------------------------------------------------------------------------


def build(folder: Path, pages: Path = DOCS) -> subprocess.CompletedProcess[str]:
    """The site of some pages, built strictly into ``folder / "site"``, by a copy of the configuration."""
    links = folder / "links" / "samebits"
    links.mkdir(parents=True)
    for room in ROOMS:
        (links / room).symlink_to(ROOT / room)
    config = (ROOT / "mkdocs.yml").read_text().replace("docs_dir: docs", f"docs_dir: {pages}")
    (folder / "mkdocs.yml").write_text(config)
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "site")],
        cwd=folder,
        env={**os.environ, "SAMEBITS_LINKS": str(links.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site's folder."""
    folder = tmp_path_factory.mktemp("site")
    result = build(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "site"


def referenced(site: Path) -> set[str]:
    """Every name that the reference has an entry for, from the site's inventory."""
    head, _, rest = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert head
    return {line.split(" ", 1)[0] for line in zlib.decompress(rest).decode().splitlines()}


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    names = public_names()
    assert {
        "samebits.core.quantizer.quantize",
        "samebits.proofs.modes.execution.MODES",
        "samebits.proofs.laws",
    } <= names
    assert len(names) > 800
    assert sorted(names - referenced(site)) == []


def test_every_module_has_one_place_in_the_reference() -> None:
    pages = "".join(page.read_text() for page in DOCS.glob("reference/*.md"))
    assert sorted(re.findall(r"^::: (\S+)$", pages, re.MULTILINE)) == sorted(name for name, _ in modules())


def test_a_reader_s_browser_fetches_nothing_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^\s>]*")
    assert fetched.search('<script defer src="https://example.org/x.js">')
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= 25
    assert not [f"{page}: {fetch}" for page in pages for fetch in fetched.findall(page.read_text())]


def test_what_is_missing_from_the_site_is_seen(tmp_path: Path) -> None:
    """Planted: a link to nothing, an anchor that is none, a page outside the navigation, a reference of one module."""
    planted = {
        "check.md": "[a](no.md) [b](#nowhere)\n",
        "forgotten.md": "# Forgotten\n",
        "reference/core_nouns.md": "::: samebits.core.formats\n",
    }
    pages = tmp_path / "docs"
    for name in {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | set(planted):
        (pages / name).parent.mkdir(exist_ok=True, parents=True)
        (pages / name).write_text(planted.get(name, "# Nothing\n"))
    result = build(tmp_path, pages)
    assert result.returncode == 1
    for complaint in ("'no.md'", "'#nowhere'", "forgotten.md"):
        assert complaint in result.stderr
    missing = public_names() - referenced(tmp_path / "site")
    assert {"samebits.core.quantizer", "samebits.core.quantizer.quantize"} <= missing
    assert (
        not {"samebits.core.formats", "samebits.core.formats.IntegerFormat.lo", "samebits.core.formats.NF4"} & missing
    )
