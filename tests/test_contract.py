"""The contract of the project's structure: imports, mirrored verbs, exports, docstrings, packaging, documentation.

The checks read source text and return complaints; `BAD` holds a source that each of them must complain about.
"""

import ast
import doctest
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BACKENDS = ("torch_frontend", "jax_backend")
ROOMS = ("core", *BACKENDS, "proofs")
FOLDERS = (*ROOMS, "tests", "benchmarks", "examples", "docs")
NOUNS = {
    "arithmetic",
    "catalog",
    "checks",
    "choice",
    "contraction",
    "descriptions",
    "directions",
    "dialects",
    "formats",
    "granularity",
    "scales",
}
VERBS = {
    "accumulator",
    "bit_width",
    "blocks",
    "clamp",
    "elementary",
    "grid",
    "half_quadratic",
    "learned_rounding",
    "learned_sigma",
    "matmul",
    "minifloat",
    "quantizer",
    "ranges",
    "rounding",
    "running",
    "scaling",
    "statistics",
    "ste",
    "straight_through",
    "sums",
    "threefry",
    "zero_point",
}
CORE_ONLY = {"operations", "scale_rules"}  # what other systems do differently: only core reproduces that
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

MODULES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def parsed(path: Path) -> ast.Module:
    """Syntax tree of a file."""
    return ast.parse(path.read_text(), str(path))


def imported_names(tree: ast.Module, package: str) -> Iterator[str]:
    """Full dotted name of everything a module of this package imports; ``?`` for an import by a computed name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package.rsplit(".", level - 1)[0] if level else ""
                start = ".".join(part for part in (base, module) if part)
                yield from (f"{start}.{alias.name}" for alias in names)
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
                yield "?"
            case _:
                pass


def forbidden_imports(tree: ast.Module, package: str) -> list[str]:
    """What a backend may not import: of core anything but nouns, the other backend, proofs, or a computed name."""
    found = []
    for name in imported_names(tree, package):
        parts = name.split(".")
        own = parts[:2] == package.split(".")[:2]
        noun = parts[:2] == ["samebits", "core"] and parts[2:3] != [] and parts[2] in NOUNS
        if name == "?" or (parts[0] == "samebits" and not own and not noun):
            found.append(name)
    return found


def bad_exports(tree: ast.Module) -> list[str]:
    """Statements of an ``__init__`` other than its docstring and ``from .x import f as f``."""
    found = []
    for node in tree.body[1:]:
        plain = isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        if not plain or any(alias.asname != alias.name for alias in node.names):  # type: ignore[attr-defined]
            found.append(ast.unparse(node))
    return found


def undocumented(tree: ast.Module) -> list[str]:
    """Public classes, functions and methods without a docstring, and the module itself if it has none."""
    found = [] if ast.get_docstring(tree) else ["module"]
    return found + [name for name, node in definitions(tree) if is_public(name) and not ast.get_docstring(node)]


def unannotated(tree: ast.Module) -> list[str]:
    """Functions and methods, private ones too, of which an argument or the result has no annotation."""
    found = []
    for name, node in definitions(tree):
        if isinstance(node, ast.ClassDef):
            continue
        spec = node.args
        optional = [a for a in (spec.vararg, spec.kwarg) if a is not None]
        positional = [*spec.posonlyargs, *spec.args]
        if "." in name and positional and positional[0].arg in ("self", "cls"):
            positional = positional[1:]
        bare = [a.arg for a in (*positional, *spec.kwonlyargs, *optional) if a.annotation is None]
        found += [f"{name}({a})" for a in bare] + ([] if node.returns else [f"{name} -> ?"])
    return found


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Classes, functions and methods with their dotted names; what is local to a function stays out."""
    for node in tree.body:
        if isinstance(node, Definition):
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from definitions(node, f"{prefix}{node.name}.")


def is_public(name: str) -> bool:
    """Whether no part of a dotted name starts with an underscore."""
    return not any(part.startswith("_") for part in name.split("."))


# check, the source that it must complain about, what it must name
BAD: list[tuple[Callable[[ast.Module], list[str]], str, list[str]]] = [
    (lambda tree: forbidden_imports(tree, "samebits.jax_backend"), source, names)
    for source, names in [
        ("from ..core.rounding import round_to_integer", ["samebits.core.rounding.round_to_integer"]),
        ("from ..core import quantize", ["samebits.core.quantize"]),
        ("from ..core import clamp, checks", ["samebits.core.clamp"]),
        ("from .. import core", ["samebits.core"]),
        ("import samebits.core.ste", ["samebits.core.ste"]),
        ("import samebits.core", ["samebits.core"]),
        ("def f():\n    from ..torch_frontend import clamp", ["samebits.torch_frontend.clamp"]),
        ("from samebits.proofs import laws", ["samebits.proofs.laws"]),
        ("import importlib\nimportlib.import_module('samebits.core.ste')", ["?"]),
        ("from ..core.checks import check_codes\nfrom .clamp import clamp\nimport numpy", []),
    ]
]
BAD += [
    (bad_exports, '"""."""\nfrom .clamp import clamp', ["from .clamp import clamp"]),
    (bad_exports, '"""."""\nfrom .clamp import clamp as clip', ["from .clamp import clamp as clip"]),
    (bad_exports, '"""."""\nfrom . import clamp as clamp', ["from . import clamp as clamp"]),
    (bad_exports, '"""."""\n__all__ = []', ["__all__ = []"]),
    (bad_exports, '"""."""\nfrom .clamp import clamp as clamp', []),
    (undocumented, "def f(): ...\nclass C:\n    def m(self): ...\n    def _n(self): ...", ["module", "f", "C", "C.m"]),
    (unannotated, "def f(a, *b, c: int) -> int: ...", ["f(a)", "f(b)"]),
    (unannotated, "class C:\n    def m(self, x: int): ...", ["C.m -> ?"]),
]


