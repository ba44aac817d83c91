"""The terminal stage: decide, repeat, join labels, mature, correct."""

from base64 import b64decode
from typing import Any

import msgspec
import numpy as np
import pytest
from stage_bench import DAY_MS, NOW_MS, SENDER, Bench, Collected, causes, control, limits

from stream.rules.policy import Policy
from stream.rules.ruleset import Condition, Rule, RuleSet
from stream.stages import terminal
from stream.stages.keys import payment_hash
from stream.stages.stage import Step
from stream.stages.state import MemoryStore, State
from stream.stages.terminal import TerminalStage
from topics.journal import (
    EXAMPLE_CORRECTED,
    EXAMPLE_LABELLED,
    EXAMPLE_MATURED,
    EXAMPLE_UNLABELLED,
    Became,
    Clock,
    Example,
    Judged,
    Placed,
    Repeat,
    Tick,
)
from topics.payment import Payment

MATURITY_MS = 45 * DAY_MS
DECLINE_ALL = RuleSet(
    rules=(
        Rule(
            code="amount_high", title="All", when=(Condition(feature="amount", op="ge", value=0.0),), action="decline"
        ),
    )
)


@pytest.fixture(autouse=True)
def everything_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sampling: every silent payment teaches, with weight 10."""
    monkeypatch.setattr("stream.stages.pending.keep_legitimate", lambda _hash: 10.0)
    monkeypatch.setattr("stream.stages.pending.kept_legitimate", lambda hashes: np.ones(len(hashes), np.bool_))


def pid(number: int) -> bytes:
    return payment_hash("default", "a1", f"p{number}")


def placed(number: int, *, at_ms: int = NOW_MS, **changes: Any) -> Placed:
    fields: dict[str, Any] = {
        "payment_id": f"p{number}",
        "event_time": at_ms,
        "account_id": "a1",
        "amount": 1_000,
        "currency": "EUR",
        "terminal_id": "t1",
        **changes,
    }
    paid = Payment(**fields)
    block = b"\0" * 4 * len(terminal.ENTITY_FEATURES)
    return Placed(number, 0, at_ms, b"p" * 16, 0, number, pid(number), False, paid.amount, paid, [block])


def repeat(number: int, at_ms: int, first_at_ms: int = NOW_MS) -> Repeat:
    return Repeat(99, 0, at_ms, b"p" * 16, 1, 7, pid(number), first_at_ms, "default", "a1", f"p{number}")


def judged(number: int, fraud: bool | None, *, at_ms: int = NOW_MS + DAY_MS, provisional: bool = False) -> Judged:
    return Judged(0, 0, pid(number), NOW_MS, at_ms, fraud, provisional)


def clocks(at_ms: int) -> tuple[Clock, Clock]:
    return Clock(0, 1, 0, at_ms), Clock(0, 1, 1, at_ms)


def taught(out: Collected) -> list[tuple[int, bool, float]]:
    return [(e.kind, e.fraud, e.was_weight) for e in out.of(Example) if e.kind != EXAMPLE_UNLABELLED]


def matured(bench: Bench) -> Collected:
    return bench.feed(*clocks(NOW_MS + MATURITY_MS))


# ---- answers ----


def test_a_payment_is_answered_with_details_and_a_repeat_gets_the_same_bytes() -> None:
    bench = Bench("terminal")
    out = bench.feed(placed(1))
    again = bench.again().feed(repeat(1, NOW_MS + DAY_MS))
    first, second = (found.kept[0] for found in (out, again))
    assert [record[0] for record in out.kept] == ["decisions", "decision-details"]
    assert first[:4] == second[:4]
    assert (dict(first[4])["answer"], dict(second[4])["answer"]) == (b"first", b"repeat")
    assert dict(second[4])["origin"].endswith(b":1:7")


def test_a_repeat_is_answered_until_the_answer_expires() -> None:
    bench = Bench("terminal")
    bench.feed(placed(1))
    assert causes_of(bench.feed(repeat(1, NOW_MS + 7 * DAY_MS))) == [None]
    assert causes_of(bench.feed(repeat(1, NOW_MS + 7 * DAY_MS + 1))) == ["answer_expired"]


def causes_of(out: Collected) -> list[str | None]:
    return [value.get("cause") for value in out.values("decisions")]


def test_an_answer_whose_day_is_forgotten_is_not_kept_wherever_the_run_is_cut() -> None:
    late, now = placed(2, at_ms=NOW_MS), placed(1, at_ms=NOW_MS + 30 * DAY_MS)
    pairs = []
    for cut in (False, True):
        bench = Bench("terminal")
        if cut:
            bench.feed(now)
            bench.feed(late)
        else:
            bench.feed(now, late)
        pairs.append(dict(bench.again().store.pairs()))
        assert causes_of(bench.feed(repeat(2, NOW_MS))) == ["answer_expired"]
    assert pairs[0] == pairs[1]


def test_a_backfill_is_not_answered_but_teaches() -> None:
    bench = Bench("terminal")
    assert bench.feed(placed(1, mode="backfill")).kept == []
    assert taught(matured(bench)) == [(EXAMPLE_MATURED, False, 0.0)]


def test_a_test_payment_is_answered_and_teaches_nothing() -> None:
    bench = Bench("terminal")
    assert len(bench.feed(placed(1, mode="test")).values("decisions")) == 1
    assert taught(matured(bench)) == []


def test_outcome_follows_the_verdict_in_enforce_only() -> None:
    bench = Bench("terminal")
    rules = control("rules", DECLINE_ALL)
    shadow = bench.feed(rules, placed(1)).values("decisions")[0]
    enforce = bench.feed(control("policy", Policy(mode="enforce")), placed(2)).values("decisions")[0]
    assert (shadow["verdict"], shadow["outcome"]) == ("decline", "approve")
    assert (enforce["verdict"], enforce["outcome"]) == ("decline", "decline")


def test_a_marker_holds_from_its_place_on_and_after_a_restart() -> None:
    bench = Bench("terminal")
    out = bench.feed(placed(1), control("rules", DECLINE_ALL), placed(2))
    assert [value["verdict"] for value in out.values("decisions")] == ["approve", "decline"]
    assert bench.again().feed(placed(3)).values("decisions")[0]["verdict"] == "decline"


# ---- maturity ----


def test_silence_teaches_after_a_week_of_the_slowest_labels_clock_and_not_before() -> None:
    bench = Bench("terminal")
    bench.feed(placed(1))
    due_ms = NOW_MS + 7 * DAY_MS
    assert taught(bench.feed(Clock(0, 1, 0, due_ms), Tick(-1, 0, due_ms))) == []
    assert taught(bench.feed(Clock(0, 1, 1, due_ms - 1))) == []
    assert taught(bench.feed(Clock(0, 1, 1, due_ms))) == [(EXAMPLE_MATURED, False, 0.0)]
    assert taught(bench.again().feed(*clocks(due_ms + DAY_MS), Tick(-1, 0, 0))) == []


def test_the_payments_own_time_matures_nothing() -> None:
    bench = Bench("terminal")
    assert taught(bench.feed(placed(1), placed(2, at_ms=NOW_MS + 400 * DAY_MS), Tick(-1, 0, 0))) == []


@pytest.mark.parametrize("kind", ["declined in enforce", "voided"])
def test_a_payment_that_did_not_go_through_does_not_mature(kind: str) -> None:
    bench = Bench("terminal")
    if kind == "voided":
        bench.feed(placed(1), Became(0, 0, pid(1), NOW_MS, False))
    else:
        bench.feed(control("rules", DECLINE_ALL), control("policy", Policy(mode="enforce")), placed(1))
    assert taught(matured(bench)) == []


def test_a_decline_in_shadow_matures_and_one_that_went_through_anyway_too() -> None:
    bench = Bench("terminal")
    bench.feed(control("rules", DECLINE_ALL), placed(1))
    bench.feed(control("policy", Policy(mode="enforce")), placed(2), Became(0, 0, pid(2), NOW_MS, True))
    assert len(taught(matured(bench))) == 2


def test_at_most_a_hundred_mature_in_a_step_and_ticks_drain_the_rest() -> None:
    bench = Bench("terminal")
    bench.feed(*(placed(n, terminal_id=None) for n in range(250)))
    steps = [taught(bench.feed(item)) for item in (*clocks(NOW_MS + MATURITY_MS), Tick(-1, 0, 0), Tick(-1, 0, 0))]
    assert [len(examples) for examples in steps] == [0, 100, 100, 50]
    assert not bench.stage.due_left


def test_a_payment_behind_the_cursor_is_due_at_once() -> None:
    bench = Bench("terminal")
    matured(bench)
    bench.feed(placed(1))
    assert bench.stage.due_left
    assert taught(bench.again().feed(Tick(-1, 0, 0))) == [(EXAMPLE_MATURED, False, 0.0)]


def test_a_shorter_horizon_is_taken_from_its_marker_on() -> None:
    bench = Bench("terminal")
    bench.feed(limits(maturity_ms=DAY_MS), placed(1))
    assert taught(bench.feed(*clocks(NOW_MS + DAY_MS))) == [(EXAMPLE_MATURED, False, 0.0)]


# ---- labels ----


def test_a_label_teaches_when_silence_would_have_with_the_features_of_the_decision() -> None:
    bench = Bench("terminal")
    out = bench.feed(placed(1))
    features = b64decode(out.values("decision-details")[0]["features"])
    bench.feed(*(placed(n) for n in range(2, 9)))
    assert taught(bench.feed(judged(1, True))) == []
    bench = bench.again()
    found = [e for e in bench.feed(*clocks(NOW_MS + 7 * DAY_MS)).of(Example) if e.pid == pid(1)]
    assert [(e.kind, e.fraud, e.observed_ms) for e in found] == [(EXAMPLE_LABELLED, True, NOW_MS + DAY_MS)]
    assert found[0].features == features
    assert pid(1) not in [e.pid for e in matured(bench).of(Example)]


def test_a_label_that_comes_later_teaches_at_once() -> None:
    bench = Bench("terminal")
    bench.feed(placed(1, mode="backfill"), *clocks(NOW_MS + 7 * DAY_MS))
    assert taught(bench.again().feed(judged(1, True))) == [(EXAMPLE_LABELLED, True, 0.0)]


@pytest.mark.parametrize(
    ("words", "examples"),
    [
        ([(True, False)], [(EXAMPLE_LABELLED, True, 0.0)]),
        ([(False, False)], []),
        ([(None, False)], []),
        ([(True, True), (True, False)], [(EXAMPLE_LABELLED, True, 0.0), (EXAMPLE_CORRECTED, True, 1.0)]),
        ([(True, False), (True, True)], [(EXAMPLE_LABELLED, True, 0.0)]),
        ([(True, False), (False, False)], [(EXAMPLE_LABELLED, True, 0.0), (EXAMPLE_CORRECTED, False, 1.0)]),
        ([(True, False), (None, False)], [(EXAMPLE_LABELLED, True, 0.0), (EXAMPLE_CORRECTED, False, 1.0)]),
    ],
)
def test_silence_is_followed_by_what_later_labels_say(
    words: list[tuple[bool | None, bool]], examples: list[tuple[int, bool, float]]
) -> None:
    bench = Bench("terminal")
    bench.feed(placed(1))
    assert taught(matured(bench)) == [(EXAMPLE_MATURED, False, 0.0)]
    found: list[tuple[int, bool, float]] = []
    for n, (fraud, provisional) in enumerate(words):
        at_ms = NOW_MS + MATURITY_MS + n
        found += taught(bench.feed(judged(1, fraud, at_ms=at_ms, provisional=provisional)))
        bench = bench.again()
    assert found == examples


def test_only_a_fraud_is_told_as_provisional_and_taken_back_as_it_was_told() -> None:
    """Of a chargeback that was reversed, then charged back again. A legitimate payment teaches in full."""
    bench = Bench("terminal")
    bench.feed(placed(1), *clocks(NOW_MS + MATURITY_MS))
    told: list[tuple[bool, bool, bool]] = []
    for n, (fraud, provisional) in enumerate([(True, True), (False, True), (True, False)]):
        out = bench.feed(judged(1, fraud, at_ms=NOW_MS + MATURITY_MS + n, provisional=provisional))
        told += [(e.fraud, e.provisional, e.was_provisional) for e in out.of(Example)]
    assert told == [(True, True, False), (False, False, True), (True, False, False)]


def test_a_label_of_a_payment_that_is_forgotten_teaches_nothing() -> None:
    bench = Bench("terminal")
    bench.feed(placed(1), *clocks(NOW_MS + 182 * DAY_MS))
    assert taught(bench.feed(judged(1, True))) == []
    assert bench.stage.counts["labels_late"] == 1


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_longer_road_brings_nothing_back_whether_a_checkpoint_was_between_or_not(checkpoint: bool) -> None:
    """What was dropped is in the store until the next checkpoint: it may not matter when that is."""
    bench = Bench("terminal")
    bench.feed(placed(1))
    bench = bench.again()
    bench.feed(*clocks(NOW_MS + 182 * DAY_MS))
    if checkpoint:
        bench = bench.again()
    out = bench.feed(limits(road_ms=400 * DAY_MS), judged(1, True))
    assert taught(out) == []
    assert bench.stage.counts["labels_late"] == 1


def test_a_shorter_road_forgets_at_its_marker_and_a_longer_one_brings_nothing_back() -> None:
    """Seed 313698: an update that the short road made too late was missing when the road was long again."""
    bench = Bench("terminal")
    bench.feed(placed(1), *clocks(NOW_MS + 12 * DAY_MS), limits(maturity_ms=20 * DAY_MS))
    bench.feed(limits(maturity_ms=DAY_MS, road_ms=4 * DAY_MS), judged(1, True))
    assert bench.stage.counts["labels_late"] == 1
    out = bench.feed(limits(maturity_ms=20 * DAY_MS, road_ms=400 * DAY_MS), judged(1, True))
    assert taught(out) == []
    assert bench.stage.counts["labels_late"] == 2
    assert taught(bench.feed(*clocks(NOW_MS + 40 * DAY_MS))) == []


def test_a_skipped_payment_is_answered_as_refused_and_the_clock_goes_on() -> None:
    bench = Bench("terminal")
    out = Collected()
    items = [placed(1), *clocks(NOW_MS)]
    bench.stage.skip([Step(0, i, NOW_MS, (b"a" * 16, 0), item) for i, item in enumerate(items)], out)
    assert causes(out) == ["skipped"]
    assert bench.stage.label_clock_ms == NOW_MS
    assert taught(matured(bench)) == []


def test_a_skipped_repeat_of_a_test_payment_is_answered_as_a_test() -> None:
    bench = Bench("terminal")
    out = Collected()
    item = msgspec.structs.replace(repeat(1, NOW_MS), test=True)
    bench.stage.skip([Step(0, 0, NOW_MS, (b"a" * 16, 0), item)], out)
    assert [(value["cause"], value["mode"]) for value in out.values("decisions")] == [("skipped", "test")]


# ---- cost ----


@pytest.mark.parametrize("run", [1, 2, 30])
def test_windows_take_a_run_as_it_is_however_short(run: int) -> None:
    """Columns that must be copied first cost ten payments' time; one of a single row, of bytes, was such once."""
    compiled = TerminalStage(State(MemoryStore()), partition=0, account_partitions=2, decision_partitions=1)
    steps = [Step(number, 0, NOW_MS, SENDER, placed(number)) for number in range(run)]
    compiled.apply(steps, Collected())
    assert compiled.windows.copied == 0
