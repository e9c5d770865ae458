"""What is installed: declared dependencies, pinned versions, the wheel and the source distribution."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from .source import PROJECT, ROOMS, ROOT, imported_names, parsed


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
    program = "from samebits.proofs.cli import commands; print(commands.__file__, flush=True); commands.main()"
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
