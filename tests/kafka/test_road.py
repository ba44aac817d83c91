"""The whole way on real Kafka: each record on `payments` gets its answer, whoever sent it and however often."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from live_worker import LiveWorker

from stream.operate import initialise, write_control
from stream.reconcile import reconcile
from stream.rules.policy import Policy
from stream.settings import Settings

pytestmark = pytest.mark.kafka

BAD: dict[str, bytes] = {
    "not_json": b"{",
    "empty_value": b"",
    "missing_field": b'{"payment_id":"x1","account_id":"a","amount":1,"currency":"EUR"}',
    "wrong_type": b'{"payment_id":"x2","event_time":1700000000000,"account_id":7,"amount":1,"currency":"EUR"}',
    "amount_negative": b'{"payment_id":"x3","event_time":1700000000000,"account_id":"a","amount":-1,"currency":"EUR"}',
    "amount_float": b'{"payment_id":"x4","event_time":1700000000000,"account_id":"a","amount":1.5,"currency":"EUR"}',
    "unknown_currency": b'{"payment_id":"x5","event_time":1700000000000,"account_id":"a","amount":1,"currency":"ZZZ"}',
    "future_time": b'{"payment_id":"x6","event_time":9999999999999,"account_id":"a","amount":1,"currency":"EUR"}',
    "duplicate_key": b'{"payment_id":"x7","payment_id":"x8","event_time":1700000000000,"account_id":"a","amount":1,'
    b'"currency":"EUR"}',
    "card_number": b'{"payment_id":"x9","event_time":1700000000000,"account_id":"a","amount":1,"currency":"EUR",'
    b'"order_id":"4111 1111 1111 1111"}',
    "schema_version_too_new": b'{"payment_id":"x10","event_time":1700000000000,"account_id":"a","amount":1,'
    b'"currency":"EUR","schema_version":99}',
}


class Road:
    """One deployment with one worker, and what a plain consumer sees of it."""

    terminal_blocks = 0

    def __init__(self, kafka: Any, directory: Path) -> None:
        self.client = kafka.client
        self.prefix = kafka.fresh_prefix()
        self.directory = directory
        self.settings = Settings(bootstrap=kafka.bootstrap, prefix=self.prefix, group=self.prefix + "workers")
        initialise(self.settings, "earliest", by="test", why="test")
        self.worker = self.start(directory / "one")

    def start(self, directory: Path, **environment: str) -> LiveWorker:
        return LiveWorker(
            directory,
            {
                "FRAUD_BOOTSTRAP": self.settings.bootstrap or "",
                "FRAUD_PREFIX": self.prefix,
                "FRAUD_GROUP": self.settings.group,
                **environment,
            },
        )

    def send(self, values: list[tuple[bytes | None, bytes]], **options: str) -> None:
        producer = Producer({**self.client, **options})
        for key, value in values:
            producer.produce(self.prefix + "payments", value=value, key=key)
        assert producer.flush(60) == 0

    def read(self, topic: str) -> list[Message]:
        """All records of a topic by now."""
        return list(self._read(topic))

    def _read(self, topic: str) -> Iterator[Message]:
        consumer = Consumer({**self.client, "group.id": "plain", "enable.auto.commit": False})
        name = self.prefix + topic
        for partition in consumer.list_topics(name, timeout=30).topics[name].partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=30)
            consumer.assign([TopicPartition(name, partition, low)])
            while low < high:
                message = consumer.poll(30)
                assert message is not None, f"{name}[{partition}] has no record at {low}"
                assert message.error() is None, message.error()
                low = cast(int, message.offset()) + 1
                yield message
        consumer.close()

    def until(self, records: int) -> dict[str, list[dict[str, Any]]]:
        """Wait until so many payments are answered; the answers by the record that each delivery is for."""

        def answered() -> dict[str, list[dict[str, Any]]] | None:
            found: dict[str, list[dict[str, Any]]] = {}
            for message in self.read("decisions"):
                headers = dict(cast(list[tuple[str, bytes]], message.headers()))
                answer = msgspec.json.decode(message.value() or b"")
                found.setdefault(headers["origin"].decode().split(":", 1)[1], []).append(
                    {**answer, "answer": headers["answer"].decode(), "value": message.value()}
                )
            return found if len(found) >= records else None

        return self.worker.until(answered, f"no {records} answers")


@pytest.fixture
def road(kafka: Any, tmp_path: Path) -> Iterator[Road]:
    road = Road(kafka, tmp_path)
    yield road
    road.worker.stop()


def payment(n: int, **more: Any) -> bytes:
    fields = {"payment_id": f"p{n}", "event_time": 1_700_000_000_000 + n, "account_id": f"a{n % 7}", "amount": 100 + n}
    return msgspec.json.encode({**fields, "currency": "EUR", "terminal_id": f"t{n % 3}", **more})


def test_bad_records_are_refused_by_name_and_the_next_payment_is_decided(road: Road) -> None:
    values = [value for pair in zip(BAD.values(), map(payment, range(len(BAD))), strict=True) for value in pair]
    road.send([(b"k", value) for value in values])
    answers = road.until(len(values))
    causes = sorted(a["cause"] for found in answers.values() for a in found if a["outcome"] == "refused")
    assert causes == sorted(BAD)
    road.worker.until(lambda: len(road.read("dead-letters")) >= len(BAD), "letters are missing")
    letters = [msgspec.json.decode(message.value() or b"") for message in road.read("dead-letters")]
    assert sorted(letter["cause"] for letter in letters) == sorted(BAD)
    assert all("4111 1111" not in letter["excerpt"] for letter in letters)
    assert sum(a["outcome"] == "approve" for found in answers.values() for a in found) == len(BAD)


def test_one_effective_answer_whichever_partitioner_and_key(road: Road) -> None:
    same = payment(1)
    road.send([(b"a1", same)], partitioner="consistent_random")
    road.send([(b"a1", same)], partitioner="murmur2_random")
    road.send([(b"quite another key", same), (None, same)])
    answers = road.until(4)
    found = [a for copies in answers.values() for a in copies]
    assert len({a["value"] for a in found}) == 1, "all answers to one payment are equal"
    assert sorted(a["answer"] for a in found) == ["first", "repeat", "repeat", "repeat"]


def test_another_content_under_the_same_id_is_a_contradiction(road: Road) -> None:
    road.send([(b"k", payment(1)), (b"k", payment(1, amount=999))])
    answers = [a for copies in road.until(2).values() for a in copies]
    assert sorted(a["outcome"] for a in answers) == ["approve", "refused"]
    assert {a.get("cause") for a in answers} == {None, "contradiction"}


def test_a_worker_without_the_others_disk_goes_on_and_answers_stay(road: Road) -> None:
    road.send([(b"k", payment(n)) for n in range(300)])
    before = road.until(300)
    assert road.worker.stop() == 0
    road.worker = road.start(road.directory / "two")
    road.send([(b"k", payment(n)) for n in range(250, 400)])
    after = road.until(450)
    assert all(after[origin][0]["value"] == copies[0]["value"] for origin, copies in before.items())
    found = reconcile(road.client, road.prefix)
    assert (found.payments, found.missing, found.conflicting) == (450, 0, 0)


def test_snapshots_carry_the_state_to_another_disk(road: Road) -> None:
    url = (road.directory / "snapshots").as_uri()
    environment = {"FRAUD_SNAPSHOT_URL": url, "FRAUD_SNAPSHOT_EVERY_S": "1"}
    road.worker.stop()
    road.worker = road.start(road.directory / "a", **environment)
    road.send([(b"k", payment(n)) for n in range(200)])
    road.until(200)
    snapshots = road.directory / "snapshots"
    road.worker.until(lambda: list(snapshots.glob("**/terminal-journal/**/manifests/*")), "no snapshots")
    time.sleep(2)
    road.worker.stop()
    road.worker = road.start(road.directory / "b", **environment)
    road.send([(b"k", payment(n)) for n in range(150, 260)])
    road.until(310)
    assert "restoring the snapshot" in road.worker.log.read_text()
    assert "no snapshots are taken" not in road.worker.log.read_text()
    found = reconcile(road.client, road.prefix)
    assert (found.payments, found.missing, found.conflicting) == (310, 0, 0)


def test_mode_enforce_holds_from_its_marker_on(road: Road) -> None:
    def burst(start: int) -> list[tuple[bytes | None, bytes]]:
        return [(b"k", payment(n, account_id="hot")) for n in range(start, start + 20)]

    road.send(burst(0))
    shadow = [a for copies in road.until(20).values() for a in copies]
    assert {a["outcome"] for a in shadow} == {"approve"}
    assert "challenge" in {a["verdict"] for a in shadow}, "the rules spoke"
    road.terminal_blocks = len(road.read("terminal-journal"))
    write_control(road.settings, "policy", Policy(mode="enforce"), by="test", why="test")
    road.worker.until(
        lambda: (
            any(label["kind"] == "policy" for label in road.worker.metrics().labels("control_records_total"))
            or time.sleep(3)
            or True
        ),
        "no policy",
    )
    road.send(burst(100))
    enforced = [a for copies in road.until(40).values() for a in copies if a.get("policy_mode") == "enforce"]
    assert len(enforced) == 20
    assert all(a["outcome"] == a["verdict"] for a in enforced)
    assert {"challenge", "review"} & {a["outcome"] for a in enforced}


def test_sigterm_ends_in_ten_seconds_with_a_checkpoint(road: Road) -> None:
    road.send([(b"k", payment(n)) for n in range(50)])
    road.until(50)
    began_s = time.monotonic()
    assert road.worker.stop() == 0
    assert time.monotonic() - began_s < 15, "10 s are promised; the rest is this machine's"
    state = str(road.directory / "one" / "state")
    road.worker = road.start(road.directory / "again", FRAUD_STATE_DIR=state)
    road.worker.until_ready()
    log = road.worker.log.read_text()
    assert "from offset" in log
    assert log.count("no snapshots are taken") == 1
    assert reconcile(road.client, road.prefix).repeated == 0, "nothing is answered again after an orderly end"
