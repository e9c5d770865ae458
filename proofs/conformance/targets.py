"""Targets: what of other people's code can be asked, as a function over NumPy arrays and a few claims about it.

A target of your own is ten lines:

    @target(like="int8_per_tensor")
    def mine(x, qparams):
        return np.clip(np.rint(x / qparams.scale), -128, 127) * qparams.scale

and ``package.module:mine`` is its name on the command line. Ready ones, of libraries, are listed in
`samebits.proofs.conformance.peers`. No library is imported before one of its targets is resolved.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.catalog import catalog
from ...core.choice import choice
from ...core.descriptions import QParams, Quantizer
from ...core.formats import IntegerFormat
from ..inputs.named import named
from .peers import PEERS, missing

Array = NDArray[Any]
Function = Callable[..., Any]  # (x, qparams) -> x_hat or codes; (x, qparams, g) -> gradient
DTYPES = ("float32", "bfloat16", "float16", "float64")


class Kind(StrEnum):
    """What a target gives."""

    VALUES = "values"  # x_hat, of shape and dtype of x
    CODES = "codes"  # integers, of the shape of x and any integer dtype


@dataclass(frozen=True)
class Target:
    """A quantizer of somebody, as a function over NumPy arrays, and what it claims to be.

    Args:
        name: ``library.function``, or what the user calls it.
        function: ``(x, qparams) -> x_hat`` or ``-> codes``. With ``chooses`` it gets None for parameters; one that
            gives codes then returns ``(codes, QParams)``.
        quantizer: format, granularity and zero point that it claims; its arithmetic, rounding and scale rule are what
            is asked, only the domain of a zero point counts (an integer, or a number).
        dtype: of x: float32, bfloat16, float16 or float64.
        kind: values or codes.
        chooses: whether it chooses its own scale.
        gradient: ``(x, qparams, g) -> d x``, or None.
        scales: the only scales that may be given; () for any. A cast knows 1.0 alone.
        note: what to know of it, in one line.

    Raises:
        ValueError: an unknown dtype or kind, or codes of a format that has no integers.
        TypeError: ``function`` cannot be called, ``quantizer`` is none.
    """

    name: str
    function: Function
    quantizer: Quantizer
    dtype: str = "float32"
    kind: Kind = Kind.VALUES
    chooses: bool = False
    gradient: Function | None = None
    scales: tuple[float, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", choice("kind", self.kind, Kind))
        if not callable(self.function):
            raise TypeError(f"`function` must be a function (x, qparams), got {self.function!r}")
        if not isinstance(self.quantizer, Quantizer):
            raise TypeError(f"`quantizer` must be a Quantizer, got {self.quantizer!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.kind is Kind.CODES and not isinstance(self.quantizer.format, IntegerFormat):
            raise ValueError(f"`kind` must be 'values' for {self.quantizer.format}, got 'codes'")

    def __call__(self, x: Array, qparams: QParams | None = None) -> Any:
        """What the function gives, so that a decorated function is still one."""
        return self.function(x, qparams)


def target(
    like: str | Quantizer,
    *,
    name: str | None = None,
    dtype: str = "float32",
    kind: str = "values",
    chooses: bool = False,
    gradient: Function | None = None,
    scales: tuple[float, ...] = (),
    note: str = "",
) -> Callable[[Function], Target]:
    """Decorator that makes a `Target` of a function.

    Args:
        like: a catalog name or a `Quantizer`.
        name: None for the function's own.

    Raises:
        KeyError: an unknown catalog name. TypeError, ValueError: as `Target`.
    """
    q = catalog[like] if isinstance(like, str) else like

    def made(function: Function) -> Target:
        own = name or f"{getattr(function, '__module__', '?')}:{getattr(function, '__name__', '?')}"
        return Target(own, function, q, dtype, choice("kind", kind, Kind), chooses, gradient, scales, note)

    return made


def names() -> Iterator[str]:
    """Names of all ready targets, installed or not."""
    return (name for peer in PEERS for name in peer.targets)


def resolve(name: str, like: str | None = None, **claims: Any) -> Target:
    """The target of a name: a ready one, or ``package.module:function`` of your own.

    Args:
        like: what a plain function claims to be, a catalog name; not for targets, which say it themselves.
        claims: the other arguments of `target`, for a plain function.

    Raises:
        KeyError: an unknown name, with the nearest ones.
        ImportError: a peer that is not installed, with the line that installs it; or a module that cannot be imported.
        ValueError: a plain function without ``like``.
    """
    if ":" in name:
        return _of_the_user(name, like, claims)
    peer = next((p for p in PEERS if name in p.targets), None)
    if peer is None:
        near = get_close_matches(name, [*names()], 1, 0.5)
        hint = f", did you mean {near[0]}?" if near else "; your own is package.module:function"
        raise KeyError(f"unknown target '{name}'{hint}")
    if line := missing(peer):
        raise ImportError(line)
    with quiet_imports():
        module = import_module(f".adapters.{peer.module}", __package__)
        found: Target = module.targets()[name]
    return found


def _of_the_user(name: str, like: str | None, claims: dict[str, Any]) -> Target:
    found = named(name)
    if isinstance(found, Target):
        return replace(found, name=name)
    if like is None:
        raise ValueError(f"{name} is a plain function: say what it claims to be with --like CATALOG_NAME")
    return target(like, name=name, **claims)(found)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Around imports of other libraries: what they warn of concerns their authors."""
    import warnings

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
