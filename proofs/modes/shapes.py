"""Shapes that mean the same to a quantizer, so that one compiled program serves arrays of every rank."""

from ...core.granularity import Granularity, PerAxis, PerBlock, PerGroup, PerTensor, PerToken, Shape


def compiled_shape(granularity: Granularity, shape: Shape) -> Shape:
    """An equivalent shape whose rank depends on the granularity alone, where there is one; elements keep their order.

        ======================  =====================================
        granularity             from ``(a, b, c, d)`` to
        ======================  =====================================
        PerTensor               ``(a*b*c*d,)``
        PerAxis(0)              ``(a, b*c*d)``
        PerAxis(1)              ``(a, b, c*d)``
        PerAxis(-1), PerToken   ``(a*b*c, d)``
        PerGroup(n, -1)         ``(a*b*c, d)``
        PerBlock((m, n))        ``(a*b*c, d)`` (m divides c)
        ======================  =====================================

    Axes that an index from the other end must find are kept, so groups along axes counted from the front vary in rank.
    """
    match granularity:
        case PerTensor():
            return (_product(shape),)
        case PerAxis(axis) if axis >= 0:
            return (*shape[: axis + 1], _product(shape[axis + 1 :]))
        case PerAxis(axis) | PerGroup(_, axis) if axis < 0:
            return (_product(shape[:axis]), *shape[axis:])
        case PerToken():
            return (_product(shape[:-1]), shape[-1])
        case PerBlock(block):
            lead = len(shape) - len(block)
            return (_product(shape[: lead + 1]), *shape[lead + 1 :])
        case _:
            return shape


def _product(shape: Shape) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
