"""Bits and speed on one GPU, in under 8 minutes: `accelerator.sh` runs this.

Five parts, each with a share of the time, and what those before it left; what does not fit is left out and said.
Results are written row by row, as JSON and as Markdown. After a part that fails the others run in a new process, since
an error of a GPU may stay in one; ``--resume`` leaves out what has run. It needs NumPy, ml_dtypes, torch and jax alone,
so that it runs where nothing can be installed.
"""

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from accelerator_speed import speed
from numpy.typing import NDArray

from samebits import core
from samebits.core import QParams, catalog, requirements
from samebits.proofs.inputs.compare import differences
from samebits.proofs.inputs.knife_edges import knife_edge_array
from samebits.proofs.modes import execution
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.proofs.modes.devices import in_jax, torch_place, way_of
from samebits.proofs.modes.environment import versions

# Older releases than are promised: what torch 2.11 lacks (vmap of bit patterns, saturating casts to float8) and flax
# (layers) is used by no part of this.
requirements.EXTRAS = MappingProxyType({**requirements.EXTRAS, "torch": {"torch": "2.11"}, "jax": {"jax": "0.8.2"}})

Array = NDArray[Any]
Row = dict[str, Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ENTRIES = (
    ("int8_per_tensor", np.dtype(np.float32)),
    ("float8_e4m3fn_per_tensor", np.dtype(np.float32)),
    ("int8_per_channel", BFLOAT16),
    ("uint8_affine_per_tensor", np.dtype(np.float32)),
    ("int4_per_group32", np.dtype(np.float16)),
    ("uint4_affine_float_zero_per_group64", np.dtype(np.float32)),
    ("int8_power_of_two_per_tensor", np.dtype(np.float32)),
    ("binary_per_tensor", np.dtype(np.float32)),
    ("ternary_per_channel", np.dtype(np.float32)),
    ("mxfp4_e2m1", BFLOAT16),
    ("nvfp4", np.dtype(np.float32)),
    ("nf4_per_group64", np.dtype(np.float32)),
)
ON_CPU = ("torch eager", "torch compiled", "jax jit")  # without a GPU: modes that do the same there
SCALES = np.array([0.7, 0.1, 1 / 3, 1.5e-38], np.float32)
SHARES = {"check": 170, "speed": 90, "digits": 45, "diverge": 50, "certificate": 60}  # seconds
GRACE = 60  # and so many more for the row that is being made, a compilation perhaps


def main() -> int:
    """Run all parts. 0 if no bit differs, 1 if one does, 2 without the device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a little of each part: to try the script")
    parser.add_argument("--out", type=Path, default=Path("build/accelerator"), help="folder for results.json and .md")
    parser.add_argument("--resume", action="store_true", help="with the results that are there, less the parts begun")
    arguments = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory, too
    modes = execution.modes_on("cuda")[1:] if arguments.device == "cuda" else ON_CPU
    reasons = [reason for mode in modes if (reason := execution.unavailable(mode))]
    if reasons:
        print(f"accelerator: {'; '.join(dict.fromkeys(reasons))}", file=sys.stderr)
        return 2
    take_an_older_torch()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = begun(arguments.out) if arguments.resume else None
    found = found or {"device": device_name(arguments.device), "versions": versions(), "quick": arguments.quick}
    spare = 0.0
    for part in (part for part in PARTS if part not in found):
        failed = run_part(part, modes, arguments.quick, SHARES[part] + spare, arguments.out, found)
        spare = max(0.0, spare + SHARES[part] - found[part]["seconds"])
        if failed and arguments.device == "cuda" and not all(part in found for part in PARTS):
            sys.stdout.flush()
            again = [one for one in sys.argv if one != "--resume"]
            os.execv(sys.executable, [sys.executable, *again, "--resume"])
    print(verdict(found))
    return 1 if wrong(found) else 0


def take_an_older_torch() -> None:
    """Before torch 2.13 dynamo says of every compilation that it exports: what it says from then on, instead."""
    import torch
    from torch._dynamo import variables

    of_dynamo: Any = variables.torch
    if not hasattr(of_dynamo, "tracing_state_functions") or torch.__version__ >= torch.torch_version.TorchVersion(
        "2.13"
    ):
        return
    states = of_dynamo.tracing_state_functions
    of_dynamo.tracing_state_functions = lambda: {
        **states(),
        torch.compiler.is_exporting: torch.compiler._is_exporting_flag,
    }


def run_part(part: str, modes: Sequence[str], quick: bool, seconds: float, out: Path, found: dict[str, Any]) -> bool:
    """Runs a part and writes its rows as they come; whether it failed. What hangs is ended, and the shell goes on."""
    start, failed, most = time.monotonic(), False, max(1, int(seconds) + GRACE)
    rows: list[Row] = []
    found[part] = {"seconds": 0.0, "rows": rows}

    def write(*more: Row, done: bool = False) -> None:
        rows.extend(more)
        unfinished = [] if done else [{"failed": f"the process ended, or took more than {most} s"}]
        found[part] = {"seconds": round(time.monotonic() - start, 1), "rows": [*rows, *unfinished]}
        for name, text in (("results.json", json.dumps(found, indent=1) + "\n"), ("results.md", page(found))):
            (out / f"{name}.part").write_text(text, encoding="utf-8")
            (out / f"{name}.part").replace(out / name)

    signal.alarm(most)
    write()
    try:
        for row in PARTS[part](modes, quick):
            print(part, json.dumps(row), flush=True)
            write(row)
            if time.monotonic() - start > seconds:
                write({"stopped": f"after {seconds:.0f} s"})
                break
    except Exception as error:  # the other parts are worth having
        traceback.print_exc()
        failed = True
        write({"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})
    write(done=True)
    signal.alarm(0)
    return failed


def begun(out: Path) -> dict[str, Any] | None:
    """The results that are there, if any are."""
    file = out / "results.json"
    found: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return found


def device_name(device: str) -> str:
    """What the results are of."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"cpu: {versions()['processor']}"


# --- bits -------------------------------------------------------------------------------------------------------------


def check(modes: Sequence[str], quick: bool) -> Iterator[Row]:
    """Each entry on the knife edges of given scales, and on numbers whose scale it chooses itself, beside NumPy."""
    entries = ENTRIES[:2] if quick else ENTRIES
    slow = [mode for mode in modes if way_of(mode).how == "compiled"]  # most of the time is that of compilers
    asked = [(*entry, mode) for entry in entries for mode in modes if mode not in slow]
    for name, dtype, mode in asked + [(*entry, mode) for entry in entries for mode in slow]:
        q = catalog[name]
        x, given = edges_of(name, dtype)
        rng = np.random.default_rng(0)
        random = rng.standard_normal((64, 512)).astype(dtype)
        row: Row = {"entry": name, "dtype": dtype.name, "mode": mode, "compared": 0, "differing": 0}
        for data, qparams in ((x, given), (random, None)):
            g = rng.standard_normal(data.shape).astype(dtype)
            want = execution.run_all("numpy", q, data, g, qparams)
            got = execution.run_all(mode, q, data, g, qparams)
            for function, a, b in results(want, got):
                one = differences(a, b)
                row["compared"], row["differing"] = row["compared"] + one.compared, row["differing"] + one.differing
                if one.differing:
                    row.setdefault("example", f"{function}: {one}")
        yield row


def edges_of(name: str, dtype: Any) -> tuple[Array, QParams]:
    """Knife edges of `SCALES`, of the first where there is one for a whole array."""
    q = catalog[name]
    powers = np.array([0.5, 2.0**-20, 4, 2.0**-126], np.float32)
    several = SCALES if q.scale.restriction is core.Restriction.FLOAT else powers
    s = several[0] if name.endswith("per_tensor") else several
    kind, z = (np.float32, 0.3) if q.arithmetic.has_float_zeros else (np.int32, 7)
    return knife_edge_array(q, QParams(s, np.full(np.shape(s), z, kind) if q.affine else None), dtype)


def results(want: execution.Results, got: execution.Results) -> Iterator[tuple[str, Array, Array]]:
    """What is promised bit for bit."""
    for name in ("codes", "values", "fake"):
        yield name, getattr(want, name), getattr(got, name)
    yield "gradient of x", want.gradients.x, got.gradients.x
    for name, a, b in zip(("scale", "zero point"), want.qparams[:2], got.qparams[:2], strict=True):
        if a is not None:
            yield name, np.asarray(a), np.asarray(b)


def certificate(modes: Sequence[str], quick: bool) -> Iterator[Row]:
    """A boundary certificate of int8 per tensor: every input, every scale. As many tiles as there is time for."""
    from samebits.proofs.certificates.certify import Difference, run
    from samebits.proofs.certificates.request import Request, tiles_of

    request = Request("int8_per_tensor", catalog["int8_per_tensor"], ("numpy", *modes))
    total, done, compared, limit = len(tiles_of(request)), 0, 0, time.monotonic() + SHARES["certificate"] - 5
    try:
        for progress in run(request):
            done, compared = done + 1, compared + progress.result.results
            if time.monotonic() > limit or (quick and done == 1):
                break
    except Difference as difference:
        yield {"tiles": done, "of": total, "compared": compared, "differing": 1, "example": str(difference)}
        return
    yield {"tiles": done, "of": total, "compared": compared, "differing": 0, "modes": list(request.modes)}


def digits(modes: Sequence[str], quick: bool) -> Iterator[Row]:
    """Logits of the quantized digit classifier: contractions of codes, convolutions among them."""
    tensors = stored(Path(core.__file__).parents[1] / "proofs" / "inputs" / "data" / "digits.safetensors")
    x = tensors["images"][: 64 if quick else None, None].astype(np.float32) / np.float32(16)
    want = network(core, tensors, x)
    for mode in modes:
        found = differences(want, in_mode(mode, tensors, x))
        yield {"mode": mode, "compared": found.compared, "differing": found.differing}


def stored(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file of float32 and small integers."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    kinds = {"F32": np.float32, "U8": np.uint8, "I64": np.int64, "F64": np.float64, "I32": np.int32}
    header = {name: part for name, part in json.loads(data[8:start]).items() if name != "__metadata__"}
    return {
        name: np.frombuffer(data[slice(*(start + n for n in part["data_offsets"]))], kinds[part["dtype"]]).reshape(
            part["shape"]
        )
        for name, part in header.items()
    }


def network(room: Any, tensors: dict[str, Any], x: Any) -> Any:
    """The classifier of `samebits.proofs.inputs.digits`, by the functions of a room."""
    q_x, q_w = catalog["uint8_per_tensor"], catalog["int8_per_channel"]

    def layer(contract: Callable[..., Any], name: str, x: Any, **geometry: int) -> Any:
        w = tensors[f"{name}.weight"]
        of_x, bias = QParams(tensors[f"{name}.input_quant.scale"]), tensors[f"{name}.bias"]
        return contract(q_x, x, of_x, q_w, w, room.choose_qparams(q_w, w), bias, **geometry)

    x = layer(room.conv, "conv1", x, padding=1)
    x = layer(room.conv, "conv2", x * (x > 0), stride=2, padding=1)
    x = x * (x > 0)
    return layer(room.linear, "linear", x.reshape(x.shape[0], -1))


def in_mode(mode: str, tensors: dict[str, Array], x: Array) -> Array:
    """`network` in a mode."""
    own = {name: array for name, array in tensors.items() if name.split(".")[0] in ("conv1", "conv2", "linear")}
    if way_of(mode).framework == "torch":
        import torch

        from samebits import torch_frontend

        given = {name: to_torch(array, torch_place(mode)) for name, array in own.items()}
        forward = partial(network, torch_frontend)
        with torch.no_grad():
            run = torch.compile(forward, fullgraph=True) if way_of(mode).compiled else forward
            return to_numpy(run(given, to_torch(x, torch_place(mode))))
    import jax

    from samebits import jax_backend

    with in_jax(mode):
        arrays = {name: to_jax(array) for name, array in own.items()}
        return to_numpy(jax.jit(partial(network, jax_backend))(arrays, to_jax(x)))


def diverge(modes: Sequence[str], quick: bool) -> Iterator[Row]:
    """Textbook code and ours with a sum behind it, on knife edges: how many results are not those of NumPy."""
    from samebits.proofs.divergence import divergence

    q, s, rng = catalog["int8_per_tensor"], np.float32(0.7), np.random.default_rng(0)
    edges, _ = knife_edge_array(q, QParams(s), np.float32)
    inputs = {"knife edges": edges, "random": (rng.standard_normal(edges.size) * 20).astype(np.float32)}
    b = rng.standard_normal(edges.size).astype(np.float32)
    for target in divergence.TARGETS:
        for kind in ("constant",) if quick else divergence.SCALES:
            job = divergence.Job(target, kind, "float32", "+ b")
            for mode in modes:
                for name, got in divergence.run(job, mode, inputs, np.asarray(s), b).items():
                    with np.errstate(all="ignore"):
                        want = core.fake_quantize(q, inputs[name], QParams(s)) + b
                    found = differences(want, got)
                    counted = "differing" if target == divergence.OURS else "parts"
                    row = {"target": target, "scale": kind, "mode": mode, "inputs": name, "compared": found.compared}
                    yield row | {counted: found.differing}


# --- pages ------------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Sequence[str], bool], Iterator[Row]]] = {
    "check": check,
    "speed": speed,
    "digits": digits,
    "diverge": diverge,
    "certificate": certificate,
}


def wrong(found: dict[str, Any]) -> int:
    """How many results differ that must not, and parts that failed."""
    rows = [row for part in PARTS for row in found.get(part, {"rows": []})["rows"]]
    return sum(int(row.get("differing", 0)) + ("failed" in row) for row in rows)


def verdict(found: dict[str, Any]) -> str:
    """One line."""
    compared = sum(row.get("compared", 0) for part in PARTS for row in found.get(part, {"rows": []})["rows"])
    return f"{found['device']}: {wrong(found):,} of {compared:,} results differ or parts failed"


def page(found: dict[str, Any]) -> str:
    """Everything as Markdown: a table for each part."""
    lines = [f"## {found['device']}", "", ", ".join(f"{name} {v}" for name, v in found["versions"].items()), ""]
    lines += [verdict(found), ""]
    for part in (part for part in PARTS if part in found):
        rows = found[part]["rows"]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += [
            f"### {part} ({found[part]['seconds']:.0f} s)",
            "",
            f"| {' | '.join(columns)} |",
            "|---" * len(columns) + "|",
        ]
        for row in rows:
            lines.append(f"| {' | '.join(str(row.get(column, '')) for column in columns)} |".replace("\n", " "))
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
