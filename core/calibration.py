"""What calibration looks at and what it says: functions with the ranges they cannot leave, and a report. Nouns only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

# By the name that torch and JAX share: the smallest and the largest value
KNOWN_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "sigmoid": (0.0, 1.0),
        "hardsigmoid": (0.0, 1.0),
        "softmax": (0.0, 1.0),
        "tanh": (-1.0, 1.0),
        "relu6": (0.0, 6.0),
        "softsign": (-1.0, 1.0),
        "sin": (-1.0, 1.0),
        "cos": (-1.0, 1.0),
        "erf": (-1.0, 1.0),
        "normalize": (-1.0, 1.0),
    }
)
# What has no bound, on one side at least: its range is observed
OBSERVED_FUNCTIONS = (
    "add",
    "bmm",
    "cat",
    "elu",
    "exp",
    "gelu",
    "hardtanh",  # whose limits are arguments
    "layer_norm",
    "leaky_relu",
    "log",
    "log_softmax",
    "matmul",
    "relu",
    "scaled_dot_product_attention",
    "selu",
    "silu",
    "softplus",
    "sqrt",
)


@dataclass(frozen=True)
class Site:
    """What became of one place where activations may be quantized.

    Args:
        name: ``layer``, ``layer.input``, or ``function_0`` for the first call of that function.
        where: the module in whose forward pass it is; ``""`` for the model itself.
        rule: ``known`` for a range that needs no data, ``observed`` for others.
        scale: what it quantizes with, or would; ``zero_point``: None for symmetric quantizers.
        kept: whether it quantizes.
        reason: why, in words.
    """

    name: str
    where: str
    rule: str
    scale: float
    zero_point: float | None
    kept: bool
    reason: str


def rule_of(function: str) -> tuple[str, str]:
    """The rule of a site, and why; ``function`` is ``""`` for that of a layer."""
    if function in KNOWN_RANGES:
        lo, hi = KNOWN_RANGES[function]
        return "known", f"{function} lies in [{lo:g}, {hi:g}]: no data needed"
    return "observed", f"observed: {function} has no bound" if function else "observed"


def function_of(name: str) -> str:
    """The function of a site; ``""`` where it is one of a layer."""
    function, _, turn = name.rpartition("_")
    return function if turn.isdigit() and (function in KNOWN_RANGES or function in OBSERVED_FUNCTIONS) else ""


def site(name: str, where: str, scale: float, zero_point: float | None, kept: bool, readers: Sequence[str]) -> Site:
    """A line of the report; ``readers`` take the values of the site, and not its codes."""
    rule, why = rule_of(function_of(name))
    if not kept:
        taken = f"only values are taken, by {', '.join(sorted(readers))}" if readers else "nothing takes its codes"
        why = f"{why}; taken away: {taken}"
    return Site(name, where, rule, scale, zero_point, kept, why)


def table(report: Sequence[Site]) -> str:
    """The report as text, one line for each site."""
    rows = [("site", "in", "scale", "zero", "what was done")]
    for one in report:
        zero = "" if one.zero_point is None else f"{one.zero_point:g}"
        rows.append((one.name, one.where or "(model)", f"{one.scale:.6g}", zero, one.reason))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    padded = ((*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]) for row in rows)
    return "\n".join("  ".join(row) for row in padded)
