"""What the operands of primitives must be, with the same words in every room. Nouns only."""

from collections.abc import Sequence
from typing import get_args

from . import checks
from .choice import choice
from .descriptions import Grid
from .directions import Rounding
from .formats import Format
from .granularity import Shape


def check_operands(names: Sequence[str], dtypes: Sequence[str | None], shapes: Sequence[Shape]) -> str:
    """Whether operands can be computed with together.

    Args:
        dtypes: the name of each one's dtype; None for a number of Python.
        shapes: that of each; ``()`` for a number.
    Returns:
        The name of the dtype that they have.
    Raises:
        TypeError: a dtype that is no float, two different ones, or only numbers.
        ValueError: shapes that do not broadcast.
    """
    found = [(name, dtype) for name, dtype in zip(names, dtypes, strict=True) if dtype is not None]
    if not found:
        raise TypeError(f"`{names[0]}` must be an array, got a number (whose dtype is not known)")
    for name, dtype in found:
        checks.check_float(name, dtype)
        if dtype != found[0][1]:
            raise TypeError(
                f"`{name}` must have the dtype of `{found[0][0]}`, {found[0][1]}, got {dtype}: cast one of them"
            )
    _check_shapes(names, shapes)
    return found[0][1]


def _check_shapes(names: Sequence[str], shapes: Sequence[Shape]) -> None:
    for axis in range(1, max(map(len, shapes)) + 1):
        lengths = {shape[-axis] for shape in shapes if len(shape) >= axis} - {1}
        if len(lengths) > 1:
            listed = ", ".join(f"`{name}`" for name in names)
            raise ValueError(f"{listed} must have shapes that broadcast, got {', '.join(map(str, map(tuple, shapes)))}")


def check_condition(dtype: str) -> None:
    """TypeError unless a condition is of truth values."""
    if dtype != "bool":
        raise TypeError(f"`condition` must have dtype bool, as comparisons give, got {dtype}")


def axes_of(shape: Shape, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """Axes over which a reduction goes, counted from 0, in ascending order; all of them for None.

    Raises:
        TypeError: no integer. ValueError: an axis that is not there, or is named twice.
    """
    given = tuple(range(len(shape))) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    for one in given:
        if not isinstance(one, int) or isinstance(one, bool):
            raise TypeError(f"`axis` must be an int, a tuple of them or None, got {axis!r}")
        if not -len(shape) <= one < len(shape):
            raise ValueError(f"`axis` must be within an array of shape {tuple(shape)}, got {axis!r}")
    axes = tuple(sorted(one % len(shape) for one in given))
    if len(set(axes)) != len(axes):
        raise ValueError(f"`axis` must name no axis twice, got {axis!r}")
    return axes


def check_index(index: object, shape: Shape) -> None:
    """Whether an index of a value means the same in every library.

    Raises:
        TypeError: another kind of index. ValueError: a number beyond its axis, or more of them than there are axes.
    """
    given = index if isinstance(index, tuple) else (index,)
    for one in given:
        if not (one is None or one is ... or isinstance(one, slice) or type(one) is int):
            raise TypeError("an index must be of numbers, slices, None and `...`: use take for an array of them")
    named = [one for one in given if one is not None and one is not ...]
    after = len(named) if ... not in given else len([one for one in given[: given.index(...)] if one is not None])
    if len(named) > len(shape):
        raise ValueError(f"an index must have at most {len(shape)} axes for shape {shape}, got {index}")
    for place, one in enumerate(named):
        n = shape[place if place < after else place - len(named)]
        if type(one) is int and not -n <= one < n:
            raise ValueError(f"an index must be within shape {shape}, got {index}")


def check_not_empty(count: int) -> None:
    """ValueError for a reduction that needs an element."""
    if not count:
        raise ValueError("`x` must have elements along `axis`, got none")


def rank_of(percent: float, count: int) -> int:
    """Which of so many elements in ascending order a percentile is, from 1: ``floor(percent / 100 * n + 1/2)``.

    Raises:
        ValueError: not in [0, 100].
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"`percent` must be in [0, 100], got {percent!r}")
    return min(max(int(0.01 * percent * count + 0.5), 1), count)


def grid_of(format: Format, rounding: Rounding | str) -> Grid:
    """A format and a direction.

    Raises:
        TypeError: no format. ValueError: no direction, or that of learned rounding, which is of integers.
    """
    if not isinstance(format, get_args(Format)):
        raise TypeError(f"`format` must be a format of samebits.core.formats, got {format!r}")
    direction = choice("rounding", rounding, Rounding)
    if direction is Rounding.LEARNED:
        raise ValueError("`rounding` must not be 'learned', which needs a parameter: use round or floor")
    return Grid(format, direction)


def check_table(shape: Shape, dtype: str, index_dtype: str) -> None:
    """Whether a table has one axis and entries (ValueError), and its dtype that of the index (TypeError)."""
    if len(shape) != 1 or not shape[0]:
        raise ValueError(f"`table` must have one axis and at least one entry, got shape {tuple(shape)}")
    if dtype != index_dtype:
        raise TypeError(f"`index` must have the dtype of `table`, {dtype}, got {index_dtype}: cast one of them")
