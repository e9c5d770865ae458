"""What a user gets: the wheel with every extra in a fresh environment, what works there and what says what is missing.

Not in the suite, since it installs every framework several times: ``make installs``. Exit code 1 when anything is not
as said in `ENVIRONMENTS`. With ``--resolve PYTHON...`` pip is also asked, for each of these interpreters, whether every
pin of constraints.txt has a wheel and whether all extras fit together with these pins; nothing is installed for that.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ("core", "torch_frontend", "jax_backend", "proofs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
CONSTRAINTS = ROOT / "constraints.txt"
REFUSED = 2  # exit code of the command line
SHOWN = 4000  # characters of what a failed command printed


@dataclass(frozen=True)
class Check:
    """A command in an environment: ``what`` it shows, its exit code, and text that it must print.

    The command is a program of its ``bin`` folder with arguments. Where it must fail, the text is its last line.
    """

    what: str
    command: tuple[str, ...]
    says: str
    code: int = 0


@dataclass(frozen=True)
class Environment:
    """Extras (none: the package alone), other packages beside them, and what must be true then."""

    extras: str
    checks: tuple[Check, ...]
    beside: tuple[str, ...] = ()


def program(what: str, text: str, says: str = "as said", code: int = 0) -> Check:
    """A Python program; it prints "as said" where it comes to its end."""
    return Check(what, ("python", "-c", f"{text}\nprint('as said')"), says, code)


def command(line: str, says: str, code: int = 0) -> Check:
    """A command line, its words in single blanks, blanks inside a word written as ``__``."""
    words = [word.replace("__", " ") for word in line.split()]
    return Check(line.replace("__", " "), tuple(words), says, code)


def missing(library: str, extra: str) -> str:
    """How every such line ends."""
    return f"needs {library}, which is not installed: pip install 'samebits[{extra}]'"


CORE = program(
    "core computes",
    """
import numpy as np
from samebits.core import QParams, catalog, fake_quantize
x = np.array([0.25, -0.75, 9], np.float32)
assert fake_quantize(catalog["int4_per_channel"], x[:, None], QParams(np.full((3, 1), 0.5, np.float32))).tolist() == [
    [0.0], [-1.0], [3.5]
]
import sys
assert not {"torch", "jax"} & set(sys.modules)""",
)
COMPARE = program(
    "proofs compares arrays",
    """
import numpy as np
from samebits.core import QParams, catalog, fake_quantize
from samebits.proofs import LAWS, applies, assert_same_bits, differences, implementation, knife_edge_array
q = catalog["int8_per_tensor"]
x, qparams = knife_edge_array(q, QParams(np.float32(0.7)), np.float32)
y = fake_quantize(q, x, qparams)
assert_same_bits(y, y)
assert differences(y, -y).differing
for name, law in LAWS.items():
    if applies(name, q):
        law(implementation("numpy"), q, x, qparams, np.ones_like(x))""",
)
SAME_BITS = """
import numpy as np
from samebits.core import catalog, fake_quantize
from samebits.proofs import assert_same_bits
q, x = catalog["int8_per_channel"], np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
expected = fake_quantize(q, x)
"""
TORCH = program(
    "torch_frontend: same bits as core, eager; layers",
    SAME_BITS
    + """
import torch
from samebits import torch_frontend
from samebits.torch_frontend.nn import QuantLinear
assert_same_bits(expected, torch_frontend.fake_quantize(q, torch.from_numpy(x)))
assert QuantLinear(64, 3, weight_quant=q)(torch.from_numpy(x)).shape == (4, 3)""",
)
JAX = program(
    "jax_backend: same bits as core, jit; layers",
    SAME_BITS
    + """
import jax
from flax import nnx
from samebits import jax_backend
from samebits.jax_backend.nn import QuantLinear
assert_same_bits(expected, jax.jit(lambda x: jax_backend.fake_quantize(q, x))(x))
assert QuantLinear(64, 3, weight_quant=q, rngs=nnx.Rngs(0))(x).shape == (4, 3)""",
)


def no_room(room: str, library: str, extra: str) -> Check:
    """The room cannot be imported, and says why."""
    line = f"ImportError: samebits.{room} {missing(library, extra)}"
    return program(f"import samebits.{room}", f"import samebits.{room}", line, 1)


NO_TORCH = no_room("torch_frontend", "torch", "torch")
NO_JAX = no_room("jax_backend", "jax", "jax")
NO_COMMANDS = command("samebits catalog", f"samebits: this command {missing('typer', 'proofs')}", REFUSED)
NO_MODE = f"torch eager cannot run here: it {missing('torch', 'torch')}"
NEITHER = f"samebits: {NO_MODE}; jax eager cannot run here: it {missing('jax', 'jax')}"
TYPED = program(
    "types are seen by a type checker",
    """
