"""Compiled rules: numba against plain Python, limits, near hits, absence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.rules.compiled import RuleHit, compile_rules
from stream.rules.errors import RulesRefused
from stream.rules.ruleset import Condition, Rule, RuleSet

NAMES = ("account_count_1h", "account_sum_1h", "terminal_count_1h")
NAN = float("nan")


def _set(*conditions: Condition, near: float = 0.9, enabled: bool = True) -> RuleSet:
    return RuleSet(rules=(Rule(code="a", title="t", when=conditions, action="review", near=near, enabled=enabled),))


def _rows(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def _one(ruleset: RuleSet, x: float) -> tuple[int, int]:
    compiled = compile_rules(ruleset, ("x",))
    hits, near = compiled.evaluate(_rows((x,)))
    plain_hits, plain_near = compiled.evaluate_plain(_rows((x,)))
    assert (hits.tolist(), near.tolist()) == (plain_hits.tolist(), plain_near.tolist())
    return int(hits[0]), int(near[0])


@pytest.mark.parametrize(
    ("op", "below", "at", "above"),
    [("gt", 0, 0, 1), ("ge", 0, 1, 1), ("lt", 1, 0, 0), ("le", 1, 1, 0), ("eq", 0, 1, 0)],
)
@pytest.mark.parametrize("limit", [5.0, 0.1, 0.0, -3.5, 1e30])
def test_silent_at_the_limit_and_speaks_beyond(op: str, below: int, at: int, above: int, limit: float) -> None:
    ruleset = _set(Condition(feature="x", op=op, value=limit), near=1.0)  # type: ignore[arg-type]
    feature = np.float32(limit)
    for x, speaks in (
        (float(np.nextafter(feature, np.float32(-np.inf))), below),
        (float(feature), at),
        (float(np.nextafter(feature, np.float32(np.inf))), above),
    ):
        assert _one(ruleset, x)[0] == speaks


@pytest.mark.parametrize("op", ["gt", "ge", "lt", "le", "eq"])
def test_an_absent_feature_satisfies_no_comparison(op: str) -> None:
    assert _one(_set(Condition(feature="x", op=op, value=0.0)), NAN) == (0, 0)  # type: ignore[arg-type]


def test_absent_and_present_are_each_others_opposite() -> None:
    for x, is_absent in ((NAN, 1), (0.0, 0), (float("inf"), 0), (-1.0, 0)):
        assert _one(_set(Condition(feature="x", op="absent")), x) == (is_absent, 0)
        assert _one(_set(Condition(feature="x", op="present")), x) == (1 - is_absent, 0)


@pytest.mark.parametrize(
    ("op", "limit", "far", "close"),
    [("gt", 10.0, 9.0, 9.1), ("lt", 10.0, 11.0, 10.9), ("gt", -10.0, -11.0, -10.9), ("lt", -10.0, -9.0, -9.1)],
)
def test_near_hits_lie_within_a_tenth_of_the_limit(op: str, limit: float, far: float, close: float) -> None:
    ruleset = _set(Condition(feature="x", op=op, value=limit))  # type: ignore[arg-type]
    assert _one(ruleset, far) == (0, 0)
    assert _one(ruleset, close) == (0, 1)
    assert _one(ruleset, limit) == (0, 1)


def test_a_near_fraction_of_one_is_never_near() -> None:
    assert _one(_set(Condition(feature="x", op="gt", value=10.0), near=1.0), 10.0) == (0, 0)


def test_all_conditions_must_hold_and_all_must_nearly_hold() -> None:
    two = (Condition(feature=NAMES[0], op="gt", value=10.0), Condition(feature=NAMES[2], op="gt", value=10.0))
    compiled = compile_rules(_set(*two), NAMES)
    hits, near = compiled.evaluate(_rows((11, 0, 11), (11, 0, 9.5), (9.5, 0, 9.5), (11, 0, 5), (11, 0, NAN)))
    assert hits.tolist() == [1, 0, 0, 0, 0]
    assert near.tolist() == [0, 1, 1, 0, 0]


def test_a_disabled_rule_keeps_its_bit_and_is_silent() -> None:
    when = (Condition(feature=NAMES[0], op="ge", value=1.0),)
    rules = [Rule(code=code, title="t", when=when, action="review", enabled=code != "b") for code in ("a", "b", "c")]
    compiled = compile_rules(RuleSet(rules=tuple(rules)), NAMES)
    for hits, near in (compiled.evaluate(_rows((1, 0, 0))), compiled.evaluate_plain(_rows((1, 0, 0)))):
        assert (hits.tolist(), near.tolist()) == ([0b101], [0])


def test_the_last_of_sixty_four_rules_has_the_highest_bit() -> None:
    when = (Condition(feature=NAMES[0], op="ge", value=1.0),)
    rules = tuple(Rule(code=f"r{i}", title="t", when=when, action="review") for i in range(64))
    compiled = compile_rules(RuleSet(rules=rules), NAMES)
    for hits, _ in (compiled.evaluate(_rows((1, 0, 0))), compiled.evaluate_plain(_rows((1, 0, 0)))):
        assert hits.tolist() == [2**64 - 1]
    assert compiled.mask_of("review") == 2**64 - 1


def test_an_empty_rule_set_and_an_empty_batch_are_fine() -> None:
    compiled = compile_rules(RuleSet(rules=()), NAMES)
    hits, near = compiled.evaluate(_rows((1, 2, 3)))
    assert (hits.tolist(), near.tolist()) == ([0], [0])
    assert len(compiled.evaluate(np.empty((0, 3), dtype=np.float32))[0]) == 0


def test_an_unknown_feature_is_refused_with_the_nearest_names() -> None:
    ruleset = _set(Condition(feature=NAMES[0], op="gt"), Condition(feature="acount_count_1h", op="gt"))
    with pytest.raises(RulesRefused, match=r"nearest are account_count_1h") as caught:
        compile_rules(ruleset, NAMES)
    assert caught.value.path == "$.rules[0].when[1].feature"


def test_a_disabled_rule_must_also_know_its_features() -> None:
    with pytest.raises(RulesRefused, match="unknown feature 'zzz' - at"):
        compile_rules(_set(Condition(feature="zzz", op="gt"), enabled=False), NAMES)


def test_rows_of_another_shape_or_type_are_refused() -> None:
    compiled = compile_rules(RuleSet(rules=()), NAMES)
    for rows in (np.zeros((1, 2), np.float32), np.zeros((1, 3)), np.zeros(3, np.float32)):
        with pytest.raises(ValueError, match="expected float32"):
            compiled.evaluate(rows)  # type: ignore[arg-type]


def test_rows_need_not_be_contiguous() -> None:
    compiled = compile_rules(_set(Condition(feature=NAMES[1], op="gt", value=1.0)), NAMES)
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    assert compiled.evaluate(wide[:, ::2])[0].tolist() == compiled.evaluate_plain(wide[:, ::2])[0].tolist() == [1, 1]


def test_describe_gives_values_and_limits_as_they_were_compared() -> None:
    when = (
        Condition(feature=NAMES[0], op="gt", value=0.1),
        Condition(feature=NAMES[1], op="absent"),
        Condition(feature=NAMES[2], op="present"),
    )
    compiled = compile_rules(_set(*when), NAMES)
    row = _rows((0.5, NAN, 3.0))[0]
    hits, _ = compiled.evaluate(row[None, :])
    assert compiled.describe(int(hits[0]), row) == [
        RuleHit(code="a", feature=NAMES[0], value=0.5, limit=float(np.float32(0.1))),
        RuleHit(code="a", feature=NAMES[1], value=None, limit=None),
        RuleHit(code="a", feature=NAMES[2], value=3.0, limit=None),
    ]
    assert compiled.describe(0, row) == []


# Few distinct values, so that features often meet limits and relaxed limits exactly.
_FLOATS = st.sampled_from(
    [NAN, 0.0, -0.0, 1.0, 0.9, 0.1, -1.0, -0.9, -1.1, 1.1, 5.0, 4.5, 1e-45, 3e38, float("inf"), -float("inf")]
)
_LIMITS = st.sampled_from([0.0, 1.0, 0.9, 0.1, -1.0, 5.0, 1e-45, 3.4e38, -3.4e38])


@st.composite
def _rulesets(draw: st.DrawFn) -> RuleSet:
    rules: list[Rule] = []
    for index in range(draw(st.integers(0, 6))):
        when: list[Condition] = []
        for _ in range(draw(st.integers(1, 4))):
            op = draw(st.sampled_from(["gt", "ge", "lt", "le", "eq", "absent", "present"]))
            value = 0.0 if op in ("absent", "present") else draw(_LIMITS)
            when.append(Condition(feature=draw(st.sampled_from(NAMES)), op=op, value=value))  # type: ignore[arg-type]
        near = draw(st.sampled_from([1.0, 0.9, 0.5, 1e-3]))
        enabled = draw(st.booleans())
        rules.append(Rule(code=f"r{index}", title="t", when=tuple(when), action="review", near=near, enabled=enabled))
    return RuleSet(rules=tuple(rules))


@settings(max_examples=300, deadline=None)
@given(ruleset=_rulesets(), rows=st.lists(st.tuples(_FLOATS, _FLOATS, _FLOATS), max_size=20))
def test_kernel_and_plain_python_agree_to_the_bit(ruleset: RuleSet, rows: list[tuple[float, ...]]) -> None:
    compiled = compile_rules(ruleset, NAMES)
    batch = np.array(rows, dtype=np.float32).reshape(-1, 3)
    hits, near = compiled.evaluate(batch)
    plain_hits, plain_near = compiled.evaluate_plain(batch)
    assert hits.tolist() == plain_hits.tolist()
    assert near.tolist() == plain_near.tolist()
    assert not np.any(hits & near), "a hit is no near hit"


@settings(max_examples=100, deadline=None)
@given(ruleset=_rulesets(), rows=st.lists(st.tuples(_FLOATS, _FLOATS, _FLOATS), min_size=1, max_size=20))
def test_a_payments_hits_do_not_depend_on_its_batch(ruleset: RuleSet, rows: list[tuple[float, ...]]) -> None:
    compiled = compile_rules(ruleset, NAMES)
    batch = np.array(rows, dtype=np.float32)
    hits, near = compiled.evaluate(batch)
    for index in range(len(batch)):
        one_hits, one_near = compiled.evaluate(batch[index : index + 1])
        assert (int(one_hits[0]), int(one_near[0])) == (int(hits[index]), int(near[index]))
