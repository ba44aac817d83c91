"""The parts of the demonstration that need no broker."""

import io
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from stream.demo.feed import Feed, build_feed
from stream.demo.plan import OPENING, PAYMENTS_MIN, plan_of
from stream.demo.quality import VersionUse, counted, version_uses
from stream.demo.report import Latency
from stream.demo.run import Progress
from stream.demo.tally import ModelVersion, Tally
from stream.demo.view import View
from topics.refusals import Cause


@pytest.fixture(scope="module")
def feed() -> Feed:
    return build_feed(plan_of(PAYMENTS_MIN))


def _fields(value: bytes) -> dict[str, Any]:
    return msgspec.json.decode(value)


def test_a_feed_has_exactly_the_payments_that_were_asked_for(feed: Feed):
    kinds = Counter(event.kind for event in [*feed.opening, *feed.course])
    assert kinds["payment"] == PAYMENTS_MIN
    assert sum(event.kind == "payment" for event in feed.opening) == OPENING
    assert 0.007 < len(feed.bad) / PAYMENTS_MIN < 0.013
    assert set(feed.bad.values()) == {cause for cause in Cause if cause in set(feed.bad.values())}
    assert len(set(feed.bad.values())) > 20, "many causes"
    assert feed.repeats > 0


def test_labels_of_a_feed_are_of_payments_sent_before_them(feed: Feed):
    sent: set[str] = set()
    labels = 0
    for event in [*feed.opening, *feed.course, *feed.held]:
        if event.kind == "payment":
            if event.value not in feed.bad:
                sent.add(_fields(event.value)["payment_id"])
        elif event.kind != "clock":
            assert _fields(event.value)["payment_id"] in sent
            labels += event.kind == "label"
    assert labels == feed.labels > 100
    assert feed.frauds <= sent


def test_no_label_is_sent_while_the_tail_is_decided(feed: Feed):
    tail = plan_of(PAYMENTS_MIN).tail_from
    payments = 0
    for event in [*feed.opening, *feed.course]:
        payments += event.kind == "payment"
        assert payments < tail or event.kind in ("payment", "update")
    assert {event.kind for event in feed.held} == {"label", "clock"}
    assert [event.at_ms for event in feed.held] == sorted(event.at_ms for event in feed.held)


def test_equal_plans_give_equal_feeds(feed: Feed):
    assert build_feed(plan_of(PAYMENTS_MIN)) == feed
    assert build_feed(plan_of(PAYMENTS_MIN, seed=2)).course != feed.course


def _tally(decided: dict[str, int]) -> Tally:
    tally = Tally(frozenset({"p"}), {})
    tally.versions = [ModelVersion(name, 0, b"") for name in decided]
    tally.decided_by.update(decided)
    return tally


def test_a_version_counts_from_one_percent_of_the_payments_after_it():
    uses = version_uses(_tally({"1-a": 100, "2-b": 9, "3-c": 10, "4-d": 0, "5-e": 981}))
    assert [use.version for use in uses] == ["1-a", "2-b", "3-c", "5-e"]
    assert [use.version for use in counted(uses)] == ["1-a", "3-c", "5-e"]


def test_versions_of_equal_content_count_once():
    uses = [VersionUse(version=name, decided=5, share=0.5) for name in ("1-a", "2-a", "3-b")]
    assert [use.version for use in counted(uses)] == ["1-a", "3-b"]


def test_latency_of_nothing_is_zero_and_of_something_ordered():
    assert Latency.of([]) == Latency(p50=0.0, p99=0.0, p999=0.0)
    found = Latency.of(list(range(1, 1_001)))
    assert (found.p50, found.p99, found.p999) == (500.5, 990.0, 999.0)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_view_shows_what_was_counted(terminal: bool):
    out = io.StringIO()
    tally = _tally({"1-a": 50})
    tally.answer_at_ms = {(0, number): 7 for number in range(60)}
    tally.outcomes.update(approve=50, refused=10)
    tally.letters[Cause.NOT_JSON] = 10
    tally.probability = np.linspace(0.0, 1.0, 50).tolist()
    tally.fraud = [number >= 45 for number in range(50)]
    tally.stopped = list(tally.fraud)
    tally.recent_ms.extend([3, 4, 5])
    with View(Console(file=out, force_terminal=terminal, width=160)) as view:
        view._quality_s = -100.0  # as if a second had passed
        view.look(Progress(plan_of(PAYMENTS_MIN), phase="streaming", sent=61), None)
        view.look(Progress(plan_of(PAYMENTS_MIN), phase="streaming", sent=61), tally)
    shown = out.getvalue()
    assert "streaming" in shown
    if terminal:
        assert "not_json" in shown
        assert "1.000" in shown
