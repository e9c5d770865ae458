"""The command `samebits fingerprint`: which arithmetic an implementation computes, or which quantizer made a file."""

import json as as_json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

Claim = Annotated[str | None, typer.Option(help="What a plain function claims to be.", metavar="NAME")]


def fingerprint(
    target: Annotated[
        list[str] | None,
        typer.Argument(help="A ready target, or package.module:function; without any, all ready ones are listed."),
    ] = None,
    like: Claim = None,
    kind: Annotated[str, typer.Option(help="What a plain function gives: values or codes.")] = "values",
    dtype: Annotated[str, typer.Option(help="Of its input: float32, bfloat16, float16 or float64.")] = "float32",
    chooses: Annotated[bool, typer.Option("--chooses", help="It chooses its own scale.")] = False,
    file: Annotated[Path | None, typer.Option(help="Quantized weights, .safetensors or .gguf.", metavar="FILE")] = None,
    original: Annotated[
        Path | None, typer.Option(help="The weights that they were made of.", metavar="FILE.safetensors")
    ] = None,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Show the input that excludes each alternative.")
    ] = False,
    atlas: Annotated[
        Path | None,
        typer.Option(
            help="Write a table of ready targets, of all that are installed if none is named.", metavar="FILE.md"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Find the arithmetic that reproduces an implementation bit for bit, or the quantizer that made a file."""
    from .commands import AGREEMENT, DIFFERENCE, USAGE

    if (file is None) != (original is None) or (file is not None and target):
        _refuse("give either targets, or both --file and --original")
    if file is not None and original is not None:
        raise typer.Exit(AGREEMENT if _attribute(file, original, json) else DIFFERENCE)
    if atlas is not None:
        _atlas(atlas, target or [])
        raise typer.Exit(AGREEMENT)
    if not target:
        _list(json)
        raise typer.Exit(AGREEMENT)
    verdicts, absent = _verdicts(target, like, {"kind": kind, "dtype": dtype, "chooses": chooses}, quiet=json)
    if json:
        from ..conformance.verdicts import as_data
        from ..modes.environment import versions

        whole = {"versions": versions(), "verdicts": [as_data(v) for v, _ in verdicts], "not_installed": absent}
        print(as_json.dumps(whole, indent=1, allow_nan=False))
    else:
        from . import display_fingerprint as display

        display.show_verdicts(verdicts, absent, evidence=evidence)
    if absent:
        raise typer.Exit(USAGE)
    raise typer.Exit(AGREEMENT if all(v.recognised for v, _ in verdicts) else DIFFERENCE)


def _verdicts(
    names: list[str], like: str | None, claims: dict[str, Any], *, quiet: bool
) -> tuple[list[tuple[Any, float]], dict[str, str]]:
    """The verdict on each target with the seconds it took, and what is not installed."""
    from ..conformance.fingerprint import fingerprint as found
    from ..conformance.targets import resolve
    from .commands import _shown

    known, absent = [], {}
    for name in names:
        try:
            known.append(resolve(name, like, **(claims if like else {})))
        except ImportError as error:
            if ":" in name:
                _refuse(str(error))
            absent[name] = str(error)
        except (KeyError, ValueError, TypeError) as error:
            _refuse(error.args[0])

    def each() -> Any:
        for one in known:
            begun = time.monotonic()
            yield found(one), time.monotonic() - begun

    return list(_shown("asking", len(known), each(), quiet=quiet)), absent


def _attribute(file: Path, original: Path, json: bool) -> bool:
    """Whether every tensor was explained."""
    from ..conformance.files import FileError, attribute
    from ..inputs.checkpoint import CheckpointError
    from . import display_fingerprint as display

    try:
        found = attribute(file, original)
    except (FileError, CheckpointError) as error:
        _refuse(error.args[0])
    if json:
        print(as_json.dumps([one.as_data() for one in found], indent=1))
    else:
        display.show_attributions(found)
    return bool(found) and all(one.explained == 1 for one in found)


def _atlas(page: Path, targets: list[str]) -> None:
    """Writes the page, and its data beside it; rows of what is not asked here are kept as they were."""
    from ..conformance import atlas
    from .commands import _shown

    if not page.parent.is_dir():
        _refuse(f"{page}: no such directory: {page.parent}")
    known = atlas.installed()
    for name in targets:
        if name not in known:
            _refuse(f"{name}: no ready target that is installed; samebits fingerprint lists them")
    wanted = targets or known
    atlas.write(page, dict(_shown("asking", len(wanted), atlas.rows(wanted), quiet=False)))


def _list(json: bool) -> None:
    from ..conformance.peers import PEERS, missing

    rows = [(name, peer.library, missing(peer)) for peer in PEERS for name in peer.targets]
    if json:
        listed = [{"target": name, "library": library, "missing": line} for name, library, line in rows]
        print(as_json.dumps(listed, indent=1))
        return
    from . import display_fingerprint as display

    display.show_targets(rows)


def _refuse(message: str) -> None:
    from .commands import _refuse as refuse

    refuse(message)
