"""The command line: reads the request, shows progress, prints what functions of this package found.

Frameworks, and everything that imports them or NumPy, are imported inside the commands: ``samebits --help`` needs none.
Exit codes: 0 agreement, 1 a difference was found, 2 wrong usage (one line on standard error).
"""

import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

from . import vectors
from .atlas import atlas
from .certify import certify
from .fingerprint import fingerprint
from .quantize import quantize
from .validate import validate

AGREEMENT, DIFFERENCE, USAGE, INTERRUPTED = 0, 1, 2, 130
Item = TypeVar("Item")

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

Names = Annotated[
    list[str] | None,
    typer.Option(help="Catalog name, or FILE.py:NAME of a prototype; may be repeated. All by default.", metavar="NAME"),
]
Parameters = Annotated[
    list[str] | None, typer.Option("--set", help="A parameter of prototypes; may be repeated.", metavar="NAME=VALUE")
]
Modes = Annotated[
    list[str] | None, typer.Option(help='Execution mode, e.g. "jax jit"; may be repeated.', metavar="MODE")
]
Dtypes = Annotated[
    list[str] | None, typer.Option(help="float32, bfloat16, float16 or float64; may be repeated.", metavar="DTYPE")
]
Device = Annotated[str, typer.Option(help="cpu or cuda: whose modes, where none is named.", metavar="DEVICE")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that share the work; 0 for none but this one.")]


def main() -> None:
    """Entry point of the console script."""
    try:
        sys.exit(app(prog_name="samebits", standalone_mode=False))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = None
        sys.exit(AGREEMENT)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except Exception as error:
        # The command line library's own errors have format_message, whichever of its modules they come from.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        if message:
            print(f"samebits: {message} See samebits --help.", file=sys.stderr)
        sys.exit(USAGE)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"samebits {version('samebits')}")
        raise typer.Exit(AGREEMENT)


@app.callback()
def samebits(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """One specification of quantization: the same bits in PyTorch and JAX, eager and compiled."""


@app.command()
def check(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A .safetensors file; by default the digit classifier of the package.")
    ] = None,
    quantizer: Names = None,
    mode: Modes = None,
    dtype: Dtypes = None,
    dialect: Annotated[
        str | None, typer.Option(help="Check quantizers in the arithmetic of another system.", metavar="NAME")
    ] = None,
    parameter: Parameters = None,
    device: Device = "cpu",
    json: Json = False,
    report: Annotated[Path | None, typer.Option(help="Write a self-contained page.", metavar="FILE.html")] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Also compile every entry for every dtype.")] = False,
    networks: Annotated[
        bool, typer.Option("--networks", help="Whole networks instead: logits of all digits in every run, by batch.")
    ] = False,
    workers: Workers = 2,
) -> None:
    """Compare every quantizer in every mode, bit for bit, on real tensors and the knife edges of their scales."""
    from ...core.catalog import catalog
    from ..check.check import plan, run_plan, summary
    from ..inputs.checkpoint import CheckpointError

    if report and not report.parent.is_dir():
        _refuse(f"{report}: no such directory: {report.parent}")
    if networks:
        if checkpoint or quantizer or dtype or dialect or thorough or parameter or device != "cpu":
            _refuse("--networks takes no checkpoint, --quantizer, --dtype, --dialect, --set, --device or --thorough")
        _check_networks(mode or (), json=json, report=report, workers=workers)
    if checkpoint and (str(checkpoint) in catalog or ".py:" in str(checkpoint)) and not checkpoint.exists():
        _refuse(f"{checkpoint}: no such file; a quantizer is named by --quantizer {checkpoint}")
    if parameter and not any(":" in name for name in quantizer or ()):
        _refuse("--set is of prototypes, --quantizer FILE.py:NAME")
    try:
        wanted = plan(
            checkpoint,
            quantizer or (),
            mode or (),
            dtype or (),
            thorough=thorough,
            dialect=dialect,
            parameters=parameter or (),
            device=device,
        )
    except (CheckpointError, ImportError, KeyError, TypeError, ValueError) as error:
        _refuse(" ".join(str(error.args[0]).split()))
    _refuse_if_alone(wanted.modes)
    start = time.monotonic()
    result = summary(wanted, _shown("checking", len(wanted.jobs), run_plan(wanted, workers=workers), quiet=json))
    from . import display
    from . import report as page

    seconds, command = time.monotonic() - start, _command()
    if report:
        report.write_text(page.check_page(result, command, seconds), encoding="utf-8")
    if json:
        print(page.check_json(result, command, seconds))
    else:
        display.show_check(result, seconds)
    raise typer.Exit(AGREEMENT if result.same else DIFFERENCE)


