"""`samebits.proofs.conformance`: is this function a quantizer of ours? On the inputs where that is decided.

Any function of ``(x, scale)``, or ``(x, scale, zero_point)`` where the quantizer is affine, over arrays of NumPy,
torch or JAX, eager, jitted or compiled, that returns values (floats of the dtype of x) or codes (integers).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import PerTensor, QParams, Quantizer, catalog
from ...core.blocks import expand_blocks
from ...core.granularity import PerBlock, PerGroup, PerToken, Shape, qparams_shape
from ...core.quantizer import fake_quantize, quantize
from ..inputs.bits import is_float, stored_bits
from ..inputs.compare import describe
from ..inputs.knife_edges import knife_edge_array
from ..inputs.numbers import zero_points
from .calls import LIBRARIES, call, library_of
from .elements import Asked, subnormal, unlike
from .own_edges import own_edges
from .rules import Likeness, broken_rule, likeness
from .vectors import DTYPES, undefined_codes

Array = NDArray[Any]
SCALES = (0.1, 0.7, 7.0, 2.0**-126)  # halves of 7 are numbers of 16 bits, too, and products with fl(1 / 7) miss some
RETURNS = ("values", "codes")
EDGES = "knife edges and special values"


@dataclass(frozen=True)
class Case:
    """What a function is asked: an array and its parameters."""

    name: str
    x: Array
    qparams: QParams


@dataclass(frozen=True)
class Finding:
    """What came of a case.

    Args:
        case: what was asked.
        verdict: "the same bits"; "differs"; or why nothing could be compared: what it raised, another shape or dtype,
            not deterministic, inputs that were written to.
        remark: that it prints, and what; "" if not.
        compared, differing: elements.
        examples: at most four, each lines that say input, scale, zero point, expected and got, in decimal, hexadecimal
            and bits, and the rule that is broken; of what could not be compared one, with the input.
    """

    case: str
    verdict: str
    remark: str = ""
    compared: int = 0
    differing: int = 0
    examples: tuple[tuple[str, ...], ...] = ()

    @property
    def same(self) -> bool:
        """Whether it was compared, nothing differs, and nothing else was seen."""
        return self.verdict == SAME and not self.remark

    @property
    def said(self) -> str:
        """Verdict, count and remark in one line."""
        count = f" in {self.differing:,} of {self.compared:,}" if self.differing else ""
        return f"{self.verdict}{count}" + (f"; {self.remark}" if self.remark else "")


SAME = "the same bits"


@dataclass(frozen=True)
class Report:
    """What came of asking a function; as text, all of it.

    Args:
        function: its name; ``like``: what it was compared with; ``dtype``: of x.
        library: whose arrays it was given; ``returns``: "values" or "codes", or "" where it returned nothing.
        findings: one for each case.
        likeness: which dialects of `core.dialects` have exactly its bits on these inputs.
    """

    function: str
    like: str
    dtype: str
    library: str
    returns: str
    findings: tuple[Finding, ...]
    likeness: Likeness

    @property
    def same(self) -> bool:
        """Whether it has the bits of the specification in every case."""
        return all(finding.same for finding in self.findings)

    def check(self) -> "Report":
        """This report. AssertionError, with all of it as text, unless everything is the same."""
        if not self.same:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        differing, compared = (sum(getattr(f, n) for f in self.findings) for n in ("differing", "compared"))
        head = f"{self.function} against {self.like} in {self.dtype} ({self.library} arrays): "
        lines = [f"{head}{differing:,} of {compared:,} {self.returns or 'results'} differ"]
        shown = set[str]()
        unlike_ours = [finding for finding in self.findings if not finding.same]
        for finding in unlike_ours:
            alike = [f for f in unlike_ours if not f.differing and f.said == finding.said]
            if finding.differing or finding is alike[0]:
                others = f" (and {len(alike) - 1} other cases)" if len(alike) > 1 else ""
                lines.append(f"  {finding.case}{others}: {finding.said}")
            for example in finding.examples:
                if example[-1] not in shown:  # the rule, or what could not be compared
                    lines += [f"    {line}" for line in example]
                shown.add(example[-1])
        same = sum(finding.same for finding in self.findings)
        lines.append(f"  {SAME} in {same} of {len(self.findings)} cases")
        return "\n".join([*lines, f"  on these inputs: {self.likeness.words}"] if compared else lines)


def conformance(
    function: Callable[..., object],
    like: str | Quantizer = "int8_per_tensor",
    *,
    dtype: str = "float32",
    library: str | None = None,
    returns: str | None = None,
    shapes: bool = True,
    spacing: int | None = None,
) -> Report:
    """Ask a function for knife edges, special values, random numbers and odd shapes; compare with `samebits.core`.

    And for edges of its own, where its results change and ours do not.

    Args:
        function: ``(x, scale) -> values or codes``; ``(x, scale, zero_point)`` where the quantizer is affine. Scales
            are float32 (float64 for float64 x), zero points int32, both of the shape that `qparams_shape` says: 0-d
            per tensor, ``(rows, 1)`` per channel.
        like: a name of `core.catalog`, or a quantizer, in any arithmetic: ``q.replace(**dialects["qwix"])``.
        dtype: of x: float32, bfloat16, float16 or float64.
        library: whose arrays the function takes: "numpy", "torch" or "jax"; None to see that from what it uses.
        returns: "values" or "codes"; None to see that from the dtype of what it returns.
        shapes: whether arrays are also 0-d, empty, of one element and not contiguous: a compiled function is compiled
            for each of these.
        spacing: numbers of the dtype from one input to the next of the grid from which the function's own edges are
            found (`own_edges`); None for 8 inputs from a power of two to the next, 0 to leave these edges out.
    Returns:
        A report; ``report.check()`` raises. Whatever the function does, no exception of its own leaves this one.
    Raises:
        KeyError: an unknown name, with the nearest known ones.
        TypeError: ``function`` cannot be called, or ``like`` is neither name nor quantizer.
        ValueError: another dtype, library or kind of result; a spacing that is negative or wider than from a power of
            two to the next; a quantizer whose rounding draws or learns.
    """
    if not callable(function):
        raise TypeError(f"`function` must be callable, got {function!r}")
    if not isinstance(like, str | Quantizer):
        raise TypeError(f"`like` must be a name of the catalog or a Quantizer, got {like!r}")
    q = catalog[like] if isinstance(like, str) else like
    choices = (("dtype", dtype, DTYPES), ("library", library, LIBRARIES), ("returns", returns, RETURNS))
    for name, value, allowed in choices:
        if value not in allowed and not (value is None and name != "dtype"):
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}")
    if not q.deterministic:
        raise ValueError(f"`like` must round without drawing or learning, got '{q.rounding}'")
    widest = 2 ** stored_bits(DTYPES[dtype])
    if spacing is not None and not 0 <= spacing <= widest:
        raise ValueError(f"`spacing` must be in 0..{widest} for {dtype}, got {spacing}")
    library = library or library_of(function)
    judged = []
    for case in cases(q, DTYPES[dtype], shapes=shapes):
        judged.append(_judge(q, case, function, library, returns))
        if case.name.startswith(EDGES) and judged[-1][0].compared and spacing != 0:
            name = case.name.replace(EDGES, "edges of its own")
            judged += [
                _judge(q, Case(name, x, case.qparams), function, library, returns)
                for x in own_edges(q, function, library, case.x, case.qparams, spacing)
            ]
    kinds = {kind for _, kind, _ in judged if kind}
    named = getattr(function, "__qualname__", None) or type(function).__qualname__
    return Report(
        named.rpartition("<locals>.")[2],
        like if isinstance(like, str) else "the quantizer given",
        dtype,
        library,
        " and ".join(sorted(kinds)),
        tuple(finding for finding, _, _ in judged),
        _likeness(q, [answers for _, _, answers in judged]),
    )


def cases(q: Quantizer, dtype: np.dtype[Any], *, shapes: bool = True) -> Iterator[Case]:
    """What a function is asked: knife edges and special values, random numbers in the same shape, then odd shapes."""
    wide = np.float64 if dtype == np.float64 else np.float32
    scales = np.array([wide(s) for s in SCALES])
    lo, hi = int(q.format.lo), int(q.format.hi)
    places = np.array([(lo, (lo + hi) // 2, hi, lo + (hi - lo) // 3)[i % 4] for i in range(len(scales))])
    zeros = zero_points(q, places, scales) if q.affine else None
    given = list(_edge_arrays(q, scales, zeros, dtype))
    width = max(x.shape[0] for _, x, _ in given)
    rng = np.random.default_rng(0)
    for name, x, qparams in given:
        full = np.resize(x, (width, *x.shape[1:])) if isinstance(q.granularity, PerTensor) else x
        yield Case(f"{EDGES}{name}", full, qparams)
        size = _expanded(q, np.asarray(qparams.scale), full.shape).astype(np.float64) * (hi - lo)
        with np.errstate(over="ignore", under="ignore"):
            drawn = (rng.normal(0, 0.5, full.shape) * size).astype(dtype)
        yield Case(f"random numbers{name}", drawn, qparams)
    if shapes:
        yield from _odd_shapes(q, scales, zeros, dtype, rng)


def _edge_arrays(
    q: Quantizer, scales: Array, zeros: Array | None, dtype: np.dtype[Any]
) -> Iterator[tuple[str, Array, QParams]]:
    """One array for each scale, or all in one, as the granularity has it."""
    if not isinstance(q.granularity, PerTensor):
        yield "", *knife_edge_array(q, QParams(scales, zeros), dtype)
        return
    for i, scale in enumerate(scales):
        given = QParams(np.asarray(scale), None if zeros is None else np.asarray(zeros[i]))
        yield f", scale {scale!s}", *knife_edge_array(q, given, dtype)


def _odd_shapes(
    q: Quantizer, scales: Array, zeros: Array | None, dtype: np.dtype[Any], rng: np.random.Generator
) -> Iterator[Case]:
    for name, shape in odd_shapes(q):
        blocks = qparams_shape(q.granularity, shape)
        scale = np.resize(scales[:2], blocks)
        zero = None if zeros is None else np.resize(zeros[:2], blocks)
        reach = _expanded(q, scale, shape).astype(np.float64) * float(q.format.hi - q.format.lo)
        x = np.asarray((rng.normal(0, 0.5, shape) * reach).astype(dtype))
        if name == "not contiguous":
            x = np.asfortranarray(x)
        yield Case(f"shape {shape}, {name}", x, QParams(scale, zero))


def odd_shapes(q: Quantizer) -> Iterator[tuple[str, Shape]]:
    """Shapes that functions forget: 0-d, empty, one element, not contiguous; as far as the granularity has them."""
    match q.granularity:
        case PerTensor():
            yield from (("0-d", ()), ("empty", (0,)), ("one element", (1,)), ("not contiguous", (4, 6)))
        case PerGroup(size, -1):
            yield from (("empty", (0, size)), ("one block", (1, size)), ("not contiguous", (3, 2 * size)))
        case PerBlock(shape):
            yield from (("empty", (0, *shape)), ("one block", shape), ("not contiguous", (*shape[:-1], 2 * shape[-1])))
        case PerToken():
            yield from (("empty", (0, 4)), ("one element", (1, 1)), ("not contiguous", (3, 4)), ("3-d", (2, 3, 4)))
        case granularity:
            axis = getattr(granularity, "axis", 0)
            depth = max(2, axis + 1 if axis >= 0 else -axis)
            along = 2 * getattr(granularity, "size", 1)
            shape = tuple(along if i == axis % depth else 3 for i in range(depth))
            empty = tuple(along if i == axis % depth else 0 for i in range(depth))
            yield from (("empty", empty), ("not contiguous", shape))


Answered = tuple[Asked, str, Array] | None


def _judge(
    q: Quantizer, case: Case, function: Callable[..., object], library: str, returns: str | None
) -> tuple[Finding, str, Answered]:
    """The finding, which kind of result was returned, and the answers where they are of use to compare with others."""
    x, scale, zero = case.x, np.asarray(case.qparams.scale), case.qparams.zero_point
    outcome = call(function, library, (x, scale, None if zero is None else np.asarray(zero)))
    got, kind = outcome.result, returns or ""
    wrong = outcome.verdict
    if got is not None and not wrong:
        kind = kind or ("values" if is_float(got.dtype) else "codes")
        wrong = _unfit(case, kind, got)
    if got is None or wrong:
        return Finding(case.name, wrong, outcome.remark, examples=(_given(case, wrong),)), kind, None
    flat_zero = None if zero is None else _expanded(q, np.asarray(zero), x.shape).reshape(-1)
    asked = Asked(x.reshape(-1), _expanded(q, scale, x.shape).reshape(-1), flat_zero, np.ones(x.size, x.dtype))
    expected, counts = _expected(q, case, kind)
    flat = _as_codes(got) if kind == "codes" else got.reshape(-1)
    differ = unlike(expected, flat) & counts
    column, count = ("value" if kind == "values" else "code"), int(differ.sum())
    examples = tuple(
        _example(q, asked, column, expected, flat, got.reshape(-1), where)
        for where in _kinds(asked, expected, flat, differ)
    )
    finding = Finding(case.name, "differs" if count else SAME, outcome.remark, int(counts.sum()), count, examples)
    return finding, kind, (asked, column, flat)


def _kinds(asked: Asked, expected: Array, got: Array, differ: Array) -> Iterator[Array]:
    """Differing elements in groups that are explained apart: numbers, subnormal ones, signs of zero, NaN."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        nan = np.isnan(asked.x)
        zeros = (expected == 0) & (got == 0)
    rest = differ & ~nan & ~zeros
    small = subnormal(asked.x)
    for where in (rest & ~small, rest & small, differ & zeros & ~nan, differ & nan):
        if where.any():
            yield np.flatnonzero(where)


