"""What a formula is written in: the primitives by name, constants and random bits, and kinds of parameters.

Every function of `samebits.core.primitives` is here under its name, on values of a formula (and numbers of Python): the
same formula runs on arrays of NumPy, torch and JAX. Only `random_bits` takes a value instead of a shape.

    from samebits.core import formula as p
    from samebits.proofs import prototype

    @prototype
    def int8(x, *, scale=p.learned(0.1)):
        return p.clamp(p.round(x / scale), -128, 127) * scale
"""

from collections.abc import Callable, Sequence
from typing import Any

from .formula_values import OPERANDS, Run, called
from .formula_values import Value as Value
from .prototype import learned as learned
from .prototype import seed as seed
from .prototype import state as state


def constant(numbers: Sequence[float], like: Value) -> Value:
    """An array with one axis of numbers of Python, each rounded once to the dtype of a value."""
    run = _run_of(like)
    return run.value("constant", run.room.array(tuple(numbers), like._array))


def random_bits(seed: Any, like: Value) -> Value:
    """For every element of a value 24 random bits: a whole number in [0, 2**24), as float32. Derivative 0.

    Args:
        seed: an integer in [0, 2**32), or the parameter that `seed` declares.
    """
    run, key = _run_of(like), seed._array if isinstance(seed, Value) else seed
    return run.value("random_bits", run.room.primitives.random_bits(key, like.shape))


def _run_of(like: Any) -> Run:
    if not isinstance(like, Value):
        raise TypeError(f"`like` must be a value of the formula, got {type(like).__name__}")
    return like.run


def _named(name: str) -> Callable[..., Value]:
    def function(*given: Any, **options: Any) -> Value:
        return called(name, *given, **options)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"`samebits.core.primitives.{name}`."
    return function


globals().update({name: _named(name) for name in OPERANDS})


def __getattr__(name: str) -> Callable[..., Value]:
    raise AttributeError(f"`{name}` is no primitive; there are {', '.join(sorted(OPERANDS))}")
