"""Rule sets as data: what is refused, where, and what a version stands for."""

import json

import msgspec
import pytest

from stream.rules.errors import RulesRefused
from stream.rules.ruleset import (
    CONDITIONS_PER_RULE_MAX,
    RULES_MAX,
    RULESET_BYTES_MAX,
    Condition,
    Rule,
    RuleSet,
    canonical_bytes,
    check_ruleset,
    decode_ruleset,
    ruleset_version,
)


def _rule(**changes: object) -> dict[str, object]:
    rule: dict[str, object] = {
        "code": "burst",
        "title": "Many payments",
        "when": [{"feature": "count", "op": "gt", "value": 5}],
        "action": "review",
    }
    return rule | changes


def _body(*rules: dict[str, object]) -> bytes:
    return json.dumps({"rules": rules}).encode()


def _refusal(body: bytes) -> RulesRefused:
    with pytest.raises(RulesRefused) as caught:
        decode_ruleset(body)
    return caught.value


def test_a_rule_set_comes_back_from_its_bytes() -> None:
    ruleset = decode_ruleset(_body(_rule(near=0.5, enabled=False), _rule(code="other")))
    assert decode_ruleset(canonical_bytes(ruleset)) == ruleset
    assert ruleset.rules[0] == Rule(
        code="burst",
        title="Many payments",
        when=(Condition(feature="count", op="gt", value=5.0),),
        action="review",
        near=0.5,
        enabled=False,
    )


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        (_rule(code="Burst"), "$.rules[1].code"),
        (_rule(code="a" * 49), "$.rules[1].code"),
        (_rule(title=""), "$.rules[1].title"),
        (_rule(title="x" * 121), "$.rules[1].title"),
        (_rule(near=0.0), "$.rules[1].near"),
        (_rule(near=1.1), "$.rules[1].near"),
        (_rule(when=[]), "$.rules[1].when"),
        (_rule(when=_rule()["when"] * (CONDITIONS_PER_RULE_MAX + 1)), "$.rules[1].when"),  # type: ignore[operator]
        (_rule(when=[{"feature": "", "op": "gt"}]), "$.rules[1].when[0].feature"),
        (_rule(when=[{"feature": "f" * 65, "op": "gt"}]), "$.rules[1].when[0].feature"),
        (_rule(when=[{"feature": "f", "op": "absent", "value": 1}]), "$.rules[1].when[0].value"),
        (_rule(when=[{"feature": "f", "op": "gt", "value": 1e39}]), "$.rules[1].when[0].value"),
        (_rule(when=[{"feature": "f", "op": "above", "value": 1}]), "$.rules[1].when[0].op"),
        (_rule(when=[{"feature": "f", "op": "gt", "value": "1"}]), "$.rules[1].when[0].value"),
        (_rule(action="approve"), "$.rules[1].action"),
        (_rule(actoin="review"), "$.rules[1]"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_path(rule: dict[str, object], path: str) -> None:
    refusal = _refusal(_body(_rule(code="first"), rule))
    assert refusal.path == path
    assert str(refusal).endswith(f" - at `{path}`")


def test_a_code_that_is_taken_names_the_rule_that_has_it() -> None:
    refusal = _refusal(_body(_rule(), _rule(code="other"), _rule()))
    assert refusal.path == "$.rules[2].code"
    assert "$.rules[0]" in refusal.what


def test_sixty_four_rules_pass_and_sixty_five_do_not() -> None:
    codes = [f"r{index}" for index in range(RULES_MAX + 1)]
    assert len(decode_ruleset(_body(*(_rule(code=code) for code in codes[:-1]))).rules) == RULES_MAX
    assert _refusal(_body(*(_rule(code=code) for code in codes))).path == "$.rules"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"rules": 1}', b'{"rules": [], "layout": 2}', b"\xff", b"null"])
def test_foreign_bytes_are_refused_by_name(body: bytes) -> None:
    assert _refusal(body).path.startswith("$")


def test_deep_and_long_bodies_are_refused() -> None:
    assert _refusal(b'{"rules": ' + b"[" * 5_000)
    assert str(RULESET_BYTES_MAX) in _refusal(b" " * (RULESET_BYTES_MAX + 1)).what


def test_nan_and_infinite_limits_are_refused() -> None:
    for limit in (float("nan"), float("inf")):
        condition = Condition(feature="f", op="gt", value=limit)
        rule = Rule(code="a", title="t", when=(condition,), action="review")
        with pytest.raises(RulesRefused, match="not a finite float32"):
            check_ruleset(RuleSet(rules=(rule,)))


def test_a_version_is_that_of_the_meaning_not_of_the_spelling() -> None:
    spelled = decode_ruleset(_body(_rule()))
    defaults_written = b" " + _body(
        _rule(near=0.9, enabled=True, when=[{"op": "gt", "value": 5.0, "feature": "count"}])
    )
    assert ruleset_version(decode_ruleset(defaults_written)) == ruleset_version(spelled)
    with_int = RuleSet(
        rules=(
            Rule(
                code="burst",
                title="Many payments",
                when=(Condition(feature="count", op="gt", value=5),),
                action="review",
            ),
        )
    )
    assert ruleset_version(with_int) == ruleset_version(spelled)


@pytest.mark.parametrize(
    "change",
    [
        {"code": "other"},
        {"title": "Other"},
        {"action": "decline"},
        {"near": 0.8},
        {"enabled": False},
        {"when": [{"feature": "count", "op": "gt", "value": 6}]},
        {"when": [{"feature": "count", "op": "ge", "value": 5}]},
    ],
)
def test_every_change_of_a_rule_changes_the_version(change: dict[str, object]) -> None:
    assert ruleset_version(decode_ruleset(_body(_rule(**change)))) != ruleset_version(decode_ruleset(_body(_rule())))


def test_versions_in_old_journals_stay_what_they_are() -> None:
    # A change here means that a default or the layout has changed, and old journals no longer replay.
    assert canonical_bytes(decode_ruleset(_body(_rule()))) == (
        b'{"rules":[{"code":"burst","title":"Many payments",'
        b'"when":[{"feature":"count","op":"gt","value":5.0}],"action":"review"}]}'
    )
    assert ruleset_version(decode_ruleset(_body(_rule()))) == "b6fd3959b255af88"


def test_defaults_that_canonical_bytes_leave_out_never_change() -> None:
    condition = Condition(feature="f", op="gt")
    rule = Rule(code="a", title="t", when=(), action="review")
    assert (condition.value, rule.near, rule.enabled, RuleSet(rules=()).layout) == (0.0, 0.9, True, 1)


def test_rule_sets_are_frozen() -> None:
    ruleset = decode_ruleset(_body(_rule()))
    with pytest.raises(AttributeError):
        ruleset.rules = ()  # type: ignore[misc]
    assert msgspec.structs.asdict(ruleset)["layout"] == 1
