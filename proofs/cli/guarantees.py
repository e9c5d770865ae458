"""What is promised of a quantizer, and who else says what it should compute."""

from ...core.descriptions import Quantizer
from ...core.formats import BinaryFormat, CodebookFormat, FloatFormat, IntegerFormat, TernaryFormat
from ...core.scales import SHARED_EXPONENT, Restriction

# Scale, zero point, codes, values and the gradient of x have the bits of the specification in every mode; the gradients
# of scale and zero point lie within `tally.sum_bound` of the correctly rounded sum.
GUARANTEE = "the same bits in all five modes; gradients of scales and zero points within the bound of a sum"


def oracle(q: Quantizer) -> str:
    """Independent implementations that the tests compare the specification of such a quantizer with."""
    match q.format:
        case IntegerFormat() if q.scale.restriction in SHARED_EXPONENT:
            return "fractions"
        case IntegerFormat() if q.arithmetic.has_float_zeros:
            return "fractions, torchao (tinygemm)"
        case IntegerFormat():
            return "fractions, torch, torchao, Brevitas, ONNX Runtime"
        case FloatFormat() if q.scale.restriction is not Restriction.FLOAT:
            return "torchao, gfloat"
        case FloatFormat():
            return "ml_dtypes, gfloat, torch, Brevitas"
        case BinaryFormat() | TernaryFormat():
            return "Brevitas"
        case CodebookFormat():
            return "torchao"
