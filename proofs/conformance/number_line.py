"""The same inputs for every target of one claim: where on the number line the answers part, and how many agree.

A claim is what a target says it is: format, zero point, dtype. Inputs are the knife edges of the scale 0.1, and with a
zero point of 3 where there is one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.catalog import catalog
from ...core.descriptions import QParams, Quantizer
from ...core.formats import IntegerFormat
from ...core.granularity import PerTensor
from ...core.quantizer import fake_quantize
from ..inputs.knife_edges import knife_edge_array
from ..inputs.strategies import DTYPES
from ..modes.arrays import to_numpy
from .targets import Kind, Target, resolve

Array = NDArray[Any]
SCALE, ZERO_POINT = 0.1, 3
SPECIFICATION = "samebits"  # the default arithmetic, which stands among the targets of every claim


@dataclass(frozen=True)
class Line:
    """The answers of all targets of a claim.

    Args:
        claim: what they say they are.
        x: the inputs, ascending; ``codes``: by target, one for each of them.
    """

    claim: str
    x: Array
    codes: Mapping[str, Array]

    def differing(self, one: str, other: str) -> int:
        """How many answers of two targets differ."""
        return int((self.codes[one] != self.codes[other]).sum())


def lines(names: Iterable[str]) -> list[Line]:
    """One line for each claim of these targets; those that choose scales, or take one alone, are left out."""
    claims: dict[str, tuple[Quantizer, str, dict[str, Target]]] = {}
    for name in names:
        target = resolve(name)
        if _fits(target):
            q = target.quantizer
            key = f"{q.format}{' with a zero point' if q.affine else ''}, {target.dtype}"
            claims.setdefault(key, (_plain(q), target.dtype, {}))[2][name] = target
    return [_line(claim, q, dtype, targets) for claim, (q, dtype, targets) in claims.items()]


def _fits(target: Target) -> bool:
    integers = isinstance(target.quantizer.format, IntegerFormat)
    return integers and isinstance(target.quantizer.granularity, PerTensor) and not target.chooses and not target.scales


def _plain(q: Quantizer) -> Quantizer:
    """The same claim in the default arithmetic."""
    entry = "uint8_affine_per_tensor" if q.affine else "int8_per_tensor"
    return catalog[entry].replace(format=q.format)


def _line(claim: str, q: Quantizer, dtype: str, targets: Mapping[str, Target]) -> Line:
    kind = DTYPES[dtype]
    scale = np.asarray(SCALE, np.float64 if dtype == "float64" else np.float32)
    given = QParams(scale, np.asarray(ZERO_POINT, np.int32) if q.affine else None)
    x, given = knife_edge_array(q, given, kind)
    x = np.unique(x[np.isfinite(x.astype(np.float64))])
    codes = {SPECIFICATION: _codes(fake_quantize(q, x, given), given)}
    for name, target in targets.items():
        answer = to_numpy(target.function(x.copy(), given))
        codes[name] = answer.astype(np.int64) if target.kind is Kind.CODES else _codes(answer, given)
    return Line(claim, x, codes)


def _codes(values: Array, given: QParams) -> Array:
    """Which code a value stands for."""
    zero = 0 if given.zero_point is None else int(given.zero_point)
    with np.errstate(invalid="ignore"):
        return np.rint(values.astype(np.float64) / float(given.scale)).astype(np.int64) + zero
