"""`fraud reconcile` on topics that grow, and that retention has cut: only what was read is held against its answers."""

import json
import subprocess
import sys
import threading
import time
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from stream.broker.topic_admin import create_topics
from stream.operate import initialise, topic_id_of
from stream.reconcile import reconcile
from stream.settings import Settings
from topics.catalogue import catalogue

pytestmark = pytest.mark.kafka

PARTITIONS = 2
FRAUD = (sys.executable, "-c", "from stream.cli.main import main; main()")


class Desk:
    """One deployment without a worker: the test itself answers, so it says what is on its way and what is not."""

    def __init__(self, kafka: Any) -> None:
        self.client = kafka.client
        self.settings = Settings(bootstrap=kafka.bootstrap, prefix=kafka.fresh_prefix())
        self.prefix = self.settings.prefix
        self.producer = Producer(self.client)
        self.sent = [0] * PARTITIONS
        self._topic_id = ""

    def initialise(self, start: Any = "earliest") -> None:
        initialise(self.settings, start, by="test", why="test", partitions=PARTITIONS)

    def ask(self, count: int, mode: str = "live") -> list[tuple[int, int]]:
        """Payments, a partition after the other; where they stand."""
        asked: list[tuple[int, int]] = []
        for i in range(count):
            partition = i % PARTITIONS
            value = msgspec.json.encode({"payment_id": f"p{partition}-{self.sent[partition]}", "mode": mode})
            self.producer.produce(self.prefix + "payments", value, partition=partition)
            asked.append((partition, self.sent[partition]))
            self.sent[partition] += 1
        assert self.producer.flush(60) == 0
        return asked

    def answer(self, places: list[tuple[int, int]], **more: str) -> None:
        topic_id = self._topic_id = self._topic_id or topic_id_of(self.settings, "payments").hex()
        for partition, offset in places:
            decided = {"outcome": "approve", "payment_id": f"p{partition}-{offset}", **more}
            origin = f"{topic_id}:{partition}:{offset}".encode()
            self.producer.produce(
                self.prefix + "decisions", msgspec.json.encode(decided), partition=partition, headers={"origin": origin}
            )
        assert self.producer.flush(60) == 0

    def delete_payments_before(self, offset: int) -> None:
        """As retention does."""
        admin = AdminClient(self.client)
        places = [TopicPartition(self.prefix + "payments", partition, offset) for partition in range(PARTITIONS)]
        for done in admin.delete_records(places).values():
            done.result(30)

    def command(self, *options: str) -> tuple[int, dict[str, Any]]:
        told = subprocess.run(
            [*FRAUD, "reconcile", "--json", "--bootstrap", self.settings.bootstrap, "--prefix", self.prefix, *options],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return told.returncode, json.loads(told.stdout.splitlines()[-1])


@pytest.fixture
def desk(kafka: Any) -> Desk:
    return Desk(kafka)


def test_answers_that_outlive_their_payments_are_outside_and_not_unasked(desk: Desk) -> None:
    desk.initialise()
    desk.answer(desk.ask(20))
    desk.delete_payments_before(6)
    code, told = desk.command()
    assert code == 0
    figures = ("payments", "answered", "answers", "outside", "missing", "unasked", "repeated")
    assert [told[name] for name in figures] == [8, 8, 20, 12, 0, 0, 0]


def test_refused_payments_that_are_gone_need_no_letter_any_more(desk: Desk) -> None:
    desk.initialise()
    desk.answer(desk.ask(4), outcome="refused", cause="not_json")
    desk.delete_payments_before(1)
    found = reconcile(desk.client, desk.prefix)
    assert (found.refused, found.dead_letters_missing, found.good) == (2, 2, False)
    desk.delete_payments_before(2)
    found = reconcile(desk.client, desk.prefix)
    assert (found.refused, found.dead_letters_missing, found.outside, found.good) == (0, 0, 4, True)


def test_reading_begins_where_init_has_said(desk: Desk) -> None:
    create_topics(desk.client, list(catalogue(desk.prefix, PARTITIONS).values()))
    desk.ask(10)
    desk.initialise("latest")
    desk.answer(desk.ask(4))
    found = reconcile(desk.client, desk.prefix)
    assert (found.payments, found.answered, found.missing, found.good) == (4, 4, 0, True)


def test_an_answer_to_a_place_without_a_payment_is_unasked(desk: Desk) -> None:
    desk.initialise()
    payments = Producer({**desk.client, "transactional.id": desk.prefix + "holes"})
    payments.init_transactions(60)
    payments.begin_transaction()
    payments.produce(desk.prefix + "payments", b'{"payment_id":"a"}', partition=0)
    payments.commit_transaction(60)  # its marker takes offset 1, where nothing can be read
    desk.sent[0] = 2
    desk.answer([*desk.ask(2), (0, 0), (0, 1)])
    found = reconcile(desk.client, desk.prefix)
    assert (found.payments, found.missing, found.unasked, found.outside, found.good) == (3, 0, 1, 0, False)


def test_backfill_needs_no_answer(desk: Desk) -> None:
    desk.initialise()
    desk.answer(desk.ask(2))
    desk.ask(4, mode="backfill")
    found = reconcile(desk.client, desk.prefix)
    assert (found.payments, found.backfill, found.missing, found.good) == (2, 4, 0, True)


def test_payments_and_answers_that_keep_coming_are_no_fault(desk: Desk) -> None:
    desk.initialise()
    over = threading.Event()

    def at_work() -> None:
        while not over.is_set():
            places = desk.ask(10)
            time.sleep(0.05)
            desk.answer(places)

    desk.answer(desk.ask(2_000))
    working = threading.Thread(target=at_work)
    working.start()
    try:
        found = [reconcile(desk.client, desk.prefix, wait_s=60) for _ in range(3)]
    finally:
        over.set()
        working.join()
    assert all(each.good for each in found), found
    assert sum(each.outside for each in found) > 0, "some were asked and answered while payments were read"


def test_what_is_on_its_way_is_waited_for_and_what_never_comes_is_missing(desk: Desk) -> None:
    desk.initialise()
    asked = desk.ask(10)
    desk.answer(asked[:8])
    assert reconcile(desk.client, desk.prefix).missing == 2, "nobody has waited"
    read = 0

    def one_more(records: int) -> None:
        nonlocal read
        read += records
        if read == 18:  # all that stood there at first
            desk.answer(asked[8:9])

    found = reconcile(desk.client, desk.prefix, one_more, wait_s=4)
    assert (found.waited_for, found.missing, found.answered) == (2, 1, 9)
    assert found.missing_origins == ["payments[1]@4"]
    code, told = desk.command("--wait", "0")
    assert (code, told["missing"], told["waited_for"]) == (1, 1, 0)
