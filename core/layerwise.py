"""What methods take and report that quantize the weights of a model layer by layer, by statistics of its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite

from .choice import check_count, check_number, choice
from .descriptions import Quantizer


class GroupScales(StrEnum):
    """Of which weights GPTQ chooses the scale of a group of columns."""

    BLOCK = "block"  # of the weights as they were when the block of columns began in which the group begins
    UPDATED = "updated"  # of the weights as they are when the group begins: all errors before it are passed on
    ORIGINAL = "original"  # of the weights that were given, before anything is quantized


@dataclass(frozen=True)
class LayerReport:
    """What became of a layer.

    Args:
        name: of the layer.
        nearest: error of its outputs on the recorded inputs with weights rounded to nearest: the mean over rows of the
            squared error, summed over outputs (`output_error`).
        found: the same with the weights that it has now.
        method: whose weights it has: ``"nearest"`` where the method was not better.
        rows: how many rows of inputs were recorded.
    """

    name: str
    nearest: float
    found: float
    method: str
    rows: int

    def __str__(self) -> str:
        share = f"{self.found / self.nearest:.3f} of it" if self.nearest else "the same"
        return f"{self.name}: rounded to nearest {self.nearest:.4g}, {self.method} {share} ({self.rows} rows)"


@dataclass(frozen=True)
class ModelReport:
    """What became of the layers of a model, in the order in which they run, and why others were left alone.

    Args:
        layers: those that were changed.
        skipped: names of layers that were chosen and stayed as they were, with the reason.
    """

    layers: tuple[LayerReport, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.layers), *(f"{name}: skipped, {why}" for name, why in self.skipped.items())])


def check_gptq(
    q: Quantizer, shape: Sequence[int], blocksize: int, percdamp: float, act_order: bool, group_scales: str | None
) -> tuple[int, GroupScales]:
    """Columns that share a scale, and of which weights the scales of groups are chosen.

    None for ``group_scales`` is BLOCK, and ORIGINAL where columns are reordered or scales have two levels.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, a weight that is no matrix, a granularity that does not
            divide it, rounding that draws or learns, groups that neither BLOCK nor UPDATED can serve.
    """
    check_matrix(q, shape)
    check_count("blocksize", blocksize, 1)
    check_damping(percdamp)
    if not isinstance(act_order, bool):
        raise TypeError(f"`act_order` must be a bool, got {act_order!r}")
    columns = q.granularity.block_size(tuple(shape))[1]
    whole = columns == shape[1]
    original = whole or act_order or q.scale.two_level
    if group_scales is None:
        return columns, GroupScales.ORIGINAL if original else GroupScales.BLOCK
    rule = choice("group_scales", group_scales, GroupScales)
    if rule is not GroupScales.ORIGINAL and not whole and (act_order or q.scale.two_level):
        why = "`act_order` reorders columns" if act_order else "scales have two levels"
        raise ValueError(f"`group_scales` must be 'original' or None where {why}, got '{rule}'")
    return columns, GroupScales.ORIGINAL if whole else rule


def check_matrix(q: Quantizer, shape: Sequence[int]) -> None:
    """ValueError unless a weight is a matrix that ``q`` divides, and its rounding looks at nothing but numbers."""
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"`w` must be a matrix (out, in) with elements, got shape {tuple(shape)}")
    q.granularity.block_size(tuple(shape))
    if not q.deterministic:
        raise ValueError(f"`rounding` must not draw or learn here, got '{q.rounding}'")


def check_hessian(shape: Sequence[int], columns: int, finite: bool) -> None:
    """ValueError unless statistics of inputs are a finite matrix of ``(columns, columns)``."""
    if tuple(shape) != (columns, columns):
        raise ValueError(f"`hessian` must have shape {(columns, columns)}, as `w` has columns, got {tuple(shape)}")
    if not finite:
        raise ValueError("`hessian` must be finite, got NaN or an infinity: look for it in the recorded inputs")


def check_damping(percdamp: float) -> None:
    """TypeError unless a number, ValueError if it is negative or not finite."""
    check_number("percdamp", percdamp)
    if not (isfinite(percdamp) and percdamp >= 0):
        raise ValueError(f"`percdamp` must be finite and not negative, got {percdamp!r}")


def indefinite(percdamp: float) -> ValueError:
    """The error for statistics of which no factor can be found."""
    return ValueError(
        f"`hessian` is not positive definite with `percdamp` {percdamp!r}: raise `percdamp`, or record more inputs"
    )


def check_rows(shape: Sequence[int], columns: int, n: int) -> None:
    """ValueError unless inputs are ``(rows, columns)``, and a count that is not negative."""
    if len(shape) != 2 or shape[1] != columns:
        raise ValueError(f"`x` must have shape (rows, {columns}), as `hessian` has columns, got {tuple(shape)}")
    check_count("n", n, 0)
