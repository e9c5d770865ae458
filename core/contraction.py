"""What a contraction of two quantized operands may do, decided from their descriptions alone. Nouns only."""

from .arithmetic import ZeroPointDomain
from .choice import check_count
from .descriptions import Quantizer
from .directions import Rounding
from .formats import BinaryFormat, IntegerFormat, TernaryFormat
from .granularity import PerAxis, PerTensor, PerToken


def contracts_codes(q_x: Quantizer, q_w: Quantizer, *, per_token: bool, axis: int = 0) -> bool:
    """Whether the contraction runs over integer codes: both have them, and no scale varies along the contracted axes.

    Not where a bit width is learned, scales may be negative, or zero points are no codes; and learned rounding has none
    while it is soft.

    Args:
        q_x: quantizer of the input; per tensor, or per token where ``per_token`` (linear layers).
        q_w: quantizer of the weight; per tensor, or per ``axis``.
        axis: of the weight that is the output channel; 1 in transposed convolutions.
    """
    x_fits = isinstance(q_x.granularity, PerTensor) or (per_token and isinstance(q_x.granularity, PerToken))
    kinds = IntegerFormat | BinaryFormat | TernaryFormat
    integers = all(isinstance(q.format, kinds) and q.learned_bits is None for q in (q_x, q_w))
    integers &= not (q_x.relaxed or q_w.relaxed or q_x.scale.signed or q_w.scale.signed)
    integers &= all(q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER for q in (q_x, q_w))
    return integers and x_fits and q_w.granularity in (PerTensor(), PerAxis(axis))


def contracts_matrices(q_x: Quantizer, q_w: Quantizer) -> bool:
    """`contracts_codes` for a batch of matrices: both have one scale."""
    return q_x.granularity == q_w.granularity == PerTensor() and contracts_codes(q_x, q_w, per_token=False)


def check_matrices(x: tuple[int, ...], w: tuple[int, ...]) -> None:
    """ValueError unless batches of matrices of these shapes can be multiplied, ``x @ w.T``."""
    if len(w) < 2 or len(x) != len(w) or x[:-2] != w[:-2] or x[-1] != w[-1]:
        raise ValueError(f"`x` must fit `w` of shape {w} but for its rows, got shape {x}")


def largest_code(q: Quantizer) -> int:
    """Largest magnitude of ``code - z`` of an integer quantizer: ``hi - lo`` if affine, else ``max(-lo, hi)``."""
    return int(q.format.hi - q.format.lo if q.affine else max(-q.format.lo, q.format.hi))


def accumulator_bound(q_x: Quantizer, q_w: Quantizer, terms: int) -> int:
    """Largest magnitude that a sum of ``terms`` products of codes, or any part of it, can have.

    At most 2**24 and every partial sum is an exact float32; at most 2**31 - 1 and it fits an int32.
    """
    return terms * largest_code(q_x) * largest_code(q_w)


def largest_norm(accumulator_bits: int, input_bits: int, *, input_signed: bool, centred: bool = False) -> float:
    """The largest sum of magnitudes of a channel's codes with which no sum of products overflows an accumulator.

    ``(2**(P - 1) - 1) * 2**(signed - N)`` for P bits and inputs of N (A2Q, arXiv 2308.13504); for codes that sum to
    zero, ``centred``, ``(2**P - 2) / (2**N - 1)`` (A2Q+, arXiv 2401.10432).

    Raises:
        TypeError: a width that is no int. ValueError: an accumulator of less than 2 bits, inputs of less than 1.
    """
    check_count("accumulator_bits", accumulator_bits, 2)
    check_count("input_bits", input_bits, 1)
    if centred:
        return float((2**accumulator_bits - 2) / (2**input_bits - 1))
    return float((2 ** (accumulator_bits - 1) - 1) * 2.0 ** (input_signed - input_bits))


def norm_of_accumulator(
    q: Quantizer, accumulator_bits: int, input_bits: int, *, input_signed: bool, centred: bool
) -> float:
    """`largest_norm`, if the codes of ``q`` keep it: each is no further from zero than what it is the code of.

    Raises:
        ValueError: no symmetric signed integers rounded toward zero, per channel along axis 0; or ``centred`` for
            signed inputs, where it gains nothing.
    """
    fits = isinstance(q.format, IntegerFormat) and q.format.lo < 0 and not q.affine and not q.scale.signed
    if not fits or q.rounding is not Rounding.TOWARD_ZERO or q.granularity != PerAxis(0):
        raise ValueError(
            "`q` must be symmetric, of signed integers, rounded toward zero, per axis 0, for codes that fit an "
            f"accumulator, got {q.format}, '{q.rounding}', {q.granularity}"
        )
    if centred and input_signed:
        raise ValueError("`centred` must be False where the input is signed, got True")
    return largest_norm(accumulator_bits, input_bits, input_signed=input_signed, centred=centred)


def check_truncation(dtype: str, source: IntegerFormat, target: IntegerFormat, rounding: Rounding) -> int:
    """``2**(bits dropped)``. TypeError for codes of another dtype, ValueError for what does not fit."""
    if dtype != source.storage:
        raise TypeError(f"`codes` of {source} must have dtype {source.storage}, got {dtype}")
    if source.signed != target.signed or source.bits < target.bits:
        raise ValueError(f"`target` must have the signs of `source`, {source}, and no more bits, got {target}")
    if rounding in (Rounding.STOCHASTIC, Rounding.LEARNED):
        raise ValueError(f"`rounding` must look at nothing but the number, got '{rounding}'")
    return 1 << (source.bits - target.bits)
