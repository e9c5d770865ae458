"""Formulas while dynamo traces them: examined on tensors without data, for errors that say their line.

Dynamo follows a formula by itself, and tells of what it cannot follow in its own words. So, before, the formula runs
once as in eager code, on the ``meta`` device. Nothing of this is in the compiled program.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..core.formula_errors import LocatedTypeError, LocatedValueError
from ..core.formula_values import Run
from ..core.prototype import Prototype


def examine(prototype: Prototype, options: Mapping[str, Any], names: tuple[str, ...], tensors: Any, both: bool) -> None:
    """Raises what the formula raises, and its gradient too if ``both``. Only for dynamo to trace.

    Args:
        tensors: x, and what is named by ``names``.
    Raises:
        TypeError: with file and line; of a class that dynamo lets pass.
    """
    from torch._dynamo.comptime import comptime

    comptime(_examined)


def examine_start(prototype: Prototype, name: str, options: Mapping[str, Any], x: Any) -> None:
    """Raises what the formula raises where a parameter begins. Only for dynamo to trace.

    Raises:
        TypeError, ValueError: as `examine`.
    """
    from torch._dynamo.comptime import comptime

    comptime(_examined_start)


def _examined(context: Any) -> None:
    _judge(context, ("prototype", "options", "names", "tensors", "both"), _run)


def _examined_start(context: Any) -> None:
    _judge(context, ("prototype", "name", "options", "x"), _start)


def _judge(context: Any, arguments: tuple[str, ...], run: Callable[..., None]) -> None:
    """Reads arguments in terms of dynamo. If these have changed, dynamo is left to itself."""
    try:
        error = _error(run, *(_value(context.get_local(name)) for name in arguments))
    except (AttributeError, KeyError, NotImplementedError, torch._dynamo.exc.TorchDynamoException):
        return
    if error is not None:
        raise error


def _value(given: Any) -> Any:
    """What a variable of dynamo stands for; tensors without their data."""
    variable = getattr(given, "_i_will_not_complain_if_bc_breaks_VariableTracker", lambda: given)()
    if variable.is_tensor():
        fake = variable.as_proxy().node.meta["example_value"]
        return torch.empty([_size(n) for n in fake.shape], dtype=fake.dtype, device="meta")
    if variable.is_python_constant():
        return variable.as_python_constant()
    if hasattr(variable, "sym_num"):
        return _size(variable.sym_num)
    if isinstance(getattr(variable, "items", None), list | tuple):
        return tuple(map(_value, variable.items))
    if isinstance(getattr(variable, "items", None), dict):
        return {key.vt.as_python_constant(): _value(value) for key, value in variable.items.items()}
    return variable.value


def _size(n: Any) -> Any:
    """A length that may vary, as it is in this call."""
    return n.node.hint if isinstance(n, torch.SymInt | torch.SymFloat) else n


def _run(prototype: Prototype, options: Mapping[str, Any], names: tuple[str, ...], tensors: Any, both: bool) -> None:
    from .prototypes import ROOM

    x, *others = tensors
    seed = torch.empty((), dtype=torch.int64, device="meta")
    arrays = {name: seed if isinstance(v, int) else v for name, v in zip(names, others, strict=True)}
    prototype.run(Run(ROOM), x, arrays, options)
    if both:
        prototype.pull(Run(ROOM, keeps_steps=True), x, arrays, options, torch.empty_like(x))


def _start(prototype: Prototype, name: str, options: Mapping[str, Any], x: Any) -> None:
    from .prototypes import ROOM

    prototype.initial(name, ROOM, x, options)


def _error(run: Callable[..., None], *arguments: Any) -> Exception | None:
    """What the formula raises on such tensors, if that has a line."""
    try:
        with torch.no_grad():
            run(*arguments)
    except (LocatedTypeError, LocatedValueError) as error:
        if isinstance(error.__cause__, RuntimeError):  # of torch itself, perhaps of this device
            return None
        found: Exception = _of_dynamo(type(error))(str(error))
        return found
    return None


def _of_dynamo(kind: type[Exception]) -> Any:
    """The class as one of dynamo's too, which reaches the caller as it is."""
    return type(kind.__name__, (kind, torch._dynamo.exc.TorchRuntimeError), {"__doc__": kind.__doc__})
