"""Where the same formula has different bits: eager against compiled code, torch against JAX, on textbook quantizers.

Each `Target` is a way to write fake quantization in both frameworks. It runs with a constant, scalar and tensor scale,
in float32 and bfloat16, alone and followed by ``+ b``, on random inputs, real ones and knife edges, in four modes; two
modes at a time are compared bit for bit. Eager JAX is ordinary dispatch, operation by operation, as a user has it.

What is shown is data: `TARGETS`, `SCALES`, `DTYPES`, `SURROUNDINGS`, `PAIRS`, `INPUTS`. Another library is one more
`Target`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...core import PerGroup, PerTensor, QParams, catalog, choose_qparams
from ...core.catalog import Named
from ...core.requirements import explaining
from ..inputs.compare import describe, differences, ulp_distance
from ..inputs.knife_edges import knife_edges
from ..modes.arrays import to_jax, to_numpy, to_torch
from ..modes.devices import DEVICES, in_jax, torch_place, way_of
from ..modes.workers import run_jobs

if TYPE_CHECKING:
    import jax
    import torch

Array = NDArray[Any]
Scale = Literal["constant", "scalar", "tensor"]
Function = Callable[..., Any]  # (x, s) -> x_hat, over arrays of one framework; s is None when it is a constant

ELEMENTS = 2**16
OURS = "samebits"  # the target that must not diverge
LO, HI = -128, 127
SCALES: tuple[Scale, ...] = ("constant", "scalar", "tensor")
DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
)
SURROUNDINGS = ("alone", "+ b")
MODES = ("torch eager", "torch compiled", "jax eager", "jax jit")
PAIRS = (
    ("torch eager", "torch compiled"),
    ("jax eager", "jax jit"),
    ("torch eager", "jax eager"),
    ("torch compiled", "jax jit"),
)
PAIRS_OF_A_GPU = (
    ("torch cuda eager", "torch cuda compiled"),
    ("torch eager", "torch cuda eager"),
    ("torch cuda compiled", "jax gpu jit"),
    ("torch eager", "jax gpu jit"),
)
INPUTS = ("random", "real", "knife edges")


@dataclass(frozen=True)
class Target:
    """An implementation of fake quantization to int8 with a given scale.

    Args:
        name: what it is called; ``formula``: what its author wrote.
        in_torch, in_jax: from the kind of scale and its value to a function ``(x, s)``.
        scale_dtype: dtype in which it is given its scale; None for the dtype of x.
    """

    name: str
    formula: str
    in_torch: Callable[[Scale, float], Function]
    in_jax: Callable[[Scale, float], Function]
    scale_dtype: str | None = None


@dataclass(frozen=True)
class Example:
    """One input at which two modes differ; numbers in decimal, hexadecimal and bits."""

    x: str
    scale: str
    b: str | None
    left: str
    right: str


@dataclass(frozen=True)
class Divergence:
    """How far two modes part on one program and one kind of input.

    Args:
        compared, differing: elements.
        largest_codes: largest distance of two results in steps of the scale; largest_ulps: in numbers of the dtype.
        example: the differing element of smallest input, or None.
    """

    target: str
    scale: Scale
    dtype: str
    surroundings: str
    left: str
    right: str
    inputs: str
    compared: int
    differing: int
    largest_codes: float
    largest_ulps: int
    example: Example | None


def _textbook_torch(kind: Scale, value: float) -> Function:
    import torch

    def fake_quantize(x: "torch.Tensor", s: "torch.Tensor | None") -> "torch.Tensor":
        scale = value if s is None else s
        return torch.clamp(torch.round(x / scale), LO, HI) * scale

    return fake_quantize


def _textbook_jax(kind: Scale, value: float) -> Function:
    import jax.numpy as jnp

    def fake_quantize(x: "jax.Array", s: "jax.Array | None") -> "jax.Array":
        scale = value if s is None else s
        return jnp.clip(jnp.round(x / scale), LO, HI) * scale

    return fake_quantize


def _samebits_torch(kind: Scale, value: float) -> Function:
    import torch

    from ...torch_frontend import fake_quantize

    q = catalog["int8_per_tensor"].replace(granularity=PerGroup(1) if kind == "tensor" else PerTensor())
    constant = torch.tensor(value, dtype=torch.float32)
    return lambda x, s: fake_quantize(q, x, QParams(constant if s is None else s))


def _samebits_jax(kind: Scale, value: float) -> Function:
    import jax.numpy as jnp

    from ...jax_backend import fake_quantize

    q = catalog["int8_per_tensor"].replace(granularity=PerGroup(1) if kind == "tensor" else PerTensor())
    constant = jnp.float32(value)
    return lambda x, s: fake_quantize(q, x, QParams(constant if s is None else s))


TARGETS: Mapping[str, Target] = Named(
    "target",
    {
        target.name: target
        for target in (
            Target("textbook", f"clamp(round(x / s), {LO}, {HI}) * s", _textbook_torch, _textbook_jax),
            Target(OURS, "fake_quantize(int8, x, s)", _samebits_torch, _samebits_jax, "float32"),
        )
    },
)


@dataclass(frozen=True)
class Job:
    """One program: what is run in every mode of a device on every kind of input."""

    target: str
    scale: Scale
    dtype: str
    surroundings: str
    device: str = "cpu"


def modes_on(device: str) -> tuple[str, ...]:
    """The modes that `pairs_on` compares."""
    return tuple(dict.fromkeys(mode for pair in pairs_on(device) for mode in pair))


def pairs_on(device: str) -> tuple[tuple[str, str], ...]:
    """`PAIRS` of the ``cpu``; of ``cuda`` the modes of a GPU, beside each other and beside those of the CPU.

    Raises:
        ValueError: another device.
    """
    if device not in DEVICES:
        raise ValueError(f"`device` must be one of {', '.join(DEVICES)}; got {device!r}")
    return PAIRS if device == "cpu" else PAIRS_OF_A_GPU


def jobs(targets: Sequence[str] = tuple(TARGETS), device: str = "cpu") -> tuple[Job, ...]:
    """All programs of the targets. KeyError names a target that does not exist; ValueError a device."""
    pairs_on(device)
    names = [TARGETS[name].name for name in targets]
    return tuple(Job(n, s, d, a, device) for d in DTYPES for s in SCALES for a in SURROUNDINGS for n in names)


def diverge(
    targets: Sequence[str] = tuple(TARGETS), device: str = "cpu", *, workers: int = 2
) -> Iterator[tuple[Divergence, ...]]:
    """The divergences of every program, program by program, as they are found."""
    return run_jobs(run_job, jobs(targets, device), workers)


def in_order(found: Iterable[Divergence]) -> tuple[Divergence, ...]:
    """By target, dtype, scale and surroundings, as they stand in the lists above; pairs and inputs as they were."""
    keys = tuple(TARGETS), tuple(DTYPES), SCALES, SURROUNDINGS

    def place(row: Divergence) -> tuple[int, ...]:
        own = row.target, row.dtype, row.scale, row.surroundings
        return tuple(names.index(name) for names, name in zip(keys, own, strict=True))

    return tuple(sorted(found, key=place))


def run_job(job: Job) -> tuple[Divergence, ...]:
    """All pairs of modes on all inputs for one program. A mode that cannot run here leaves its pairs out."""
    from ..modes.execution import unavailable

    scale, b, inputs = data(job.dtype)
    modes = [mode for mode in modes_on(job.device) if not unavailable(mode)]
    results = {mode: run(job, mode, inputs, scale, b) for mode in modes}
    return tuple(
        _divergence(job, left, right, name, inputs[name], scale, b, results[left][name], results[right][name])
        for left, right in pairs_on(job.device)
        if left in modes and right in modes
        for name in inputs
    )


@cache
def data(dtype: str) -> tuple[Array, Array, Mapping[str, Array]]:
    """The scale (0-d), the addend, and the inputs by name: `ELEMENTS` of each, in the dtype named.

    Real inputs are the weights and activations of the digit classifier, the scale is that of `int8_per_tensor` for
    them; random ones are normal with a quarter of their range as deviation; the knife edges are those of the scale.
    """
    with explaining("samebits.proofs.diverge"):
        from ..inputs.checkpoint import mapped_values, stored_tensors
        from ..inputs.digits import DATA

    to = DTYPES[dtype]
    stored = [tensor for tensor in stored_tensors(DATA) if not tensor.skipped]
    every = np.concatenate([mapped_values(DATA, tensor).reshape(-1) for tensor in stored]).astype(np.float32)
    draw = np.random.default_rng(0)
    real = draw.permutation(every)[:ELEMENTS]
    q = catalog["int8_per_tensor"]
    scale = np.asarray(choose_qparams(q, every).scale).astype(to)
    random = draw.standard_normal(ELEMENTS) * float(scale) * HI / 4
    edges = np.resize(knife_edges(q, scale.astype(np.float32), None, to), ELEMENTS)
    b = (draw.standard_normal(ELEMENTS) * float(scale) * 8).astype(to)
    return scale, b, {"random": random.astype(to), "real": real.astype(to), "knife edges": edges}


def run(job: Job, mode: str, inputs: Mapping[str, Array], scale: Array, b: Array) -> Mapping[str, Array]:
    """The results of one program in one mode, by name of input. Compiled once for all of them."""
    target = TARGETS[job.target]
    in_torch = mode.startswith("torch")
    function = (target.in_torch if in_torch else target.in_jax)(job.scale, float(scale))
    program = (lambda x, s, b: function(x, s)) if job.surroundings == "alone" else (lambda x, s, b: function(x, s) + b)
    s = scale.astype(target.scale_dtype or scale.dtype)
    given = None if job.scale == "constant" else np.full(b.shape, s) if job.scale == "tensor" else s
    if in_torch:
        return _run_torch(program, mode, inputs, given, b)
    return _run_jax(program, mode, inputs, given, b)


def _run_torch(
    program: Function, mode: str, inputs: Mapping[str, Array], s: Array | None, b: Array
) -> Mapping[str, Array]:
    import torch

    torch.compiler.reset()  # the programs share their code, and dynamo allows few compilations of one code
    call, place = torch.compile(program, fullgraph=True) if way_of(mode).compiled else program, torch_place(mode)
    scale, addend = None if s is None else to_torch(s, place), to_torch(b, place)
    with torch.no_grad():
        return {name: to_numpy(call(to_torch(x, place), scale, addend)) for name, x in inputs.items()}


def _run_jax(
    program: Function, mode: str, inputs: Mapping[str, Array], s: Array | None, b: Array
) -> Mapping[str, Array]:
    import jax

    call = jax.jit(program) if way_of(mode).compiled else program
    with in_jax(mode):
        scale, addend = None if s is None else to_jax(s), to_jax(b)
        return {name: to_numpy(call(to_jax(x), scale, addend)) for name, x in inputs.items()}


def _divergence(
    job: Job, left: str, right: str, name: str, x: Array, s: Array, b: Array, first: Array, second: Array
) -> Divergence:
    found = differences(first, second, inputs=x)
    codes, ulps, example = 0.0, 0, None
    if found.differing and found.index is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            steps = np.abs(first.astype(np.float64) - second.astype(np.float64)) / float(s)
        codes = float(np.max(steps, where=np.isfinite(steps), initial=0))
        ulps = int(ulp_distance(first, second).max())
        addend = None if job.surroundings == "alone" else describe(b[found.index])
        example = Example(describe(x[found.index]), describe(s), addend, describe(found.expected), describe(found.got))
    where = (job.target, job.scale, job.dtype, job.surroundings, left, right, name)
    return Divergence(*where, found.compared, found.differing, codes, ulps, example)