@pytest.mark.parametrize(("check", "source", "complaints"), BAD)
def test_checks_see_what_they_look_for(
    check: Callable[[ast.Module], list[str]], source: str, complaints: list[str]
) -> None:
    assert check(ast.parse(source)) == complaints


def test_import_contracts() -> None:
    script = Path(sys.executable).with_name("lint-imports")
    command = [str(script), "--config", str(ROOT / "pyproject.toml"), "--no-cache", "--no-logo"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("room", BACKENDS)
def test_backends_import_only_nouns_of_core(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        package = ".".join(("samebits", *path.parent.relative_to(ROOT).parts))
        assert not forbidden_imports(parsed(path), package), path


def test_every_module_of_core_is_a_noun_or_a_verb() -> None:
    modules = {path.stem for path in (ROOT / "core").rglob("*.py")} - {"__init__"}
    assert modules == NOUNS | VERBS | CORE_ONLY


@pytest.mark.parametrize("noun", sorted(NOUNS))
def test_nouns_import_only_nouns(noun: str) -> None:
    names = [name.split(".") for name in imported_names(parsed(ROOT / "core" / f"{noun}.py"), "samebits.core")]
    assert {parts[2] for parts in names if parts[:2] == ["samebits", "core"]} <= NOUNS


@pytest.mark.parametrize("verb", sorted(VERBS))
@pytest.mark.parametrize("room", BACKENDS)
def test_verbs_have_the_same_signatures_in_every_room(room: str, verb: str) -> None:
    assert public_signatures(room, verb) == public_signatures("core", verb)


def public_signatures(room: str, verb: str) -> dict[str, list[tuple[str, str, object]]]:
    """Name, kind and default of every parameter of every public function that a verb's file defines."""
    module = importlib.import_module(f"samebits.{room}.{verb}")
    names = [name for name, _ in definitions(parsed(ROOT / room / f"{verb}.py")) if is_public(name)]
    signatures = {name: inspect.signature(getattr(module, name)).parameters.values() for name in names}
    return {name: [(p.name, p.kind.description, p.default) for p in ps] for name, ps in signatures.items()}


@each_module
def test_public_things_have_docstrings(path: Path) -> None:
    assert not undocumented(parsed(path))


@each_module
def test_functions_are_annotated(path: Path) -> None:
    assert not unannotated(parsed(path))


@pytest.mark.parametrize("room", ROOMS)
def test_exports(room: str) -> None:
    tree = parsed(ROOT / room / "__init__.py")
    assert not bad_exports(tree)
    package = importlib.import_module(f"samebits.{room}")
    names = [(node.module, alias.name) for node in tree.body[1:] for alias in node.names]  # type: ignore[attr-defined]
    assert len(names) == len(set(names))
    for module, name in names:
        assert getattr(package, name) is getattr(importlib.import_module(f"samebits.{room}.{module}"), name), name


def test_dependencies_are_what_is_imported() -> None:
    declared = requirement_names(PROJECT["project"]["dependencies"])
    extras = PROJECT["project"]["optional-dependencies"]
    assert distributions(ROOMS) == declared | requirement_names(extras["cluster"])
    assert distributions(["tests", "examples"]) <= declared | requirement_names(extras["test"])
    assert distributions(["benchmarks"]) <= declared | requirement_names(extras["peers"])
    assert distributions(["examples"]) <= declared | requirement_names(extras["docs"])


def test_constraints_pin_every_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "exact versions, no local ones"
    project = PROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    wanted = requirement_names(project["dependencies"] + extras)
    assert wanted <= requirement_names(lines)


def distributions(folders: list[str] | tuple[str, ...]) -> set[str]:
    """Distributions (normalised) that the Python files of these folders import, at whatever depth."""
    local = {path.stem for folder in folders for path in (ROOT / folder).rglob("*.py")}
    names = {
        name.split(".")[0]
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for name in imported_names(parsed(path), f"samebits.{folder}")
    }
    known = packages_distributions()
    outside = names - set(sys.stdlib_module_names) - {"samebits", "tests", "?"} - (local - set(known))
    return {normalised(known.get(name, [name])[0]) for name in outside}  # not installed: by the name it is imported by


def requirement_names(requirements: list[str]) -> set[str]:
    """Normalised names of requirement lines."""
    return {normalised(re.split(r"[<>=~!;\[ ]", line)[0]) for line in requirements}


def normalised(name: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the source distribution, and the wheel that was built from it."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


def package_files() -> set[str]:
    """What an installed package must hold: every file of the rooms but their READMEs."""
    files = {path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()}
    return {f"samebits/{path}" for path in files if "__pycache__" not in path.parts and path.name != "README.md"}


def test_wheel_holds_every_file_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        info = {name.split("/", 1)[1] for name in names if ".dist-info/" in name}
        assert {name for name in names if ".dist-info/" not in name} == package_files()
        assert {"entry_points.txt", "licenses/LICENSE"} <= info
    assert {f"samebits/{room}/py.typed" for room in ROOMS} <= package_files()


def test_wheel_works_without_the_source_tree(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = "from samebits.proofs import cli; print(cli.__file__, flush=True); cli.main()"
    command = [sys.executable, "-c", program, "catalog"]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path))
    assert "int8_per_tensor" in result.stdout


def test_source_distribution_holds_every_file(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {name.removeprefix("samebits/") for name in package_files()} | {"LICENSE", "README.md"} <= names


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
