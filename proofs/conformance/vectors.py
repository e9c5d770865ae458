"""The specification as data: for a quantizer, inputs and what `samebits.core` makes of them, in tables.

Four tables for each dtype of x. In the first two a row is one element with its parameters; in the other two it is a
whole array, flattened in row-major order.

    ==================  ==========================  ====================================================
    table               given                       expected
    ==================  ==========================  ====================================================
    ``elements.DTYPE``  x, scale, zero_point, g     code, value (fake quantization), dx
    ``codes.DTYPE``     code, scale, zero_point     value (dequantization, in DTYPE)
    ``parameters.DTYPE``  x of an array             scale, zero_point: chosen from it
    ``gradients.DTYPE``   x, scale, zero_point, g   dscale, dzero_point: exact sums, rounded once; with a bound
    ==================  ==========================  ====================================================

``zero_point`` and ``dzero_point`` are there for affine quantizers alone. Special values and knife edges come first,
then numbers without a plan, which Threefry draws: every run gives the same.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...core.arithmetic import NanRule, ZeroPointDomain
from ...core.blocks import expand_blocks
from ...core.descriptions import Gradient, QParams, Quantizer
from ...core.granularity import PerToken, Shape, qparams_shape
from ...core.quantizer import choose_qparams, dequantize, fake_quantize, fake_quantize_vjp, quantize
from ...core.ste import learned_scale_factor
from ..inputs.knife_edges import special_values
from ..inputs.numbers import code_table
from ..inputs.ranges import knife_edge_ranges
from .vector_inputs import (
    array_shape,
    arrays_of_edges,
    arrays_of_ranges,
    bell,
    edges,
    parameter_pairs,
    random_arrays,
    rounded,
    spread,
)

Array = NDArray[Any]
DTYPES: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float64": np.dtype(np.float64),
}
USUAL = ("float32", "bfloat16", "float16")
ANSWERS = ("code", "value", "dx")
CHUNK = 2**16  # rows that core is asked for at once


@dataclass(frozen=True)
class Level:
    """How much: scales, boundaries of each and numbers at random under each; ranges and random arrays; all 16 bits?"""

    scales: int
    edges: int
    random: int
    ranges: int
    arrays: int
    exhaustive: int = 0  # under so many scales


LEVELS: Mapping[int, Level] = {
    1: Level(5, 260, 64, 48, 16),
    2: Level(48, 5000, 1024, 512, 256),
    3: Level(64, 5000, 1024, 2048, 512, 16),
}


@dataclass(frozen=True)
class Column:
    """Numbers of one kind in every row: ``count`` of a dtype. ``role`` is "given", "expected" or "bound"."""

    name: str
    role: str
    dtype: str
    count: int = 1


@dataclass(frozen=True)
class Part:
    """Rows of one origin: the first of them, how many, and what they are."""

    first: int
    rows: int
    what: str


@dataclass(frozen=True)
class Section:
    """One table.

    Args:
        name: kind and dtype: "elements.float32".
        columns: in the order of the file.
        data: by column, shape ``(rows, count)``.
        parts: where the rows come from.
        undefined: by column, the rows (bool) for which no answer is expected: codes of NaN.
        shape: of an array that a row holds, ``parameter_shape`` that of its scales; None for single elements.
    """

    name: str
    columns: tuple[Column, ...]
    data: Mapping[str, Array]
    parts: tuple[Part, ...]
    undefined: Mapping[str, Array] = field(default_factory=dict)
    shape: Shape | None = None
    parameter_shape: Shape | None = None

    @property
    def rows(self) -> int:
        """How many rows."""
        return len(self.data[self.columns[0].name])


def sections(q: Quantizer, level: int = 1, dtypes: Sequence[str] = USUAL) -> Iterator[Section]:
    """The tables of a quantizer: `elements`, `codes`, `parameters` and `gradients` for each dtype.

    Raises:
        ValueError: an unknown level or dtype; a quantizer whose rounding draws or learns, whose width is learned, or
            whose zero points are of the domain "shift".
    """
    if level not in LEVELS:
        raise ValueError(f"`level` must be one of {', '.join(map(str, LEVELS))}, got {level!r}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"`dtypes` must be of {', '.join(DTYPES)}, got {dtype!r}")
    domain = q.arithmetic.zero_point_domain
    if domain is not ZeroPointDomain.INTEGER and not q.arithmetic.has_float_zeros:
        raise ValueError(f"`zero_point_domain` must be 'integer', or 'float' in the default arithmetic, got '{domain}'")
    if not q.deterministic or q.learned_bits is not None:
        raise ValueError(f"`q` must round without drawing or learning, at a fixed width, got '{q.rounding}'")
    for dtype in dict.fromkeys(dtypes):
        kind = DTYPES[dtype]
        yield elements(q, kind, LEVELS[level])
        yield codes(q, kind, LEVELS[level])
        yield parameters(q, kind, LEVELS[level])
        yield gradients(q, kind, LEVELS[level])


def elements(q: Quantizer, dtype: np.dtype[Any], level: Level) -> Section:
    """Single elements: at special values and knife edges of every scale, at random, and every 16-bit pattern."""
    given: list[tuple[str, Array, Array, Array | None]] = []
    pairs = list(parameter_pairs(q, dtype, level.scales))
    for i, (scale, zero) in enumerate(pairs):
        given.append((f"special values, scale {i}", special_values(dtype), scale, zero))
        given.append((f"knife edges, scale {i}", edges(q, scale, zero, dtype, level.edges), scale, zero))
    for i, (scale, zero) in enumerate(pairs):
        reach = float(q.format.hi - q.format.lo) * float(scale)
        given.append((f"random, scale {i}", rounded(bell(f"x {i}", level.random) * reach, dtype), scale, zero))
    if dtype.itemsize == 2:
        every = np.arange(2**16, dtype=np.uint16).view(dtype)
        given += [(f"every {dtype}, scale {i}", every, *pair) for i, pair in enumerate(pairs[: level.exhaustive])]
    x = np.concatenate([values for _, values, _, _ in given])
    scale = np.concatenate([np.full(len(values), s) for _, values, s, _ in given])
    zero = np.concatenate([np.full(len(v), z) for _, v, _, z in given]) if q.affine else None
    g = rounded(bell("g", len(x)), dtype)
    results, undefined = answers(q, x, scale, zero, g), undefined_codes(q, x)
    columns = (
        *_given(q, dtype, scale, zero),
        Column("g", "given", dtype.name),
        *(Column(name, "expected", values.dtype.name) for name, values in results.items()),
    )
    data = {"x": x, "scale": scale, "g": g} | results | _if_affine("zero_point", zero)
    parts = _parts([(what, len(values)) for what, values, _, _ in given])
    return Section(f"elements.{dtype}", columns, _as_rows(data), parts, {"code": undefined} if undefined.any() else {})


def answers(
    q: Quantizer, x: Array, scale: Array, zero: Array | None, g: Array, columns: Collection[str] = ANSWERS
) -> dict[str, Array]:
    """What a quantizer makes of single elements, each with its own parameters, all 1-d, some of them at a time.

    Args:
        g: incoming gradients. ``columns``: what is wanted of code, value and dx.
    Returns:
        By column; where a code is not defined stands that of 0.
    """
    q, found = _each(q), {column: list[Array]() for column in ANSWERS if column in columns}
    undefined = undefined_codes(q, x)
    for start in range(0, max(len(x), 1), CHUNK):
        at = slice(start, start + CHUNK)
        row, given = x[at, None], _qparams(scale[at], None if zero is None else zero[at])
        for column, parts in found.items():
            match column:
                case "code":
                    parts.append(quantize(q, np.where(undefined[at, None], np.zeros_like(row), row), given))
                case "value":
                    parts.append(fake_quantize(q, row, given))
                case _:
                    parts.append(np.asarray(fake_quantize_vjp(q, row, given, g[at, None]).x))
    return {column: np.concatenate(parts)[:, 0] for column, parts in found.items()}


def undefined_codes(q: Quantizer, x: Array) -> Array:
    """Where there is no code: of NaN, where the quantizer refuses it. Bool, of the shape of x."""
    if q.arithmetic.nan is not NanRule.PROPAGATE or q.format.has_nan:
        return np.zeros(x.shape, np.bool_)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return np.asarray(np.isnan(x))


def codes(q: Quantizer, dtype: np.dtype[Any], level: Level) -> Section:
    """Every code of the format (as many as the level takes) under every scale, and its value in the dtype."""
    known = code_table(q.format)[0]
    known = known[spread(len(known), 4 * level.edges)].astype(q.format.storage)
    pairs = list(parameter_pairs(q, dtype, level.scales))
    code = np.tile(known, len(pairs))
    scale = np.repeat([s for s, _ in pairs], len(known))
    zero = np.repeat([z for _, z in pairs], len(known)) if q.affine else None
    value = dequantize(_each(q), code[:, None], _qparams(scale, zero), dtype)[:, 0]
    columns = (
        Column("code", "given", code.dtype.name),
        *_given(q, dtype, scale, zero)[1:],
        Column("value", "expected", dtype.name),
    )
    data = {"code": code, "scale": scale, "value": value} | _if_affine("zero_point", zero)
    parts = _parts([(f"every code, scale {i}", len(known)) for i in range(len(pairs))])
    return Section(f"codes.{dtype}", columns, _as_rows(data), parts)


def parameters(q: Quantizer, dtype: np.dtype[Any], level: Level) -> Section:
    """Arrays, and the scales and zero points that are chosen from them: ranges where these are decided, then random."""
    shape = array_shape(q, 16)
    blocks = qparams_shape(q.granularity, shape)
    count = int(np.prod(blocks))
    ranges = knife_edge_ranges(q, dtype, level.ranges)
    ranges = np.resize(ranges, (-(-len(ranges) // count) * count, 2)).reshape(-1, count, 2)
    owner = expand_blocks(np.arange(count).reshape(blocks), q.granularity, shape).reshape(-1)
    x = np.concatenate([arrays_of_ranges(ranges, owner), random_arrays("x", level.arrays, owner, dtype)])
    chosen = [choose_qparams(q, row.reshape(shape)) for row in x]
    scale = np.stack([np.asarray(one.scale).reshape(-1) for one in chosen])
    data, size = {"x": x, "scale": scale}, len(owner)
    columns = [Column("x", "given", dtype.name, size), Column("scale", "expected", scale.dtype.name, count)]
    if q.affine:
        data["zero_point"] = np.stack([np.asarray(one.zero_point).reshape(-1) for one in chosen])
        columns.append(Column("zero_point", "expected", data["zero_point"].dtype.name, count))
    parts = _parts([("ranges at which parameters are decided", len(ranges)), ("random", level.arrays)])
    return Section(f"parameters.{dtype}", tuple(columns), data, parts, {}, shape, blocks)


def gradients(q: Quantizer, dtype: np.dtype[Any], level: Level) -> Section:
    """Arrays with given parameters, and the gradients of these: exact sums of rounded terms, rounded once."""
    shape = array_shape(q, 64)
    blocks = qparams_shape(q.granularity, shape)
    count = int(np.prod(blocks))
    owner = expand_blocks(np.arange(count).reshape(blocks), q.granularity, shape).reshape(-1)
    pairs = list(parameter_pairs(q, dtype, count * level.arrays))
    pairs = [pairs[i % len(pairs)] for i in range(count * level.arrays)]
    scale = np.array([s for s, _ in pairs]).reshape(-1, count)
    zero = np.array([z for _, z in pairs]).reshape(-1, count) if q.affine else None
    x = np.stack([arrays_of_edges(q, dtype, row, pairs, owner) for row in range(level.arrays)])
    g = rounded(bell("g of sums", x.size), dtype).reshape(x.shape)
    found: dict[str, list[Array]] = {"dscale": [], "dscale_bound": [], "dzero_point": [], "dzero_point_bound": []}
    for i in range(len(x)):
        given = QParams(scale[i].reshape(blocks), None if zero is None else zero[i].reshape(blocks))
        exact = fake_quantize_vjp(q, x[i].reshape(shape), given, g[i].reshape(shape))
        terms = _terms(q, x[i], g[i], scale[i][owner], None if zero is None else zero[i][owner])
        for name, total, own in (("dscale", exact.scale, terms[0]), ("dzero_point", exact.zero_point, terms[1])):
            if total is not None and own is not None:
                flat = np.asarray(total).reshape(-1)
                found[name].append(flat)
                found[f"{name}_bound"].append(sum_bound(q, flat, own, owner))
    results = {name: np.stack(rows) for name, rows in found.items() if rows}
    size = len(owner)
    columns = [
        Column(c.name, "given", c.dtype, size if c.name == "x" else count) for c in _given(q, dtype, scale, zero)
    ]
    columns.append(Column("g", "given", dtype.name, size))
    for name, values in results.items():
        columns.append(Column(name, "bound" if name.endswith("_bound") else "expected", values.dtype.name, count))
    data = {"x": x, "scale": scale, "g": g} | _if_affine("zero_point", zero) | results
    parts = _parts([("knife edges and random numbers", len(x))])
    return Section(f"gradients.{dtype}", tuple(columns), data, parts, {}, shape, blocks)


def sum_bound(q: Quantizer, total: Array, terms: Array, owner: Array) -> Array:
    """How far a sum of the same terms, added in any order, may lie from the exact one, for each block; float64.

    ``f * (n * u * sum(|terms|) + n * t) + 2 * ulp(sum)`` for n terms of unit roundoff u and smallest normal number t,
    which may be flushed; f is the factor of the gradient rule. Source: Higham, Accuracy and Stability of Numerical
    Algorithms, section 4.2.
    """
    info: Any = ml_dtypes.finfo(terms.dtype)  # type: ignore[no-untyped-call]
    n = len(owner) // len(total)
    with np.errstate(all="ignore"):
        sizes = np.bincount(owner, np.abs(terms.astype(np.float64)), len(total))
        added = n * (float(info.eps) / 2 * sizes + float(info.smallest_normal))
        bound = learned_scale_factor(q, n) * added + 2 * np.spacing(np.abs(total)).astype(np.float64)
    return np.asarray(np.where(np.isfinite(bound), bound, 0.0))


def _each(q: Quantizer) -> Quantizer:
    """The quantizer with parameters for every row."""
    return q.replace(granularity=PerToken())


def _qparams(scale: Array, zero: Array | None) -> QParams:
    return QParams(scale[:, None], None if zero is None else zero[:, None])


def _given(q: Quantizer, dtype: np.dtype[Any], scale: Array, zero: Array | None) -> tuple[Column, ...]:
    """Columns x, scale and, if affine, zero_point."""
    found = (Column("x", "given", dtype.name), Column("scale", "given", scale.dtype.name))
    return found if zero is None else (*found, Column("zero_point", "given", zero.dtype.name))


def _if_affine(name: str, values: Array | None) -> dict[str, Array]:
    return {} if values is None else {name: values}


def _as_rows(data: Mapping[str, Array]) -> dict[str, Array]:
    return {name: values[:, None] for name, values in data.items()}


def _parts(counts: Sequence[tuple[str, int]]) -> tuple[Part, ...]:
    first, found = 0, []
    for what, rows in counts:
        found.append(Part(first, rows, what))
        first += rows
    return tuple(found)


def _terms(q: Quantizer, x: Array, g: Array, scale: Array, zero: Array | None) -> tuple[Array, Array | None]:
    """What the gradients of scale and zero point add: those of elements that are blocks of their own."""
    rule = Gradient.CLIPPED if q.gradient is Gradient.LEARNED_SCALE else q.gradient
    own = fake_quantize_vjp(_each(q).replace(gradient=rule), x[:, None], _qparams(scale, zero), g[:, None])
    return np.asarray(own.scale)[:, 0], None if own.zero_point is None else np.asarray(own.zero_point)[:, 0]
