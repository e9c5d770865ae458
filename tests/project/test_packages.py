"""What is installed: declared dependencies, pinned versions, the wheel and the source distribution, their metadata."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from hashlib import sha256
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.metadata import Metadata

from samebits.core.requirements import EXTRAS as MINIMUMS
from samebits.core.requirements import ROOMS as ROOM_EXTRAS

from .source import PROJECT, ROOMS, ROOT, imported_names, parsed

EPOCH = "1600000000"  # seconds
PYTHONS = ("3.11", "3.12", "3.13")  # that constraints.txt serves
DEPENDENCIES: list[str] = PROJECT["project"]["dependencies"]
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
NEEDED = {
    "core": [],
    "torch_frontend": ["torch", "files", "onnx"],
    "jax_backend": ["jax", "files", "torch"],
    "proofs": ["proofs", "torch", "jax", "cluster"],
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_core_needs_and_what_its_extra_brings(room: str) -> None:
    base, own = requirement_names(DEPENDENCIES), [requirement_names(EXTRAS[extra]) for extra in NEEDED[room]]
    hosts = names_of_hosts() if room == "proofs" else set()
    assert distributions([room]) | base == base.union(*own, hosts)
    assert all(base.isdisjoint(one) for one in own)


def test_the_extra_all_is_that_of_every_room() -> None:
    assert EXTRAS["all"] == ["samebits[jax,proofs,torch]"]
    assert {*ROOM_EXTRAS.values(), "proofs"} == {"jax", "proofs", "torch"}


def test_dependencies_are_what_is_imported() -> None:
    every = requirement_names([*DEPENDENCIES, *(line for extra in MINIMUMS for line in EXTRAS[extra])])
    assert distributions(ROOMS) == every | names_of_hosts()
    assert distributions(["tests", "examples"]) <= every | requirement_names(EXTRAS["test"] + EXTRAS["mutants"])
    assert distributions(["benchmarks"]) <= every | requirement_names(EXTRAS["peers"])
    assert distributions(["examples"]) <= every | requirement_names(EXTRAS["docs"])


def test_rooms_ask_for_the_releases_that_are_declared() -> None:
    for extra, libraries in MINIMUMS.items():
        assert sorted(EXTRAS[extra]) == sorted(f"{library}>={least}" for library, least in libraries.items())


def test_constraints_pin_every_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "exact versions, no local ones"
    wanted = requirement_names(DEPENDENCIES + [line for own in EXTRAS.values() for line in own])
    assert wanted - {"samebits"} <= requirement_names(lines)


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


def names_of_hosts() -> set[str]:
    """What imports a module of ours instead of being brought by us: pytest, its plugin."""
    return {"pytest"}


def requirement_names(requirements: list[str]) -> set[str]:
    """Normalised names of requirement lines."""
    return {normalised(re.split(r"[<>=~!;\[ ]", line)[0]) for line in requirements}


def normalised(name: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


BESIDE = ("pyproject.toml", "setup.py", "README.md", "LICENSE")  # the rooms, to build them


def source_copy(folder: Path) -> Path:
    """The folder, with a copy of everything in it that is built."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BESIDE:
        shutil.copy(ROOT / name, folder)
    return folder


def build(source: Path, out: Path, **how: Any) -> Path:
    """The folder ``out``, with the source distribution of ``source`` and the wheel that was built from it."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, **how)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the source distribution, and the wheel that was built from it."""
    source = source_copy(tmp_path_factory.mktemp("source"))
    return build(source, tmp_path_factory.mktemp("dist"), env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH}, umask=0o022)


def test_the_same_files_make_the_same_archives(built: Path, tmp_path: Path) -> None:
    """Elsewhere, later, by somebody who lets no one read files, from files of another day: byte for byte."""
    source = source_copy(tmp_path / "elsewhere")
    for path in (source, *source.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (10**9, 10**9))
    out = build(source, tmp_path / "out", env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH}, umask=0o077)
    digests = [
        {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} for folder in (built, out)
    ]
    assert digests[0] == digests[1]
    assert sorted(Path(name).suffix for name in digests[0]) == [".gz", ".whl"]


def test_archives_have_one_time_and_two_permissions(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    assert {entry.date_time for entry in entries} == {(2020, 9, 13, 12, 26, 40)}  # EPOCH
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
    with tarfile.open(sdist) as packed:
        members = packed.getmembers()
    assert {member.mtime for member in members} == {int(EPOCH)}
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}
    assert {member.mode for member in members} == {0o644, 0o755}


def test_metadata_is_valid_and_complete(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        raw = archive.read(name)
    with tarfile.open(sdist) as packed:
        members = [packed.extractfile(name) for name in packed.getnames() if re.fullmatch(r"[^/]+/PKG-INFO", name)]
        assert [member.read() for member in members if member] == [raw]
    found = Metadata.from_email(raw, validate=True)  # raises for a field that package indexes refuse
    project = PROJECT["project"]
    assert (found.name, str(found.version)) == (project["name"], project["version"])
    assert (found.summary, found.license_expression) == (project["description"], project["license"])
    assert found.license_files == ["LICENSE"]
    assert str(found.requires_python) == project["requires-python"] == ">=3.11"
    assert (found.description_content_type, found.description) == ("text/markdown", (ROOT / "README.md").read_text())
    assert found.classifiers == project["classifiers"]
    assert {"Typing :: Typed", *(f"Programming Language :: Python :: {v}" for v in PYTHONS)} <= set(
        found.classifiers or ()
    )
    assert not [name for name in project["classifiers"] if name.startswith("License ::")], "the expression says it"
    assert set(found.provides_extra or ()) == set(EXTRAS)
    assert {str(line) for line in found.requires_dist or () if not line.marker} == set(DEPENDENCIES)


def test_the_type_checker_and_the_linter_take_the_oldest_python() -> None:
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert oldest == PYTHONS[0] == PROJECT["tool"]["mypy"]["python_version"]
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"


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
        (scripts,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    plugin = ["[pytest11]", "samebits", "=", "samebits.proofs.conformance.plugin"]
    assert scripts.split() == ["[console_scripts]", "samebits", "=", "samebits.proofs.cli.main:main", *plugin]
    assert {f"samebits/{room}/py.typed" for room in ROOMS} <= package_files()


def test_wheel_works_without_the_source_tree(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = "from samebits.proofs.cli import main; print(main.__file__, flush=True); main.main()"
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
