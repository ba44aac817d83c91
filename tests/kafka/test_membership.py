"""Workers as processes of their own on a real broker: join, leave, die, freeze. The stage is a copy (toy_worker.py)."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

pytestmark = pytest.mark.kafka

TOY = Path(__file__).parent / "toy_worker.py"
ROOT = Path(__file__).parents[2]
SESSION_S = 6.0  # the least that a broker allows by default
SOON_S = 60.0  # two busy cores: seconds, mostly
Event = dict[str, Any]


class Toy:
    """One toy worker; its events are read as they come."""

    def __init__(self, bootstrap: str, group: str, *copies: str, log: Path, held: tuple[str, ...] = ()) -> None:
        command = [sys.executable, str(TOY), "--bootstrap", bootstrap, "--group", group]
        command += ["--session-s", str(SESSION_S), "--checkpoint-s", "0.3"]
        for copy in copies:
            command += ["--copy", copy]
        for place in held:
            command += ["--held", place]
        self.log = log
        self._stderr = log.open("wb")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._stderr, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        self.events: list[Event] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.events.append(json.loads(line))
                self._more.notify_all()

    def expect(self, what: str, matches: Callable[[Event], bool] = lambda _: True, since: int = 0) -> Event:
        """The first event `what` that matches, from place `since` on; waits for it."""
        give_up_at = time.monotonic() + SOON_S
        with self._more:
            while True:
                for event in self.events[since:]:
                    if event["event"] == what and matches(event):
                        return event
                left = give_up_at - time.monotonic()
                assert left > 0, f"no {what} in {SOON_S} s; {self.events}; {self.log.read_text()[-3000:]}"
                self._more.wait(min(left, 1.0))

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self, within_s: float = SOON_S) -> int:
        code = self.process.wait(within_s)
        self._reader.join(5)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._stderr.close()


class Flow:
    """Numbered records into `IN` of four partitions and `ONE` of one, at a steady rate, until stopped."""

    def __init__(self, bootstrap: str, topic: str, partitions: int, rate: int = 300) -> None:
        self.sent: dict[int, int] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(bootstrap, topic, partitions, rate), daemon=True)
        self._thread.start()

    def _run(self, bootstrap: str, topic: str, partitions: int, rate: int) -> None:
        producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 2, "enable.idempotence": True})
        number = 0
        while not self._stop.wait(0.02):
            for _ in range(max(rate // 50, 1)):
                partition = number % partitions
                producer.produce(topic, b"%d" % self.sent[partition], partition=partition)
                self.sent[partition] += 1
                number += 1
            producer.poll(0)
        assert producer.flush(30) == 0

    def stop(self) -> dict[int, int]:
        self._stop.set()
        self._thread.join(40)
        return dict(self.sent)


class Kit:
    """Fresh topics and a fresh group, and what is needed to look at them from outside."""

    def __init__(self, bootstrap: str, directory: Path) -> None:
        self.bootstrap = bootstrap
        self.directory = directory
        mark = uuid.uuid4().hex[:8]
        self.group = f"g-{mark}"
        self.into, self.out = f"in-{mark}", f"out-{mark}"
        self.one, self.one_out = f"one-{mark}", f"one-out-{mark}"
        admin = AdminClient({"bootstrap.servers": bootstrap})
        made = admin.create_topics(
            [NewTopic(name, 4, 1) for name in (self.into, self.out)]
            + [NewTopic(name, 1, 1) for name in (self.one, self.one_out)]
        )
        for topic in made.values():
            topic.result(SOON_S)
        self.toys: list[Toy] = []

    def toy(self, held: dict[int, int] | None = None) -> Toy:
        """`held`: up to which offset its disk has the state of partitions of `into`."""
        toy = Toy(
            self.bootstrap,
            self.group,
            f"{self.into}:{self.out}",
            f"{self.one}:{self.one_out}",
            log=self.directory / f"toy-{len(self.toys)}.log",
            held=tuple(f"{self.into}:{partition}:{offset}" for partition, offset in (held or {}).items()),
        )
        self.toys.append(toy)
        return toy

    def committed(self) -> dict[int, int]:
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": self.group})
        found = consumer.committed([TopicPartition(self.into, partition) for partition in range(4)], timeout=SOON_S)
        consumer.close()
        return {at.partition: max(at.offset, 0) for at in found}

    def await_committed(self, wanted: dict[int, int]) -> None:
        give_up_at = time.monotonic() + SOON_S
        while (found := self.committed()) != wanted:
            assert time.monotonic() < give_up_at, f"committed {found}, wanted {wanted}"
            time.sleep(0.2)

    def copies(self) -> dict[int, list[int]]:
        """The values in the output, in order, per partition."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": f"look-{self.group}"})
        places = [TopicPartition(self.out, partition, 0) for partition in range(4)]
        ends = {place.partition: consumer.get_watermark_offsets(place, timeout=SOON_S)[1] for place in places}
        consumer.assign(places)
        found: dict[int, list[int]] = {partition: [] for partition in ends}
        while any(len(found[partition]) < end for partition, end in ends.items()):
            for message in consumer.consume(1000, 1.0):
                assert message.error() is None
                found[message.partition() or 0].append(int(message.value() or b""))
        consumer.close()
        return found

    def members(self) -> int:
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        described = admin.describe_consumer_groups([self.group])[self.group].result(SOON_S)
        return len(described.members)


