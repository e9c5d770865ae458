"""Which quantizer made these weights: for each tensor of a file the description whose codes and scales are stored.

Scales are compared after rounding to the dtype they are stored in. Codes may come from the stored scale or from the one
before that rounding; both are tried, with every rounding and division.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.arithmetic import NanRule
from ...core.descriptions import QParams, Quantizer
from ...core.operations import round_to_dtype
from ...core.quantizer import choose_qparams, codes_and_zero_points
from ...core.scaling import divisor
from . import lattice
from .gguf_file import FileError as FileError
from .lattice import field_of
from .stored import Stored, read_pairs

Array = NDArray[Any]
FEW = 256  # blocks, and elements of each, by which candidates are looked through before the whole tensor is

_PEAK = {"denominator": "lo", "statistic": "signed_absmax"}  # the signed peak of a block becomes the lowest code
_UP: dict[str, Any] = {"rounding": "ties_toward_positive", "division": "reciprocal"}  # trunc(x * (1 / d) + 8.5)

# Who is known to write a layout, beside the dialects; codes come from the scale before it is stored
MAKERS: dict[str, dict[str, Any]] = {
    "gguf.Q8_0": {"rounding": "ties_to_away", "division": "reciprocal", "denominator": "hi"},
    "gguf.Q4_0": {**_UP, **_PEAK},
    "gguf.Q5_0": {**_UP, **_PEAK},
    "gguf.Q4_1": {**_UP, "range": "of_data"},
    "gguf.Q5_1": {**_UP, "range": "of_data"},
}


@dataclass(frozen=True)
class Attribution:
    """Who made a tensor.

    Args:
        tensor, layout: name, and how it lies in the file.
        fields: what the quantizer is, by field; those of several that explain as much are joined by "or".
        makers: dialects and known writers that explain as much as the best candidate.
        codes, scales: share of codes and of scales (and zero points) that the best candidate gives.
        elements, blocks: how many there are.
    """

    tensor: str
    layout: str
    fields: dict[str, str]
    makers: tuple[str, ...]
    codes: float
    scales: float
    elements: int
    blocks: int

    @property
    def explained(self) -> float:
        """The smaller of both shares."""
        return min(self.codes, self.scales)

    @property
    def words(self) -> str:
        """Makers, and the fields."""
        named = ", ".join(f"{name}={value}" for name, value in self.fields.items())
        return f"{' or '.join(self.makers)}: {named}" if self.makers else named

    def as_data(self) -> dict[str, Any]:
        """As one object for JSON."""
        return {**asdict(self), "makers": list(self.makers), "explained": self.explained}


@dataclass(frozen=True)
class _Way:
    """A quantizer, and whether its codes come from the stored scale."""

    q: Quantizer
    from_stored: bool


def attribute(quantized: Path, original: Path) -> list[Attribution]:
    """Which quantizer made each tensor that both files hold.

    Args:
        quantized: a ``.safetensors`` file with codes and scales, or a GGUF file.
        original: a ``.safetensors`` file with the floats, under the same names.

    Raises:
        FileError, CheckpointError: as `stored.read_pairs`.
    """
    return [_attributed(stored) for stored in read_pairs(quantized, original)]


def _attributed(stored: Stored) -> Attribution:
    rules, scales = _rules(stored)
    few = _part(stored)
    ways = [
        _Way(q, own)
        for rule in rules[:2]
        for q in lattice.common(rule, "float32")
        if not q.arithmetic.fused_multiply_add
        for own in (True, False)
    ]
    shares = [_share_of_codes(few, way) for way in ways]
    best = [way for way, share in zip(ways, shares, strict=True) if share == max(shares)]
    whole = [(_share_of_codes(stored, way), way) for way in best[:6]] + [
        (share, way)
        for share, way in ((_share_of_codes(few, way), way) for way in best[6:])
        if len(few.x) == len(stored.x)
    ]
    codes = max(share for share, _ in whole)
    left = [way for share, way in whole if share == codes]
    makers = _makers(stored, codes, scales)
    fields = _fields(left, rules, stored)
    return Attribution(
        stored.tensor, stored.layout, fields, makers, codes, scales, stored.codes.size, stored.scale.size
    )


def _rules(stored: Stored) -> tuple[list[Quantizer], float]:
    """The scale rules that give most of the stored scales, and the share that they give."""
    claim = stored.q.replace(nan=NanRule.ZERO)
    formats = [claim, claim.replace(narrow=True)] if claim.format.lo < 0 and not claim.affine else [claim]
    ends = _ends(stored)
    every = [q for claim in formats for q in lattice.scale_rules(claim)]
    left = _best_rules(every, stored, ends[:FEW])
    small = [q for rule in left[:8] for q in lattice.small_rules(rule).values() if not q.arithmetic.flush_subnormals]
    kept = _best_rules([*left, *small], stored, ends)
    return kept, _share_of_scales(kept[0], stored, ends)


def _best_rules(rules: Sequence[Quantizer], stored: Stored, ends: Array) -> list[Quantizer]:
    shares = [_share_of_scales(q, stored, ends) for q in rules]
    return [q for q, share in zip(rules, shares, strict=True) if share == max(shares)]


def _ends(stored: Stored) -> Array:
    """The smallest and the largest element of each block, in the order in which they come."""
    rows = np.arange(len(stored.x))
    wide = stored.x.astype(np.float64)
    low, high = wide.argmin(1), wide.argmax(1)
    first, second = np.minimum(low, high), np.maximum(low, high)
    return np.stack([stored.x[rows, first], stored.x[rows, second]], 1)


def _share_of_scales(q: Quantizer, stored: Stored, ends: Array) -> float:
    with np.errstate(all="ignore"):
        found = choose_qparams(q, ends)
        scale = round_to_dtype(found.scale.reshape(-1), stored.scale_dtype).astype(np.float32)
        right = scale == stored.scale[: len(scale)]
        if stored.zero is not None:
            zero = np.asarray(found.zero_point).reshape(-1)
            if zero.dtype.kind == "f":
                zero = round_to_dtype(zero, stored.scale_dtype).astype(np.float32)
            right &= zero == stored.zero[: len(zero)]
    return float(right.mean())


def _share_of_codes(stored: Stored, way: _Way) -> float:
    q = way.q.replace(floor=0.0, nan=NanRule.ZERO)
    with np.errstate(all="ignore"):
        if way.from_stored:
            zero = None if stored.zero is None else stored.zero[:, None]
            qparams = QParams(stored.scale[:, None], zero)
        else:
            qparams = choose_qparams(way.q, stored.x)
        try:
            codes = codes_and_zero_points(q, stored.x, qparams)[0]
        except ValueError:  # a scale that this rule cannot have: a negative one, say
            return 0.0
    return float((codes == stored.codes).mean())


def _part(stored: Stored) -> Stored:
    """Some of the blocks, whole ones, by which candidates are looked through."""
    count = max(1, min(len(stored.x), FEW * FEW // max(1, stored.x.shape[1])))
    zero = None if stored.zero is None else stored.zero[:count]
    return replace(stored, x=stored.x[:count], codes=stored.codes[:count], scale=stored.scale[:count], zero=zero)


def _makers(stored: Stored, codes: float, scales: float) -> tuple[str, ...]:
    """Dialects and known writers that give as many codes and scales."""
    named = [(name, _Way(q, True)) for name, q in lattice.in_dialects(stored.q)]
    for name, changes in MAKERS.items():
        if stored.layout == f"GGUF {name[5:]}":
            named.append((name, _Way(stored.q.replace(floor=0.0, **changes), False)))
    ends = _ends(stored)
    return tuple(
        name
        for name, way in named
        if _share_of_scales(way.q, stored, ends) >= scales and _share_of_codes(stored, way) >= codes
    )


def _fields(left: Sequence[_Way], rules: Sequence[Quantizer], stored: Stored) -> dict[str, str]:
    """The fields, each with all values that explain as much."""
    affine = stored.q.affine
    found = {}
    for name in ("range",) if affine else ("statistic",):
        found[name] = _several(str(field_of(q, name)) for q in rules)
    if not affine:
        found["absmax over"] = _several(f"{divisor(q):g}" for q in rules)
    for name in ("rounding", "division", *(["zero_point_order"] if affine else [])):
        found[name] = _several(str(field_of(way.q, name)) for way in left)
    found["codes from"] = _several("stored scale" if way.from_stored else "unrounded scale" for way in left)
    return found


def _several(values: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(values))