import pathlib, subprocess, sys
pathlib.Path("typed.py").write_text('''
from samebits.core import QParams, Quantizer, catalog, fake_quantize
from samebits.proofs import differences
q: Quantizer = catalog["int8_per_tensor"].replace(bits=4)
reveal_type(fake_quantize)
wrong: int = differences(1, 2).largest
''')
done = subprocess.run([sys.executable, "-m", "mypy", "--strict", "typed.py"], capture_output=True, text=True)
assert 'note: Revealed type is "def (q: samebits.core.descriptions.Quantizer' in done.stdout, done.stdout
assert done.stdout.count("error:") == 1 and 'has no attribute "largest"' in done.stdout, done.stdout""",
)
CHECKPOINT = program(
    "a small checkpoint",
    """
import numpy as np
from safetensors.numpy import save_file
save_file({"weight": np.random.default_rng(0).standard_normal((8, 3, 3)).astype(np.float32)}, "small.safetensors")""",
)
CHECK = "samebits check small.safetensors --quantizer int2_per_channel --dtype float32 --workers 1"
SMALL = "--engine exhaustive --dtype bfloat16 --workers 1"
ENVIRONMENTS = (
    Environment(
        "",
        (
            CORE,
            COMPARE,
            NO_TORCH,
            NO_JAX,
            NO_COMMANDS,
            program(
                "samebits.proofs.diverge",
                "from samebits.proofs import diverge",
                f"ImportError: samebits.proofs.diverge {missing('safetensors', 'proofs')}",
                1,
            ),
            TYPED,
        ),
        ("mypy",),
    ),
    Environment("torch", (CORE, TORCH, NO_JAX, NO_COMMANDS)),
    Environment("jax", (CORE, JAX, NO_TORCH, NO_COMMANDS)),
    Environment(
        "proofs",
        (
            CORE,
            COMPARE,
            NO_TORCH,
            NO_JAX,
            command("samebits --version", "samebits "),
            command("samebits catalog", "int8_per_tensor"),
            command("samebits check", NEITHER, REFUSED),
            command("samebits diverge", NEITHER, REFUSED),
            command("samebits prove", NEITHER, REFUSED),
            command("samebits certify int2_per_channel", f"samebits: mode {NO_MODE}", REFUSED),
            command(
                "samebits check --mode jax__jat", "samebits: unknown mode 'jax jat'; did you mean jax jit", REFUSED
            ),
        ),
    ),
    Environment(
        "jax,proofs",
        (
            JAX,
            NO_TORCH,
            CHECKPOINT,
            command(
                f"{CHECK} --mode torch__eager --mode jax__eager --mode jax__jit",
                f"torch eager was not run: it {missing('torch', 'torch')}",
            ),
            command(
                f"samebits certify int2_per_channel {SMALL} --mode numpy --mode jax__eager --mode jax__jit",
                "written to int2_per_channel.json",
            ),
            command("samebits certify --replay int2_per_channel.json --workers 0", "1 of 1 tiles replayed agree"),
        ),
    ),
    Environment(
        "all",
        (
            CORE,
            TORCH,
            JAX,
            CHECKPOINT,
            command(CHECK, "\n0 of "),
            command(f"samebits certify int2_per_channel {SMALL}", "written to int2_per_channel.json"),
        ),
    ),
)


def main() -> int:
    """Everything, row by row; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--resolve", nargs="*", default=[], metavar="PYTHON", help="other interpreters to ask pip for")
    parser.add_argument(
        "--only", metavar="EXTRAS", help="one environment, e.g. jax,proofs; 'bare' for the package alone"
    )
    chosen = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="samebits-installs-") as name:
        folder = Path(name)
        wheel = build(folder)
        for environment in ENVIRONMENTS:
            named = environment.extras or "bare"  # no blanks: inductor's compiler would not find torch
            if chosen.only in (None, named):
                for fine in try_out(environment, wheel, folder / named):
                    good &= fine
        if chosen.only in (None, "bare"):
            good &= too_old_python(wheel, folder)
        for python in chosen.resolve:
            good &= resolves(python, wheel, folder)
    print("everything is as said" if good else "NOT everything is as said")
    return 0 if good else 1