def _check_networks(runs: Iterable[str], *, json: bool, report: Path | None, workers: int) -> NoReturn:
    from ..networks import compare
    from ..networks.runs import mode_of
    from . import networks as page

    try:
        wanted = compare.jobs(tuple(runs))
    except ValueError as error:
        _refuse(error.args[0])
    _refuse_if_alone(dict.fromkeys(mode_of(job.run) for job in wanted))
    start = time.monotonic()
    results = _shown("comparing", len(wanted), compare.compare(wanted, workers=workers), quiet=json)
    found = compare.in_order([row for rows in results for row in rows])
    seconds, command = time.monotonic() - start, _command()
    if report:
        report.write_text(page.networks_page(found, command, seconds), encoding="utf-8")
    if json:
        print(page.networks_json(found, command, seconds))
    else:
        page.show_networks(found, seconds)
    raise typer.Exit(AGREEMENT if page.same(found) else DIFFERENCE)


@app.command()
def diverge(
    target: Annotated[list[str] | None, typer.Argument(help="What to look at; all by default.")] = None,
    cause: Annotated[bool, typer.Option("--cause", help="Find why: the operation, and the switch.")] = False,
    parameter: Parameters = None,
    device: Device = "cpu",
    json: Json = False,
    workers: Workers = 2,
) -> None:
    """Show where textbook code and its compiled form part, and torch and JAX; beside it our function, at 0.

    A target PACKAGE.MODULE:NAME or FILE.py:NAME is yours: a Program, of which causes are shown, or a prototype, whose
    textbook code is compared with its primitives.
    """
    if not cause and (own := _prototypes(target or ())):
        if device != "cpu":
            _refuse("--device is of quantizers of the catalog")
        _diverge_prototypes(own, parameter or (), json=json, workers=workers)
    if parameter:
        _refuse("--set is of prototypes, FILE.py:NAME, without --cause")
    if cause or any(":" in name for name in target or ()):
        if device != "cpu":
            _refuse("--cause is for the cpu")
        _causes(target, json=json)
    from ..divergence import divergence
    from . import display
    from . import report as page

    names = tuple(target or divergence.TARGETS)
    try:
        jobs = divergence.jobs(names, device)
    except (KeyError, ValueError) as error:
        _refuse(error.args[0])
    _refuse_if_alone(divergence.modes_on(device))
    results = divergence.diverge(names, device, workers=workers)
    shown = _shown("comparing", len(jobs), results, quiet=json)
    found = divergence.in_order(row for rows in shown for row in rows)
    if json:
        print(page.divergence_json(found, _command()))
    else:
        display.show_divergence(found)
    ours = any(row.differing for row in found if row.target == divergence.OURS)
    raise typer.Exit(DIFFERENCE if ours else AGREEMENT)


def _prototypes(target: Iterable[str]) -> list[str]:
    """The targets, if they are prototypes; none if they are something else."""
    from ...core.prototype import Prototype
    from ..inputs.named import named

    names = list(target)
    try:
        own = [name for name in names if ":" in name and isinstance(named(name), Prototype)]
    except (ImportError, KeyError) as error:
        _refuse(str(error.args[0]))
    if own and len(own) < len(names):
        _refuse(f"{own[0]} is a prototype: prototypes go by themselves")
    return own


