"""Each default rule: silent at its limits, and speaks one above."""

from typing import Final

import numpy as np
import pytest

from stream.features import ENTITY_FEATURES, PAYMENT_FEATURES
from stream.rules.compiled import CompiledRules, compile_rules
from stream.rules.default import DEFAULT_RULES
from stream.rules.ruleset import canonical_bytes, decode_ruleset
from stream.stages.control import FULL_NAMES
from topics.reasons import REASONS

RULES: Final[CompiledRules] = compile_rules(DEFAULT_RULES, FULL_NAMES)

# Rule -> a payment on which it speaks. Every other feature is absent.
SPEAKS: Final[dict[str, dict[str, float]]] = {
    "account_at_risk_amount": {
        "account_frauds_known_30d_count": 2,
        "account_amount_ratio": 4.5,
        "account_amount_z": 6,
    },
    "account_at_risk": {"account_frauds_known_30d_count": 2, "account_amount_ratio": 3},
    "terminal_fraud_run": {"terminal_fraud_run_count": 3},
    "terminal_fraud_share": {"terminal_fraud_28d_share": 0.4, "terminal_frauds_last_5_count": 2},
    "amount_above_habit": {"account_amount_ratio": 5, "account_amount_z": 5, "amount": 15_000},
    "new_account_large_amount": {"account_age_s": 0, "amount": 60_000, "account_coverage_30d_share": 1},
    "velocity_1h": {"account_payments_1h_count": 11},
    "velocity_5m": {"account_payments_5m_count": 6},
    "impossible_travel": {"account_speed_kmh": 2_000, "account_distance_km": 900},
}


def _hits(features: dict[str, float]) -> set[str]:
    row = np.full((1, len(FULL_NAMES)), np.nan, dtype=np.float32)
    for name, value in features.items():
        row[0, FULL_NAMES.index(name)] = value
    mask = int(RULES.evaluate(row)[0][0])
    return {code for index, code in enumerate(RULES.codes) if mask >> index & 1}


# Rule, feature, a value on which the rule is silent, the next that matters, on which it speaks. Written out, and
# not taken from the rules: a limit or an operator that changes there must be changed here as well.
LIMITS: Final = [
    ("account_at_risk_amount", "account_frauds_known_30d_count", 1, 2),
    ("account_at_risk_amount", "account_amount_ratio", 4.0, 4.001),
    ("account_at_risk_amount", "account_amount_z", 4.0, 4.001),
    ("account_at_risk", "account_frauds_known_30d_count", 1, 2),
    ("account_at_risk", "account_amount_ratio", 2.5, 2.501),
    ("terminal_fraud_run", "terminal_fraud_run_count", 2, 3),
    ("terminal_fraud_share", "terminal_fraud_28d_share", 0.3, 0.301),
    ("terminal_fraud_share", "terminal_frauds_last_5_count", 1, 2),
    ("amount_above_habit", "account_amount_ratio", 4.0, 4.001),
    ("amount_above_habit", "account_amount_z", 4.0, 4.001),
    ("amount_above_habit", "amount", 10_000, 10_001),
    ("new_account_large_amount", "account_age_s", 604_800, 604_799),
    ("new_account_large_amount", "amount", 50_000, 50_001),
    ("new_account_large_amount", "account_coverage_30d_share", 0.499, 0.5),
    ("velocity_1h", "account_payments_1h_count", 10, 11),
    ("velocity_5m", "account_payments_5m_count", 5, 6),
    ("impossible_travel", "account_speed_kmh", 1_000, 1_001),
    ("impossible_travel", "account_distance_km", 300, 301),
]
ACTIONS: Final = {
    "account_at_risk_amount": "decline",
    "account_at_risk": "review",
    "terminal_fraud_run": "review",
    "terminal_fraud_share": "challenge",
    "amount_above_habit": "review",
    "new_account_large_amount": "review",
    "velocity_1h": "review",
    "velocity_5m": "challenge",
    "impossible_travel": "review",
}


def test_every_default_rule_has_an_example() -> None:
    assert set(SPEAKS) == set(RULES.codes)


@pytest.mark.parametrize("code", SPEAKS)
def test_a_rule_speaks_on_its_example(code: str) -> None:
    assert code in _hits(SPEAKS[code])


CONDITIONS: Final = [(rule.code, index) for rule in DEFAULT_RULES.rules for index in range(len(rule.when))]


def test_every_condition_has_its_limit_written_out() -> None:
    written = [(code, feature) for code, feature, _, _ in LIMITS]
    assert written == [(rule.code, condition.feature) for rule in DEFAULT_RULES.rules for condition in rule.when]


def test_every_rule_asks_for_what_is_written_here() -> None:
    assert {rule.code: rule.action for rule in DEFAULT_RULES.rules} == ACTIONS
    assert all(rule.enabled for rule in DEFAULT_RULES.rules)


@pytest.mark.parametrize(("code", "feature", "silent", "speaks"), LIMITS)
def test_a_rule_is_silent_at_each_limit_and_speaks_one_above(
    code: str, feature: str, silent: float, speaks: float
) -> None:
    assert code not in _hits(SPEAKS[code] | {feature: silent})
    assert code in _hits(SPEAKS[code] | {feature: speaks})


@pytest.mark.parametrize(("code", "index"), CONDITIONS)
def test_a_rule_is_silent_when_a_feature_is_absent(code: str, index: int) -> None:
    condition = next(rule for rule in DEFAULT_RULES.rules if rule.code == code).when[index]
    assert code not in _hits(SPEAKS[code] | {condition.feature: float("nan")})


def test_nothing_is_known_and_nothing_speaks() -> None:
    assert _hits({}) == set()


def test_an_ordinary_payment_hits_nothing() -> None:
    ordinary = dict.fromkeys(FULL_NAMES, 0.0) | {
        "account_payments_5m_count": 1, "account_payments_1h_count": 1, "account_age_s": 8e6, "amount": 4_500,
        "account_amount_ratio": 1.1, "account_amount_z": 0.3, "account_coverage_30d_share": 1,
        "terminal_fraud_28d_share": 0.01, "account_speed_kmh": 30, "account_distance_km": 4,
    }  # fmt: skip
    assert _hits(ordinary) == set()


def test_the_cold_start_is_not_mistaken_for_new_accounts() -> None:
    cold = SPEAKS["new_account_large_amount"] | {"account_coverage_30d_share": 0.1}
    assert _hits(cold) == set()


def test_the_defaults_travel_as_json() -> None:
    assert decode_ruleset(canonical_bytes(DEFAULT_RULES)) == DEFAULT_RULES


def test_the_defaults_also_fit_the_full_row() -> None:
    entity = [feature.name for feature in ENTITY_FEATURES]
    names = [f"account_{name}" for name in entity] + [f"terminal_{name}" for name in entity]
    compile_rules(DEFAULT_RULES, names + [feature.name for feature in PAYMENT_FEATURES])


@pytest.mark.parametrize("code", RULES.codes)
def test_a_rules_code_is_a_reason_of_the_catalogue(code: str) -> None:
    assert code in REASONS
