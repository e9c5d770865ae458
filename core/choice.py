"""One check for every argument that names one of a few things."""

from enum import StrEnum
from typing import TypeVar

Kind = TypeVar("Kind", bound=StrEnum)


def choice(name: str, value: object, kind: type[Kind]) -> Kind:
    """The member of ``kind`` that ``value`` is or names. ValueError names the argument, the value and all members."""
    try:
        return kind(value)  # type: ignore[arg-type]  # any value may be asked for; what is no member is refused
    except ValueError:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, map(str, kind)))}; got {value!r}") from None
