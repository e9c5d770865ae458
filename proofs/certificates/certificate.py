"""The file of a certificate: what was covered, on what it rests, by which versions, with a digest for every tile.

``docs/certificates/schema.json`` is its schema. Every section has a seal, the SHA-256 of its canonical JSON; `load`
refuses a file whose seals, sections or tiles do not fit, and says which. Seals guard against accident and carelessness;
against a forger there is `samebits certify --replay`, which needs nothing of the file but what it claims.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ... import core
from ...core.descriptions import Gradient, Quantizer
from ..modes import execution
from ..modes.environment import versions
from ..modes.source import FUNCTIONS as FIVE
from ..modes.source import NAMES, source_digest
from . import sweeps
from .evaluate import TileResult
from .request import Request
from .sweeps import AnyRequest, Sweep
from .tiles import Part, Tile, both_ends

Certificate = dict[str, Any]
SCHEMA, OF_SWEEPS = "samebits certificate 2", "samebits certificate of a sweep 1"
RESULTS = "results per mode"
SECTIONS = ("quantizer", "request", "statement", "domain", "assumptions", "environment", "tiles")
OTHERS = ("primitive", "prototype")  # what may stand in the place of the first section
CPU_FEATURES = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512dq", "avx512_bf16", "amx_tile")
ITSELF, ELEMENTWISE = "the quantizer itself", "its elementwise function, one scale per row"
BY_ELEMENTS = "the quantizer with blocks of one element"
FUNCTIONS = {
    "quantize": "the code of every input",
    "fake_quantize": "the value of every input, bit for bit",
    "fake_quantize_vjp": "the gradient of x: the incoming one, or +0.0 where the mask of its rule stops it",
}

OF_SCALES = {"choose_qparams": "the scale of every block, NaN where a mode does not refuse what is not finite"}


class CertificateError(Exception):
    """A file that is no certificate, or not the one that was written; the message says what is wrong."""


def compose(request: AnyRequest, parts: Sequence[tuple[Part, Sequence[TileResult]]]) -> Certificate:
    """The sections of a certificate in which every tile came out as specified."""
    counts = [sum(result.results for result in results) for _, results in parts]
    said = content(request, [part for part, _ in parts])
    return {
        "schema": OF_SWEEPS if isinstance(request, Sweep) else SCHEMA,
        **said,
        "domain": [entry | {RESULTS: n} for entry, n in zip(said["domain"], counts, strict=True)],
        "environment": conditions(request),
        "tiles": {part.name: [result.digest for result in results] for part, results in parts},
    }


def content(request: AnyRequest, plan: Sequence[Part]) -> dict[str, Any]:
    """The sections that follow from the request alone, that of its subject first."""
    if isinstance(request, Sweep):
        return sweeps.content(request, plan)
    return {
        "quantizer": {"name": request.name, **describe_quantizer(request.q)},
        "request": {
            "engine": request.engine,
            "modes": list(request.modes),
            "scales": [float(s).hex() for s in request.scales],
            "dtype": request.dtype,
            "zero point": request.zero_point,
        },
        "statement": _statement(request),
        "domain": domain(plan),
        "assumptions": assumptions(request),
    }


def sealed(certificate: Certificate) -> Certificate:
    """With the seal of every section."""
    return certificate | {"seals": {name: _seal(certificate[name]) for name in sections_of(certificate)}}


def sections_of(certificate: Certificate) -> tuple[str, ...]:
    """The names of its sections; of a quantizer unless it is said to be of something else."""
    return next((name for name in OTHERS if name in certificate), SECTIONS[0]), *SECTIONS[1:]


def save(certificate: Certificate, path: Path) -> None:
    """Write the file."""
    write_whole(path, json.dumps(certificate, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file; whoever reads it meanwhile, and after an interruption, sees the old one or the new one."""
    part = path.with_name(path.name + ".new")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def load(path: Path) -> tuple[Certificate, AnyRequest]:
    """A certificate, checked, and the request that it answers.

    Raises:
        CertificateError: unreadable, truncated, of another schema, a section missing or changed, a quantizer that
            cannot be made, or other tiles, claims or assumptions than its request has.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CertificateError(f"{path}: cannot be read: {error}") from None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        body = text.strip()
        cut = not body or (body.startswith("{") and (not body.endswith("}") or error.pos >= len(text.rstrip())))
        how = "is truncated" if cut else "is no JSON"
        raise CertificateError(f"{path}: {how}: {error.msg} in line {error.lineno}") from None
    try:
        request = check(found)
    except CertificateError as error:
        raise CertificateError(f"{path}: {error}") from None
    return found, request


def is_current(path: Path, request: AnyRequest) -> bool:
    """Whether a file holds the certificate of this request, made by this very code on a machine like this one."""
    if not path.exists():
        return False
    try:
        found, answered = load(path)
    except CertificateError:
        return False
    return answered == request and found["environment"] == conditions(request)


def check(found: Any) -> AnyRequest:
    """The request of a certificate that holds together; CertificateError otherwise."""
    if not isinstance(found, dict) or found.get("schema") not in (SCHEMA, OF_SWEEPS):
        got = found.get("schema") if isinstance(found, dict) else type(found).__name__
        raise CertificateError(f"`schema` must be {SCHEMA!r} or {OF_SWEEPS!r}, got {got!r}")
    for name in (*sections_of(found), "seals"):
        if name not in found:
            raise CertificateError(f"section `{name}` is missing")
    if not isinstance(found["seals"], dict):
        raise CertificateError("section `seals` must be an object")
    for name in sections_of(found):
        if found["seals"].get(name) != _seal(found[name]):
            raise CertificateError(
                f"section `{name}` was changed after the certificate was made: its seal does not fit"
            )
    try:
        request = sweeps.sweep_of(found) if found["schema"] == OF_SWEEPS else _request(found)
        plan = request.plan()
    except (ImportError, KeyError, TypeError, ValueError, AttributeError) as error:
        subject = sections_of(found)[0]
        raise CertificateError(f"sections `{subject}` and `request` make no request: {error}") from None
    digests = found["tiles"]
    want = {part.name: len(part.tiles) for part in plan}
    have = {name: len(own) for name, own in digests.items()} if isinstance(digests, dict) else digests
    if want != have:
        raise CertificateError(f"section `tiles` must hold {want}, got {have}")
    covered = [{k: v for k, v in dict(entry).items() if k != RESULTS} for entry in found["domain"]]
    own = content(request, plan)
    for name, said in {**{name: found[name] for name in own if name != "request"}, "domain": covered}.items():
        if own[name] != said:
            raise CertificateError(f"section `{name}` is not that of this {sections_of(found)[0]} and request")
    return request


def domain(plan: Sequence[Part]) -> list[dict[str, Any]]:
    """What the parts of a plan cover."""
    return [
        {
            "part": p.name,
            "claim": p.claim,
            "ran": BY_ELEMENTS if p.tiles[0].kind == "magnitudes" else ITSELF if p.itself else ELEMENTWISE,
            "tiles": len(p.tiles),
            "scales": sum(map(_scales, p.tiles)),
        }
        for p in plan
    ]


def describe_quantizer(q: Quantizer) -> dict[str, Any]:
    """A quantizer as JSON: every field, and the kind of those that have one."""
    return {f.name: _plain(getattr(q, f.name)) for f in fields(q)}


def quantizer_of(described: Mapping[str, Any]) -> Quantizer:
    """The quantizer that `describe_quantizer` gave; KeyError, TypeError, ValueError or AttributeError when none is."""
    return Quantizer(
        **{name: _made(described[name]) for name in (f.name for f in fields(Quantizer)) if name in described}
    )


def canonical(value: Any) -> str:
    """One text for equal values, in JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def conditions(request: AnyRequest | None = None) -> dict[str, Any]:
    """Versions, the code of the rooms, the processor's features, the flags under which compiled modes compile."""
    own = sweeps.source_of(request) if isinstance(request, Sweep) else None
    return {
        "versions": versions(),
        "source": own or source_digest(without=NAMES, reached_from=FIVE),
        "processor features": _features(),
        "compiler": _compiler(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def assumptions(request: Request) -> list[str]:
    """What the statement takes for granted and no tile can show."""
    q, boundary = request.q, request.engine == "boundary"
    listed = ["Each mode is deterministic: the same arrays give the same bits again."]
    if boundary:
        listed += [
            "Between the inputs evaluated at a scale, codes and values never decrease, and the mask is 0, then 1, then "
            "0. Complete for single scales in certificates of the exhaustive engine, in part in the sweeps.",
            "Multiplying x and s by a power of two changes nothing while x, s and the value stay normal and finite. "
            "Enumerated at 1,032 significands of every exponent, and at all significands where x is subnormal.",
            "Which other elements stand in an array, its shape, and the granularity and scale rule of the quantizer do "
            "not change an element's result at a given scale: parts that ran the elementwise function are evidence for "
            "every quantizer of this format, rounding and kind of mask; only part `granularity` ran this one.",
        ]
    elif request.engine == "scales":
        return [
            *listed,
            "The scale of a block depends on its largest magnitude alone, and is that of a block of one element: "
            "blocks of the quantizer's own size were evaluated in part `blocks` only.",
        ]
    else:
        listed.append("The position of an element in an array does not change its result.")
    if q.affine and boundary:
        listed.append(
            "The zero point is added to the rounded quotient and subtracted from the code, exactly: what is rounded, "
            "and by which number a scale is multiplied, depend on it in no other way. All quotients and numbers that "
            "any zero point needs were evaluated with the least and the largest one, at "
            + ("every significand" if both_ends(q) else "half of all significands each")
            + "; and every zero point at every step, at 2,048 scales of all binades."
        )
    if q.gradient is not Gradient.PASS_THROUGH and not boundary:
        listed.append(
            "The mask changes only where the code leaves the range: it was asked there and at every 1,021st input."
        )
    return listed


def _statement(request: Request) -> dict[str, Any]:
    functions = OF_SCALES if request.engine == "scales" else FUNCTIONS
    return {"result": "complete", "functions": functions, "says": _says(request)}


def _says(request: Request) -> str:
    modes = ", ".join(request.modes)
    if request.engine == "boundary":
        return (
            f"Modes {modes} give the same bits for every float32 input, every positive normal float32 scale"
            + (" and every zero point" if request.q.affine else "")
            + ", under the assumptions listed. Float64, and 16-bit inputs beyond the sweeps, are outside the statement."
        )
    if request.engine == "scales":
        return (
            f"Modes {modes} choose the same scale for every largest magnitude of a block, all 2**32 bit patterns of "
            "float32, under the assumptions listed. What is done with the scale is outside the statement."
        )
    return f"Modes {modes} give the same bits for every {request.dtype} input at the scales listed, and no others."


def _scales(tile: Tile) -> int:
    return 1 if tile.kind in ("inputs", "whole") else tile.count


def _request(found: Certificate) -> Request:
    asked = found["request"]
    return Request(
        found["quantizer"]["name"],
        quantizer_of(found["quantizer"]),
        tuple(asked["modes"]),
        asked["engine"],
        tuple(float.fromhex(s) for s in asked["scales"]),
        asked["dtype"],
        asked["zero point"],
    )


def _seal(section: Any) -> str:
    return hashlib.sha256(canonical(section).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.init}
        return {"kind": type(value).__name__, **own}
    if isinstance(value, StrEnum):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _made(value: Any) -> Any:
    if isinstance(value, dict):
        inside = {name: tuple(v) if isinstance(v, list) else _made(v) for name, v in value.items() if name != "kind"}
        return getattr(core, value["kind"])(**inside)
    return value


def _features() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    return [feature for feature in CPU_FEATURES if feature in flags]


def _compiler() -> dict[str, Any]:
    """What inductor compiles with: the compiler, its optimization and floating-point flags."""
    if reason := execution.not_installed("torch compiled"):
        return {"missing": reason}
    from torch._inductor import config, cpp_builder

    try:
        name = cpp_builder.get_cpp_compiler()
        first = subprocess.run([name, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except Exception as error:  # inductor raises its own kinds, from modules that move between releases
        return {"missing": str(error).splitlines()[0] if str(error) else type(error).__name__}
    flags = cpp_builder._get_optimization_cflags(name)
    contract = config.cpp.enable_floating_point_contract_flag
    return {
        "version": first,
        "flags": [str(f) for f in (flags[0] if isinstance(flags, tuple) else flags)],
        "contract": contract,
    }
