"""The sentence encoder all-MiniLM-L6-v2, quantized by every method, in torch and in JAX.

    python examples/quantize_minilm.py [--method NAME ...] [--repeats N] [--small]

Quantizes the linear layers of the encoder by each method in both frameworks, from the same float weights, and prints a
table: the cosine similarity of 200 real sentences to their float embeddings, megabytes of a saved file, the time of a
batch of 1 and of 64 sentences as a share of the float model's, and in how many codes, and in how many scales and zero
points, the two frameworks differ. Needs `pip install 'samebits[all,minilm]'`; with `--small` a drawn network of that
kind serves, and no times are taken. Exit code 1 if two frameworks differ in a method that looks at nothing but weights.
"""

import argparse
import copy
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from samebits.core import configs
from samebits.jax_backend import ptq as in_jax
from samebits.proofs import differences
from samebits.proofs.inputs import minilm, minilm_jax, minilm_torch
from samebits.proofs.modes.environment import versions
from samebits.torch_frontend import ptq as in_torch
from samebits.torch_frontend.ptq import Observer, ObserverKind, QConfig, default_per_channel_qconfig

Quantize = Callable[[Any, Any, Sequence[Any]], Any]  # room, model, batches for calibration; what the model becomes
ROWS = 64  # sentences of a batch
TINY = minilm.Shape(vocabulary=256, hidden=64, layers=1, heads=4, intermediate=64, positions=64)


class Method(NamedTuple):
    """A way to quantize, and whether it looks at activations: these have other last bits in each framework."""

    quantize: Quantize
    by_data: bool = False


class Case(NamedTuple):
    """Weights, batches to calibrate on, batches to evaluate, and how many rows of these count."""

    shape: minilm.Shape
    tensors: dict[str, Any]
    calibration: list[minilm.Batch]
    evaluation: list[minilm.Batch]
    rows: int


def by_config(config: configs.Config) -> Method:
    """Weights become codes at once."""
    return Method(lambda room, model, batches: room.quantize_(model, config) or model)


def by_gptq(group: int) -> Method:
    """The same codes as `int4_weight_only` has, chosen so that layers keep their outputs."""

    def quantize(room: Any, model: Any, batches: Sequence[Any]) -> Any:
        room.gptq_(model, configs.int4_weight_only(group), batches)
        return model

    return Method(quantize, by_data=True)


def smooth(room: Any, model: Any, batches: Sequence[Any]) -> Any:
    """SmoothQuant, then int8. What norms give is read by a sum too, so only values of attention are smoothed."""
    blocks = range(len(model.encoder.layer))
    names = (f"encoder.layer.{i}.attention" for i in blocks)
    pairs = [(f"{name}.self.value", [f"{name}.output.dense"]) for name in names]
    room.smooth_(model, batches, alpha="search", pairs=pairs)
    return room.quantize_(model, configs.int8_dynamic_activation_int8_weight()) or model


def static(bits: int) -> Method:
    """Prepare, calibrate, convert: constant scales of inputs. torch's own qconfig gives these 7 bits."""
    q = default_per_channel_qconfig.activation.quantizer.replace(bits=bits)
    qconfig = QConfig(Observer(ObserverKind.MIN_MAX, q), default_per_channel_qconfig.weight)

    def quantize(room: Any, model: Any, batches: Sequence[Any]) -> Any:
        prepared = room.prepare(model, {"encoder.*": qconfig})
        for batch in batches:
            prepared(*batch)
        return room.convert(prepared)

    return Method(quantize, by_data=True)


def methods(groups: Sequence[int]) -> dict[str, Method]:
    """All of them by name."""
    return {
        "int8 weight-only": by_config(configs.int8_weight_only()),
        "int8 dynamic": by_config(configs.int8_dynamic_activation_int8_weight()),
        **{f"int4 weight-only, group {g}": by_config(configs.int4_weight_only(g)) for g in groups},
        "int8 dynamic, int4 weight": by_config(configs.int8_dynamic_activation_int4_weight()),
        "float8 weight-only": by_config(configs.float8_weight_only()),
        "float8 dynamic": by_config(configs.float8_dynamic_activation_float8_weight()),
        "mxfp4": by_config(configs.mx("mxfp4_e2m1")),
        "nvfp4": by_config(configs.nvfp4()),
        **{f"GPTQ int4, group {g}": by_gptq(g) for g in groups},
        "SmoothQuant, int8 dynamic": Method(smooth, by_data=True),
        "int8 static": static(8),
        "int8 static, inputs of 7 bits": static(7),
    }