def _given(case: Case, verdict: str) -> tuple[str, ...]:
    """What was asked where nothing can be compared."""
    named = {"input": case.x, "scale": case.qparams.scale, "zero point": case.qparams.zero_point}
    lines = [f"{name:<10} {_shown(array)}" for name, array in named.items() if array is not None]
    return (*lines, f"{'verdict':<10} {verdict}")


def _unfit(case: Case, kind: str, got: Array) -> str:
    """Why a result cannot be compared, or nothing."""
    if got.shape != case.x.shape:
        return f"returned the wrong shape: {got.shape}, must be {case.x.shape}"
    if kind == "values" and got.dtype != case.x.dtype:
        return f"returned the wrong dtype: {got.dtype}, values must be {case.x.dtype}"
    if kind == "codes" and got.dtype.kind not in "iu" and not is_float(got.dtype):
        return f"returned the wrong dtype: {got.dtype}, codes must be integers"
    return ""


def _expected(q: Quantizer, case: Case, kind: str) -> tuple[Array, Array]:
    """What the specification gives, 1-d, and which of it counts: there is no code of NaN."""
    if kind == "values":
        return fake_quantize(q, case.x, case.qparams).reshape(-1), np.ones(case.x.size, np.bool_)
    undefined = undefined_codes(q, case.x)
    x = np.where(undefined, np.zeros_like(case.x), case.x)
    return quantize(q, x, case.qparams).reshape(-1), ~undefined.reshape(-1)


