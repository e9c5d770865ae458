"""Quantizers in other words: a block size, a mapping, a target dtype and a domain of zero points. Nouns only.

torchao says with these arguments what a `Quantizer` says with its fields; `for_choosing` and `for_codes` translate
them. Ranges of codes may begin anywhere: ``offset`` is then added to the codes and zero points of the quantizer.

    ==============================  ==============================================  =====================
    mapping                         scale, ours                                     in the dialect torchao
    ==============================  ==============================================  =====================
    ``symmetric``                   absmax / hi                                     absmax / ((hi - lo) / 2)
    ``symmetric_no_clipping_err``   the larger of |min| / -lo and max / hi          the same
    ``asymmetric``                  (max - min) / (hi - lo)                         the same
    ==============================  ==============================================  =====================

Source of the arguments: torchao 0.18, ``quantization/quant_primitives.py``.
"""

import re
from enum import StrEnum
from typing import NamedTuple

from .arithmetic import RangeRule, ZeroPointDomain
from .choice import check_int, choice
from .descriptions import Quantizer, ZeroPoint
from .dialects import dialects
from .formats import IntegerFormat
from .granularity import Granularity, PerBlock, PerTensor, Shape
from .scales import Denominator


class MappingType(StrEnum):
    """How a range is mapped to codes."""

    SYMMETRIC = "symmetric"  # zero is the middle code
    SYMMETRIC_NO_CLIPPING_ERR = "symmetric_no_clipping_err"  # the same, with a scale that clamps neither end
    ASYMMETRIC = "asymmetric"  # zero is any code


class Domain(StrEnum):
    """What a zero point is."""

    INT = "int"  # a code
    FLOAT = "float"  # a number, the value of the middle code (tinygemm)
    NONE = "none"  # there is none: zero is code 0


class Translated(NamedTuple):
    """A quantizer, and what is added to its codes and zero points.

    Attributes:
        zero: the zero point that `choose_qparams_affine` gives where the quantizer has none; None for none at all.
    """

    quantizer: Quantizer
    offset: int
    zero: int | None


def for_choosing(
    shape: Shape,
    mapping_type: str,
    block_size: Shape,
    target: str,
    quant_min: int | None,
    quant_max: int | None,
    eps: float | None,
    domain: str,
    preserve_zero: bool,
    dialect: str | None,
) -> Translated:
    """The quantizer that chooses parameters for arrays of this shape.

    Args:
        target: name of the dtype of codes, ``"int8"`` or ``"uint4"``.
        quant_min, quant_max: ends of their range; None for those of the dtype.
        eps: smallest scale; None for the smallest normal number.
        preserve_zero: whether the range of an asymmetric mapping is widened to hold 0.
        dialect: None for ours, or ``"torchao"`` or another of `samebits.core.dialects`.
    Raises:
        TypeError, ValueError: an argument that is none of those; a mapping that the domain does not have.
        KeyError: an unknown dialect.
    """
    mapping, domain = (
        choice("mapping_type", _text(mapping_type), MappingType),
        choice("zero_point_domain", _text(domain), Domain),
    )
    if mapping is not MappingType.ASYMMETRIC and (domain is Domain.FLOAT or not preserve_zero):
        raise ValueError(
            f"`mapping_type` must be 'asymmetric' for zero points that are numbers or do not keep 0, got '{mapping}'"
        )
    if mapping is MappingType.ASYMMETRIC and domain is Domain.NONE:
        raise ValueError("`mapping_type` must be symmetric where there is no zero point, got 'asymmetric'")
    if mapping is MappingType.ASYMMETRIC:
        q, offset, _ = for_codes(shape, block_size, target, quant_min, quant_max, domain, dialect)
        q = q.replace(range=RangeRule.WITH_ZERO if preserve_zero else RangeRule.OF_DATA)
        return Translated(q if eps is None else q.replace(floor=eps), offset, None)
    lo, hi = _ends(target, quant_min, quant_max)
    middle = 0 if domain is Domain.NONE else int((lo + hi + 1) / 2)
    q = Quantizer(format=_format(lo - middle, hi - middle)[0], granularity=_granularity(block_size, shape))
    q = q if dialect is None else q.replace(**dialects[dialect])
    if mapping is MappingType.SYMMETRIC_NO_CLIPPING_ERR:
        if middle or lo >= 0:
            raise ValueError(
                f"`quant_min` must be below 0 for 'symmetric_no_clipping_err', with 0 in the middle, got {lo}"
            )
        q = q.replace(denominator=Denominator.LARGER)
    return Translated(q if eps is None else q.replace(floor=eps), middle, None if domain is Domain.NONE else middle)


