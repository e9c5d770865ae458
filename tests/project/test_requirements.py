"""What is said where a library is missing or too old: one line with the extra that brings it, whatever is asked."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from samebits.core.requirements import EXTRAS, ROOMS, explained, explaining, lacking, require

Installed = Callable[[Mapping[str, str | None]], None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Have the metadata say that these releases are installed and nothing else; None for one without metadata."""

    def pretend(releases: Mapping[str, str | None]) -> None:
        def version(library: str) -> str:
            if (release := releases.get(library)) is None:
                raise PackageNotFoundError(library)
            return release

        def find_spec(library: str) -> ModuleSpec | None:
            return ModuleSpec(library, None, origin=f"{library}/__init__.py") if library in releases else None

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.util, "find_spec", find_spec)

    return pretend


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (None, "samebits.torch_frontend needs torch, which is not installed: pip install 'samebits[torch]'"),
        *[
            (old, f"samebits.torch_frontend needs torch 2.13 or newer, found {old}: pip install -U 'samebits[torch]'")
            for old in ("2.9.1", "2.12.99+cpu", "2.12.0a0+git1234", "1.13", "2", "v2.12")
        ],
        *[
            (new, "")
            for new in ("2.13", "2.13.0", "2.13.0+cpu", "2.13.0a0+git", "2.14.0.dev20990101+cu130", "3", "10.1")
        ],
        *[(strange, "") for strange in ("unknown", "main", "")],  # it does not say its release
    ],
)
def test_a_framework_is_there_and_new_enough(installed: Installed, found: str | None, line: str) -> None:
    installed({} if found is None else {"torch": found})
    if not line:
        require("torch_frontend")
        return
    with pytest.raises(ImportError) as refused:
        require("torch_frontend")
    assert str(refused.value) == line


def test_every_library_of_a_room_is_asked_for(installed: Installed) -> None:
    installed({"jax": "0.10.2"})
    assert lacking("jax", "it") == "it needs flax, which is not installed: pip install 'samebits[jax]'"
    installed({"flax": "0.12.8"})
    assert lacking("jax", "it") == "it needs jax, which is not installed: pip install 'samebits[jax]'"
    installed({"jax": "0.10.2", "flax": "0.12.3"})
    assert lacking("jax", "it") == "it needs flax 0.12.4 or newer, found 0.12.3: pip install -U 'samebits[jax]'"
    installed({"jax": "0.10.10", "flax": "0.13"})
    assert lacking("jax", "it") is None


def test_a_library_without_metadata_is_there(installed: Installed) -> None:
    """Built in its source tree and found by its path, for instance."""
    installed({"torch": None})
    require("torch_frontend")


def test_a_folder_with_the_name_of_a_library_is_none(monkeypatch: pytest.MonkeyPatch, installed: Installed) -> None:
    installed({})
    monkeypatch.setattr(importlib.util, "find_spec", lambda library: ModuleSpec(library, None))
    assert lacking("torch", "it") == "it needs torch, which is not installed: pip install 'samebits[torch]'"


@pytest.mark.parametrize("extra", EXTRAS)
def test_everything_is_new_enough_here(extra: str) -> None:
    assert lacking(extra, "it") is None


def test_an_import_that_failed_is_explained(installed: Installed) -> None:
    installed({"rich": "12.9"})
    missing, old = ModuleNotFoundError("", name="typer"), ImportError("", name="rich.progress")
    assert explained(missing, "it") == "it needs typer, which is not installed: pip install 'samebits[proofs]'"
    assert explained(old, "it") == "it needs rich 13.0 or newer, found 12.9: pip install -U 'samebits[proofs]'"
    assert explained(ModuleNotFoundError("", name="distributed"), "it") == (
        "it needs distributed, which is not installed: pip install 'samebits[cluster]'"
    )
    installed({"rich": "15.0"})
    for other in (ImportError("", name="rich"), ImportError("", name="samebits.core"), ImportError("")):
        assert explained(other, "it") is None


