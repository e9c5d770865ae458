"""What methods take and report that quantize the weights of a model layer by layer, by statistics of its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import cos, isfinite, pi

from .choice import check_count, check_number, choice
from .descriptions import Quantizer
from .formats import IntegerFormat


class GroupScales(StrEnum):
    """Of which weights GPTQ chooses the scale of a group of columns."""

    BLOCK = "block"  # of the weights as they were when the block of columns began in which the group begins
    UPDATED = "updated"  # of the weights as they are when the group begins: all errors before it are passed on
    ORIGINAL = "original"  # of the weights that were given, before anything is quantized


@dataclass(frozen=True)
class LayerReport:
    """What became of a layer, or of a pair of layers.

    Args:
        name: of the layer; of a pair, both.
        before: error of its outputs on the recorded inputs, squared and summed over outputs, mean over rows: with
            weights that are rounded to nearest, or before the method. Of equalization, what it says.
        after: the same with what it has now.
        method: what it has now: ``"nearest"`` where the method was not better.
        rows: how many rows of inputs were recorded.
    """

    name: str
    before: float
    after: float
    method: str
    rows: int = 0

    def __str__(self) -> str:
        return f"{self.name}: {self.before:.4g} before, {self.after:.4g} after ({self.method})"


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


def check_factors(shape: Sequence[int], want: Sequence[int], positive: bool) -> None:
    """ValueError unless there is one positive and finite factor for each channel."""
    if tuple(shape) != tuple(want):
        raise ValueError(f"`factors` must have shape {tuple(want)}, as the weight has channels, got {tuple(shape)}")
    if not positive:
        raise ValueError("`factors` must be positive and finite")


def check_alpha(alpha: float) -> None:
    """TypeError unless a number, ValueError unless in [0, 1]; what is below 2**-64 must be 0."""
    check_number("alpha", alpha)
    if not (alpha == 0 or 2.0**-64 <= alpha <= 1):
        raise ValueError(f"`alpha` must be in [0, 1], got {alpha!r}")


def check_ranges(first: Sequence[int], second: Sequence[int], finite: bool) -> None:
    """ValueError unless two ranges of channels have the same shape and are finite."""
    if tuple(first) != tuple(second) or len(first) != 1:
        raise ValueError(f"ranges must have one and the same axis, got shapes {tuple(first)} and {tuple(second)}")
    if not finite:
        raise ValueError("ranges must be finite, got NaN or an infinity: look for it in weights and recorded inputs")


def check_mean(bias: Sequence[int], w: Sequence[int], w_hat: Sequence[int], mean: Sequence[int], finite: bool) -> None:
    """ValueError unless two weights, a bias and the mean of inputs fit, and the mean is finite."""
    if tuple(w) != tuple(w_hat) or (*bias, *mean) != tuple(w):
        raise ValueError(
            "`w` and `w_hat` must have shape (out, in), `bias` (out,) and `mean` (in,), got "
            f"{tuple(w)}, {tuple(w_hat)}, {tuple(bias)}, {tuple(mean)}"
        )
    if not finite:
        raise ValueError("`mean` must be finite, got NaN or an infinity: look for it in the recorded inputs")


def check_adaround(q: Quantizer, shape: Sequence[int], steps: int, rate: float, penalty: float) -> None:
    """Whether AdaRound takes these: integers rounded to nearest, at least one step, positive rates.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, or out of range.
    """
    check_matrix(q, shape)
    if not isinstance(q.format, IntegerFormat):
        raise ValueError(f"`q` must have a format of integers, of which rounding is learned, got {q.format}")
    if q.scale.signed or q.delay or q.learned_bits is not None:
        raise ValueError("`q` must not have signed scales, a delay or a learned bit width, where rounding is learned")
    check_count("steps", steps, 1)
    for name, value in (("rate", rate), ("penalty", penalty)):
        check_number(name, value)
        if not (isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be positive and finite, got {value!r}")


def penalty_exponents(steps: int) -> list[float]:
    """The exponent of AdaRound's penalty in each step: 0, for no penalty, in the first fifth, then from 20 to 2."""
    begin = steps // 5
    falling = (0.5 * (1 + cos(pi * (step - begin) / (steps - begin))) for step in range(begin, steps))
    return [0.0] * begin + [2.0 + 18.0 * share for share in falling]
