"""Asking a target: what it answers, as keys that can be compared, or what is wrong with it.

A key is an int64 per element: the bits of a value (one for all NaN), or the code itself. Whatever a target does, the
run goes on: an exception, a wrong shape or dtype and text on standard output are `Fault`, with the input.
"""

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerBlock, PerGroup, PerTensor, qparams_shape
from ..inputs.bits import is_float, raw_bits
from ..inputs.compare import describe
from ..modes.arrays import to_numpy
from .targets import Kind, Target

Array = NDArray[Any]
NAN_KEY, REFUSED = np.int64(2**63 - 1), np.int64(2**63 - 2)  # any NaN; an exception where a number was expected


class Fault(Exception):
    """What is wrong with a target: ``what``, and the input at which it was seen, in words."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(what, where)
        self.what, self.where = what, where


@dataclass(frozen=True)
class Block:
    """Where questions stand: parameters that are given, or the ends of the block that a target chooses them from.

    Args:
        scale, zero: of the parameters; zero is None where there is none. Where a target chooses them, what it chose.
        ends: what must stand in every block so that its range is known; () where parameters are given.
    """

    scale: float
    zero: float | None = None
    ends: tuple[float, ...] = ()

    def __str__(self) -> str:
        given = f"scale {self.scale!r}" + ("" if self.zero is None else f", zero point {self.zero:g}")
        return given if not self.ends else f"block with {' and '.join(f'{e:g}' for e in self.ends)}"


def keys(values: Array, *, signed_zero: bool = True) -> Array:
    """int64 keys of floats (any NaN one, both zeros one unless ``signed_zero``) or integers."""
    values = np.asarray(values)
    if not is_float(values.dtype):
        return values.astype(np.int64)
    if not signed_zero:
        values = np.where(values == 0, np.zeros_like(values), values)
    with np.errstate(invalid="ignore"):  # signalling NaN
        found = np.isnan(values.astype(np.float64))
    return np.where(found, NAN_KEY, raw_bits(values).astype(np.int64))


def arranged(q: Quantizer, x: Array, ends: tuple[float, ...]) -> tuple[Array, Array]:
    """The questions as an array of whole blocks, each with its ends, and where they went (flat places)."""
    capacity = _capacity(q)
    first = np.asarray(ends, x.dtype)
    if capacity is None:
        row = np.concatenate([first, x])
        places = np.arange(len(first), len(row))
        if isinstance(q.granularity, PerTensor):
            return row, places
        return np.stack([row] * (2 if ends else 1)), places  # several scales may be computed otherwise than one
    room = capacity - len(first)
    rows = max(-(-len(x) // room), 2 if ends else 1)
    body = np.resize(x, rows * room).reshape(rows, room)
    table = np.concatenate([np.broadcast_to(first, (rows, len(first))), body], 1)
    places = np.arange(rows * capacity).reshape(rows, capacity)[:, len(first) :].reshape(-1)[: len(x)]
    return np.ascontiguousarray(table).reshape(1, -1), places


def given(q: Quantizer, shape: tuple[int, ...], block: Block, dtype: str) -> QParams:
    """The parameters of a block for an array of this shape."""
    wide = np.float64 if dtype == "float64" else np.float32
    whole = q.arithmetic.zero_point_domain == "integer"
    full = qparams_shape(q.granularity, shape)
    zero = None if block.zero is None else np.full(full, block.zero, np.int32 if whole else wide)
    return QParams(np.full(full, block.scale, wide), zero)


def raw_answer(target: Target, x: Array, qparams: QParams | None) -> Any:
    """What the function returns.

    Raises:
        Fault: it raised, or printed.
    """
    said = io.StringIO()
    try:
        with redirect_stdout(said), np.errstate(all="ignore"):
            found = target.function(x.copy(), qparams)
    except Exception as error:  # whatever it is, it is the target's
        text = " ".join(str(error).split())[:120]
        raise Fault(f"raises {type(error).__name__}: {text}", shown(x)) from None
    if said.getvalue():
        raise Fault(f"prints to standard output: {said.getvalue()[:60]!r}", shown(x))
    return found


def checked(target: Target, x: Array, found: Any) -> Array:
    """Values or codes, of the shape and dtype that they must have. Fault: they have not."""
    result = to_numpy(found)
    if result.shape != x.shape:
        raise Fault(f"returns shape {result.shape} for {x.shape}", shown(x))
    if target.kind is Kind.VALUES and result.dtype != x.dtype:
        raise Fault(f"returns dtype {result.dtype} for {x.dtype}", shown(x))
    if target.kind is Kind.CODES and result.dtype.kind not in "iu":
        raise Fault(f"returns dtype {result.dtype} where codes are integers", shown(x))
    return result


def ask(target: Target, block: Block, x: Array) -> Array:
    """What the target makes of questions in a block: its values or codes, 1-D.

    Raises:
        Fault: as `raw_answer` and `checked`.
    """
    whole, places = arranged(target.quantizer, x, block.ends)
    qparams = None if target.chooses else given(target.quantizer, whole.shape, block, target.dtype)
    found = raw_answer(target, whole, qparams)
    if target.chooses and target.kind is Kind.CODES:
        if not (isinstance(found, tuple) and len(found) == 2):
            raise Fault("returns no pair of codes and parameters", shown(x))
        found = found[0]
    return checked(target, whole, found).reshape(-1)[places]


def shown(x: Array) -> str:
    """The input at which something was seen: one number in full, else the first ones."""
    flat = np.asarray(x).reshape(-1)
    if flat.size == 1:
        return describe(flat[0])
    few = ", ".join(f"{float(v):g}" for v in flat[:4])
    return f"{flat.size} numbers from [{few}{', ...' if flat.size > 4 else ''}]"


def _capacity(q: Quantizer) -> int | None:
    """Elements of a block; None where it is as long as the array."""
    match q.granularity:
        case PerGroup(size=size):
            return size
        case PerBlock():
            raise ValueError(f"`quantizer` of a target must not have blocks of two axes, got {q.granularity}")
        case _:
            return None
