"""What the observer keeps between two looks: gaps' ages, closed partitions' counts, checkpoints."""

import asyncio
import logging
from collections import Counter
from types import SimpleNamespace

import pytest

from stream.stages.account import AccountStage
from stream.worker import observe
from stream.worker.fetch import LEADER_SILENT_S_MAX, TP
from stream.worker.host import Status
from stream.worker.observe import GAP_ALARM_S, Observer

AT = TP("account-journal", 0)
SENDER = (b"s" * 16, 3)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return 1e9 + self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(observe, "time", clock)
    return clock


def _runner(**counts: int) -> SimpleNamespace:
    stage = AccountStage.__new__(AccountStage)
    stage.counts = Counter(counts)
    stage._watermarks = {}
    stage._globals = SimpleNamespace(label_clock_ms=0)
    return SimpleNamespace(
        stage=stage, open_gaps={}, gap_items=0, steps_applied=1, dropped_items=0, suppressed=0, next_offset=5
    )


def _worker(runner: SimpleNamespace) -> SimpleNamespace:
    host = SimpleNamespace(tp=AT, runner=runner, status=Status.RUNNING, failure="", last_at_ms=0)
    return SimpleNamespace(
        hosts={AT: host},
        settings=SimpleNamespace(prefix=""),
        topology=SimpleNamespace(ids={"payments": SENDER[0]}),
        membership=SimpleNamespace(
            failure=None,
            generation=4,
            member=True,
            unconfirmed_s=0.5,
            settled=True,
            owned=frozenset({AT}),
            fetcher=SimpleNamespace(lag=lambda *_: 0, leader_silent_s=lambda _: 0.5, stats=lambda: SimpleNamespace(
                records=0, blocked_s=0.0, transient_errors={})),
        ),
        checkpoints=0,
        checkpoint_seconds=[],
        latency_counts=[0, 0],
        latency_sum_s=0.0,
        disk_full=False,
        snapshots_failing={},
        producer=SimpleNamespace(queued=0, waits=0),
    )  # fmt: skip


def _observer(worker: SimpleNamespace) -> Observer:
    return Observer(worker, {"account-journal": "account"}, [1.0])


def _look(observer: Observer) -> None:
    async def look() -> None:
        observer.look()

    asyncio.run(look())


def _value(observer: Observer, name: str, *labels: str) -> object:
    return next(s.value for s in observer.gather() if s.name == name and s.labels[: len(labels)] == labels)


def test_gap_alarms_once_when_it_has_been_open_too_long(clock, caplog):
    runner = _runner()
    observer = _observer(_worker(runner))
    runner.open_gaps[SENDER] = (7, 1)
    _look(observer)
    clock.now_s += GAP_ALARM_S
    _look(observer)
    assert not caplog.records
    assert _value(observer, "prev_gap_open_seconds") == GAP_ALARM_S
    clock.now_s += 1
    for _ in range(3):
        _look(observer)
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]
    assert "nothing of sender payments[3] after item (7, 1) is applied" in caplog.text
    runner.open_gaps.clear()
    _look(observer)
    assert _value(observer, "prev_gap_open_seconds") == 0 == _value(observer, "prev_gaps_open")
    runner.open_gaps[SENDER] = (9, 0)
    _look(observer)
    assert _value(observer, "prev_gap_open_seconds") == 0  # another gap, another age


def test_counts_of_a_partition_that_was_opened_again_or_given_away_are_kept(clock):
    worker = _worker(_runner(first=5))
    observer = _observer(worker)
    _look(observer)
    worker.hosts[AT].runner = _runner(first=2)
    _look(observer)
    assert _value(observer, "payments", "first") == 7
    worker.hosts.clear()
    worker.membership.owned = frozenset()
    _look(observer)
    assert _value(observer, "payments", "first") == 7
    assert _value(observer, "records_applied") == 2


def test_health_tells_of_a_failure_and_of_a_loop_that_stands(clock):
    worker = _worker(_runner())
    observer = _observer(worker)
    assert observer.health() == (True, {"status": "starting"})
    assert observer.ready()[0] is False
    _look(observer)
    assert observer.health()[0]
    clock.now_s += 21
    assert observer.health()[1]["status"] == "stuck"
    worker.membership.failure = ValueError("card 4111 1111 1111 1111")
    good, shown = observer.health()
    assert not good
    assert shown["status"] == "failed"
    assert "1111" not in shown["failure"]


@pytest.mark.parametrize("status", [Status.OPENING, Status.STOPPED])
def test_not_ready_while_a_partition_is(clock, status):
    worker = _worker(_runner())
    observer = _observer(worker)
    assert observer._ready()[0]
    worker.hosts[AT].status = status
    good, shown = observer._ready()
    assert not good
    assert shown[status.value] == ["account-journal[0]"]
    assert not shown["failures"]
    worker.hosts[AT].failure = "waits for room on the disk"
    assert observer._ready()[1]["failures"] == {"account-journal[0]": "waits for room on the disk"}
    worker.hosts.clear()
    assert observer._ready()[1]["waiting"] == ["account-journal[0]"]
    worker.membership.owned = frozenset()
    assert observer._ready()[0]  # more workers than partitions: this one stands by
    worker.membership.generation, worker.membership.member = -1, False
    good, shown = observer._ready()
    assert (good, shown["status"]) == (False, "not a member of the group yet")


def test_not_ready_when_the_coordinator_has_not_confirmed_us_for_too_long_and_says_who_must_look(clock):
    worker = _worker(_runner())
    observer = _observer(worker)
    worker.membership.member, worker.membership.unconfirmed_s = False, 10.4
    good, shown = observer._ready()
    assert not good
    assert "not confirmed this member for 10 s" in shown["status"]
    assert "Operator" in shown["status"]
    assert shown["running"] == 1  # it goes on with what it has
    assert not _value(observer, "group_member")


def test_not_ready_while_a_leader_is_silent_and_names_its_partition(clock):
    worker = _worker(_runner())
    observer = _observer(worker)
    fetcher = worker.membership.fetcher
    fetcher.leader_silent_s = lambda tp: LEADER_SILENT_S_MAX
    assert observer._ready()[0]
    fetcher.leader_silent_s = lambda tp: LEADER_SILENT_S_MAX + 1
    good, shown = observer._ready()
    assert (good, shown["status"], shown["silent"], shown["running"]) == (
        False, "leaders are silent", ["account-journal[0]"], 0
    )  # fmt: skip
    assert "for 21 s" in shown["failures"]["account-journal[0]"]
    assert "Operator" in shown["failures"]["account-journal[0]"]
    assert _value(observer, "leader_silent_seconds") == LEADER_SILENT_S_MAX + 1
    worker.hosts[AT].status = Status.STOPPED  # nothing is read of it: it is not the leader's fault
    fetcher.leader_silent_s = lambda tp: None
    assert observer._ready()[1]["silent"] == []
    assert not [sample for sample in observer.gather() if sample.name == "leader_silent_seconds"]


def test_every_checkpoint_is_in_the_histogram_once(clock):
    worker = _worker(_runner())
    observer = _observer(worker)
    worker.checkpoints, worker.checkpoint_seconds = 3, [0.005, 0.2, 99.0]
    _look(observer)
    _look(observer)
    found = _value(observer, "checkpoint_duration_seconds")
    assert (sum(found.counts), found.counts[0], found.counts[-1], found.total) == (3, 1, 1, 99.205)