def real_case(rows: int = 200) -> Case:
    """The published weights and real sentences: the first ones are evaluated, those after them calibrate."""
    sentences = minilm.sentences(rows + 2 * ROWS)
    return Case(minilm.shape_of(), minilm.tensors(), batches(sentences[rows:]), batches(sentences[:rows]), rows)


def batches(sentences: Sequence[str]) -> list[minilm.Batch]:
    """Sentences by their length, in batches of one size, of which the last repeats its last one, and of few lengths."""
    whole = minilm.batch(sentences, minilm.vocabulary())
    order = np.argsort(whole.mask.sum(1), kind="stable")
    order = np.append(order, np.repeat(order[-1], -len(order) % ROWS)).reshape(-1, ROWS)
    lengths = [-(-int(whole.mask[rows].sum(1).max()) // 32) * 32 for rows in order]
    return [minilm.Batch(whole.ids[rows, :n], whole.mask[rows, :n]) for rows, n in zip(order, lengths, strict=True)]


def small_case() -> Case:
    """A drawn network of that kind."""
    batches = [minilm.random_batch(TINY, rows=8, seed=seed) for seed in range(2)]
    return Case(TINY, minilm.random_tensors(TINY), batches[:1], batches[1:], 8)


def for_torch(batch: minilm.Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as the torch encoder takes it."""
    return torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)


def for_jax(batch: minilm.Batch) -> tuple[jax.Array, jax.Array]:
    """A batch as the flax encoder takes it."""
    return jnp.asarray(batch.ids, jnp.int32), jnp.asarray(batch.mask)


class Room(NamedTuple):
    """A framework: its `ptq`, its encoder in floats, how it takes a batch, and how a model of it is run."""

    ptq: Any
    floats: Any
    take: Callable[[minilm.Batch], tuple[Any, Any]]
    runner: Callable[[Any], Callable[..., Any]]
    run: Callable[..., Any]  # of the float encoder
    wanted: Any  # its embeddings


def torch_runner(model: Any) -> Callable[..., Any]:
    """The model as it is, eager."""
    run: Callable[..., Any] = torch.inference_mode()(model)
    return run


def jax_runner(model: Any) -> Callable[..., Any]:
    """The model under `jax.jit`."""
    run = nnx.jit(lambda model, ids, mask: model(ids, mask))
    return lambda ids, mask: run(model, ids, mask).block_until_ready()


def rooms(case: Case, compiled: bool) -> tuple[Room, Room]:
    """Both frameworks, with the same weights."""

    def room(ptq: Any, floats: Any, take: Any, runner: Any) -> Room:
        run = runner(floats)
        return Room(ptq, floats, take, runner, run, embeddings(take, run, case))

    return (
        room(in_torch, minilm_torch.encoder(case.shape, case.tensors), for_torch, torch_runner),
        room(
            in_jax,
            minilm_jax.encoder(case.shape, case.tensors),
            for_jax,
            jax_runner if compiled else lambda model: model,
        ),
    )


def quantized(room: Room, method: Method, case: Case) -> Any:
    """The encoder, quantized; the float one stays."""
    model = nnx.clone(room.floats) if isinstance(room.floats, nnx.Module) else copy.deepcopy(room.floats)
    return method.quantize(room.ptq, model, [room.take(batch) for batch in case.calibration])


def embeddings(take: Callable[[minilm.Batch], tuple[Any, Any]], run: Callable[..., Any], case: Case) -> Any:
    """Of the sentences that are evaluated, each of length 1."""
    return np.concatenate([np.asarray(run(*take(batch))) for batch in case.evaluation])[: case.rows]


def similarity(one: Any, other: Any) -> str:
    """Mean and least cosine of two sets of embeddings of length 1."""
    cosines = (one.astype(np.float64) * other).sum(1)
    return f"{cosines.mean():.5f} / {cosines.min():.5f}"


def ratios(float_run: Callable[[], Any], run: Callable[[], Any], repeats: int) -> str:
    """How long a model takes as a share of the float one: median and quartiles of pairs that are timed in turn."""
    float_run(), run()
    found = []
    for _ in range(repeats):
        seconds = []
        for one in (float_run, run):
            begun = time.perf_counter()
            one()
            seconds.append(time.perf_counter() - begun)
        found.append(seconds[1] / seconds[0])
    low, middle, high = np.percentile(found, (25, 50, 75))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def times(room: Room, run: Callable[..., Any], case: Case, repeats: int) -> Iterator[str]:
    """The ratios of a batch of one sentence, without what fills it up, and of a whole batch."""
    middle = case.evaluation[len(case.evaluation) // 2]
    length = int(middle.mask[0].sum())
    for batch in (minilm.Batch(middle.ids[:1, :length], middle.mask[:1, :length]), middle):
        taken = room.take(batch)
        yield ratios(partial(room.run, *taken), partial(run, *taken), repeats)


def stored(room: Room, model: Any) -> tuple[dict[str, torch.Tensor], int]:
    """What a saved file of the model holds, and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        room.ptq.save_quantized(model, path)
        return load_file(path), path.stat().st_size


def differing(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Codes that differ, and scales and zero points. ValueError unless both hold the same tensors."""
    if mine.keys() != theirs.keys():
        raise ValueError(f"only one of two files holds {', '.join(sorted(mine.keys() ^ theirs.keys()))}")
    counts = {name: differences(mine[name], theirs[name]).differing for name in mine}
    is_qparam = {name: name.endswith(("scale", "zero_point")) for name in counts}
    is_codes = {name: not mine[name].dtype.is_floating_point and not is_qparam[name] for name in counts}
    is_codes |= {name: True for name in counts if name.endswith(".codes")}
    return tuple(sum(counts[name] for name in counts if kind[name]) for kind in (is_codes, is_qparam))  # type: ignore[return-value]


def row(method: Method, both: tuple[Room, Room], case: Case, repeats: int) -> tuple[list[str], int]:
    """The cells of a method, and how many codes and parameters differ."""
    models = [quantized(room, method, case) for room in both]
    cells, timed = [], []
    for room, model in zip(both, models, strict=True):
        run = room.runner(model)
        cells.append(similarity(room.wanted, embeddings(room.take, run, case)))
        timed += list(times(room, run, case, repeats)) if repeats else []
    (mine, size), (theirs, _) = (stored(room, model) for room, model in zip(both, models, strict=True))
    codes, qparams = differing(mine, theirs)
    layers = sum(t.numel() * t.element_size() for name, t in mine.items() if name.startswith("encoder."))
    return [*cells, f"{size / 1e6:.2f}", f"{layers / 1e6:.2f}", *timed, f"{codes:,}", f"{qparams:,}"], codes + qparams


def main() -> int:
    """Runs what the arguments ask for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", help="by its name in the table; may be repeated; all by default")
    parser.add_argument("--repeats", type=int, default=5, help="of each time, default %(default)s; 0: no times")
    parser.add_argument("--small", action="store_true", help="a drawn network; no times")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    repeats = 0 if arguments.small else arguments.repeats
    known = methods((32,) if arguments.small else (32, 64, 128))
    unknown = sorted(set(arguments.method or ()) - known.keys())
    if unknown:
        parser.error(f"unknown method {unknown[0]!r}; methods are {', '.join(known)}")
    case = small_case() if arguments.small else real_case()
    both = rooms(case, compiled=not arguments.small)
    timed = [f"{room}, batch {n}" for room in ("torch", "jax") for n in (1, ROWS)] if repeats else []
    cosines = [f"cosine in {room}: mean / least" for room in ("torch", "jax")]
    columns = ("method", *cosines, "MB", "of layers", *timed, "codes differing", "scales, zero points")
    table = Table(*columns, box=MARKDOWN)
    _, size = stored(both[0], both[0].floats)
    floats = sum(t.nbytes for name, t in case.tensors.items() if name.startswith("encoder."))
    table.add_row("float32", "1 / 1", "1 / 1", f"{size / 1e6:.2f}", f"{floats / 1e6:.2f}", *["1"] * len(timed), "", "")
    wrong = 0
    for name in arguments.method or known:
        cells, count = row(known[name], both, case, repeats)
        table.add_row(name, *cells)
        wrong += 0 if known[name].by_data else count
        print(f"{name}: done", file=sys.stderr, flush=True)
    Console(width=240).print(table)
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
