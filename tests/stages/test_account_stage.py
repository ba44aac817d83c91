"""The account stage: what is FIRST, what is refused, and how labels find their payment."""

import pytest
from stage_bench import DAY_MS, HOUR_MS, NOW_MS, Bench, causes, clock, control, label, limits, payment, update

from stream.stages.keys import partition_of
from stream.stages.stage import Step
from topics.control import Rates
from topics.journal import Became, Clock, Judged, Oversize, Placed, Raw, Repeat

OTHER = (b"p" * 16, 1)


# ---- each outcome of arrival ----


def test_first_goes_on_and_is_not_answered_yet() -> None:
    out = Bench().feed(payment(1))
    (placed,) = out.of(Placed)
    assert placed.payment.payment_id == "p1"
    assert placed.base_amount == 1_000
    assert not placed.late
    assert out.kept == []


def test_the_same_content_is_a_repeat_of_the_first_also_after_a_restart() -> None:
    bench = Bench()
    bench.feed(payment(1))
    out = bench.again().feed(payment(1, at_ms=NOW_MS, attempt=2, respond_by=NOW_MS + 1))
    (repeat,) = out.of(Repeat)
    assert repeat.first_at_ms == NOW_MS
    assert out.of(Placed) == []


def test_other_content_is_a_contradiction_within_a_run_and_across_runs() -> None:
    bench = Bench()
    assert causes(bench.feed(payment(1), payment(1, amount=2_000))) == ["contradiction"]
    assert causes(bench.feed(payment(1, amount=3_000))) == ["contradiction"]


def test_too_old_is_measured_by_the_records_own_partition() -> None:
    bench = Bench()
    bench.feed(payment(1))
    old = payment(2, event_time=NOW_MS - 46 * DAY_MS)
    assert causes(bench.feed(old)) == ["too_old"]
    bench.feed(payment(3, event_time=NOW_MS - 30 * DAY_MS), sender=OTHER)
    assert causes(bench.feed(old, sender=OTHER)) == []


def test_a_payment_from_the_future_is_refused_at_the_skew_and_passes_below_it() -> None:
    skew_ms = 5 * 60_000
    assert causes(Bench().feed(payment(1, event_time=NOW_MS + skew_ms))) == []
    assert causes(Bench().feed(payment(1, event_time=NOW_MS + skew_ms + 1))) == ["future_time"]


def test_a_payment_of_an_account_that_is_not_ours_is_refused() -> None:
    bench = Bench()
    bench.stage._partitions = 2
    wrong = next(f"a{n}" for n in range(9) if partition_of("default", f"a{n}", 2) == 1)
    assert causes(bench.feed(payment(1, account_id=wrong))) == ["account_mismatch"]


@pytest.mark.parametrize(
    ("value", "cause"), [(b"", "empty_value"), (b"{", "not_json"), (b"[]", "wrong_type"), (b"\xff", "invalid_utf8")]
)
def test_bad_bytes_are_answered_and_buried_and_the_next_payment_goes_on(value: bytes, cause: str) -> None:
    out = Bench().feed(payment(1, value=value), payment(2))
    assert causes(out) == [cause]
    assert [letter["cause"] for letter in out.values("dead-letters")] == [cause]
    assert [placed.payment.payment_id for placed in out.of(Placed)] == ["p2"]


def test_an_oversize_value_is_refused_with_its_length() -> None:
    raw = Raw(1, 0, 0, NOW_MS, b"{", None, Oversize(70_000, b"\x01" * 32))
    out = Bench().feed(raw)
    assert causes(out) == ["payload_too_large"]
    assert out.values("dead-letters")[0]["length"] == 70_000


def test_a_test_payment_has_ids_of_its_own_and_moves_no_watermark() -> None:
    bench = Bench()
    out = bench.feed(payment(1, mode="test"), payment(1, event_time=NOW_MS - 40 * DAY_MS))
    assert [p.payment.mode for p in out.of(Placed)] == ["test", "live"]
    assert bench.stage.newest_event_ms == NOW_MS - 40 * DAY_MS


def test_a_backfill_is_never_answered() -> None:
    bench = Bench()
    old = {"mode": "backfill", "event_time": NOW_MS - 100 * DAY_MS}
    out = bench.feed(payment(1), payment(2, **old), payment(2, **old), payment(2, **old, amount=5))
    assert len(out.of(Placed)) == 2
    assert out.of(Repeat) == []
    assert causes(out) == []
    assert [letter["cause"] for letter in out.values("dead-letters")] == ["contradiction"]


def test_late_is_behind_its_own_partition_by_more_than_the_lateness() -> None:
    bench = Bench()
    behind = [payment(n, event_time=NOW_MS - lag_ms) for n, lag_ms in ((1, 0), (2, 300_000), (3, 300_001))]
    assert [p.late for p in bench.feed(*behind).of(Placed)] == [False, False, True]
    assert [p.late for p in bench.feed(payment(4, event_time=NOW_MS - DAY_MS), sender=OTHER).of(Placed)] == [False]


def test_a_foreign_currency_without_a_rate_has_no_amount() -> None:
    assert Bench().feed(payment(1, currency="USD")).of(Placed)[0].base_amount == -1


