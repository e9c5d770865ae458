"""What is to be certified: a quantizer, an engine and its modes; and the plan that follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...core import catalog
from ...core.descriptions import Quantizer
from ...core.directions import Rounding
from ..modes import execution
from ..modes.devices import ACCELERATED
from ..modes.execution import MODES, modes_on
from .cases import DTYPES
from .evaluate_scales import scales_plan
from .tiles import Part, Tile, boundary_plan, exhaustive_plan

ENGINES = ("boundary", "exhaustive", "scales")


class Planned(Protocol):
    """Whatever has a plan."""

    def plan(self) -> tuple[Part, ...]:
        """Its parts, in order."""
        ...


@dataclass(frozen=True)
class Request:
    """What is to be certified.

    Attributes:
        name: of the quantizer, for people.
        q: the quantizer itself.
        modes: which of `MODES` and `devices.ACCELERATED`.
        engine: of `ENGINES`.
        scales, dtype, zero_point: of the exhaustive engine.
    """

    name: str
    q: Quantizer
    modes: tuple[str, ...] = MODES
    engine: str = "boundary"
    scales: tuple[float, ...] = ()
    dtype: str = "float32"
    zero_point: int | None = None

    def plan(self) -> tuple[Part, ...]:
        """The parts of the engine; ValueError for what it cannot do."""
        if self.engine == "boundary":
            return boundary_plan(self.q)
        if self.engine == "scales":
            return scales_plan(self.q)
        return exhaustive_plan(self.q, self.scales, self.dtype, self.zero_point)


def requested(
    name: str,
    engine: str = "boundary",
    modes: Sequence[str] = (),
    rounding: str | None = None,
    scales: Sequence[float] = (),
    dtype: str = "float32",
    zero_point: int | None = None,
    device: str = "cpu",
) -> Request:
    """A request by names, with everything that can be wrong with it found.

    Raises:
        KeyError: an unknown quantizer.
        ValueError: anything else: engine, mode, rounding, dtype, scales, zero point, an arithmetic of another system.
    """
    q = catalog[name] if rounding is None else catalog[name].replace(rounding=rounding)
    if q.rounding in (Rounding.STOCHASTIC, Rounding.LEARNED):
        raise ValueError(f"`rounding` must be deterministic, got '{q.rounding}': a certificate is of a step function")
    for kind, value, known in (
        ("engine", (engine,), ENGINES),
        ("mode", modes, (*MODES, *ACCELERATED)),
        ("dtype", (dtype,), tuple(DTYPES)),
    ):
        for one in value:
            if one not in known:
                raise ValueError(f"`{kind}` must be one of {', '.join(known)}; got {one!r}")
    if engine != "exhaustive" and (scales or dtype != "float32" or zero_point is not None):
        raise ValueError("`scale`, `dtype` and `zero_point` are for the exhaustive engine")
    chosen = tuple(float(np.float32(s)) for s in scales or ((0.1,) if engine == "exhaustive" else ()))
    shown = name if rounding is None else f"{name}, {rounding}"
    wanted = tuple(m for m in (*MODES, *ACCELERATED) if m in (modes or modes_on(device)))
    request = Request(shown, q, wanted, engine, chosen, dtype, zero_point)
    check_modes(request.modes)
    request.plan()
    return request


def check_modes(modes: Sequence[str]) -> None:
    """ValueError with the reason unless every mode can run on this machine."""
    for mode in modes:
        if reason := execution.unavailable(mode):
            raise ValueError(f"mode {mode} cannot run here: {reason}")


def tiles_of(request: Planned) -> list[Tile]:
    """All tiles, in the order of the file."""
    return [tile for part in request.plan() for tile in part.tiles]
