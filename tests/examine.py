"""A quick examination of one way to run the five functions: does it have the bits of the specification?

Small and without compilation, so that it can be repeated for every planted fault. Three kinds of cases for a quantizer:

- knife edges, with parameters given;
- data of every awkward kind, with parameters that the implementation chooses;
- data on which no sum rounds, so that gradients of scale and zero point must agree bit for bit as well.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import PerAxis, PerGroup, PerTensor, QParams, Quantizer, catalog
from samebits.core.blocks import expand_blocks
from samebits.core.granularity import qparams_shape
from samebits.proofs.inputs.compare import differences
from samebits.proofs.inputs.knife_edges import knife_edges
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch

from .exact import DTYPES

Array = NDArray[Any]
QPARAMS = ("scale", "zero_point")
Answers = dict[str, Any]  # by name: scale, zero_point, codes, values, fake, dx, dx_alone, d_scale, d_zero_point


@dataclass(frozen=True)
class Case:
    """Something to run: an array, its incoming gradient, parameters (None: to be chosen), whether sums are exact."""

    x: Array
    g: Array
    qparams: QParams | None
    exact_sums: bool = False


@dataclass(frozen=True)
class Route:
    """One way to run the five functions, over NumPy arrays."""

    choose: Callable[[Quantizer, Array], QParams]
    answer: Callable[[Quantizer, Array, Array, QParams], Answers]


# --- the routes ------------------------------------------------------------------------------------------------------


def _numpy_answer(q: Quantizer, x: Array, g: Array, qparams: QParams) -> Answers:
    number = np.where(np.isnan(x), np.zeros_like(x), x)
    codes, d = core.quantize(q, number, qparams), core.fake_quantize_vjp(q, x, qparams, g)
    values = core.dequantize(q, codes, qparams, x.dtype)
    fake = core.fake_quantize(q, x, qparams)
    return _named(codes, values, fake, d.x, d.x, d.scale, d.zero_point)


def _named(*answers: Any) -> Answers:
    names = ("codes", "values", "fake", "dx", "dx_alone", "d_scale", "d_zero_point")
    return {name: None if a is None else to_numpy(a) for name, a in zip(names, answers, strict=True)}


def _torch_parts(x: Array, g: Array, qparams: QParams) -> tuple[Any, ...]:
    zero = None if qparams.zero_point is None else to_torch(np.asarray(qparams.zero_point))
    return to_torch(x), to_torch(g), to_torch(np.asarray(qparams.scale)), zero


def _torch_eager(q: Quantizer, x: Array, g: Array, qparams: QParams) -> Answers:
    """Ordinary tensors: the chunked route, and gradients by autograd, of all arguments and of x alone."""
    room, (t, cotangent, scale, zero) = torch_frontend, _torch_parts(x, g, qparams)
    given = QParams(scale, zero)
    codes = room.quantize(q, torch.where(t.isnan(), torch.zeros_like(t), t), given)
    values = room.dequantize(q, codes, given, t.dtype)
    fake = room.fake_quantize(q, t, given)
    leaves = [v.clone().requires_grad_() for v in (t, scale, *([] if zero is None else [zero.to(scale.dtype)]))]
    room.fake_quantize(q, leaves[0], QParams(*leaves[1:])).backward(cotangent)
    alone = t.clone().requires_grad_()
    room.fake_quantize(q, alone, given).backward(cotangent)
    grads = [leaf.grad for leaf in leaves] + [None] * (zero is None)
    return _named(codes, values, fake, grads[0], alone.grad, *grads[1:])


def _torch_func(q: Quantizer, x: Array, g: Array, qparams: QParams) -> Answers:
    """Under torch.func: the route that compiled code takes, without compiling it."""
    room, (t, cotangent, scale, zero) = torch_frontend, _torch_parts(x, g, qparams)
    given, arguments = QParams(scale, zero), (scale,) if zero is None else (scale, zero.to(scale.dtype))

    def all_of(a: Any, number: Any, back: Any) -> Any:
        codes = room.quantize(q, number, given)
        fake, pull, *_ = torch.func.vjp(lambda a, *p: room.fake_quantize(q, a, QParams(*p)), a, *arguments)
        alone = torch.func.vjp(lambda a: room.fake_quantize(q, a, given), a)[1](back)[0]
        return codes, room.dequantize(q, codes, given, t.dtype), fake, alone, *pull(back)

    number = torch.where(t.isnan(), torch.zeros_like(t), t)
    batch = torch.func.vmap(all_of)(t[None], number[None], cotangent[None])
    codes, values, fake, alone, dx, *others = (a[0] for a in batch)
    return _named(codes, values, fake, dx, alone, *others, *[None] * (zero is None))


def _jax_eager(q: Quantizer, x: Array, g: Array, qparams: QParams) -> Answers:
    """Operation by operation."""
    room, array, cotangent, scale = jax_backend, to_jax(x), to_jax(g), to_jax(np.asarray(qparams.scale))
    zero = None if qparams.zero_point is None else to_jax(np.asarray(qparams.zero_point))
    given = QParams(scale, zero)
    with jax.disable_jit():
        codes = room.quantize(q, to_jax(np.where(np.isnan(x), np.zeros_like(x), x)), given)
        values = room.dequantize(q, codes, given, x.dtype)
        arguments = (array, scale) if zero is None else (array, scale, zero.astype(scale.dtype))
        fake, back = jax.vjp(lambda a, *p: room.fake_quantize(q, a, QParams(*p)), *arguments)
        alone = jax.vjp(lambda a: room.fake_quantize(q, a, given), array)[1](cotangent)[0]
        dx, *others = back(cotangent)
    return _named(codes, values, fake, dx, alone, *others, *[None] * (zero is None))


def _torch_choose(q: Quantizer, x: Array) -> QParams:
    return QParams(*(None if p is None else to_numpy(p) for p in torch_frontend.choose_qparams(q, to_torch(x))))


def _jax_choose(q: Quantizer, x: Array) -> QParams:
    with jax.disable_jit():
        return QParams(*(None if p is None else to_numpy(p) for p in jax_backend.choose_qparams(q, to_jax(x))))


ROUTES = {
    "numpy": Route(core.choose_qparams, _numpy_answer),
    "torch eager": Route(_torch_choose, _torch_eager),
    "torch func": Route(_torch_choose, _torch_func),
    "jax eager": Route(_jax_choose, _jax_eager),
}


# --- the cases -------------------------------------------------------------------------------------------------------

LENGTH, SIDE, GROUP = (
    2048,
    64,
    32,
)  # every case is (LENGTH,) or (SIDE, SIDE): eager JAX compiles each operation by shape


@cache
def cases(q: Quantizer, dtype: str) -> list[tuple[Case, Answers]]:
    """The cases for a quantizer, and what the specification answers."""
    with np.errstate(all="ignore"):
        every = [*_knife_edges(q, DTYPES[dtype]), *_awkward(q, DTYPES[dtype]), _exact_sums(q, DTYPES[dtype])]
        return [(case, answers("numpy", q, case)) for case in every]


def _knife_edges(q: Quantizer, dtype: np.dtype[Any]) -> Iterator[Case]:
    """Three scales: each by itself, or in rows (or groups) of their own until the array is full."""
    scales = np.array([0.1, 1 / 3, 2.0**-126 if dtype.name == "float32" else 2.0**-7], np.float32)
    zeros = np.clip([7, q.format.lo, q.format.hi - 1], q.format.lo, q.format.hi).astype(np.int32)
    edges = [knife_edges(q, s, z if q.affine else None, dtype) for s, z in zip(scales, zeros, strict=True)]
    if isinstance(q.granularity, PerTensor):
        for row, s, z in zip(edges, scales, zeros, strict=True):
            yield _case(q, np.resize(row, LENGTH), np.array(s), np.array(z))
        return
    width = GROUP if isinstance(q.granularity, PerGroup) else SIDE
    rows = [np.resize(e, -(-e.size // width) * width).reshape(-1, width) for e in edges]
    owner = np.resize(np.repeat(np.arange(3), list(map(len, rows))), SIDE * SIDE // width)
    assert owner.size >= sum(map(len, rows))
    x = np.resize(np.concatenate(rows), (SIDE, SIDE))
    blocks = qparams_shape(q.granularity, x.shape)
    yield _case(q, x, scales[owner].reshape(blocks), zeros[owner].reshape(blocks))


def _case(q: Quantizer, x: Array, scale: Array, zero: Array) -> Case:
    g = np.random.default_rng(0).standard_normal(x.shape).astype(x.dtype)
    return Case(x, g, QParams(scale, zero if q.affine else None))


def _awkward(q: Quantizer, dtype: np.dtype[Any]) -> Iterator[Case]:
    """Rows: random, zeros, one-sided, tiny, subnormal, huge, and two with scales or zero points that are ties.

    Per tensor they come one by one.
    """
    rng, largest = np.random.default_rng(0), float(ml_dtypes.finfo(dtype).max)
    noise = rng.standard_normal((SIDE, SIDE))
    noise[1:9] = np.stack(
        [
            np.zeros(SIDE),
            np.abs(noise[2]) + 5,
            -np.abs(noise[3]) - 5,
            np.linspace(-1e-3, 5e-4, SIDE),
            np.linspace(-3e-41, 1e-40, SIDE),
            np.append(np.clip(noise[6, 2:], -1, 1), [-1, 1]) * largest,
            np.append(noise[7, 1:] * 2.0**24, np.nextafter(np.float32(127 * 2.0**20), np.float32(np.inf))),
            np.linspace(-126.5, 128.5, SIDE),
        ]
    )
    noise[9:] *= 2.0 ** rng.integers(-6, 6, (SIDE - 9, 1))
    x = noise.astype(dtype)
    for part in [np.resize(row, LENGTH) for row in x[:9]] if isinstance(q.granularity, PerTensor) else [x]:
        yield Case(part, np.ones_like(part), None)


def _exact_sums(q: Quantizer, dtype: np.dtype[Any]) -> Case:
    """Scales that are powers of two, x in eighths of them, small integers for g: no operation and no sum rounds."""
    size = LENGTH if isinstance(q.granularity, PerTensor) else SIDE
    reach = np.linspace(8 * (q.format.lo - q.format.hi - 3), 8 * (q.format.hi - q.format.lo + 3), size).astype(int) / 8
    x = reach if isinstance(q.granularity, PerTensor) else np.stack([np.roll(reach, 5 * k) for k in range(SIDE)])
    blocks = qparams_shape(q.granularity, x.shape)
    scale = 2.0 ** (np.arange(np.prod(blocks, dtype=int)) % 5 - 2).reshape(blocks).astype(np.float32)
    zero = np.full(blocks, np.clip(7, q.format.lo, q.format.hi), np.int32) if q.affine else None
    g = np.resize(np.array([1, -1, 2, 1, 1]), x.shape).astype(dtype)
    x = x * expand_blocks(scale, q.granularity, x.shape)
    return Case(x.astype(dtype), g, QParams(scale, zero), exact_sums=True)


def answers(route: str, q: Quantizer, case: Case) -> Answers:
    """All that a route says of a case."""
    way = ROUTES[route]
    qparams = way.choose(q, case.x) if case.qparams is None else case.qparams
    chosen = {} if case.qparams else {"scale": qparams.scale, "zero_point": qparams.zero_point}
    if chosen and not _usable(qparams):
        return chosen
    return chosen | way.answer(q, case.x, case.g, qparams)


def _usable(qparams: QParams) -> bool:
    scale = np.asarray(qparams.scale)
    return bool(np.all((scale >= 2.0**-126) & np.isfinite(scale)))


def parameters_found(route: str, q: Quantizer, dtype: str) -> set[str]:
    """As `found`, of the choice of parameters alone."""
    wrong: set[str] = set()
    for case, expected in cases(q, dtype):
        got = ROUTES[route].choose(q, case.x) if case.qparams is None else case.qparams
        wrong |= {n for n in QPARAMS if n in expected and not differences(expected[n], getattr(got, n)).same}
    return wrong


def found(route: str, q: Quantizer, dtype: str) -> set[str]:
    """Names of the answers of a route that are not those of the specification, over all cases. Empty: none.

    What follows from wrong parameters is not counted: after a difference in them the rest of that case is left out.
    """
    wrong: set[str] = set()
    for case, expected in cases(q, dtype):
        got = answers(route, q, case)
        for names in (("scale",), ("zero_point",), tuple(expected)):
            differing = {n for n in names if n in expected and not _same(n, case, expected[n], got.get(n))}
            wrong |= differing
            if differing:
                break
    return wrong


def _same(name: str, case: Case, expected: Any, got: Any) -> bool:
    if name in ("d_scale", "d_zero_point") and not case.exact_sums:
        return True
    return differences(expected, got).same


def quantizer(name: str, **changes: Any) -> Quantizer:
    """A catalog entry with changes; groups of 32 and axis 0 fit the cases."""
    q = catalog[name].replace(**changes)
    assert isinstance(q.granularity, PerTensor | PerAxis | PerGroup)
    return q
