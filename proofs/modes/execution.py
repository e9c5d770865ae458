"""The five execution modes, and what it takes to run the five functions in each of them.

    ====================  ==================================================================================
    mode                  runs
    ====================  ==================================================================================
    ``numpy``             `samebits.core`, the specification
    ``torch eager``       `samebits.torch_frontend`, operation by operation
    ``torch compiled``    the same in ``torch.compile(fullgraph=True)``, default settings of inductor
    ``jax eager``         `samebits.jax_backend` under ``jax.disable_jit()``, operation by operation
    ``jax jit``           the same in one ``jax.jit`` program
    ====================  ==================================================================================

Three more run on a GPU (`devices.ACCELERATED`); they are asked for by name, or by a device.

Everything here takes and gives NumPy arrays, so that results can be compared. Frameworks are imported when a mode that
needs them is first used. No global setting is left changed: 64-bit types in JAX, for float64 arrays, are switched on
for the call.

`Results.codes` of NaN, in formats without it: where `quantize` raises (`REFUSES`) NaN is replaced by 0.0 before it is
quantized, which is what compiled code must answer by itself.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import core
from ...core.arithmetic import NanRule, ZeroPointDomain
from ...core.descriptions import QParams, Quantizer, QuantizerGradients
from ...core.granularity import qparams_shape
from ...core.requirements import lacking
from . import programs
from .arrays import to_jax, to_numpy, to_torch
from .devices import ACCELERATED, DEVICES, in_jax, missing_device, torch_place, way_of
from .shapes import compiled_shape

Array = NDArray[Any]

MODES = ("numpy", "torch eager", "torch compiled", "jax eager", "jax jit")
REFUSES = frozenset(
    {"numpy", "torch eager", "torch cuda eager", "jax eager"}
)  # modes that raise for NaN and for data that has no scale


class Results(NamedTuple):
    """All that the five functions say of one array: see `run_all`."""

    qparams: Any
    codes: Any
    values: Any
    fake: Any
    gradients: Any
    x_alone: Any = None


class Case(NamedTuple):
    """Arguments of `run_all`."""

    q: Quantizer
    x: Any
    g: Any
    qparams: QParams | None = None


@dataclass(frozen=True)
class Implementation:
    """Five functions over NumPy arrays with the signatures of `samebits.core`; what the laws are applied to.

    Attributes:
        name: for messages; for ours, one of `MODES` or `devices.ACCELERATED`.
        refuses: whether `quantize` raises ValueError for NaN and `choose_qparams` for data with NaN or an infinity. If
            not, they give the code of zero and a NaN scale.
    """

    name: str
    choose_qparams: Callable[[Quantizer, Array], QParams]
    quantize: Callable[[Quantizer, Array, QParams], Array]
    dequantize: Callable[..., Array]  # (q, codes, qparams, dtype=None)
    fake_quantize: Callable[..., Array]  # (q, x, qparams=None)
    fake_quantize_vjp: Callable[[Quantizer, Array, QParams, Array], QuantizerGradients]
    refuses: bool = True


def implementation(mode: str) -> Implementation:
    """Our five functions as they run in a mode, each by itself (compiled modes: one program per function).

    Raises:
        ValueError: a mode that is none of `MODES`.
    """
    _check_mode(mode)
    if mode == "numpy":
        return Implementation(
            mode,
            core.choose_qparams,
            core.quantize,
            core.dequantize,
            core.fake_quantize,
            core.fake_quantize_vjp,
        )
    return Implementation(
        mode,
        lambda q, x: QParams(*_call(mode, "choose_qparams", q, x.dtype, x)),
        lambda q, x, qparams: _call(mode, "quantize", q, x.dtype, x, *qparams[:2]),
        lambda q, codes, qparams, dtype=None: _call(
            mode, "dequantize", q, qparams.scale.dtype if dtype is None else dtype, codes, *qparams[:2]
        ),
        lambda q, x, qparams=None: _call(mode, "fake_quantize", q, x.dtype, x, *(qparams or (None, None))[:2]),
        lambda q, x, qparams, g: QuantizerGradients(*_call(mode, "gradients", q, x.dtype, x, *qparams[:2], g)),
        refuses=mode in REFUSES,
    )


def run_all(mode: str, q: Quantizer, x: Array, g: Array, qparams: QParams | None = None) -> Results:
    """All five functions on one array; in the compiled modes in one program, so that the compiler may fuse them.

    ``torch compiled`` compiles once for each quantizer and dtype, and once more, with symbolic sizes, when it meets a
    second shape (and for axes of length 0 or 1); ``jax jit`` compiles for each shape, and for parameters given or not.

    Args:
        x: float32, bfloat16, float16 or float64; finite when ``qparams`` is None.
        g: incoming gradient of `fake_quantize`, shape and dtype of ``x``.
        qparams: None to choose them from ``x``.
    Returns:
        ``qparams`` those chosen or given; ``codes = quantize(x)``; ``values = dequantize(codes)`` in the dtype of
        ``x``; ``fake = fake_quantize(x)``, which chooses itself when ``qparams`` is None (not ``torch compiled``);
        ``gradients`` of it by the framework's own differentiation, towards x, scale and zero point; ``x_alone`` the
        gradient of x where nothing else is differentiated, for which a mode may take another route (None for ``jax
        eager``, which does not, and for ``torch compiled``, which would have to compile once more).
    Raises:
        ValueError: a mode that is none of `MODES`; and as the functions themselves.
    """
    _check_mode(mode)
    x, g = np.asarray(x), np.asarray(g)
    refused = mode in REFUSES and not q.format.has_nan and q.arithmetic.nan is NanRule.PROPAGATE
    number = np.where(np.isnan(x), np.zeros_like(x), x) if refused else x
    if mode == "numpy":
        chosen = core.choose_qparams(q, x) if qparams is None else qparams
        codes = core.quantize(q, number, chosen)
        values = core.dequantize(q, codes, chosen, x.dtype)
        gradients = core.fake_quantize_vjp(q, x, chosen, g)
        return Results(chosen, codes, values, core.fake_quantize(q, x, qparams), gradients, gradients.x)
    if together(mode):
        return _torch_compiled(mode, [Case(q, x, g, qparams)])[0]
    scale, zero = (None, None) if qparams is None else qparams[:2]
    return _results(_call(mode, "all_five", q, x.dtype, x, number, g, scale, zero))


def run_together(mode: str, cases: Sequence[Case]) -> list[Results]:
    """`run_all` of each case; ``torch compiled`` takes all of them, which must be of one dtype, in one program.

    Compiling it costs little more than compiling one of them. Raises as `run_all`.
    """
    _check_mode(mode)
    return _torch_compiled(mode, cases) if together(mode) else [run_all(mode, *case) for case in cases]


def together(mode: str) -> bool:
    """Whether `run_together` runs all cases in one program: torch compiled, on any device."""
    return way_of(mode).how == "compiled"


def unavailable(mode: str) -> str | None:
    """Why a mode cannot run on this machine, in one line, or None when it can.

    Raises:
        ValueError: a mode that is none of `MODES`.
    """
    if reason := not_installed(mode):
        return reason
    package = _framework(mode)
    try:
        if package:
            __import__(package)
    except ImportError as error:
        return f"{package} cannot be imported: {error}"
    return missing_device(mode) or (programs.missing_compiler() if mode == "torch compiled" else None)


def modes_on(device: str) -> tuple[str, ...]:
    """The modes of a device: `MODES` of ``cpu``, those of `ACCELERATED` beside the specification of ``cuda``.

    Raises:
        ValueError: a device that is none of `DEVICES`.
    """
    if device not in DEVICES:
        raise ValueError(f"`device` must be one of {', '.join(DEVICES)}; got {device!r}")
    return MODES if device == "cpu" else (MODES[0], *ACCELERATED)


def without_device(modes: Sequence[str]) -> str | None:
    """Why none of the modes of a GPU among these can run here, in one line; None where one can, or there is none."""
    asked = [mode for mode in modes if way_of(mode).device != "cpu"]
    reasons = [unavailable(mode) for mode in asked]
    return None if None in reasons or not asked else "; ".join(dict.fromkeys(filter(None, reasons)))


def not_installed(mode: str) -> str | None:
    """What a mode lacks of the libraries of its room and what to install, in one line, or None. Imports none of them.

    Raises:
        ValueError: a mode that is none of `MODES`.
    """
    _check_mode(mode)
    extra = _framework(mode)  # an extra has the name of its framework
    return lacking(extra, "it") if extra else None


def _framework(mode: str) -> str | None:
    return way_of(mode).framework


def _check_mode(mode: str) -> None:
    known = (*MODES, *ACCELERATED)
    if mode not in known:
        raise ValueError(f"`mode` must be one of {', '.join(map(repr, known))}; got {mode!r}")


def _call(mode: str, function: str, q: Quantizer, dtype: Any, *arrays: Array | None) -> Any:
    """A function of `programs` in the given mode, from NumPy to NumPy; ``dtype`` selects the program and its output."""
    way = way_of(mode)
    if way.framework == "torch":
        program = programs.torch_program(function, q, np.dtype(dtype).name, compiled=way.compiled)
        convert: Callable[[Array], Any] = partial(to_torch, device=torch_place(mode))
        around: AbstractContextManager[Any] = nullcontext()
        types: AbstractContextManager[Any] = nullcontext()
    else:
        program = programs.jax_program(function, q, np.dtype(dtype).name, jit=way.compiled)
        convert, around = to_jax, in_jax(mode)
        types = programs.jax_types(wide=any(a is not None and a.dtype.itemsize == 8 for a in arrays))
    with around, types:
        return _map(to_numpy, program(*(None if a is None else convert(np.asarray(a)) for a in arrays)))


def _torch_compiled(mode: str, cases: Sequence[Case]) -> list[Results]:
    """One program for both uses, since compiling costs far more than running: parameters are chosen in a first run."""
    program = programs.torch_compiled_together(tuple(case.q for case in cases), np.asarray(cases[0].x).dtype.name)
    flat = [_flat(case) for case in cases]
    if any(case.qparams is None for case in cases):
        chosen = [parts[1] for parts in _run_torch(mode, program, flat)]
        flat = [
            (x, *(given if case.qparams is None else (scale, zero)), g)
            for case, (x, scale, zero, g), given in zip(cases, flat, chosen, strict=True)
        ]
    return [_shaped(case, parts) for case, parts in zip(cases, _run_torch(mode, program, flat), strict=True)]


def _flat(case: Case) -> tuple[Array, Array, Array | None, Array]:
    """``(x, scale, zero point, g)`` in the shape that is compiled; placeholders for parameters yet to be chosen."""
    q, x = case.q, np.asarray(case.x)
    shape = compiled_shape(q.granularity, x.shape)
    blocks = qparams_shape(q.granularity, shape)
    if case.qparams is None:
        scale, zero = _placeholder(q, x.dtype, blocks)
    else:
        given = case.qparams
        scale = np.asarray(given.scale).reshape(blocks)
        zero = None if given.zero_point is None else np.asarray(given.zero_point).reshape(blocks)
    return x.reshape(shape), scale, zero, np.asarray(case.g).reshape(shape)


def _shaped(case: Case, parts: Any) -> Results:
    """What the program gave, in the shapes of the case."""
    fake, chosen, codes, values, (dx, *others) = parts
    shape = np.shape(case.x)
    outer = qparams_shape(case.q.granularity, shape)
    used = case.qparams or QParams(*(p.reshape(outer) if p is not None else None for p in chosen))
    gradients = QuantizerGradients(dx.reshape(shape), *(d.reshape(outer) if d is not None else None for d in others))
    return Results(used, codes.reshape(shape), values.reshape(shape), fake.reshape(shape), gradients)


def _run_torch(mode: str, program: programs.Program, arguments: Any) -> Any:
    place = torch_place(mode)
    given = (tuple(None if a is None else to_torch(a, place) for a in own) for own in arguments)
    return _map(to_numpy, program(*given))


@cache
def _placeholder(q: Quantizer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[Array, Array | None]:
    scale = np.ones(shape, np.float64 if dtype == np.float64 else np.float32)
    kind = np.int32 if q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER else scale.dtype
    return scale, np.full(shape, q.format.lo, kind) if q.affine else None


def _results(parts: Any) -> Results:
    qparams, codes, values, fake, gradients, x_alone = parts
    return Results(QParams(*qparams), codes, values, fake, QuantizerGradients(*gradients), x_alone)


def _map(function: Callable[[Any], Array], value: Any) -> Any:
    """The function on every array of nested tuples; None stays."""
    if value is None:
        return None
    return tuple(_map(function, v) for v in value) if isinstance(value, tuple) else function(value)