@pytest.fixture
def kit(kafka: Any, tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(kafka.bootstrap, tmp_path)
    yield kit
    for toy in kit.toys:
        toy.close()


def in_partitions(kit: Kit, tps: list[list[Any]]) -> set[int]:
    return {partition for topic, partition in tps if topic == kit.into}


def assert_each_once(kit: Kit, sent: dict[int, int]) -> None:
    for partition, values in kit.copies().items():
        assert values == list(range(sent[partition])), f"partition {partition}"


def assert_none_missing(kit: Kit, sent: dict[int, int]) -> int:
    """Returns how many were copied again."""
    again = 0
    for partition, values in kit.copies().items():
        assert set(values) == set(range(sent[partition])), f"partition {partition}"
        again += len(values) - sent[partition]
    return again


def test_sigterm_finishes_commits_and_leaves_at_once(kit: Kit) -> None:
    toy = kit.toy()
    toy.expect("assigned", lambda event: len(event["owned"]) == 5)
    flow = Flow(kit.bootstrap, kit.into, 4)
    time.sleep(2)
    sent = flow.stop()
    toy.send(signal.SIGTERM)
    at = time.monotonic()
    assert toy.ended(within_s=10.0) == 0
    assert time.monotonic() - at < 10.0
    assert [event["event"] for event in toy.events][-3:] == ["hold", "revoked", "ended"]
    assert kit.members() == 0  # by a leave, not by the session timeout
    successor = kit.toy()
    successor.expect("assigned", lambda event: len(event["owned"]) == 5)
    kit.await_committed(sent)
    assert_each_once(kit, sent)


def test_a_second_worker_takes_its_share_and_gives_it_back_and_the_rest_stays_open(kit: Kit) -> None:
    first = kit.toy()
    first.expect("assigned", lambda event: len(event["owned"]) == 5)
    flow = Flow(kit.bootstrap, kit.into, 4)
    time.sleep(1)
    second = kit.toy()
    share = second.expect("assigned", lambda event: bool(in_partitions(kit, event["added"])))
    taken = in_partitions(kit, share["added"])
    assert 0 < len(taken) < 4
    # The first loses exactly those, and keeps the others without a new start.
    lost = first.expect("revoked", lambda event: bool(in_partitions(kit, event["lost"])))
    assert in_partitions(kit, lost["lost"]) == taken
    kept = first.expect("assigned", lambda event: event["generation"] == share["generation"])
    assert in_partitions(kit, kept["owned"]) == {0, 1, 2, 3} - taken
    assert not in_partitions(kit, kept["added"])
    time.sleep(1)
    place = len(first.events)
    second.send(signal.SIGTERM)
    assert second.ended(within_s=10.0) == 0
    back = first.expect("assigned", lambda event: in_partitions(kit, event["owned"]) == {0, 1, 2, 3}, since=place)
    assert in_partitions(kit, back["added"]) == taken
    sent = flow.stop()
    kit.await_committed(sent)
    # Each change waited for the running rounds and their commit, so nothing was copied twice.
    assert_each_once(kit, sent)
    # The timer's commit may come after the hold's, which had as much; the group itself must have fenced nobody.
    fenced = [event["why"] for toy in kit.toys for event in toy.events if event["event"] == "fenced"]
    assert not [why for why in fenced if "said that it is done" not in why and "not ours" not in why]


def test_a_killed_worker_is_replaced_after_the_session_timeout(kit: Kit) -> None:
    first, second = kit.toy(), kit.toy()
    first.expect("assigned", lambda event: len(in_partitions(kit, event["owned"])) == 2)
    second.expect("assigned", lambda event: len(in_partitions(kit, event["owned"])) == 2)
    flow = Flow(kit.bootstrap, kit.into, 4)
    time.sleep(2)
    place = len(first.events)
    second.send(signal.SIGKILL)
    first.expect("assigned", lambda event: len(event["owned"]) == 5, since=place)
    sent = flow.stop()
    kit.await_committed(sent)
    assert_none_missing(kit, sent)


def test_a_frozen_worker_that_wakes_up_cannot_commit(kit: Kit) -> None:
    first, second = kit.toy(), kit.toy()
    first.expect("assigned", lambda event: len(in_partitions(kit, event["owned"])) == 2)
    second.expect("assigned", lambda event: len(in_partitions(kit, event["owned"])) == 2)
    flow = Flow(kit.bootstrap, kit.into, 4)
    time.sleep(2)
    place = len(first.events), len(second.events)
    second.send(signal.SIGSTOP)
    first.expect("assigned", lambda event: len(event["owned"]) == 5, since=place[0])
    time.sleep(1)  # the new owner gets ahead
    before = kit.committed()
    second.send(signal.SIGCONT)
    fenced = second.expect("fenced", since=place[1])
    assert in_partitions(kit, fenced["due"])
    # It does not think that it kept anything: all is revoked, and what comes back is opened anew.
    lost = second.expect("revoked", since=place[1])
    assert len(in_partitions(kit, lost["lost"])) == 2
    after = second.expect("assigned", lambda event: bool(in_partitions(kit, event["owned"])), since=place[1])
    for tp in after["added"]:
        if tp[0] == kit.into:
            assert after["starts"][f"{tp[0]}-{tp[1]}"] >= before[tp[1]]
    sent = flow.stop()
    kit.await_committed(sent)
    assert_none_missing(kit, sent)


def test_an_agent_that_raises_ends_the_process_and_skips_nothing(kit: Kit) -> None:
    toy = kit.toy()
    toy.expect("assigned", lambda event: len(event["owned"]) == 5)
    producer = Producer({"bootstrap.servers": kit.bootstrap})
    for value in (b"0", b"1", b"crash", b"3"):
        producer.produce(kit.into, value, partition=0)
    assert producer.flush(30) == 0
    assert toy.ended() == 1
    assert "told to crash" in toy.log.read_text()
    assert kit.committed()[0] <= 2


def test_a_topic_that_is_not_there_does_not_stop_the_others(kit: Kit, tmp_path: Path) -> None:
    toy = Toy(kit.bootstrap, kit.group, f"{kit.into}:{kit.out}", "not-there:out", log=tmp_path / "toy.log")
    kit.toys.append(toy)
    toy.expect("assigned", lambda event: len(in_partitions(kit, event["owned"])) == 4)


def test_a_group_that_shares_by_other_rules_is_not_joined(kit: Kit) -> None:
    """As workers did that had Faust's assignor: the broker refuses whoever comes second, and the worker says why."""
    other = Consumer({"bootstrap.servers": kit.bootstrap, "group.id": kit.group})
    other.subscribe([kit.into])
    give_up_at = time.monotonic() + SOON_S
    while not other.assignment():
        assert time.monotonic() < give_up_at, "the other is no member"
        other.poll(0.2)
    toy = kit.toy()
    keep = threading.Thread(target=lambda: [other.poll(0.2) for _ in range(20)], daemon=True)
    keep.start()
    assert toy.ended() == 1
    assert "share partitions by other rules than fraudstream-state" in toy.log.read_text()
    keep.join()
    other.close()


def test_a_worker_whose_disk_has_the_state_gets_those_partitions(kit: Kit) -> None:
    first = kit.toy(held={1: 50, 3: 70})
    first.expect("assigned", lambda event: len(event["owned"]) == 5)
    second = kit.toy(held={0: 900, 2: 1, 1: 40})
    got = second.expect("assigned", lambda event: bool(in_partitions(kit, event["owned"])))
    assert in_partitions(kit, got["owned"]) == {0, 2}
