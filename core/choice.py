"""Checks of arguments that are one of a few things, or counts."""

import re
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TypeVar

Kind = TypeVar("Kind", bound=StrEnum)


def choice(name: str, value: object, kind: type[Kind]) -> Kind:
    """The member of ``kind`` that ``value`` is or names. ValueError names the argument, the value and all members."""
    try:
        return kind(value)  # type: ignore[arg-type]  # any value may be asked for; what is no member is refused
    except ValueError:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, map(str, kind)))}; got {value!r}") from None


def check_int(name: str, value: object) -> None:
    """TypeError unless ``value`` is an int: descriptions are compared, hashed and written down."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an int, got {value!r}")


def check_number(name: str, value: object) -> None:
    """TypeError unless ``value`` is an int or a float."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a number, got {value!r}")


def check_count(name: str, value: int, least: int) -> None:
    """TypeError unless ``value`` is an int, ValueError if it is below ``least``."""
    check_int(name, value)
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}")


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern fits a name of parts joined by dots, or that of something around it.

    Patterns are those of `fnmatch`, in which ``*`` stands for dots too, or ``re:`` and a regular expression for the
    whole name.
    """
    parts = name.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    if pattern.startswith("re:"):
        return any(re.fullmatch(pattern[3:], one) for one in names)
    return any(fnmatchcase(one, pattern) for one in names)
