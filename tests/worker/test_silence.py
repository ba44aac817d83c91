"""Who has not been heard for too long: the group's coordinator, and the leaders of partitions."""

import json
from typing import Any

import pytest

from stream.worker import fetch, membership
from stream.worker.fetch import LEADER_SILENT_S_MAX, TP, Fetcher, FetchSettings
from stream.worker.leaders import idle_s
from stream.worker.membership import Membership, MembershipSettings, create_app

AT = TP("payments", 0)
BESIDE = TP("payments", 1)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(fetch, "time", clock)
    monkeypatch.setattr(membership, "time", clock)
    return clock


def _statistics(*tps: TP, state: str = "UP", idle_us: int = 0) -> str:
    """As librdkafka 2.16 writes them, without what nobody reads; a bootstrap broker is always beside the others."""
    places = {f"{tp.topic}-{tp.partition}": {"topic": tp.topic, "partition": tp.partition} for tp in tps}
    one = {"name": "b:1/1", "nodeid": 1, "state": state, "rxidle": idle_us, "toppars": places}
    first = {"name": "b:1/bootstrap", "nodeid": -1, "state": "UP", "rxidle": 7, "toppars": {}}
    return json.dumps({"ts": 1, "brokers": {"b:1/bootstrap": first, "b:1/1": one}, "topics": {}})


def test_only_a_broker_that_is_connected_and_has_spoken_counts() -> None:
    assert idle_s(_statistics(AT, BESIDE, idle_us=1_500_000)) == {AT: 1.5, BESIDE: 1.5}
    assert idle_s(_statistics(AT, state="AUTH_REQ")) == {}  # it sends bytes, and refuses our password
    assert idle_s(_statistics(AT, idle_us=-1)) == {}
    assert idle_s('{"name": "no broker yet"}') == {}


@pytest.fixture
def fetcher(clock: Clock) -> Any:
    made = Fetcher(
        FetchSettings(bootstrap_servers="127.0.0.1:1", group_id="silence"),
        stage_of=lambda topic: topic,
        ready=lambda stage: None,
        failed=lambda error: None,
        loop=None,  # type: ignore[arg-type]  # its thread is not begun: the test stands in its place
    )
    for tp in (AT, BESIDE):
        made.start(tp, 0, 1)
    made._obey()
    yield made
    made._consumer.close()


def test_a_leader_is_silent_from_its_last_word_on_and_others_are_not(fetcher: Fetcher, clock: Clock) -> None:
    clock.now_s += 4
    assert fetcher.leader_silent_s(AT) == 4  # since the start: it has never spoken
    fetcher._statistics(_statistics(AT, BESIDE, idle_us=500_000))
    assert fetcher.leader_silent_s(AT) == 0.5
    clock.now_s += 5
    fetcher._statistics(_statistics(AT))
    assert (fetcher.leader_silent_s(AT), fetcher.leader_silent_s(BESIDE)) == (0, 5.5)
    fetcher._statistics(_statistics(AT, BESIDE, idle_us=60_000_000))  # was waiting to be read: nothing goes back
    assert (fetcher.leader_silent_s(AT), fetcher.leader_silent_s(BESIDE)) == (0, 5.5)
    fetcher._statistics("no statistics")
    assert fetcher.leader_silent_s(BESIDE) == 5.5


def test_a_new_start_says_nothing_of_the_leader_and_a_stop_ends_its_silence(fetcher: Fetcher, clock: Clock) -> None:
    clock.now_s += 9
    fetcher.start(AT, 5, 2)
    fetcher.stop(BESIDE)
    fetcher._obey()
    assert (fetcher.leader_silent_s(AT), fetcher.leader_silent_s(BESIDE)) == (9, None)
    fetcher.start(BESIDE, 5, 2)
    fetcher._obey()
    assert fetcher.leader_silent_s(BESIDE) == 0


def test_time_in_which_nothing_is_asked_for_is_not_silence(fetcher: Fetcher, clock: Clock) -> None:
    clock.now_s += 300
    fetcher._blocked_s += 299
    assert fetcher.leader_silent_s(AT) == 1
    fetcher.pause(BESIDE)
    fetcher._obey()
    fetcher._statistics(_statistics(AT, BESIDE, idle_us=250_000_000))
    assert (fetcher.leader_silent_s(AT), fetcher.leader_silent_s(BESIDE)) == (1, 0)


def test_that_there_is_no_lag_is_not_said_behind_a_silent_leader(fetcher: Fetcher, clock: Clock) -> None:
    fetcher._marks[AT] = (0, 10)
    clock.now_s += LEADER_SILENT_S_MAX
    assert (fetcher.lag(AT, 10), fetcher.lag(AT, 7)) == (0, 3)
    clock.now_s += 1
    assert (fetcher.lag(AT, 10), fetcher.lag(AT, 7)) == (None, 3)  # three there are at least
    fetcher._statistics(_statistics(AT))
    assert fetcher.lag(AT, 10) == 0


async def _nothing(_tps: set[TP]) -> None:
    """Of these callbacks none is called."""


def _membership(**settings: float) -> Membership:
    return create_app(
        MembershipSettings(group_id="g", bootstrap_servers="127.0.0.1:1", **settings),  # type: ignore[arg-type]
        {"payments": "intake"},
        fetch=FetchSettings(bootstrap_servers="127.0.0.1:1", group_id="g"),
        on_assigned=_nothing,
        on_revoked=_nothing,
    )


def test_a_member_is_one_for_as_long_as_the_coordinator_said_so_lately(clock: Clock) -> None:
    ours = _membership(session_timeout_s=10.0, rebalance_s=30.0)
    assert (ours.member, ours.unconfirmed_s) == (False, None)
    ours.confirmed()
    assert not ours.member  # it has no partitions yet, nor been told that it gets none
    ours._ticket = ("m", 3)
    clock.now_s += 10
    assert (ours.member, ours.unconfirmed_s) == (True, 10)
    clock.now_s += 0.1
    assert not ours.member
    ours._joining = True  # without heartbeats; the coordinator answers when all have come
    assert ours.member
    clock.now_s += 30
    assert not ours.member
    ours.confirmed()
    assert ours.member