def _diverge_prototypes(names: list[str], parameters: Iterable[str], *, json: bool, workers: int) -> NoReturn:
    from ..divergence import divergence, of_prototypes
    from ..modes.workers import run_jobs
    from . import prototypes as page

    _refuse_if_alone(divergence.MODES)
    try:
        wanted = of_prototypes.jobs(names, tuple(parameters))
        done = run_jobs(of_prototypes.run_job, wanted, workers)
        shown = [row for rows in _shown("comparing", len(wanted), done, quiet=json) for row in rows]
    except (ImportError, KeyError, TypeError, ValueError) as error:
        _refuse(" ".join(str(error.args[0]).split()))
    found = sorted(shown, key=lambda row: (names.index(row.prototype), tuple(divergence.DTYPES).index(row.dtype)))
    if json:
        print(page.prototypes_json(found, _command()))
    else:
        page.show_prototypes(found)
    raise typer.Exit(AGREEMENT if page.same(found) else DIFFERENCE)


def _causes(target: list[str] | None, *, json: bool) -> NoReturn:
    from ..divergence import divergence, programs
    from . import causes

    _refuse_if_alone(divergence.MODES)
    try:
        wanted = programs.programs(tuple(target or divergence.TARGETS))
    except (KeyError, ImportError, TypeError) as error:
        _refuse(str(error.args[0]))
    shown = _shown("looking for causes", len(wanted), causes.causes_of(wanted), quiet=json)
    found = [one for rows in shown for one in rows]
    if json:
        print(causes.causes_json(found, _command()))
    else:
        causes.show_causes(found)
    ours = any(one.explanation.differing for one in found if one.explanation.program.startswith(divergence.OURS))
    raise typer.Exit(DIFFERENCE if ours else AGREEMENT)


@app.command()
def prove(
    name: Annotated[
        list[str] | None, typer.Argument(help="Catalog names; all by default.", metavar="[NAME]...")
    ] = None,
    output: Annotated[Path, typer.Option(help="The page; figures beside it as JSON.", metavar="FILE.md")] = Path(
        "proofs.md"
    ),
    missing: Annotated[bool, typer.Option("--missing", help="Leave out what the page has of this very code.")] = False,
    workers: Workers = 2,
) -> None:
    """Compare every quantizer in every mode on all 16-bit inputs and knife edges of many scales; takes 20 minutes."""
    from ..check import prove as proofs
    from ..modes.execution import MODES

    known = proofs.load(output.with_suffix(".json"))
    try:
        wanted = proofs.jobs(name or (), without=proofs.valid(known) if missing else ())
    except (KeyError, ValueError) as error:
        _refuse(error.args[0])
    _refuse_if_alone(MODES)
    same = True
    shown = _shown("proving", len(wanted), proofs.run(wanted, workers=workers), quiet=False)
    for proof in proofs.complete(shown):
        known[proof.quantizer] = proof
        proofs.save(known, output)
        same &= proof.same
        print(f"{proof.quantizer}: {proof.words}", flush=True)
    raise typer.Exit(AGREEMENT if same else DIFFERENCE)


@app.command()
def catalog(json: Json = False) -> None:
    """List the quantizers: format, granularity, scale, zero point, rounding, gradient."""
    from . import display
    from . import report as page

    if json:
        print(page.catalog_json())
    else:
        display.show_catalog()


vectors.register(app)
app.command()(certify)
app.command()(fingerprint)
app.command()(atlas)
app.command()(quantize)
app.command()(validate)


def _shown(what: str, total: int, results: Iterable[Item], *, quiet: bool) -> Iterator[Item]:
    """The results as they come; a progress bar on standard error when that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        for result in results:
            yield result
            bar.advance(task)


def _command() -> str:
    """What was typed, to be typed again."""
    return shlex.join(["samebits", *sys.argv[1:]])


def _refuse_if_alone(modes: Iterable[str]) -> None:
    """End where no framework of the modes is installed: that nothing was compared would pass for agreement."""
    from ..modes.execution import not_installed, without_device

    others = [mode for mode in modes if mode != "numpy"]
    if reason := without_device(others):
        _refuse(f"no mode of a GPU can run here: {reason}")
    reasons: dict[str | None, str] = {}
    for mode in others:
        reasons.setdefault(not_installed(mode), mode)
    if others and None not in reasons:
        _refuse("; ".join(f"{mode} cannot run here: {reason}" for reason, mode in reasons.items()))


def _refuse(message: str) -> NoReturn:
    """End with exit code 2 and one line."""
    print(f"samebits: {message}", file=sys.stderr)
    raise typer.Exit(USAGE)
