"""The command `samebits quantize`: a checkpoint quantized after training, and a table of what that did to it."""

import json as as_json
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

Option = typer.Option


def quantize(
    model: Annotated[Path, typer.Argument(help="A .safetensors file.")],
    method: Annotated[
        str | None, Option(help="For every layer, e.g. int8_weight_only; a wrong one lists all.", metavar="NAME")
    ] = None,
    recommend: Annotated[bool, Option("--recommend", help="Methods by rules of thumb, and say why.")] = False,
    goal: Annotated[
        str, Option(help="Of --recommend: throughput, latency, size or accuracy.", metavar="GOAL")
    ] = "throughput",
    layers: Annotated[
        list[str] | None,
        Option(help="Which matrices are linear layers to be quantized, by name; may be repeated.", metavar="PATTERN"),
    ] = None,
    description: Annotated[
        Path | None,
        Option(help="Kind and method by pattern; by default MODEL.layers.json, if it is there.", metavar="FILE.json"),
    ] = None,
    group_size: Annotated[int | None, Option(min=1, help="Inputs that share a scale.", metavar="N")] = None,
    uneven: Annotated[str, Option(help="A layer that the group size does not divide: skip or error.")] = "skip",
    output: Annotated[
        Path | None,
        Option(help="The new file; MODEL.quantized.safetensors by default, none with --recommend.", metavar="FILE"),
    ] = None,
    report: Annotated[Path | None, Option(help="Write a self-contained page.", metavar="FILE.html")] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Quantize the weights of a checkpoint after training, and show what that did to each layer."""
    from ..inputs.checkpoint import CheckpointError
    from ..quantizing import recommend as advice
    from ..quantizing.plan import plan, read_description
    from .commands import AGREEMENT, _command

    _check_files(model, output, report)
    beside = model.with_suffix(".layers.json")
    if description is None and not recommend and beside.is_file():
        description = beside
    if recommend and (method or layers or description or group_size):
        _refuse("give either --recommend, or --method, --layers, --group-size and --description")
    if not (recommend or method or description):
        from ..quantizing.methods import METHODS

        _refuse(f"give --method NAME, --description FILE or --recommend; methods are {', '.join(METHODS)}")
    start, advised = time.monotonic(), None
    try:
        from ..quantizing.quantize import quantize_file, shapes_of_file

        shapes = shapes_of_file(model)
        if recommend:
            advised = advice.recommend(shapes, goal)
            planned = advised.layers
        else:
            described = read_description(description) if description else None
            planned = plan(shapes, method, layers or (), group_size, described, uneven)
            output = output or model.with_suffix(".quantized.safetensors")
        found = quantize_file(model, planned, output, histograms=report is not None)
    except (CheckpointError, KeyError, TypeError, ValueError, OSError) as error:
        _refuse(str(error.args[0] if not isinstance(error, OSError) else error))
    result = {
        "command": _command(),
        "model": str(model),
        "output": None if output is None else str(output),
        "seconds": round(time.monotonic() - start, 2),
    }
    _show(result, found, advised, report, json)
    raise typer.Exit(AGREEMENT)


def _check_files(model: Path, output: Path | None, report: Path | None) -> None:
    """Refuses what could not be written."""
    for file in (output, report):
        if file and not file.parent.is_dir():
            _refuse(f"{file}: no such directory: {file.parent}")
    if output and output.exists() and model.exists() and output.samefile(model):
        _refuse(f"{output}: must be another file than the model")


def _show(result: dict[str, Any], found: Any, advised: Any, report: Path | None, json: bool) -> None:
    """The table, or JSON, and the page."""
    from . import display_quantize as display

    if report:
        report.write_text(display.page(result, found, advised), encoding="utf-8")
    if json:
        print(as_json.dumps(display.as_data(result, found, advised), indent=1, allow_nan=False))
    else:
        display.show(result, found, advised)


def _refuse(message: str) -> NoReturn:
    from .commands import _refuse as refuse

    refuse(" ".join(message.split()))
