"""Rules by the names of layers: what fits, in which order, and what are none."""

from typing import Any

import pytest

from samebits.core import Rule
from samebits.core.rules import check_rules, given_rules, keywords_of

LINEAR, ACT = ("weight", "bias", "input", "output"), ("act",)


def test_a_rule_is_a_value_and_an_item_of_a_mapping() -> None:
    rule = Rule("mlp.*", weight_bits=4, input_quant=None)
    assert rule == Rule("mlp.*", weight_bits=4, input_quant=None) != Rule("mlp.*", weight_bits=4)
    assert len({rule, Rule("mlp.*", weight_bits=4, input_quant=None)}) == 1
    rules = [rule, Rule("head"), Rule("embed", stays=True)]
    mapping = {"mlp.*": {"weight_bits": 4, "input_quant": None}, "head": {}, "embed": None}
    assert given_rules(rules, ["a"]) == given_rules(mapping, ("a",)) == [*mapping.items(), ("a", None)]
    assert given_rules(None) == given_rules([]) == given_rules({}) == []
    twice = [Rule("*", weight_bits=4), Rule("*", input_bits=4)]
    assert [pattern for pattern, _ in given_rules(twice)] == ["*", "*"], "what a mapping cannot say"


def test_all_that_fit_apply_in_their_order() -> None:
    given = given_rules(
        [
            Rule("*", weight_quant="int8_per_channel", weight_bits=4, input_bits=6, act_bits=5),
            Rule(r"re:mlp\.\d", weight_bits=3),
            Rule("mlp.1", weight_quant="int8_per_tensor", weight_narrow=True),
            Rule("mlp.2", stays=True),
            Rule("mlp", output_bits=8),
        ]
    )
    both = {"input_bits": 6, "output_bits": 8}
    assert keywords_of("mlp.0", LINEAR, given) == {"weight_quant": "int8_per_channel", "weight_bits": 3, **both}
    assert keywords_of("mlp.1", LINEAR, given) == {"weight_quant": "int8_per_tensor", "weight_narrow": True, **both}
    assert keywords_of("mlp.2", LINEAR, given) is None, "also where a later rule fits"
    assert keywords_of("head", ACT, given) == {"act_bits": 5}
    assert keywords_of("head", ACT, given[1:]) is None
    assert keywords_of("head", LINEAR, given[1:]) == {}


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: Rule(3), TypeError, "`path` of a rule must be a pattern of names, a str, got 3"),
    (lambda: Rule("re:("), ValueError, r"must be a regular expression behind 're:', got 're:\(': missing \)"),
    (lambda: Rule("a", stays=True, weight_bits=4), TypeError, "layers that stay take no keywords, got `weight_bits`"),
    (lambda: Rule("a", stays=None), TypeError, "`stays` must be True or False, got None"),
    (lambda: given_rules("head"), TypeError, "a mapping from patterns to keywords, or a sequence of Rule, got 'head'"),
    (lambda: given_rules(Rule("head")), TypeError, "or a sequence of Rule, got Rule"),
    (lambda: given_rules(["head"]), TypeError, "a Rule after the other, got 'head'"),  # type: ignore[list-item]
    (lambda: given_rules({"head": 4}), TypeError, "'head' must give keywords or None, got 4"),
    (lambda: given_rules(None, "head"), TypeError, "`exclude` must be a sequence of patterns, got 'head'"),
    (lambda: check_rules([("haed", {})], [("head", LINEAR)]), ValueError, "'haed' fits no layer; layers are 'head'"),
    (lambda: check_rules([("*", None)], []), ValueError, "fits no layer; layers are none"),
    (
        lambda: check_rules([("*", {"act_bits": 4})], [("head", LINEAR)]),
        TypeError,
        "no layer takes `act_bits`; prefixes",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED)
def test_what_are_no_rules(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