def _as_codes(got: Array) -> Array:
    """Codes of any integer dtype, or floats that hold integers, as int64; what is no integer is none of any format."""
    flat = got.reshape(-1)
    if not is_float(got.dtype):
        return flat.astype(np.int64)
    wide = flat.astype(np.float64)
    whole = np.isfinite(wide) & (np.rint(wide) == wide) & (np.abs(wide) < 2.0**62)
    return np.where(whole, np.where(whole, wide, 0).astype(np.int64), np.int64(2) ** 62)


def _example(
    q: Quantizer, asked: Asked, column: str, expected: Array, flat: Array, got: Array, where: Array
) -> tuple[str, ...]:
    """The element of these with the smallest input, in full, and the rule that it breaks."""
    with np.errstate(invalid="ignore"):
        size = np.abs(asked.x[where].astype(np.float64))
    at = int(where[np.argmin(np.where(np.isnan(size), np.inf, size))])
    lines = [("input", asked.x[at]), ("scale", asked.scale[at])]
    lines += [] if asked.zero is None else [("zero point", asked.zero[at])]
    lines += [("expected", expected[at]), ("got", got[at])]
    rule = broken_rule(q, asked, column, expected, flat, at)
    return (*(f"{name:<10} {describe(value)}" for name, value in lines), f"{'rule':<10} {rule}")


