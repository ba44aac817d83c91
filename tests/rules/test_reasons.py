"""Reason codes: which, how many, in which order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.rules.compiled import CompiledRules, compile_rules
from stream.rules.reasons import reason_codes
from stream.rules.ruleset import Condition, Rule, RuleSet
from topics.decision import REASONS_MAX

ACTIONS = ("challenge", "decline", "review", "decline", "review", "challenge", "decline")


def _rules() -> CompiledRules:
    when = (Condition(feature="x", op="gt", value=1.0),)
    return compile_rules(
        RuleSet(rules=tuple(Rule(code=f"r{i}", title="t", when=when, action=a) for i, a in enumerate(ACTIONS))),
        ("x",),
    )


RULES = _rules()
GROUPS = ("amount", "velocity", "amount", "terminal", "habit", "time")


def test_rules_come_first_by_severity_then_by_their_order() -> None:
    assert reason_codes(0b1111111, RULES, None, GROUPS) == ("r1", "r3", "r6", "r2", "r4")
    assert reason_codes(0b0100001, RULES, [0.0, 9.0, 0, 0, 0, 0], GROUPS) == ("r0", "r5", "velocity")


def test_the_largest_positive_contributions_speak_and_each_group_once() -> None:
    assert reason_codes(0, RULES, [0.5, 0.1, 2.0, -3.0, 0.0, 0.7], GROUPS) == ("amount", "time", "velocity")


def test_equal_contributions_keep_the_order_of_the_features() -> None:
    assert reason_codes(0, RULES, [1.0] * 6, GROUPS) == ("amount", "velocity", "terminal", "habit", "time")


def test_a_model_without_a_say_and_contributions_that_are_no_number_give_no_reason() -> None:
    assert reason_codes(0, RULES, None, GROUPS) == ()
    assert reason_codes(0, RULES, [float("nan")] * 6, GROUPS) == ()


def test_a_code_of_a_rule_is_not_repeated_by_the_model() -> None:
    assert reason_codes(0b10, RULES, [1.0, 2.0], ["r1", "velocity"]) == ("r1", "velocity")


def test_unequal_lengths_are_the_programmers_error() -> None:
    with pytest.raises(ValueError, match="2 contributions, but 6 groups"):
        reason_codes(0, RULES, [1.0, 2.0], GROUPS)


@given(st.integers(0, 127), st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_at_most_five_and_none_twice(hits: int, contributions: list[float]) -> None:
    codes = reason_codes(hits, RULES, contributions, GROUPS)
    assert len(codes) <= REASONS_MAX
    assert len(set(codes)) == len(codes)