def run_without(libraries: str, program: str) -> subprocess.CompletedProcess[str]:
    """A program in a process in which libraries, named with spaces between them, are not installed."""
    hidden = f"""
import importlib.machinery, importlib.metadata, sys
finder, hidden = importlib.machinery.PathFinder, {libraries.split()}
find_spec, release = finder.find_spec, importlib.metadata.version

def version(name):
    if name in hidden:
        raise importlib.metadata.PackageNotFoundError(name)
    return release(name)

def find(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find_spec(name, path, target)

finder.find_spec, importlib.metadata.version = find, version
"""
    return subprocess.run([sys.executable, "-c", hidden + program], capture_output=True, text=True, check=False)


FRAMEWORKS = "torch jax jaxlib flax"
OTHERS = "hypothesis jinja2 matplotlib rich safetensors typer click distributed"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_without_its_library_is_one_line(room: str) -> None:
    done = run_without(FRAMEWORKS, f"import samebits.core\nimport samebits.{room}.quantizer")
    assert done.returncode == 1
    extra = ROOMS[room]
    last = f"ImportError: samebits.{room} needs {extra}, which is not installed: pip install 'samebits[{extra}]'"
    assert done.stderr.splitlines()[-1] == last


def test_the_guard_imports_nothing_but_the_standard_library() -> None:
    program = """
import sys
import samebits.core
from samebits.core.requirements import require
before = set(sys.modules)
require("torch_frontend"), require("jax_backend")
print(sorted(name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_arrays_are_compared_with_numpy_alone() -> None:
    program = """
import numpy as np
from samebits.core import QParams, catalog, fake_quantize
from samebits.proofs import LAWS, MODES, applies, assert_same_bits, differences, implementation
from samebits.proofs import knife_edge_array, knife_edges
from samebits.proofs.modes.execution import unavailable
q = catalog["int8_per_tensor"]
x, qparams = knife_edge_array(q, QParams(np.float32(0.7)), np.float32)
y = fake_quantize(q, x, qparams)
assert_same_bits(y, y)
assert differences(y, -y).differing
for name, law in LAWS.items():
    if applies(name, q):
        law(implementation("numpy"), q, x, qparams, np.ones_like(x))
print(*[unavailable(mode) for mode in MODES], sep="\\n")
"""
    done = run_without(f"{FRAMEWORKS} {OTHERS}", program)
    assert done.returncode == 0, done.stderr
    torch, jax = (
        f"it needs {name}, which is not installed: pip install 'samebits[{name}]'" for name in ("torch", "jax")
    )
    assert done.stdout.splitlines() == ["None", torch, torch, jax, jax]


def test_a_name_of_proofs_that_needs_more_says_so() -> None:
    done = run_without(OTHERS, "from samebits.proofs import diverge; list(diverge(['samebits'], workers=0))")
    line = "samebits.proofs.diverge needs safetensors, which is not installed: pip install 'samebits[proofs]'"
    assert done.stderr.splitlines()[-1] == f"ImportError: {line}"


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("checkpoint", "safetensors", "proofs"),
        ("digits", "safetensors", "proofs"),
        ("strategies", "hypothesis", "proofs"),
    ],
)
def test_a_module_of_proofs_that_needs_more_says_so(module: str, library: str, extra: str) -> None:
    done = run_without(OTHERS, f"import samebits.proofs.inputs.{module}")
    wanted = f" needs {library}, which is not installed: pip install 'samebits[{extra}]'"
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: samebits.proofs.inputs.")
    assert last.endswith(wanted)


@pytest.mark.parametrize(("module", "room"), [("digits_torch", "torch_frontend"), ("digits_jax", "jax_backend")])
def test_a_module_over_a_framework_says_so(module: str, room: str) -> None:
    done = run_without(FRAMEWORKS, f"import samebits.proofs.inputs.{module}")
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: samebits.{room} needs {ROOMS[room]}, which is not")


def test_imports_that_fail_for_other_reasons_stay_as_they_are(installed: Installed) -> None:
    installed({"rich": "15.0"})
    with pytest.raises(ImportError, match=r"^it needs typer, which is not"), explaining("it"):
        raise ModuleNotFoundError("No module named 'typer'", name="typer")
    with pytest.raises(ImportError, match=r"^broken$"), explaining("it"):
        raise ImportError("broken", name="rich")


def test_an_old_typer_is_one_line() -> None:
    program = """
