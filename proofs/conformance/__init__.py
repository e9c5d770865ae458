"""Other people's quantizers: which arithmetic they compute, and test vectors that judge them. Imports `inputs` and
`modes`.

The room can be called: ``samebits.proofs.conformance(function, like=...)`` is `conform.conformance`, of the same name.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that is called as the function of its name; nothing is imported before."""

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        from .conform import conformance

        return conformance

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.__wrapped__(*arguments, **named)


sys.modules[__name__].__class__ = _Room
