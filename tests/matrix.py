"""The kernel tests, `samebits check` and `samebits diverge` with other Pythons and releases: docs/versions.md.

    python -m tests.matrix [--only NAME] [--jobs N] [--fresh] [--thorough] [--python COMMAND]

Each environment is a folder of its own in build/matrix, made with venv and pip, and kept while what it shall hold stays
the same. The package is built from a copy of this tree. Exit codes: 0 everything agreed, 1 something failed, 2 wrong
usage or a Python that is missing (one line says which). Standard library only, for any Python from 3.11 on.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from . import matrix_page
from .matrix_page import Result
from .project.source import PROJECT, ROOT, imported_names, parsed

HOME = ROOT / "build" / "matrix"
PAGE = ROOT / "docs" / "versions.md"
OLDEST = (3, 11)  # `requires-python`
FOLDERS = ("tests/core", "tests/torch_frontend", "tests/jax_backend")
TOOLS = ("pytest", "pytest-xdist")
# One of each kind that has code of its own; the whole catalog takes as long again as everything else together.
KINDS = (
    "int8_per_tensor",
    "uint8_affine_per_channel",
    "int4_per_group32",
    "uint4_affine_float_zero_per_group64",
    "int8_power_of_two_per_channel",
    "binary_per_tensor",
    "ternary_per_channel",
    "float8_e4m3fn_per_channel",
    "float8_e5m2_per_tensor",
    "mxfp4_e2m1",
    "nvfp4",
    "nf4_per_group64",
)
Version = tuple[int, ...]


class Refusal(Exception):
    """Why nothing can be run, in one line."""


@dataclass(frozen=True)
class Environment:
    """A Python and what pip is asked to install for it. ``pinned``: with the versions of constraints.txt."""

    name: str
    words: str
    python: str
    requirements: tuple[str, ...]
    pinned: bool = False

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return HOME / self.name

    @property
    def text(self) -> str:
        """Everything that makes it what it is; made anew when this changes."""
        constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8") if self.pinned else ""
        return "\n".join([self.python, *self.requirements, constraints])


def requirements(project: Mapping[str, Any]) -> list[str]:
    """What the package needs with every room, and the tools that run tests: the lines of pyproject.toml, by name."""
    extras = project["optional-dependencies"]
    own = re.compile(rf"{project['name']}\[(.+)\]$")
    found, open_extras = list(project["dependencies"]), ["all"] if "all" in extras else []
    while open_extras:
        for line in extras[open_extras.pop()]:
            inner = own.match(line)
            open_extras += inner[1].split(",") if inner else []
            found += [] if inner else [line]
    found += [line for line in extras["test"] if name_of(line) in TOOLS]
    return sorted(set(found), key=name_of)


def name_of(requirement: str) -> str:
    """The name of the library that a requirement line is about."""
    return re.split(r"[<>=~!;\[ ]", requirement, maxsplit=1)[0]


def at_bound(requirement: str) -> str:
    """The oldest release that a line ``name>=release`` allows, as ``name==release``; other lines as they are."""
    return re.sub(r">=\s*([\w.]+).*", r"==\1", requirement)


def pythons() -> dict[Version, str]:
    """Pythons with venv on this machine, by (major, minor): those on PATH, then those that pyenv knows."""
    commands = [path for minor in range(OLDEST[1], 30) if (path := shutil.which(f"python3.{minor}"))]
    if shutil.which("pyenv"):
        names = _output(["pyenv", "versions", "--bare"]).split()
        prefixes = [_output(["pyenv", "prefix", name]).strip() for name in names if re.fullmatch(r"3\.\d+\.\d+", name)]
        commands += [str(Path(prefix, "bin", "python")) for prefix in prefixes if prefix]
    found: dict[Version, str] = {}
    for command in [*commands, sys.executable]:
        version = version_of(command)
        if version and version >= OLDEST:
            found.setdefault(version, command)
    return found


def version_of(command: str) -> Version | None:
    """(major, minor) of a finished release of Python that can make environments; None where there is none."""
    program = "import sys, venv, ensurepip; print(*sys.version_info[:2], sys.version_info.releaselevel)"
    words = _output([command, "-c", program]).split()
    return (int(words[0]), int(words[1])) if words[2:] == ["final"] else None


def matrix(found: Mapping[Version, str], lines: Sequence[str]) -> list[Environment]:
    """The three environments. Refusal names a Python that is missing."""
    if OLDEST not in found:
        wanted = ".".join(map(str, OLDEST))
        raise Refusal(f"needs Python {wanted} with venv: install it, or put python{wanted} on PATH")
    newest = max(found)
    names = [name_of(line) for line in lines]
    oldest = [at_bound(line) for line in lines if name_of(line) not in TOOLS]
    tools = [line for line in lines if name_of(line) in TOOLS]
    return [
        Environment("pinned", "the versions of constraints.txt", found[OLDEST], tuple(lines), pinned=True),
        Environment("newest", "the newest releases that pip found, and the newest Python", found[newest], tuple(names)),
        Environment("oldest", "every library at the lower bound of pyproject.toml", found[OLDEST], (*oldest, *tools)),
    ]


def make(environment: Environment, *, fresh: bool) -> None:
    """Make the environment, unless it is there and as wanted. CalledProcessError where pip fails."""
    stamp = environment.folder / "requirements.txt"
    if fresh or not stamp.is_file() or stamp.read_text(encoding="utf-8") != environment.text:
        shutil.rmtree(environment.folder, ignore_errors=True)
        _run([environment.python, "-m", "venv", str(environment.folder)])
        constraints = ["-c", str(ROOT / "constraints.txt")] if environment.pinned else []
        _pip(environment, [*constraints, *environment.requirements])
        stamp.write_text(environment.text, encoding="utf-8")
    _pip(environment, ["--no-deps", "--force-reinstall", str(HOME / "source")])


def copy_tree() -> None:
    """A copy of the tree to build from, without what was built or installed in it."""
    source = HOME / "source"
    shutil.rmtree(source, ignore_errors=True)

    def unwanted(folder: str, names: list[str]) -> set[str]:
        built = {"build", "dist", "__pycache__"}
        return {
            name
            for name in names
            if name in built
            or name.endswith(".egg-info")
            or (name.startswith(".") and name != ".gitignore")
            or (Path(folder, name) / "pyvenv.cfg").is_file()
        }

    shutil.copytree(ROOT, source, ignore=unwanted)


def runnable(installed: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Test files that can run where these names can be imported, and the others with the names that they lack."""
    known = {*sys.stdlib_module_names, *installed, "samebits", "tests", "?"}
    files, left_out = [], {}
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("test_*.py")):
        lacking = sorted({name.split(".")[0] for name in _imported(path, set())} - known)
        name = path.relative_to(ROOT).as_posix()
        if lacking:
            left_out[name] = ", ".join(lacking)
        else:
            files.append(name)
    return files, left_out