def build(folder: Path) -> Path:
    """The wheel, built in isolation from a copy of the source."""
    source = folder / "source"
    for name in SOURCE:
        (shutil.copytree if (ROOT / name).is_dir() else copy)(ROOT / name, source / name)
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def copy(source: Path, target: Path) -> None:
    """A file, into a folder that is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def try_out(environment: Environment, wheel: Path, folder: Path) -> Iterator[bool]:
    """Install, check, print a row for each; whether each is as said. The folder is emptied afterwards."""
    title, start = f"[{environment.extras}]" if environment.extras else "bare", time.monotonic()
    wanted = f"{wheel}[{environment.extras}]" if environment.extras else str(wheel)
    run([sys.executable, "-m", "venv", folder], check=True)
    pip: list[str | Path] = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    done = run([*pip, "install", "--quiet", "-c", CONSTRAINTS, wanted, *environment.beside])
    yield row(title, "pip install", done.returncode == 0, start, done)
    if done.returncode == 0:
        whole = run([*pip, "check"])
        yield row(title, "pip check", whole.returncode == 0, time.monotonic(), whole)
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        for check in environment.checks:
            start, (name, *arguments) = time.monotonic(), check.command
            done = run([folder / "bin" / name, *arguments], cwd=elsewhere)
            yield row(title, check.what, as_said(check, done), start, done)
    shutil.rmtree(folder)


def as_said(check: Check, done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command ended and printed as it must; a refusal is one line, and an error has its line at the end."""
    if done.returncode != check.code:
        return False
    if check.code == REFUSED:
        return done.stdout == "" and done.stderr.startswith(check.says) and done.stderr.count("\n") == 1
    return done.stderr.endswith(f"{check.says}\n") if check.code else check.says in done.stdout


def too_old_python(wheel: Path, folder: Path) -> bool:
    """Whether pip refuses the wheel for Python 3.10, in words that say which Python it needs."""
    start, options = time.monotonic(), ["--python-version", "3.10", "--only-binary", ":all:"]
    done = run([sys.executable, "-m", "pip", "download", "--no-deps", *options, "--dest", folder / "none", wheel])
    return row(
        "Python 3.10", "pip install", "3.10.0 not in '>=3.11'" in done.stderr and done.returncode == 1, start, done
    )


def resolves(python: str, wheel: Path, folder: Path) -> bool:
    """Whether every pin has a wheel for an interpreter and pip finds all extras among the pins."""
    environment, good = folder / f"resolve-{Path(python).name}", True
    run([python, "-m", "venv", environment], check=True)
    pip: list[str | Path] = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)  # older ones download what they would install
    release = run([environment / "bin" / "python", "--version"]).stdout.strip()
    pins = [line for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")]
    for what, arguments in (
        ("every pin has a wheel", ["--no-deps", "--only-binary", ":all:", *pins]),
        ("all extras fit the pins", ["-c", CONSTRAINTS, f"{wheel}[all,test,peers,cluster,docs,dev]"]),
    ):
        start = time.monotonic()
        done = run([*pip, "install", "--dry-run", *arguments])
        good &= row(release, what, done.returncode == 0 and "Would install" in done.stdout, start, done)
    return good


def run(
    words: Sequence[str | Path], *, cwd: Path | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """A command with what it prints, without the surroundings in which this one was started."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=own, capture_output=True, text=True, check=False)
    if check and done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done


def row(title: str, what: str, good: bool, start: float, done: subprocess.CompletedProcess[str]) -> bool:
    """Print a line, and where it is not good everything that was printed; ``good`` once more."""
    print(
        f"{title:<14} {what:<60.60} {'as said' if good else 'FAILED':<8} {time.monotonic() - start:6.1f} s", flush=True
    )
    if not good:
        print(f"  exit code {done.returncode}\n{done.stdout[-SHOWN:]}{done.stderr[-SHOWN:]}", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