def test_an_amount_that_no_number_of_64_bits_holds_when_it_is_converted_is_absent() -> None:
    bench = Bench()
    rates = Rates(base="EUR", nano_base_per_minor={"USD": 10**15})
    out = bench.feed(control("rates", rates), limits(amount_max=10**15), payment(1, currency="USD", amount=10**15))
    assert [item.base_amount for item in out.of(Placed)] == [-1]
    assert [item.base_amount for item in bench.feed(payment(2, currency="USD", amount=10**9)).of(Placed)] == [10**15]


# ---- what is forgotten stays forgotten ----


def test_a_time_that_was_forgotten_takes_no_payment_again_whether_a_checkpoint_was_between_or_not() -> None:
    old = payment(1, event_time=NOW_MS, mode="backfill")
    later_ms = NOW_MS + 400 * DAY_MS
    for restart in (False, True):
        bench = Bench()
        bench.feed(old, payment(2, at_ms=later_ms), clock(later_ms))
        bench = bench.again() if restart else bench
        out = bench.feed(payment(3, event_time=NOW_MS - DAY_MS, mode="backfill"), old, label(1, at_ms=later_ms + 1))
        assert out.of(Placed) == []
        assert out.of(Judged) == []
        assert [letter["cause"] for letter in out.values("dead-letters")] == ["too_old", "too_old"]


# ---- labels and updates ----


def test_a_label_takes_the_road_of_its_payment_once() -> None:
    bench = Bench()
    bench.feed(payment(1))
    out = bench.feed(label(1, at_ms=NOW_MS + DAY_MS))
    (judged,) = out.of(Judged)
    assert (judged.fraud, judged.provisional, judged.event_ms) == (True, False, NOW_MS)
    assert bench.again().feed(label(1, at_ms=NOW_MS + DAY_MS)).of(Judged) == []


def test_labels_before_their_payment_wait_and_then_speak_in_order() -> None:
    bench = Bench()
    assert bench.feed(label(1, kind="fraud_report"), update(1, "declined"), label(1)).of(Judged) == []
    out = bench.again().feed(payment(1))
    assert [(j.fraud, j.provisional) for j in out.of(Judged)] == [(True, True), (True, False)]
    assert [b.through for b in out.of(Became)] == [False]
    assert [item.n for _, _, item in out.items] == [0, 1, 2, 3]


def test_a_label_waits_for_a_payment_that_the_broker_took_days_before_it() -> None:
    """Intake of one partition lags: the label's own broker time is its measure, not that of its payment."""
    bench = Bench()
    bench.feed(label(1, at_ms=NOW_MS + 9 * DAY_MS))
    assert len(bench.feed(payment(1)).of(Judged)) == 1
    assert bench.again().stage._globals.orphans == 0


def test_settings_that_changed_meanwhile_do_not_stop_the_partition() -> None:
    bench = Bench()
    bench.feed(label(1, source="s" * 60), label(2))
    out = bench.feed(limits(nesting_max=2, payload_bytes_max=256), payment(1), payment(2))
    assert len(out.of(Placed)) == 2
    assert bench.again().stage._globals.orphans == 0


def test_a_label_of_a_test_payment_finds_nothing() -> None:
    bench = Bench()
    bench.feed(payment(1, mode="test"))
    assert bench.feed(label(1)).of(Judged) == []


def test_orphans_are_dropped_when_payments_have_passed_them_by_the_horizon() -> None:
    bench = Bench()
    bench.feed(payment(1), label(7))
    bench.feed(payment(2, at_ms=NOW_MS + 15 * DAY_MS), clock(NOW_MS + 15 * DAY_MS))
    assert bench.stage._globals.orphans == 0
    assert bench.feed(payment(7)).of(Judged) == []


def test_a_label_from_the_future_is_buried_and_moves_no_clock() -> None:
    bench = Bench()
    out = bench.feed(label(1, at_ms=NOW_MS + DAY_MS, taken_ms=NOW_MS))
    assert [letter["cause"] for letter in out.values("dead-letters")] == ["future_time"]
    assert bench.stage.label_clock_ms == 0


def test_the_clock_goes_to_the_terminals_on_a_clock_record_and_once_an_hour_by_labels() -> None:
    bench = Bench()
    bench.feed(payment(1))
    at = NOW_MS
    labels = [label(n, at_ms=at + n) for n in (1, 2)]
    assert [c.clock_ms for c in bench.feed(*labels).of(Clock)] == [at + 1]
    assert [c.clock_ms for c in bench.feed(clock(at + 3), clock(at + 3), clock(at)).of(Clock)] == [at + 3]
    assert [c.clock_ms for c in bench.feed(label(3, at_ms=at + 3 + HOUR_MS)).of(Clock)] == [at + 3 + HOUR_MS]


def test_a_skipped_payment_is_answered_and_changes_nothing() -> None:
    bench = Bench()
    out = bench.feed()
    skipped = [payment(1), label(1), limits(amount_max=1)]
    bench.stage.skip([Step(0, i, NOW_MS, OTHER, item) for i, item in enumerate(skipped)], out)
    assert causes(out) == ["skipped"]
    assert len(bench.feed(payment(1)).of(Placed)) == 1
