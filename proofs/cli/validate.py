"""The command `samebits validate`: is a port of a torch model to JAX right? Layer by layer, with the likely mistake."""

import json as as_json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from io import StringIO
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

FLOOR = 1e-4  # of a bound, where the same bits are drawn


def validate(
    torch_model: Annotated[str, typer.Argument(help="package.module:name of a module, or a function that makes one.")],
    jax_model: Annotated[str, typer.Argument(help="The same of the port.")],
    inputs: Annotated[
        Path, typer.Option(help="Arrays, .npz or .safetensors; names jax.X and torch.X go to one side.", metavar="FILE")
    ],
    pair: Annotated[
        list[str] | None, typer.Option(help="Modules that belong together; may be repeated.", metavar="TORCH=JAX")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write a self-contained page.", metavar="FILE.html")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every row of the table.")] = False,
) -> None:
    """Compare a torch model with its port to JAX, layer by layer, and name the mistakes that explain a difference."""
    from .commands import AGREEMENT, DIFFERENCE, _command, _refuse

    if report and not report.parent.is_dir():
        _refuse(f"{report}: no such directory: {report.parent}")
    from ..validation.results import ValidationError
    from ..validation.validate import validate as validated

    begun = time.monotonic()
    try:
        arrays = read(inputs)
        models = made(torch_model, "torch"), made(jax_model, "jax")
        found = validated(*models, arrays, pairs=_pairs(pair or []))
    except (ValidationError, ImportError, KeyError, TypeError) as error:
        _refuse(str(error.args[0]) if error.args else str(error))
    found = replace(found, torch_model=torch_model, jax_model=jax_model)
    seconds = time.monotonic() - begun
    if report:
        report.write_text(page(found, _command(), seconds), encoding="utf-8")
    if json:
        print(as_json.dumps(as_data(found, _command(), seconds), indent=1, allow_nan=False))
    else:
        from .display_validation import show_validation

        show_validation(found, seconds, every=every)
    raise typer.Exit(AGREEMENT if found.right else DIFFERENCE)


def read(path: Path) -> dict[str, Any]:
    """The arrays of a file by name, in its order.

    Raises:
        ValidationError: no such file, or one of another kind; the message names it.
    """
    import numpy as np

    from ..inputs.checkpoint import CheckpointError, stored_tensors
    from ..validation.results import ValidationError

    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise ValidationError(f"{path}: no such file") from None
        except Exception as error:
            raise ValidationError(f"{path}: no .npz file of numbers: {' '.join(str(error).split())}") from None
    try:
        order = [tensor.name for tensor in stored_tensors(path)]
    except CheckpointError as error:
        raise ValidationError(error.args[0]) from None
    from safetensors.numpy import load_file

    arrays = load_file(path)
    return {name: arrays[name] for name in order}


def made(name: str, framework: str) -> Callable[..., Any]:
    """A model that is named: the attribute itself, or what it gives where it is a function without parameters.

    Raises:
        ImportError, KeyError: as `named`. ValidationError: a name without a colon, or a function that fails.
        TypeError: no model of that framework.
    """
    from inspect import isclass, isfunction, signature

    from ..inputs.named import named
    from ..validation.results import ValidationError

    if ":" not in name:
        raise ValidationError(f"{name}: must be package.module:name")
    found = named(name)
    makes = isclass(found) or (isfunction(found) and not signature(found).parameters)
    if makes:
        try:
            found = found()
        except Exception as error:
            raise ValidationError(f"{name} failed: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not callable(found):
        raise TypeError(f"{name} must be a {framework} model or a function, got {type(found).__name__}")
    model: Callable[..., Any] = found
    return model


def _pairs(given: list[str]) -> dict[str, str]:
    from ..validation.results import ValidationError

    for one in given:
        if one.count("=") != 1:
            raise ValidationError(f"--pair must be TORCH=JAX, got {one!r}")
    return dict(one.split("=") for one in given)


def as_data(found: Any, command: str, seconds: float) -> dict[str, Any]:
    """What JSON can hold: infinite numbers and NaN are text."""
    from ..modes.environment import versions

    rows = [asdict(row) | {"place": row.place} for row in found.rows]
    whole = {
        "command": command,
        "right": found.right,
        "torch_model": found.torch_model,
        "jax_model": found.jax_model,
        "seconds": round(seconds, 1),
        "versions": versions(),
        "first": found.first.place if found.first else None,
        "mistakes": list(found.mistakes),
        "whole": found.whole,
        "stopped": found.stopped,
        "pairs": [list(pair) for pair in found.pairs],
        "unpaired": {"torch": list(found.unpaired[0]), "jax": list(found.unpaired[1])},
        "rows": rows,
    }
    plain: dict[str, Any] = _plain(whole)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def page(found: Any, command: str, seconds: float) -> str:
    """The page, as HTML that refers to nothing outside itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from ..modes.environment import versions
    from ..validation.results import distance_in_words

    pages = Environment(loader=PackageLoader("samebits.proofs.cli"), autoescape=True, undefined=StrictUndefined)
    return pages.get_template("validate.html").render(
        found=found,
        plot=plot(found.rows),
        words=distance_in_words,
        versions=versions(),
        command=command,
        seconds=seconds,
    )


def plot(rows: Any) -> str:
    """Largest distance by depth, in multiples of the bound, as SVG: a mark for each row, a line at 1."""
    from matplotlib.figure import Figure

    from ..validation.results import FAR, Verdict

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    colours = {
        Verdict.SAME: "#1a7f37",
        Verdict.WITHIN: "#0969da",
        Verdict.BEYOND: "#cf222e",
        Verdict.UNBOUNDED: "#9a6700",
    }
    for verdict, colour in colours.items():
        mine = [(i, row) for i, row in enumerate(rows) if row.verdict is verdict]
        if mine:
            ratios = [min(max(FAR if row.ratio is None else row.ratio, FLOOR), 1e9) for _, row in mine]
            axes.scatter([i for i, _ in mine], ratios, s=16, color=colour, label=str(verdict))
    axes.axhline(1, color="#000", linewidth=0.8)
    axes.set(xlabel="row, in order of execution", ylabel="distance / bound", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def in_words(value: float) -> str:
    """A number of a table."""
    return "∞" if value == inf else "0" if value == 0 else f"{value:.3g}"
