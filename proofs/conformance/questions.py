"""Questions: the inputs at which candidates differ, and what each candidate answers, by core.

A pool holds what may be asked in one block: the knife edges of the nearest and of the directed roundings at its scale.
Of it only those inputs are asked that split the candidates that are left.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.arithmetic import ZeroPointDomain
from ...core.descriptions import Quantizer
from ...core.directions import Rounding
from ...core.formats import FloatFormat, IntegerFormat
from ...core.granularity import PerTensor
from ...core.quantizer import codes_and_zero_points, fake_quantize, fake_quantize_vjp
from ..inputs.bits import neighbours
from ..inputs.knife_edges import boundaries, special_values
from .asking import REFUSED, Block, given, keys
from .targets import Kind

Array = NDArray[Any]
CODES = 40  # of a format with more codes, so many edges are looked at: the outermost, those around zero, some between
# Beside those that nobody chose, short ones: their halves are representable, and the reciprocals of 105, 15 and 49 are
# such that x * (1 / s) misses a half in float32, float64, or both
SCALES = (0.1, 105 * 2.0**-10, 1 / 3, 15 * 2.0**-6, 2.0**-7, 0.00372, 49 * 2.0**-9, 1.7, 0.75, 0.0271)
SPECIAL_CODES = (-2.3, -1.0, -0.6, -0.4, 0.4, 0.6, 1.0, 2.3)  # times the smallest scale: subnormal inputs among them


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name, bfloat16 included."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def blocks(q: Quantizer, dtype: str, scales: Sequence[float]) -> list[Block]:
    """Scales and zero points to be given, each scale a number of the dtype."""
    found = []
    for i, wanted in enumerate(scales):
        scale = float(np.asarray(wanted).astype(numpy_dtype(dtype)))
        if dtype == "float64":
            scale = float(np.float64(wanted))
        found.append(Block(scale, zero_of(q, scale, i)))
    return found


def zero_of(q: Quantizer, scale: float, turn: int) -> float | None:
    """A zero point for the n-th scale: odd ones inside the range first, then the ends and 0."""
    if not q.affine:
        return None
    lo, hi = q.format.lo, q.format.hi
    if q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:
        return float(np.float32(scale * (3.3, -5.7, 0.0)[turn % 3]))
    inside = (lo + hi) // 2
    odd = inside + (inside + 1) % 2
    return float((odd, lo + (lo + 1) % 2 + 6 if hi - lo > 8 else lo, inside + inside % 2, hi, lo)[turn % 5])


@lru_cache(maxsize=512)
def pool(q: Quantizer, block: Block, dtype: str) -> Array:
    """Ordinary inputs that may be asked in a block: the edges of some codes, both kinds, with two neighbours each.

    Within the ends where the block has any. Not to be written to.
    """
    work = numpy_dtype(dtype)
    kinds = [q]
    if q.affine and q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:
        kinds = [q.replace(zero_point_domain=domain) for domain in (ZeroPointDomain.FLOAT, ZeroPointDomain.SHIFT)]
    if isinstance(q.format, IntegerFormat | FloatFormat):
        kinds += [k.replace(rounding=Rounding.TOWARD_ZERO) for k in kinds]
    edges = [boundaries(k, block.scale, block.zero) for k in kinds]
    with np.errstate(over="ignore"):
        some = np.concatenate([_some(e, block) for e in edges]).astype(work)
    x = neighbours(some[np.isfinite(some.astype(np.float64))], 2)
    wide = np.abs(x.astype(np.float64))
    x = x[(wide >= np.sqrt(float(_smallest_normal(work)))) & np.isfinite(wide)]
    if block.ends:
        x = x[(x.astype(np.float64) >= min(block.ends)) & (x.astype(np.float64) <= max(block.ends))]
    x.flags.writeable = False
    return np.asarray(x)


def _some(edges: Array, block: Block) -> Array:
    """At most about `CODES` of the edges; always the same ones."""
    if len(edges) <= CODES:
        return edges
    if block.ends:
        edges = edges[(edges >= min(block.ends)) & (edges <= max(block.ends))]
        if len(edges) <= CODES:
            return edges
    middle = int(np.searchsorted(edges, 0))
    picked = {*range(4), *range(len(edges) - 4, len(edges)), *range(middle - 6, middle + 6)}
    picked |= set(np.linspace(4, len(edges) - 5, CODES - 20).astype(int).tolist())
    return edges[sorted(i for i in picked if 0 <= i < len(edges))]


def special_questions(q: Quantizer, block: Block, dtype: str) -> Array:
    """NaN, infinities, zeros, the smallest and largest numbers, and what rounds to zero from both sides."""
    work = numpy_dtype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        near = (np.array(SPECIAL_CODES) * block.scale).astype(work)
        shifted = near if block.zero is None else ((np.array(SPECIAL_CODES) - block.zero) * block.scale).astype(work)
    return np.concatenate([special_values(work), near, shifted])


def special_blocks(q: Quantizer, dtype: str) -> list[Block]:
    """An ordinary scale, the smallest one (whose multiples below are subnormal) and one with a subnormal reciprocal."""
    work = numpy_dtype(dtype)
    smallest = float(_smallest_normal(np.dtype(np.float32) if work.itemsize == 2 else work))
    least = max(smallest, float(_smallest_normal(work)))
    largest = 2.0**15 if dtype == "float16" else 2.0**127
    return blocks(q, dtype, (0.1, least, largest, 1.5 * least))


@lru_cache(maxsize=65536)
def _predicted(q: Quantizer, block: Block, dtype: str, kind: Kind, which: str) -> Array:
    x = pool(plain_key(q), block, dtype) if which == "pool" else special_questions(q, block, dtype)
    found = predict(q, block, x, kind)
    found.flags.writeable = False
    return found


def plain_key(q: Quantizer) -> Quantizer:
    """The quantizer whose pool all candidates of a claim share."""
    return Quantizer(format=q.format, zero_point=q.zero_point).replace(
        zero_point_domain="float" if q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER else "integer"
    )


def predict_pool(q: Quantizer, block: Block, dtype: str, kind: Kind) -> Array:
    """What a candidate answers to the whole pool of a block; kept, and not to be written to."""
    return _predicted(_per_tensor(q), block, dtype, kind, "pool")


def predict_special(q: Quantizer, block: Block, dtype: str, kind: Kind) -> Array:
    """What a candidate answers to the `special_questions` of a block; kept, and not to be written to."""
    return _predicted(_per_tensor(q), block, dtype, kind, "special")


def predict(q: Quantizer, block: Block, x: Array, kind: Kind) -> Array:
    """What a candidate answers to 1-D questions in a block with known parameters: values, or codes as float64.

    A code is NaN where `quantize` refuses one (`NanRule.PROPAGATE`): for NaN itself, not for a NaN on the way, as
    infinity times a reciprocal that is flushed.
    """
    q = _per_tensor(q)
    qparams = given(q, (), block, x.dtype.name)
    with np.errstate(all="ignore"):
        if kind is Kind.CODES:
            codes = codes_and_zero_points(q, x, qparams)[0].astype(np.float64)
            return np.where(np.isnan(codes) & ~np.isnan(x), min(max(0, q.format.lo), q.format.hi), codes)
        return fake_quantize(q, x, qparams)


def predicted_keys(q: Quantizer, block: Block, x: Array, kind: Kind, *, signed_zero: bool = True) -> Array:
    """`predict` as keys; refused NaN as `REFUSED`."""
    return prediction_keys(predict(q, block, x, kind), kind, signed_zero=signed_zero)


def prediction_keys(found: Array, kind: Kind, *, signed_zero: bool = True) -> Array:
    """Keys of what `predict` gave."""
    if kind is Kind.VALUES:
        return keys(found, signed_zero=signed_zero)
    nan = np.isnan(found)
    return np.where(nan, REFUSED, np.where(nan, 0, found).astype(np.int64))


def predicted_slopes(q: Quantizer, block: Block, x: Array, g: Array) -> Array:
    """The gradient of x of a candidate, as keys, both zeros one."""
    q = _per_tensor(q)
    with np.errstate(all="ignore"):
        return keys(fake_quantize_vjp(q, x, given(q, (), block, x.dtype.name), g).x, signed_zero=False)


def splitting(table: Array, limit: int) -> list[int]:
    """Columns that tell the rows of a table of keys apart: each time the one that makes the most classes.

    Args:
        table: candidates x questions.
        limit: at most so many columns.
    """
    labels = np.zeros(len(table), np.int64)
    _, inverse = np.unique(table, return_inverse=True)
    compact = inverse.reshape(table.shape).astype(np.int64)
    span = int(compact.max()) + 1 if compact.size else 1
    chosen: list[int] = []
    while len(chosen) < limit and compact.size:
        joint = labels[:, None] * span + compact
        ordered = np.sort(joint, axis=0)
        fresh = np.diff(ordered, axis=0).astype(bool).sum(0) + 1
        best = int(np.argmax(fresh))
        classes = int(fresh[best])
        if classes <= len(np.unique(labels)):
            break
        chosen.append(best)
        _, labels = np.unique(labels * span + compact[:, best], return_inverse=True)
        labels = labels.reshape(-1)
        if classes == len(table):
            break
    return chosen


def _per_tensor(q: Quantizer) -> Quantizer:
    return q if isinstance(q.granularity, PerTensor) else q.replace(granularity=PerTensor())


def _smallest_normal(dtype: np.dtype[Any]) -> float:
    import ml_dtypes

    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return float(info.smallest_normal)
