"""`core.granularity` and `core.blocks`: which elements share a parameter."""

from typing import Any

import numpy as np
import pytest

from samebits.core import Granularity, PerAxis, PerBlock, PerGroup, PerTensor, PerToken
from samebits.core.blocks import expand_blocks, split_blocks
from samebits.core.granularity import Shape, qparams_shape

# (granularity, shape of x, block, shape of the parameters): the table of the module, and the corners it leaves out
TABLE: list[tuple[Granularity, Shape, Shape, Shape]] = [
    (PerTensor(), (4, 6), (4, 6), ()),
    (PerTensor(), (), (), ()),
    (PerTensor(), (0, 3), (0, 3), ()),
    (PerAxis(0), (4, 6), (1, 6), (4, 1)),
    (PerAxis(-1), (4, 6), (4, 1), (1, 6)),
    (PerAxis(1), (4, 6, 2), (4, 1, 2), (1, 6, 1)),
    (PerAxis(0), (4,), (1,), (4,)),
    (PerAxis(0), (0, 6), (1, 6), (0, 1)),
    (PerAxis(0), (4, 0), (1, 0), (4, 1)),
    (PerToken(), (2, 4, 6), (1, 1, 6), (2, 4, 1)),
    (PerToken(), (6,), (6,), (1,)),
    (PerGroup(3), (4, 6), (1, 3), (4, 2)),
    (PerGroup(6), (4, 6), (1, 6), (4, 1)),
    (PerGroup(2, axis=0), (4, 6), (2, 1), (2, 6)),
    (PerGroup(3), (4, 0), (1, 3), (4, 0)),
    (PerGroup(1), (3,), (1,), (3,)),
    (PerBlock((2, 3)), (5, 4, 6), (1, 2, 3), (5, 2, 2)),
    (PerBlock((4, 6)), (4, 6), (4, 6), (1, 1)),
    (PerBlock((2,)), (3, 4), (1, 2), (3, 2)),
]


@pytest.mark.parametrize(("granularity", "shape", "block", "parameters"), TABLE)
def test_blocks_and_parameters(granularity: Granularity, shape: Shape, block: Shape, parameters: Shape) -> None:
    assert granularity.block_size(shape) == block
    assert qparams_shape(granularity, shape) == parameters


@pytest.mark.parametrize(("granularity", "shape", "block", "parameters"), TABLE)
def test_expand_and_split_agree_with_index_arithmetic(
    granularity: Granularity, shape: Shape, block: Shape, parameters: Shape
) -> None:
    parameter = np.arange(max(1, int(np.prod(parameters))))[: int(np.prod(parameters))].reshape(parameters)
    expanded = expand_blocks(parameter, granularity, shape)
    assert expanded.shape == shape
    for index in np.ndindex(shape):
        at = tuple(i // b for i, b in zip(index, block, strict=True)) if parameters else ()
        assert expanded[index] == parameter[at]
    x = np.arange(int(np.prod(shape))).reshape(shape)
    split = split_blocks(x, granularity)
    assert split.shape[:-1] == parameters
    for at in np.ndindex(parameters):
        members = x[expanded == parameter[at]]  # row-major, as promised
        assert split[at].tolist() == members.tolist()


@pytest.mark.parametrize(
    ("granularity", "shape", "words"),
    [
        (PerAxis(2), (4, 6), "`axis` of per axis 2 must exist in x, got axis 2 for x of shape (4, 6)"),
        (PerAxis(-3), (4, 6), "`axis` of per axis -3 must exist in x, got axis -3 for x of shape (4, 6)"),
        (PerToken(), (), "`axis` of per token must exist in x, got axis -1 for x of shape ()"),
        (
            PerGroup(4),
            (4, 6),
            "the length of axis -1 of x must be a multiple of the group size 4, got 6 in shape (4, 6)",
        ),
        (PerGroup(4, axis=5), (4, 6), "`axis` of per group of 4 along axis 5 must exist in x"),
        (PerBlock((2, 4)), (4, 6), "the last axes of x must be multiples of the block shape (2, 4), got shape (4, 6)"),
        (PerBlock((2, 4)), (8,), "x must have at least 2 axes for per block of 2x4, got shape (8,)"),
    ],
)
def test_shapes_that_do_not_fit(granularity: Granularity, shape: Shape, words: str) -> None:
    for function in (granularity.block_size, lambda s: qparams_shape(granularity, s)):
        with pytest.raises(ValueError) as refusal:  # noqa: PT011  # the words are compared below
            function(shape)
        assert str(refusal.value).startswith(words)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: PerAxis(1.0), TypeError, "`axis` must be an int, got 1.0"),
        (lambda: PerAxis(True), TypeError, "`axis` must be an int, got True"),
        (lambda: PerGroup(0), ValueError, "`size` must be at least 1, got 0"),
        (lambda: PerGroup("4"), TypeError, "`size` must be an int, got '4'"),
        (lambda: PerGroup(4, axis=None), TypeError, "`axis` must be an int, got None"),
        (lambda: PerBlock([2, 2]), TypeError, "`shape` must be a non-empty tuple of ints, got [2, 2]"),
        (lambda: PerBlock(()), TypeError, "`shape` must be a non-empty tuple of ints, got ()"),
        (lambda: PerBlock((2, 0)), ValueError, "`shape` must be at least 1, got 0"),
    ],
)
def test_granularities_that_make_no_sense(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as refusal:
        make()
    assert str(refusal.value) == words


def test_granularities_are_values() -> None:
    assert PerGroup(32) == PerGroup(32, -1) != PerGroup(32, 0)
    assert len({PerTensor(), PerTensor(), PerAxis(), PerAxis(0), PerToken(), PerBlock((2, 2)), PerBlock((2, 2))}) == 4
    assert [str(g) for g in (PerTensor(), PerAxis(1), PerToken(), PerGroup(4), PerGroup(4, 0), PerBlock((2, 3)))] == [
        "per tensor",
        "per axis 1",
        "per token",
        "per group of 4",
        "per group of 4 along axis 0",
        "per block of 2x3",
    ]
