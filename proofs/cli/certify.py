"""The command `samebits certify`: quantizers, primitives and prototypes in every mode, and files of what they cover."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

Option = typer.Option


def certify(
    name: Annotated[
        list[str] | None,
        typer.Argument(
            help="Catalog names, or FILE.py:NAME of a prototype; like ones share work.", metavar="[NAME]..."
        ),
    ] = None,
    primitive: Annotated[
        list[str] | None,
        Option(help='On every input, e.g. sqrt, "round toward_zero", "cast float16"; may be repeated.', metavar="NAME"),
    ] = None,
    engine: Annotated[str, Option(help="boundary, exhaustive or scales.")] = "boundary",
    mode: Annotated[
        list[str] | None, Option(help='Execution mode, e.g. "jax jit"; may be repeated.', metavar="MODE")
    ] = None,
    device: Annotated[
        str, Option(help="cpu or cuda: whose modes, where none is named; for quantizers.", metavar="DEVICE")
    ] = "cpu",
    rounding: Annotated[str | None, Option(help="Another direction than the catalog's.")] = None,
    scale: Annotated[list[float] | None, Option(help="For exhaustive; may be repeated.")] = None,
    parameter: Annotated[
        list[str] | None, Option("--set", help="A parameter of a prototype; may be repeated.", metavar="NAME=VALUE")
    ] = None,
    dtype: Annotated[
        str, Option(help="For exhaustive, primitives and prototypes: float32, bfloat16 or float16.")
    ] = "float32",
    zero_point: Annotated[int | None, Option(help="For exhaustive, where there is one.")] = None,
    output: Annotated[Path | None, Option(help="The file, or a directory; NAME.json by default.")] = None,
    missing: Annotated[bool, Option("--missing", help="Leave out files that are there, of this very code.")] = False,
    replay: Annotated[Path | None, Option(help="Run a certificate again.", metavar="FILE.json")] = None,
    tiles: Annotated[
        int | None, Option(min=1, help="So many, drawn at random: of a replay, of a primitive, of a prototype.")
    ] = None,
    scheduler: Annotated[str | None, Option(help="A Dask cluster.", metavar="tcp://HOST:PORT")] = None,
    workers: Annotated[int, Option(min=0, help="Processes that share the work; 0 for none but this one.")] = 2,
    json: Annotated[bool, Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Establish that the modes agree for every input and scale, and write a certificate; or run one again."""
    from ..certificates.certificate import CertificateError, is_current, load, save
    from ..certificates.certify import Difference, run_together
    from ..certificates.request import check_modes, requested
    from ..certificates.sweeps import requested_primitive, requested_prototype
    from . import display_certificates as display
    from .commands import AGREEMENT, DIFFERENCE

    def request(one: str) -> Any:
        if ":" in one:
            return requested_prototype(one, engine, dtype, mode or (), parameter or ())
        return requested(one, engine, mode or (), rounding, scale or (), dtype, zero_point, device)

    own = [*(name or ()), *(primitive or ())]
    _check_options(name or (), primitive or (), replay, tiles, output, (rounding, scale, zero_point), parameter, device)
    how: dict[str, Any] = {"workers": workers, "scheduler": scheduler}
    try:
        if replay:
            certificate, answered = load(replay)
            check_modes(answered.modes)
        wanted = [*map(request, name or ()), *(requested_primitive(n, dtype, mode or ()) for n in primitive or ())]
    except (CertificateError, ImportError, KeyError, TypeError, ValueError) as error:
        _refuse(error.args[0])
    try:
        if replay:
            agreed = display.show_replay(certificate, answered, tiles, quiet=json, **how)
            raise typer.Exit(AGREEMENT if agreed else DIFFERENCE)
        if tiles:
            display.show_sample(wanted, tiles, quiet=json, **how)
            raise typer.Exit(AGREEMENT)
        targets = [_target(n, r, output) for n, r in zip(own, wanted, strict=True)]
        files = {r: t for r, t in zip(wanted, targets, strict=True) if not (missing and is_current(t, r))}
        journals = [target.with_suffix(".tiles") for target in files.values()]
        done = run_together(list(files), journals, **how)
        for found in display.show_runs(list(files), done, quiet=json) if files else ():
            save(found.certificate, files[found.request])
            files[found.request].with_suffix(".tiles").unlink()
            display.show_certificate(found, files[found.request], quiet=json)
    except Difference as difference:
        display.show_difference(difference, quiet=json)
        raise typer.Exit(DIFFERENCE) from None
    except (CertificateError, ConnectionError) as error:
        _refuse(error.args[0])


def _check_options(
    name: Sequence[str],
    primitive: Sequence[str],
    replay: Path | None,
    tiles: int | None,
    output: Path | None,
    of_quantizers: Sequence[Any],
    parameter: Sequence[str] | None,
    device: str,
) -> None:
    """Refuses what does not go together."""
    own = [*name, *primitive]
    sweeps = [*primitive, *(one for one in name if ":" in one)]
    if bool(own) == bool(replay):
        _refuse("give either names, of the catalog, of prototypes or by --primitive, or --replay FILE")
    if output and not output.is_dir() and len(own) > 1:
        _refuse(f"{output}: must be a directory for several certificates")
    if sweeps and any(value is not None and value != [] for value in of_quantizers):
        _refuse("--rounding, --scale and --zero-point are of quantizers of the catalog; see --primitive 'round ...'")
    if device != "cpu" and (sweeps or replay):
        _refuse("--device is of quantizers of the catalog")
    if parameter and len(sweeps) - len(primitive) != len(own):
        _refuse("--set is of prototypes, FILE.py:NAME")
    if tiles and not replay and len(sweeps) != len(own):
        _refuse("--tiles is of a replay, of primitives and of prototypes")


def _target(name: str, request: Any, output: Path | None) -> Path:
    """The file of a certificate."""
    if ":" in name:
        name = name.rpartition(":")[2]
    end = ".scales" if request.engine == "scales" else "" if request.dtype == "float32" else f".{request.dtype}"
    file = Path(f"{name.replace(' ', '_')}{end if hasattr(request, 'subject') or end == '.scales' else ''}.json")
    return file if output is None else output / file if output.is_dir() else output


def _refuse(message: str) -> NoReturn:
    from .commands import _refuse as refuse

    refuse(" ".join(str(message).split()))