def for_codes(
    shape: Shape,
    block_size: Shape,
    target: str,
    quant_min: int | None,
    quant_max: int | None,
    domain: str,
    dialect: str | None,
) -> Translated:
    """The quantizer between arrays of this shape and codes, with zero points of any mapping. As `for_choosing`."""
    domain = choice("zero_point_domain", _text(domain), Domain)
    format, offset = _format(*_ends(target, quant_min, quant_max))
    if offset and domain is not Domain.INT:
        raise ValueError(
            f"`quant_min` must begin a range of {format} itself where zero points are no codes, got {offset}"
        )
    affine = ZeroPoint.NONE if domain is Domain.NONE else ZeroPoint.MIN_MAX
    q = Quantizer(format=format, granularity=_granularity(block_size, shape), zero_point=affine)
    if dialect is not None:
        q = q.replace(**dialects["torchao_tinygemm" if (dialect, domain) == ("torchao", Domain.FLOAT) else dialect])
    if domain is Domain.FLOAT:
        q = q.replace(zero_point_domain=ZeroPointDomain.FLOAT)
    return Translated(q, offset, None)


def reduced_shape(shape: Shape, block_size: Shape) -> Shape:
    """The shape of parameters without the axes that lie whole inside a block, but those of length 1."""
    pairs = zip(shape, block_size, strict=True)
    return tuple(n // block for n, block in pairs if block != n or block == 1)


def check_domain(domain: str, zero_point: object) -> None:
    """TypeError unless there is a zero point where the domain has one."""
    if (zero_point is None) != (choice("zero_point_domain", _text(domain), Domain) is Domain.NONE):
        need = "None" if zero_point is not None else "an array"
        raise TypeError(f"`zero_point` must be {need} in the domain '{domain}', got {zero_point!r}")


def _text(value: object) -> object:
    """The name of a member, also of an enum that spells it in capitals, as torchao's does."""
    name = getattr(value, "name", value)
    return name.lower() if isinstance(name, str) else value


def _granularity(block_size: Shape, shape: Shape) -> Granularity:
    block_size = tuple(block_size)
    if len(block_size) != len(shape):
        raise ValueError(f"`block_size` must have one size for each axis of shape {tuple(shape)}, got {block_size}")
    return PerTensor() if block_size == tuple(shape) else PerBlock(block_size)


def _ends(target: str, quant_min: int | None, quant_max: int | None) -> tuple[int, int]:
    match = re.fullmatch(r"(u?)int([1-8])", target)
    if match is None:
        raise ValueError(f"the dtype of codes must be int1 to int8 or uint1 to uint8, got {target}")
    whole = IntegerFormat(int(match[2]), not match[1])
    lo, hi = (whole.lo if quant_min is None else quant_min), (whole.hi if quant_max is None else quant_max)
    check_int("quant_min", lo)
    check_int("quant_max", hi)
    if not whole.lo <= lo < hi <= whole.hi:
        raise ValueError(
            f"`quant_min` and `quant_max` must be ascending and in [{whole.lo}, {whole.hi}] of {target}, got {lo}, {hi}"
        )
    return lo, hi


def _format(lo: int, hi: int) -> tuple[IntegerFormat, int]:
    """The format of codes of a range, and where its 0 lies."""
    bits = max((hi - lo).bit_length(), 1)
    narrow = {2**bits - 1: False, 2**bits - 2: True}.get(hi - lo)
    if narrow is None:
        raise ValueError(
            f"`quant_max` - `quant_min` must be 2**bits - 1, or 2**bits - 2 for a narrow range, got {hi} - {lo} = "
            f"{hi - lo}"
        )
    for signed in (True, False):
        format = IntegerFormat(bits, signed, narrow)
        if (format.lo, format.hi) == (lo, hi):
            return format, 0
    return IntegerFormat(bits, False, narrow), lo
