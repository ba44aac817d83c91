"""Policies, and what follows from score and rules."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.rules.compiled import CompiledRules, compile_rules
from stream.rules.errors import RulesRefused
from stream.rules.policy import (
    DEFAULT_POLICY,
    VERDICTS,
    Policy,
    check_policy,
    decode_policy,
    model_ready,
    outcome,
    policy_bytes,
    policy_version,
    verdict,
    verdicts,
)
from stream.rules.ruleset import Condition, Rule, RuleSet

ACTIONS = ("review", "challenge", "decline", "challenge")


def _rules() -> CompiledRules:
    when = (Condition(feature="x", op="gt", value=1.0),)
    return compile_rules(
        RuleSet(rules=tuple(Rule(code=f"r{i}", title="t", when=when, action=a) for i, a in enumerate(ACTIONS))),
        ("x",),
    )


RULES = _rules()
POLICY = Policy(challenge_from=0.2, review_from=0.5, decline_from=0.8)


@pytest.mark.parametrize(
    ("hits", "expected"),
    [
        (0, "approve"),
        (0b0010, "challenge"),
        (0b0001, "review"),
        (0b0100, "decline"),
        (0b1011, "review"),
        (0b1111, "decline"),
    ],
)
def test_the_severest_rule_stands(hits: int, expected: str) -> None:
    assert verdict(None, hits, RULES, POLICY, model_ready=True) == expected


@pytest.mark.parametrize(("threshold", "code"), [(0.2, 1), (0.5, 2), (0.8, 3)])
def test_the_model_is_silent_below_its_threshold_and_speaks_at_it(threshold: float, code: int) -> None:
    below = float(np.nextafter(threshold, 0.0))
    assert verdict(below, 0, RULES, POLICY, model_ready=True) == VERDICTS[code - 1]
    assert verdict(threshold, 0, RULES, POLICY, model_ready=True) == VERDICTS[code]


def test_neither_softens_the_other() -> None:
    assert verdict(0.9, 0b0010, RULES, POLICY, model_ready=True) == "decline"
    assert verdict(0.3, 0b0100, RULES, POLICY, model_ready=True) == "decline"


def test_a_model_that_is_not_ready_or_gives_no_number_leaves_it_to_the_rules() -> None:
    assert verdict(0.99, 0b0010, RULES, POLICY, model_ready=False) == "challenge"
    assert verdict(float("nan"), 0, RULES, POLICY, model_ready=True) == "approve"
    assert verdict(None, 0, RULES, POLICY, model_ready=True) == "approve"


def test_the_model_is_ready_at_its_minimum_of_matured_frauds() -> None:
    policy = Policy(matured_frauds_min=10)
    assert not model_ready(policy, 9)
    assert model_ready(policy, 10)


def test_a_threshold_of_none_never_speaks() -> None:
    policy = Policy(challenge_from=None, review_from=0.5, decline_from=None)
    assert verdict(1.0, 0, RULES, policy, model_ready=True) == "review"
    assert verdict(0.4, 0, RULES, policy, model_ready=True) == "approve"


def test_shadow_is_the_default_and_lets_everything_through() -> None:
    assert DEFAULT_POLICY.mode == "shadow"
    for each in VERDICTS:
        assert outcome(each, "shadow") == "approve"
        assert outcome(each, "enforce") == each


_THRESHOLDS = st.lists(st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.5, 0.8, 1.0])), min_size=3, max_size=3).filter(
    lambda three: all(a <= b for a, b in pairwise([t for t in three if t is not None]))
)
_PROBABILITIES = st.sampled_from([float("nan"), 0.0, 0.1, 0.19, 0.2, 0.5, 0.8, 0.81, 1.0])


@settings(deadline=None)
@given(
    thresholds=_THRESHOLDS,
    payments=st.lists(st.tuples(_PROBABILITIES, st.integers(0, 15), st.booleans()), max_size=30),
)
def test_the_batch_gives_what_each_payment_gets_alone(
    thresholds: list[float | None], payments: list[tuple[float, int, bool]]
) -> None:
    policy = Policy(challenge_from=thresholds[0], review_from=thresholds[1], decline_from=thresholds[2])
    check_policy(policy)
    probabilities = np.array([p for p, _, _ in payments], dtype=np.float64)
    hits = np.array([h for _, h, _ in payments], dtype=np.uint64)
    ready = np.array([r for _, _, r in payments], dtype=np.bool_)
    codes = verdicts(probabilities, hits, RULES, policy, ready)
    assert codes.dtype == np.int8
    assert [VERDICTS[code] for code in codes] == [verdict(p, h, RULES, policy, r) for p, h, r in payments]
    for one_for_all in (True, False):
        together = verdicts(probabilities, hits, RULES, policy, one_for_all)
        assert [VERDICTS[code] for code in together] == [
            verdict(p, h, RULES, policy, one_for_all) for p, h, _ in payments
        ]


def test_the_batch_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match=r"float64\[n\]"):
        verdicts(np.zeros(2), np.zeros(3, dtype=np.uint64), RULES, POLICY, True)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"challenge_from": 0}', "$.challenge_from"),
        (b'{"decline_from": 1.01}', "$.decline_from"),
        (b'{"challenge_from": 0.6}', "$.review_from"),
        (b'{"review_from": null, "challenge_from": 0.9}', "$.decline_from"),
        (b'{"matured_frauds_min": -1}', "$.matured_frauds_min"),
        (b'{"mode": "on"}', "$.mode"),
        (b'{"threshold": 1}', "$"),
        (b"", "$"),
        (b"\xff", "$"),
        (b" " * 4_097, "$"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_with_its_path(body: bytes, path: str) -> None:
    with pytest.raises(RulesRefused) as caught:
        decode_policy(body)
    assert caught.value.path == path


def test_a_policy_comes_back_from_its_bytes_and_its_version_is_its_meaning() -> None:
    assert decode_policy(policy_bytes(POLICY)) == POLICY
    assert policy_version(decode_policy(b'{"decline_from": 1}')) == policy_version(Policy(decline_from=1.0))
    versions = {
        policy_version(policy)
        for policy in (Policy(), Policy(mode="enforce"), Policy(decline_from=None), Policy(matured_frauds_min=99))
    }
    assert len(versions) == 4


def test_policy_versions_in_old_journals_stay_what_they_are() -> None:
    # The canonical bytes leave defaults out, so the defaults themselves are part of the layout.
    assert msgspec.structs.astuple(DEFAULT_POLICY) == (0.2, 0.5, 0.8, "shadow", 100, 1)
    assert policy_bytes(DEFAULT_POLICY) == b"{}"
    assert policy_version(DEFAULT_POLICY) == "01e7b720ff566d53"