def _imported(path: Path, seen: set[Path]) -> Iterator[str]:
    """Names that a test file imports, itself and by the test modules that it imports."""
    seen.add(path)
    package = ".".join(path.parent.relative_to(ROOT).parts)
    for name in imported_names(parsed(path), package):
        yield name
        parts = name.split(".")
        for end in range(2, len(parts) + 1):
            local = ROOT.joinpath(*parts[:end]).with_suffix(".py")
            if parts[0] == "tests" and local.is_file() and local not in seen:
                yield from _imported(local, seen)


def run(environment: Environment, jobs: int, *, fresh: bool, thorough: bool) -> Result:
    """Make an environment and run everything in it; what cannot be run is one of the failures."""
    result = Result(environment.name, environment.words)
    _say(f"{environment.name}: {environment.python}")
    try:
        make(environment, fresh=fresh)
    except subprocess.CalledProcessError as error:
        return replace(result, failures=(f"cannot be installed: {_last_line(error.stderr)}",))
    files, left_out = runnable(_importable(environment))
    checked = "every quantizer of the catalog" if thorough else ", ".join(f"`{name}`" for name in KINDS)
    result = replace(result, versions=_versions(environment), left_out=left_out, checked=checked)
    result = _tests(environment, result, files, jobs)
    kinds = [] if thorough else [word for name in KINDS for word in ("--quantizer", name)]
    result = _check(result, _samebits(environment, ["check", "--workers", str(jobs), *kinds]))
    return _diverge(result, _samebits(environment, ["diverge", "--workers", str(jobs)]))