def _likeness(q: Quantizer, answered: list[Answered]) -> Likeness:
    """Of all cases together; of none where nothing was answered, or now values and now codes."""
    found = [answers for answers in answered if answers is not None]
    if len({column for _, column, _ in found}) != 1 or not sum(len(asked.x) for asked, _, _ in found):
        return Likeness()
    every = [asked for asked, _, _ in found]
    zero = np.concatenate([a.zero for a in every if a.zero is not None]) if q.affine else None
    x, scale, g = (np.concatenate([getattr(a, name) for a in every]) for name in ("x", "scale", "g"))
    column = found[0][1]
    got = {column: np.concatenate([flat for _, _, flat in found])}
    return likeness(q, Asked(x, scale, zero, g), got, ~undefined_codes(q, x))


def _expanded(q: Quantizer, parameter: Array, shape: Shape) -> Array:
    return np.asarray(np.broadcast_to(expand_blocks(parameter, q.granularity, shape), shape))


def _shown(array: Any) -> str:
    """An array in a line: one number in full, else shape, dtype and the first of them."""
    array = np.asarray(array)
    if array.size == 1:
        return describe(array)
    first = f", first {describe(array.reshape(-1)[0])}" if array.size else ""
    return f"{array.dtype.name} of shape {array.shape}{first}"
