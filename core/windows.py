"""How the kernel of a convolution meets its input: strides, margins, dilation, groups. Nouns only."""

from collections.abc import Sequence
from dataclasses import dataclass

from .choice import check_count

Sizes = int | Sequence[int]  # one for all axes, or one for each
Margins = int | Sequence[int | tuple[int, int]]  # on both sides of an axis, or (before, after)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """A convolution apart from its arrays: one number for each axis behind batch and channels.

    Attributes:
        stride: steps of the kernel; of a transposed convolution those of its output.
        margins: zeros (before, after) the input; a transposed convolution leaves out so many of its outputs.
        dilation: distance of the kernel's elements.
        groups: into how many parts channels are cut, each contracted with its own kernels.
        transposed: whether it is the transpose of such a map: what that one's gradient towards its input is.
        extra: outputs of a transposed convolution beyond the last product, before its margins; zeros.
    """

    stride: Shape
    margins: tuple[tuple[int, int], ...]
    dilation: Shape
    groups: int = 1
    transposed: bool = False
    extra: Shape = ()

    @property
    def meets_nothing(self) -> bool:
        """Whether kernels meet places outside the input."""
        return self.transposed or any(max(pair) for pair in self.margins)

    def channels(self, kernel: Shape) -> tuple[int, int]:
        """How many of the input and of the output, by the shape of the weight."""
        first, second = kernel[0], kernel[1] * self.groups
        return (first, second) if self.transposed else (second, first)

    def lengths(self, x: Shape, kernel: Shape) -> Shape:
        """Shape of the output behind batch and channels, by those of input and weight."""
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, kernel[2:], strict=True)]
        sides = [before + after for before, after in self.margins]
        if self.transposed:
            steps = zip(x[2:], self.stride, spans, sides, self.extra, strict=True)
            return tuple((n - 1) * step + span - side + more for n, step, span, side, more in steps)
        places = zip(x[2:], self.stride, spans, sides, strict=True)
        return tuple((n + side - span) // step + 1 for n, step, span, side in places)


def window(w: Shape, stride: Sizes, padding: Margins, dilation: Sizes, groups: int) -> Window:
    """The window of a convolution with a weight of this shape.

    Raises:
        TypeError, ValueError: an argument that is no such number or has not one for each axis; a weight of other than
            one to three axes behind its channels; groups that do not divide its outputs.
    """
    axes = _axes(w)
    check_count("groups", groups, 1)
    if w[0] % groups:
        raise ValueError(f"`groups` must divide the channels of `w` of shape {w}, got {groups}")
    steps, spread = _sizes("stride", stride, axes, 1), _sizes("dilation", dilation, axes, 1)
    return Window(steps, _margins(padding, axes), spread, groups)


def transposed_window(
    w: Shape, stride: Sizes, padding: Sizes, output_padding: Sizes, groups: int, dilation: Sizes
) -> Window:
    """The window of a transposed convolution; as `window`, and ValueError for ``output_padding`` not below stride or
    dilation, where it would be more than which of the inputs of equal outputs is meant."""
    plain, axes = window(w, stride, _sizes("padding", padding, _axes(w), 0), dilation, groups), _axes(w)
    extra = _sizes("output_padding", output_padding, axes, 0)
    for more, step, spread in zip(extra, plain.stride, plain.dilation, strict=True):
        if more >= max(step, spread):
            raise ValueError(f"`output_padding` must be less than `stride` or `dilation`, got {output_padding}")
    return Window(plain.stride, plain.margins, plain.dilation, groups, transposed=True, extra=extra)


def check_fits_window(shape: Window, x: Shape, w: Shape, bias: Shape | None) -> None:
    """ValueError unless arrays of these shapes fit each other in a convolution."""
    inputs, outputs = shape.channels(w)
    in_groups = f" in {shape.groups} groups" if shape.groups > 1 else ""
    if len(x) != len(w) or x[1] != inputs or (shape.transposed and min(x[2:]) < 1):
        raise ValueError(f"`x` must fit `w` of shape {w}{in_groups}, got shape {x}")
    if min(shape.lengths(x, w)) < 1:
        raise ValueError(f"`x` must reach as far as `w` of shape {w} with {shape}, got shape {x}")
    if bias is not None and bias != (outputs,):
        raise ValueError(f"`bias` must have shape {(outputs,)}, got {bias}")


def _axes(w: Shape) -> int:
    if not 3 <= len(w) <= 5:
        raise ValueError(f"`w` must have 3 to 5 axes, got shape {w}")
    return len(w) - 2


def _sizes(name: str, value: Sizes, axes: int, least: int) -> Shape:
    """One number for each axis."""
    sizes = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(sizes) != axes:
        raise ValueError(f"`{name}` must be an int, or one for each of {axes} axes, got {value!r}")
    for n in sizes:
        check_count(name, n, least)
    return sizes


def _margins(padding: Margins, axes: int) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis."""
    sides = (padding,) * axes if isinstance(padding, int) else tuple(padding)
    if len(sides) != axes:
        raise ValueError(f"`padding` must be an int, or an int or a pair for each of {axes} axes, got {padding!r}")
    pairs = [(side, side) if isinstance(side, int) else tuple(side) for side in sides]
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"`padding` of an axis must be an int or a pair, got {pair!r}")
        for n in pair:
            check_count("padding", n, 0)
    return tuple((before, after) for before, after in pairs)
