"""Which layers of a model are quantized, and how: rules by the names of layers, the same for models of both frameworks.

All rules that fit a layer apply, in their order: later keywords replace earlier ones, and ``<role>_quant`` begins anew
with that quantizer. A rule by which layers stay counts before all others, wherever it stands.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .choice import fits

Keywords = Mapping[str, Any] | None
Given = Sequence[tuple[str, Keywords]]  # pattern and keywords; None: layers that fit stay as they are


@dataclass(frozen=True, init=False)
class Rule:
    """Keywords for the layers whose name, or that of a module around them, fits a pattern.

    ``Rule("head", weight_bits=4)`` is the item ``"head": {"weight_bits": 4}`` of a mapping of rules, and
    ``Rule("head", stays=True)`` is ``"head": None``.

    Attributes:
        path: as `samebits.core.choice.fits` has patterns: of `fnmatch`, in which ``*`` stands for dots too, or ``re:``
            and a regular expression for the whole name.
        stays: whether these layers stay as they are.
        items: keywords of layers and their values.
    Raises:
        TypeError: a path that is no text, or keywords for layers that stay. ValueError: no regular expression.
    """

    path: str
    stays: bool
    items: tuple[tuple[str, Any], ...]

    def __init__(self, path: str, *, stays: bool = False, **keywords: Any) -> None:
        check_pattern(path)
        if not isinstance(stays, bool):
            raise TypeError(f"`stays` must be True or False, got {stays!r}")
        if stays and keywords:
            raise TypeError(f"the rule '{path}': layers that stay take no keywords, got `{next(iter(keywords))}`")
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "stays", stays)
        object.__setattr__(self, "items", tuple(keywords.items()))

    @property
    def keywords(self) -> Keywords:
        """For the layers that fit; None if these stay."""
        return None if self.stays else dict(self.items)


Rules = Mapping[str, Keywords] | Sequence[Rule]


def check_pattern(pattern: object) -> None:
    """TypeError unless it is text, ValueError for ``re:`` and no regular expression."""
    if not isinstance(pattern, str):
        raise TypeError(f"`path` of a rule must be a pattern of names, a str, got {pattern!r}")
    try:
        re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
    except re.error as error:
        raise ValueError(
            f"`path` of a rule must be a regular expression behind 're:', got {pattern!r}: {error}"
        ) from error


def given_rules(rules: Rules | None, exclude: Sequence[str] = ()) -> Given:
    """Rules as pairs, in their order.

    Args:
        rules: a mapping from patterns to keywords or None, or `Rule` after `Rule`. None: no rules.
        exclude: patterns of layers that stay.
    Raises:
        TypeError, ValueError: what are no rules, as `Rule`; a text in the place of several patterns.
    """
    if isinstance(exclude, str):
        raise TypeError(f"`exclude` must be a sequence of patterns, got {exclude!r}")
    if isinstance(rules, Mapping):
        pairs: list[tuple[str, Keywords]] = list(rules.items())
    else:
        if isinstance(rules, str | Rule) or not isinstance(rules, Sequence | None):
            raise TypeError(
                f"`rules` must be a mapping from patterns to keywords, or a sequence of Rule, got {rules!r}"
            )
        for rule in rules or ():
            if not isinstance(rule, Rule):
                raise TypeError(f"`rules` must hold a Rule after the other, got {rule!r}")
        pairs = [(rule.path, rule.keywords) for rule in rules or ()]
    pairs += [(pattern, None) for pattern in exclude]
    for pattern, keywords in pairs:
        check_pattern(pattern)
        if not isinstance(keywords, Mapping | None):
            raise TypeError(f"the rule '{pattern}' must give keywords or None, got {keywords!r}")
    return pairs


def check_rules(given: Given, places: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Whether rules say something of a model.

    Args:
        places: the names of layers, and the roles of their quantizers: ``("weight", "input")``.
    Raises:
        ValueError: a pattern that fits no layer. TypeError: a keyword that no layer that fits takes.
    """
    for pattern, keywords in given:
        fitting = [roles for name, roles in places if fits(pattern, name)]
        if not fitting:
            names = ", ".join(f"'{name}'" for name, _ in places)
            raise ValueError(
                f"the rule '{pattern}' fits no layer; layers are {names or 'none that is not quantized yet'}"
            )
        taken = {role for roles in fitting for role in roles}
        for keyword in keywords or {}:
            if keyword.partition("_")[0] not in taken:
                allowed = ", ".join(f"`{role}_`" for role in sorted(taken))
                raise TypeError(f"the rule '{pattern}': no layer takes `{keyword}`; prefixes are {allowed}")


def keywords_of(name: str, roles: Sequence[str], given: Given) -> dict[str, Any] | None:
    """The keywords of a layer by the rules; None if it stays, as one of activations alone does without keywords."""
    found = dict[str, Any]()
    for pattern, keywords in given:
        if not fits(pattern, name):
            continue
        if keywords is None:
            return None
        own = {keyword: value for keyword, value in keywords.items() if keyword.partition("_")[0] in roles}
        renewed = {role for role in roles if f"{role}_quant" in own}
        found = {keyword: value for keyword, value in found.items() if keyword.partition("_")[0] not in renewed}
        found |= own
    return None if tuple(roles) == ("act",) and not found else found
