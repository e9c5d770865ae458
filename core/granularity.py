"""Granularity: which elements of an array share one scale (and zero point). Nouns only.

Every granularity is a ``block_size``: the shape of the block of elements that shares one entry of the parameters. The
parameters have one entry per block: shape ``()`` for `PerTensor`, else the rank of ``x`` with ``shape / block_size``
entries on each axis, so an axis that lies whole inside a block keeps length 1:

    =====================  ===============  ================  ================
    granularity            x.shape          block_size        parameters' shape
    =====================  ===============  ================  ================
    ``PerTensor()``        ``(4, 6)``       ``(4, 6)``        ``()``
    ``PerAxis(0)``         ``(4, 6)``       ``(1, 6)``        ``(4, 1)``
    ``PerToken()``         ``(2, 4, 6)``    ``(1, 1, 6)``     ``(2, 4, 1)``
    ``PerGroup(3, -1)``    ``(4, 6)``       ``(1, 3)``        ``(4, 2)``
    ``PerBlock((2, 3))``   ``(5, 4, 6)``    ``(1, 2, 3)``     ``(5, 2, 2)``
    =====================  ===============  ================  ================

Source: torchao's ``granularity.py``, whose ``block_size`` this generalises with a defined parameter shape.
"""

from dataclasses import dataclass

from .choice import check_count, check_int

Shape = tuple[int, ...]


def _axis_of(axis: int, shape: Shape, who: object) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"`axis` of {who} must exist in x, got axis {axis} for x of shape {shape}")
    return axis % len(shape)


@dataclass(frozen=True)
class PerTensor:
    """One parameter for the whole array; its shape is ``()``."""

    def block_size(self, shape: Shape) -> Shape:
        """Shape of one block of an array of this shape: all of it."""
        return tuple(shape)

    def __str__(self) -> str:
        return "per tensor"


@dataclass(frozen=True)
class PerAxis:
    """One parameter for each index of ``axis`` ("per channel" for a weight of shape ``(out, ...)`` with axis 0)."""

    axis: int = 0

    def __post_init__(self) -> None:
        check_int("axis", self.axis)

    def block_size(self, shape: Shape) -> Shape:
        """Shape of one block: 1 along the axis, everything along the others. ValueError when x has no such axis."""
        axis = _axis_of(self.axis, shape, self)
        return tuple(1 if i == axis else n for i, n in enumerate(shape))

    def __str__(self) -> str:
        return f"per axis {self.axis}"


@dataclass(frozen=True)
class PerToken:
    """One parameter for each position of all axes but the last."""

    def block_size(self, shape: Shape) -> Shape:
        """Shape of one block: the last axis. ValueError for a 0-d array."""
        _axis_of(-1, shape, self)
        return (*(1 for _ in shape[:-1]), shape[-1])

    def __str__(self) -> str:
        return "per token"


@dataclass(frozen=True)
class PerGroup:
    """One parameter for every ``size`` consecutive elements along ``axis``."""

    size: int
    axis: int = -1

    def __post_init__(self) -> None:
        check_count("size", self.size, 1)
        check_int("axis", self.axis)

    def block_size(self, shape: Shape) -> Shape:
        """Shape of one block. ValueError when the length of the axis is no multiple of ``size``."""
        axis = _axis_of(self.axis, shape, self)
        if shape[axis] % self.size:
            raise ValueError(
                f"the length of axis {self.axis} of x must be a multiple of the group size {self.size}, "
                f"got {shape[axis]} in shape {shape}; pad x to a multiple first"
            )
        return tuple(self.size if i == axis else 1 for i, _ in enumerate(shape))

    def __str__(self) -> str:
        return f"per group of {self.size}" + ("" if self.axis == -1 else f" along axis {self.axis}")


@dataclass(frozen=True)
class PerBlock:
    """One parameter for every block of ``shape`` over the last ``len(shape)`` axes."""

    shape: Shape

    def __post_init__(self) -> None:
        if not isinstance(self.shape, tuple) or not self.shape:
            raise TypeError(f"`shape` must be a non-empty tuple of ints, got {self.shape!r}")
        for n in self.shape:
            check_count("shape", n, 1)

    def block_size(self, shape: Shape) -> Shape:
        """Shape of one block. ValueError when x has too few axes or a length is no multiple of the block's."""
        if len(shape) < len(self.shape):
            raise ValueError(f"x must have at least {len(self.shape)} axes for {self}, got shape {shape}")
        lead = len(shape) - len(self.shape)
        for n, block in zip(shape[lead:], self.shape, strict=True):
            if n % block:
                raise ValueError(
                    f"the last axes of x must be multiples of the block shape {self.shape}, "
                    f"got shape {shape}; pad x to a multiple first"
                )
        return (1,) * lead + self.shape

    def __str__(self) -> str:
        return "per block of " + "x".join(map(str, self.shape))


Granularity = PerTensor | PerAxis | PerToken | PerGroup | PerBlock


def qparams_shape(granularity: Granularity, shape: Shape) -> Shape:
    """Shape of scale and zero point for an array of this shape: ``()`` per tensor, else the blocks of each axis.

    An axis that lies whole inside a block has one entry even when its length is 0.
    """
    if isinstance(granularity, PerTensor):
        return ()
    block = granularity.block_size(tuple(shape))
    return tuple(1 if b == n else n // b for n, b in zip(shape, block, strict=True))
