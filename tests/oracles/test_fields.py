"""Every field of every dialect counts: without it some code, value or parameter that the oracles check is another.

So an oracle test that passes has seen each of them. The inputs are those of the oracle tests.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from samebits.core import (
    IntegerFormat,
    PerAxis,
    PerTensor,
    QParams,
    Quantizer,
    choose_qparams,
    dequantize,
    dialects,
    fake_quantize,
    quantize,
)
from samebits.proofs.inputs.compare import differences

from ..exact import DTYPES
from ..oracle_inputs import blocks
from .test_torch_and_onnxruntime import inputs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BASES = [
    Quantizer(format=IntegerFormat(8, signed, narrow), zero_point=zero_point, granularity=granularity)
    for signed, narrow, zero_point in ((True, False, "none"), (False, False, "min_max"), (True, False, "min_max"))
    for granularity in (PerTensor(), PerAxis(0))
] + [Quantizer(format=IntegerFormat(8, narrow=True))]
FIELDS = [(name, field) for name, entry in dialects.items() for field in entry]
FLOAT32, FLOAT16 = DTYPES["float32"], DTYPES["float16"]


def answers(q: Quantizer, scale: float) -> Iterator[Any]:
    """Chosen parameters with their codes and values, then codes of knife edges."""
    if isinstance(q.granularity, PerTensor):
        for dtype in (FLOAT32, FLOAT16):
            real = q.arithmetic.zero_point_domain != "integer"
            zero = None if not q.affine else np.float32(1.3) if real else np.int32(7)
            x = inputs(q, scale, float(zero or 0), dtype, random=100)
            qparams = QParams(np.float32(dtype.type(scale)), zero)
            codes = quantize(q, np.where(np.isnan(x), x if q.arithmetic.nan != "propagate" else 0, x), qparams)
            yield from (codes, fake_quantize(q, x, qparams))
        subnormal = np.array([1e-38, -1e-38, 5e-39], np.float32)
        yield fake_quantize(q, subnormal, QParams(np.float32(2.0**-126), zero))
    for dtype in (FLOAT32, FLOAT16):
        for x in blocks(dtype, powers=(-38, -9, -5, 0, 2)):
            qparams = choose_qparams(q, x)
            yield qparams.scale
            if q.affine:
                yield qparams.zero_point
            codes = quantize(q, x, qparams)
            yield from (codes, dequantize(q, codes, qparams, dtype))


def differs(q: Quantizer, other: Quantizer) -> bool:
    if q.affine != other.affine:
        return True
    for scale in (0.1, 1 / 3):
        for ours, theirs in zip(answers(q, scale), answers(other, scale), strict=True):
            if not differences(np.asarray(ours), np.asarray(theirs)).same:
                return True
    return False


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_field_of_a_dialect_counts(name: str, field: str) -> None:
    entry = dict(dialects[name])
    without = {key: value for key, value in entry.items() if key != field}
    assert any(differs(q.replace(**entry), q.replace(**without)) for q in BASES), f"{name} is the same without {field}"