import importlib.metadata, sys
release = importlib.metadata.version
importlib.metadata.version = lambda name: "0.9.4" if name == "typer" else release(name)
sys.argv = ["samebits", "catalog"]
from samebits.proofs.cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    line = "this command needs typer 0.15.4 or newer, found 0.9.4: pip install -U 'samebits[proofs]'"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"samebits: {line}\n")


def samebits(without: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where libraries are not installed."""
    program = f"sys.argv = {['samebits', *arguments]}\nfrom samebits.proofs.cli.main import main\nmain()"
    return run_without(without, program)


BRING = {name: f"it needs {name}, which is not installed: pip install 'samebits[{name}]'" for name in ("torch", "jax")}
NEITHER = f"torch eager cannot run here: {BRING['torch']}; jax eager cannot run here: {BRING['jax']}"
COMMAND = "this command needs {}, which is not installed: pip install 'samebits[proofs]'"


@pytest.mark.parametrize(
    ("without", "arguments", "line"),
    [
        (f"{FRAMEWORKS} {OTHERS}", "", COMMAND.format("typer")),
        ("typer", "check --help", COMMAND.format("typer")),
        ("safetensors", "check", COMMAND.format("safetensors")),
        ("rich", "catalog", COMMAND.format("rich")),
        (FRAMEWORKS, "check", NEITHER),
        (FRAMEWORKS, "prove", NEITHER),
        (FRAMEWORKS, "diverge", NEITHER),
        (
            "flax",
            "check --mode numpy --mode jax*jit",
            f"jax jit cannot run here: {BRING['jax'].replace('jax,', 'flax,')}",
        ),
        ("jax", "certify int2_per_channel", f"mode jax eager cannot run here: {BRING['jax']}"),
        ("torch", "certify int2_per_channel", f"mode torch eager cannot run here: {BRING['torch']}"),
        (
            "torch",
            "certify --replay docs/certificates/mxint8.json",
            f"mode torch eager cannot run here: {BRING['torch']}",
        ),
        ("torch", "check --mode jax*jat", "unknown mode 'jax jat'; did you mean jax jit, jax gpu jit, jax eager?"),
    ],
)
def test_a_command_that_cannot_run_is_exit_code_2_and_one_line(without: str, arguments: str, line: str) -> None:
    done = samebits(without, *(word.replace("*", " ") for word in arguments.split()))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"samebits: {line}\n")


def test_modes_that_can_run_do_and_the_others_say_what_to_install() -> None:
    chosen = ("--quantizer", "int2_per_channel", "--dtype", "float32", "--mode", "torch eager", "--mode", "jax jit")
    done = samebits("jax jaxlib flax", "check", *chosen, "--workers", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\njax jit was not run: {BRING['jax']}\n" in done.stdout
    assert "torch eager was not run" not in done.stdout


def test_modes_of_one_framework_are_certified_without_the_other(tmp_path: Path) -> None:
    wanted = ("int2_per_channel", "--engine", "exhaustive", "--dtype", "bfloat16", "--workers", "0")
    file = tmp_path / "one.json"
    done = samebits("torch", "certify", *wanted, "--mode", "numpy", "--mode", "jax jit", "--output", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(file.read_text())["environment"]["compiler"] == {"missing": BRING["torch"]}


def test_an_import_that_fails_for_another_reason_is_no_line() -> None:
    program = "sys.modules['samebits.proofs.cli.commands'] = None\nfrom samebits.proofs.cli.main import main\nmain()"
    done = run_without("", program)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