def _tests(environment: Environment, result: Result, files: Sequence[str], jobs: int) -> Result:
    report = environment.folder / "tests.xml"
    report.unlink(missing_ok=True)
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        str(jobs),
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",
        f"--junitxml={report}",
    ]
    done = _in_source([_bin(environment, "python"), "-m", "pytest", *options, *files])
    (environment.folder / "tests.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if not report.is_file():
        return replace(result, failures=(*result.failures, f"tests: {_last_line(done.stderr or done.stdout)}"))
    passed, skipped, failures = counts(ElementTree.parse(report).getroot())
    return replace(
        result,
        passed=passed,
        skipped=skipped,
        failed=len(failures),
        failures=(*result.failures, *failures),
    )


def counts(report: ElementTree.Element) -> tuple[int, int, list[str]]:
    """Tests passed, tests skipped, and those that failed with their message, of a report in JUnit's form."""
    passed, skipped, failures = 0, 0, []
    for case in report.iter("testcase"):
        wrong = [child for child in case if child.tag in ("failure", "error")]
        if wrong:
            message = " ".join(wrong[0].get("message", "").split())[:160]
            name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
            failures.append(f"`{name}`: {message}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, skipped, failures


def _check(result: Result, printed: Mapping[str, Any] | str) -> Result:
    if isinstance(printed, str):
        return replace(result, failures=(*result.failures, f"samebits check: {printed}"))
    rows = printed["rows"]
    missing = {f"samebits check, {row['mode']}: {row['missing']}" for row in rows if row["missing"]}
    other = [] if printed["same"] or any(row["differing"] for row in rows) else ["samebits check: not the same"]
    return replace(
        result,
        compared=sum(row["compared"] for row in rows),
        differing=sum(row["differing"] for row in rows),
        failures=(*result.failures, *sorted(missing), *other),
    )


def _diverge(result: Result, printed: Mapping[str, Any] | str) -> Result:
    if isinstance(printed, str):
        return replace(result, failures=(*result.failures, f"samebits diverge: {printed}"))
    textbook: dict[str, int] = {}
    for row in printed["rows"]:
        key = f"{row['dtype']}, {row['surroundings']}: {row['left']} against {row['right']}"
        if row["target"] == "textbook":
            textbook[key] = textbook.get(key, 0) + row["differing"]
    ours = sum(row["differing"] for row in printed["rows"] if row["target"] == "samebits")
    return replace(result, ours=ours, divergence=textbook)


def _versions(environment: Environment) -> dict[str, str]:
    names = [name for name in matrix_page.SHOWN if name != "Python"]
    program = f"import json, platform; from importlib.metadata import version as v; names = {names!r}\n"
    program += "print(json.dumps({'Python': platform.python_version()} | {name: v(name) for name in names}))"
    return dict(json.loads(_output([_bin(environment, "python"), "-c", program])))


def _importable(environment: Environment) -> list[str]:
    program = "from importlib.metadata import packages_distributions as names; print(*names())"
    return _output([_bin(environment, "python"), "-c", program]).split()


def _samebits(environment: Environment, words: Sequence[str]) -> Mapping[str, Any] | str:
    """What a command printed as JSON, or the last line of what it said instead."""
    done = _in_source([_bin(environment, "samebits"), *words, "--json"])
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        return _last_line(done.stderr)


def _bin(environment: Environment, program: str) -> str:
    return str(environment.folder / "bin" / program)


def _in_source(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run in the copy of the tree, with a cache of compiled programs that no other environment shares."""
    cache = Path(command[0]).parents[1] / "inductor"
    around = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    around.pop("PYTHONPATH", None)
    _say("  " + " ".join([Path(command[0]).name, *command[1:4], "..."]))
    return subprocess.run(command, cwd=HOME / "source", env=around, capture_output=True, text=True, check=False)


def _pip(environment: Environment, words: Sequence[str]) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-input"]
    _run([_bin(environment, "python"), "-m", "pip", "install", *options, *words])


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


def _output(command: Sequence[str]) -> str:
    """What a command prints; nothing where it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    return lines[-1].strip()[:300] if lines else "no output"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def chosen(arguments: argparse.Namespace) -> list[Environment]:
    """The environments that are asked for. Refusal says in one line what is wrong with the request."""
    lines = requirements(PROJECT["project"])
    known = matrix(pythons(), lines)
    if arguments.only is None:
        return known
    wanted = [environment for environment in known if environment.name == arguments.only]
    if arguments.python:
        version = version_of(arguments.python)
        if version is None or version < OLDEST:
            raise Refusal(f"{arguments.python} is no Python {'.'.join(map(str, OLDEST))} or newer with venv")
        wanted = [replace(environment, python=arguments.python) for environment in wanted]
    return wanted


def main(words: Sequence[str] | None = None) -> int:
    """Run what is asked for, write the page when all environments have been run, print what was found."""
    parser = argparse.ArgumentParser(prog="matrix", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", choices=("pinned", "newest", "oldest"), help="one environment")
    parser.add_argument("--jobs", type=int, default=2, help="processes that share the work")
    parser.add_argument("--fresh", action="store_true", help="make environments anew, for the newest releases of today")
    parser.add_argument("--thorough", action="store_true", help="check every quantizer of the catalog")
    parser.add_argument("--python", help="with --only: another Python for it; the page stays as it is")
    arguments = parser.parse_args(words)
    if arguments.python and not arguments.only:
        parser.error("--python needs --only")
    try:
        wanted = chosen(arguments)
    except Refusal as refusal:
        print(f"matrix: {refusal}", file=sys.stderr)
        return 2
    HOME.mkdir(parents=True, exist_ok=True)
    copy_tree()
    results = []
    for environment in wanted:
        results.append(run(environment, arguments.jobs, fresh=arguments.fresh, thorough=arguments.thorough))
        if not arguments.python:
            matrix_page.save(results[-1], HOME / f"{environment.name}.json")
    print(matrix_page.generated(results))
    known = [matrix_page.load(HOME / f"{name}.json") for name in ("pinned", "newest", "oldest")]
    complete = [result for result in known if result is not None]
    if len(complete) == len(known) and not arguments.python:
        made = matrix_page.generated(complete)
        PAGE.write_text(matrix_page.page(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
