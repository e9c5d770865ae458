"""Which rule of a quantizer answers break, and which known system computes exactly them.

Found by trying: the specification with one field changed, or in a dialect, is asked the same, and what people write
that no field can say (`formulas`). What none of these explains is told from the numbers alone.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import dialects
from ...core.arithmetic import ClampOrder, ComputeDtype, Division, NanRule, ZeroPointOrder, ZeroPointRule
from ...core.descriptions import Gradient, Quantizer
from ...core.directions import DETERMINISTIC
from ...core.granularity import Shape
from ...core.quantizer import choose_qparams
from ...core.scales import Denominator, Restriction
from ..inputs.bits import is_float
from .chosen import said_of_scales
from .elements import Asked, apart, subnormal, unlike
from .formulas import formulas, loose
from .vectors import answers

Array = NDArray[Any]
FEW = 512  # elements that a dialect is asked first
LEAST = 4  # a rule must explain one in so many of the differing elements of its kind
TRIED = 128  # arrays from which parameters are chosen once more, for each rule


@dataclass(frozen=True)
class Likeness:
    """Which dialects, "samebits" for ours, have these answers.

    Args:
        exactly: those that have all of them.
        apart: where there is none, those that have all but some inputs, by what these are: "NaN", "the sign of zero",
            "subnormal numbers", or several of these. Only those with the fewest of these.
    """

    exactly: tuple[str, ...] = ()
    apart: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def words(self) -> str:
        """One line."""
        if self.exactly:
            return f"exactly the bits of {', '.join(self.exactly)}"
        said = [f"but for {what} the bits of {', '.join(names)}" for what, names in self.apart]
        return "; ".join(said) or "the bits of no dialect"


@np.errstate(all="ignore")  # special values are meant
def likeness(q: Quantizer, asked: Asked, got: Mapping[str, Array], counts: Array | None = None) -> Likeness:
    """Which dialects have these answers.

    Args:
        got: by column of `vectors.elements`, code, value or dx; those that are there count.
        counts: bool, the codes that are defined; None for all.
    """
    alike: dict[Quantizer, list[str]] = {}
    for name, known in {"samebits": q, **dict(_dialects(q))}.items():
        alike.setdefault(known.replace(scale=q.scale), []).append(name)  # by what they make of given parameters
    found: dict[tuple[str, ...], list[str]] = {}
    few = np.unique(np.linspace(0, max(len(asked.x) - 1, 0), min(FEW, len(asked.x))).astype(int))
    for known, names in alike.items():
        if _excuses(known, asked.at(few), {column: values[few] for column, values in got.items()}, few, counts) is None:
            continue
        excuses = _excuses(known, asked, got, slice(None), counts)
        if excuses is not None:
            found.setdefault(excuses, []).extend(names)
    if () in found:
        return Likeness(exactly=tuple(found[()]))
    fewest = min(map(len, found), default=0)
    return Likeness(apart=tuple((" and ".join(e), tuple(names)) for e, names in found.items() if len(e) == fewest))


def _excuses(
    q: Quantizer, asked: Asked, got: Mapping[str, Array], which: Array | slice, counts: Array | None
) -> tuple[str, ...] | None:
    """What kinds of inputs must be left out for the answers to be those of q; None where that is not enough.

    ``which``: the elements of ``counts`` that were asked.
    """
    theirs = _tried(q, asked, got)
    if theirs is None or not all(_comparable(theirs[column], values) for column, values in got.items()):
        return None
    needed = set()
    for column, values in got.items():
        expected = theirs[column]
        left = unlike(expected, values)
        if column == "code" and counts is not None:
            left &= counts[which]
        kinds = {"NaN": np.isnan(asked.x)}
        if is_float(expected.dtype):
            kinds["the sign of zero"] = (expected == 0) & (values == 0)
        kinds["subnormal numbers"] = subnormal(asked.x)
        for kind, where in kinds.items():
            if (left & where).any():
                needed.add(kind)
                left &= ~where
        if left.any():
            return None
    return tuple(sorted(needed))


@np.errstate(all="ignore")  # special values are meant
def broken_rule(q: Quantizer, asked: Asked, column: str, expected: Array, got: Array, at: int) -> str:
    """The rule that one answer breaks, in words.

    Args:
        column: what was answered: "code", "value" or "dx".
        expected, got: the answers of all elements, 1-d; ``at``: the one to explain.
    """
    x = asked.x[at]
    if np.isnan(x) and column != "dx":
        if q.arithmetic.nan is NanRule.PROPAGATE:
            return "NaN: must stay NaN" if is_float(expected.dtype) else "NaN: must be the code of NaN"
        return f"NaN: must become the code {q.arithmetic.nan}"
    if column == "value" and expected[at] == got[at] == 0:
        return f"negative zero: must be {float(expected[at])!r}, since {_sign_of_zero(q)}"
    alone = asked.at(slice(at, at + 1))
    differ = apart(expected, got)
    kind = subnormal(asked.x)
    # What explains an element or two, and breaks others, does so by chance
    allowed = int(differ.sum()) - max(1, int((differ & (kind == kind[at])).sum()) // LEAST)
    best: tuple[int, str] | None = None
    for words, other in variants(q):
        here = _tried(other, alone, (column,))
        if here is None or not _comparable(here[column], got) or apart(here[column], got[at : at + 1]).any():
            continue
        everywhere = _tried(other, asked, (column,))
        wrong = len(asked.x) if everywhere is None else int(apart(everywhere[column], got).sum())
        if wrong <= allowed and (best is None or wrong < best[0]):
            best = wrong, words
    for more in (formulas, loose):
        if best is not None and best[0] <= (int(differ.sum()) // 2 if more is loose else 0):
            break
        for words, like in more(q, asked, column, got):
            wrong = int((~like).sum())
            if like[at] and wrong <= allowed and (best is None or wrong < best[0]):
                best = wrong, words
    return _told(q, alone, column, got[at]) if best is None else best[1]


@np.errstate(all="ignore")
def broken_scale_rule(q: Quantizer, x: Array, shape: Shape, column: str, got: Array, at: int) -> str:
    """The rule that a chosen scale or zero point breaks, in words.

    Args:
        x: ``(rows, elements)``, arrays of ``shape``; ``column``: "scale" or "zero_point".
        got: ``(rows, parameters)``; ``at``: the row to explain.
    """
    order = [at, *(i for i in range(min(len(x), TRIED)) if i != at)]
    wrong_now = _wrong(q, x[order], shape, column, got[order])
    best: tuple[int, str] | None = None
    for words, other in scale_variants(q):
        if _wrong(other, x[order[:1]], shape, column, got[order[:1]]):
            continue
        wrong = _wrong(other, x[order], shape, column, got[order])
        if wrong <= wrong_now - max(1, wrong_now // LEAST) and (best is None or wrong < best[0]):
            best = wrong, words
    if (best is None or best[0]) and column == "scale" and got.shape[1] == 1:
        for name, words in _said_of_scales(q, x[order], shape, got[order, 0]).items():
            return f"{name}: {words}, must be as `choose_qparams` says"
    return best[1] if best else f"{column}: must be chosen from the array as `choose_qparams` says"


def _wrong(q: Quantizer, x: Array, shape: Shape, column: str, got: Array) -> int:
    """Of how many arrays a quantizer chooses something else."""
    chosen = [_chosen(q, row.reshape(shape), column) for row in x]
    return sum(
        one is None or not _comparable(one, got) or bool(unlike(one, own).any())
        for one, own in zip(chosen, got, strict=True)
    )


def _said_of_scales(q: Quantizer, x: Array, shape: Shape, got: Array) -> dict[str, str]:
    finite = np.isfinite(x).all(1) & (np.abs(x).max(1) > 0)
    found = [_chosen(q, row.reshape(shape), "scale") for row in x[finite]]
    chosen = [one for one in found if one is not None and one.dtype == got.dtype]
    if not chosen or len(chosen) < len(found):
        return {}
    return said_of_scales(np.abs(x[finite]).max(1).astype(got.dtype), got[finite], np.concatenate(chosen))


def variants(q: Quantizer) -> Iterator[tuple[str, Quantizer]]:
    """Quantizers that differ from this one in one field of what they compute, each with the rule that this breaks."""
    a = q.arithmetic
    changes: list[tuple[str, dict[str, Any]]] = []
    if q.affine and a.zero_point_order is ZeroPointOrder.AFTER_ROUNDING:
        words = "zero point before rounding: round(x / scale + zero_point), must be round(x / scale) + zero_point"
        changes.append((words, {"zero_point_order": ZeroPointOrder.BEFORE_ROUNDING}))
    if a.division is Division.DIVIDE:
        words = "reciprocal: x * (1 / scale), must be x / scale, one correctly rounded division"
        changes.append((words, {"division": Division.RECIPROCAL}))
    for rounding in DETERMINISTIC:
        changes.append((f"rounding direction: {rounding}, must be {q.rounding}", {"rounding": rounding}))
    changes.append(("negative zero: -0 is kept, must become +0", {"keep_negative_zero": True}))
    for dtype in ComputeDtype:
        words = f"dtype of the steps: {dtype}, must be {a.compute_dtype}"
        changes.append((words, {"compute_dtype": dtype}))
    changes.append(("subnormals: flushed to zero, must be kept", {"flush_subnormals": True}))
    words = "clamp before rounding: must come after it"
    changes.append((words, {"clamp_order": ClampOrder.BEFORE_ROUNDING}))
    narrow = getattr(q.format, "narrow", None)
    if narrow is not None:
        words = f"clamp: codes must end at {q.format.lo} and {q.format.hi}"
        changes.append((words, {"narrow": not narrow}))
    if hasattr(q.format, "saturate"):
        changes.append(("overflow: saturation is the other way round", {"saturate": not q.format.saturate}))
    for rule in Gradient:
        changes.append((f"gradient mask: {rule}, must be {q.gradient}", {"gradient": rule}))
    yield from _changed(q, changes)


def scale_variants(q: Quantizer) -> Iterator[tuple[str, Quantizer]]:
    """The same for how parameters are chosen."""
    rule = q.scale
    changes: list[tuple[str, dict[str, Any]]] = []
    for denominator in Denominator:
        changes.append((f"denominator: {denominator}, must be {rule.denominator}", {"denominator": denominator}))
    for restriction in Restriction:
        changes.append((f"restriction: {restriction}, must be {rule.restriction}", {"restriction": restriction}))
    for floor in (0.0, 2.0**-23, 2.0**-24):
        changes.append((f"floor of scales: {floor!r}, must be {rule.floor or 'the smallest normal'}", {"floor": floor}))
    for replacement in (1.0, 0.1):
        words = f"empty range: scale {replacement}, must be the floor"
        changes.append((words, {"replace_below": 2.0**-126, "replacement": replacement}))
    changes.append(("reciprocal: m * (1 / d), must be m / d", {"scale_division": Division.RECIPROCAL}))
    for dtype in ComputeDtype:
        changes.append((f"dtype of the range: {dtype}, must be the working one", {"scale_dtype": dtype}))
    for name in ("with_zero", "low_with_zero", "of_data"):
        changes.append((f"range: {name}, must be {rule.range}", {"range": name}))
    for rounding in DETERMINISTIC:
        words = f"rounding direction of zero points: {rounding}, must be {rule.zero_point_rounding}"
        changes.append((words, {"zero_point_rounding": rounding}))
    for way in ZeroPointRule:
        changes.append((f"zero point: {way}, must be {rule.zero_point_rule}", {"zero_point_rule": way}))
    yield from _changed(q, changes)


def _comparable(expected: Array, got: Array) -> bool:
    """Whether these can be compared: integers of any dtypes, floats of one."""
    return expected.dtype == got.dtype or not (is_float(expected.dtype) or is_float(got.dtype))


def _changed(q: Quantizer, changes: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, Quantizer]]:
    for words, change in changes:
        try:
            other = q.replace(**change)
        except (TypeError, ValueError):
            continue  # what the format or the rest of the description does not allow
        if other != q:
            yield words, other


def _dialects(q: Quantizer) -> Iterator[tuple[str, Quantizer]]:
    """Dialects that this quantizer can be of, with the same kind of zero points."""
    for name, changes in dialects.items():
        try:
            other = q.replace(**changes)
        except (TypeError, ValueError):
            continue
        if other.zero_point is q.zero_point and other.arithmetic.zero_point_domain is q.arithmetic.zero_point_domain:
            # Without a zero point nothing is added to a product, which fractions would show at length
            fused = q.affine or other.arithmetic.keep_negative_zero
            yield name, other if fused else other.replace(fused_multiply_add=False)


def _tried(q: Quantizer, asked: Asked, columns: Collection[str]) -> dict[str, Array] | None:
    """What another quantizer answers, None where it refuses."""
    try:
        return answers(q, asked.x, asked.scale, asked.zero, asked.g, columns)
    except (TypeError, ValueError):
        return None


def _chosen(q: Quantizer, x: Array, column: str) -> Array | None:
    try:
        value = getattr(choose_qparams(q, x), column)
    except (TypeError, ValueError):
        return None
    return None if value is None else np.asarray(value).reshape(-1)


def _sign_of_zero(q: Quantizer) -> str:
    return "codes keep its sign" if q.arithmetic.keep_negative_zero or q.format.negative_zero else "codes have one zero"


def _told(q: Quantizer, one: Asked, column: str, got: Any) -> str:
    """The rule that an answer breaks which no change of a field explains."""
    if column == "dx":
        return "gradient mask: dx must be g where the code was not clamped, else +0"
    right = answers(q, one.x, one.scale, one.zero, one.g)
    x, scale = float(one.x[0]), float(one.scale[0])
    zero = 0.0 if one.zero is None or q.arithmetic.has_float_zeros else float(one.zero[0])
    quotient = f"x / scale is {x / scale!r}, the code must be {int(right['code'][0])}"
    if np.isnan(float(got)):
        return f"NaN: must come from NaN alone; {quotient}"
    if column == "value" and abs(float(got) - float(right["value"][0])) < scale / 4:
        return f"value: must be (code - zero_point) * scale, rounded once; {quotient}"
    if not q.format.lo < x / scale + zero < q.format.hi:
        if not getattr(q.format, "saturate", True):
            return f"overflow: what rounds to more than {q.format.hi} must not saturate; {quotient}"
        return f"clamp: numbers end at {q.format.lo} and {q.format.hi}; {quotient}"
    return f"code: {quotient}"
