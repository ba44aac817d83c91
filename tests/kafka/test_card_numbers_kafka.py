"""Card numbers planted everywhere, on real Kafka: in no topic behind the account stage, no file, no log, no metric.

Exempt, and documented: `payments`, `updates`, `labels` and the raw bytes in the account journal.
"""

import json
import time

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from live_worker import LiveWorker
from planted_cards import find_planted, payment, planted

from stream.operate import initialise
from stream.settings import Settings
from stream.worker.store import RocksStore, StoreMemory

pytestmark = pytest.mark.kafka

PARTITIONS = 2
EXEMPT = ("payments", "updates", "labels", "account-journal")
OUTPUTS = ("decisions", "decision-details", "dead-letters", "terminal-journal", "examples", "control")


@pytest.fixture(scope="module")
def done(kafka, tmp_path_factory):
    """The worker has answered all, taken snapshots and ended."""
    directory = tmp_path_factory.mktemp("cards")
    prefix = kafka.fresh_prefix()
    where = {"bootstrap": kafka.bootstrap, "prefix": prefix, "group": prefix + "group"}
    initialise(Settings(**where), "earliest", by="test", why="test", partitions=PARTITIONS)
    worker = LiveWorker(
        directory,
        {
            **{f"FRAUD_{name.upper()}": value for name, value in where.items()},
            "FRAUD_SNAPSHOT_URL": f"file://{directory / 'snapshots'}",
            "FRAUD_SNAPSHOT_EVERY_S": "2",
        },
        log_level="DEBUG",
    )
    records = planted()
    payments = sum(record.topic == "payments" for record in records)
    try:
        worker.until_ready()
        producer = Producer({**kafka.client, "log_level": 0})
        for record in records:
            producer.produce(prefix + record.topic, record.value, record.key, headers=list(record.headers))
        # A batch that makes `apply` raise would log; a block that nobody can read stops its partition, and says so.
        last = dict(payment(10**6), event_time=int(time.time() * 1000))
        producer.produce(prefix + "payments", json.dumps(last).encode())
        assert producer.flush(60) == 0
        worker.until(
            lambda: (
                (seen := worker.metrics()).value("answers_total") >= payments + 1
                and seen.value("labels_total", outcome="refused") > 50
                and seen.value("updates_total", outcome="refused") > 50
                and seen.value("lag_records") == 0
            ),
            "not all is answered",
        )
        worker.until(lambda: len(list((directory / "snapshots").rglob("manifests/*.json"))) >= 3, "no snapshots")
        number = records[0].number
        stray = b"\x91" + number.encode() + b" no block"
        producer.produce(prefix + "terminal-journal", stray, partition=0)
        assert producer.flush(60) == 0
        worker.until(lambda: worker.page("/ready")[1].get("stopped"), "the unreadable record is passed over")
        pages = [worker.metrics().text, worker.get("/ready")[1], worker.get("/health")[1]]
    finally:
        worker.stop()
    return kafka, prefix, directory, pages, stray, {record.number: record.where for record in records}


def _records(kafka, topic: str):
    consumer = Consumer(
        {**kafka.client, "group.id": "scan", "enable.auto.commit": False, "enable.partition.eof": True, "log_level": 0}
    )
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    ends = 0
    while ends < len(partitions):
        message = consumer.poll(30)
        assert message is not None, f"{topic} cannot be read"
        if message.error() is not None:
            assert message.error().code() == KafkaError._PARTITION_EOF
            ends += 1
            continue
        headers = b"\n".join(name.encode() + b" " + (value or b"") for name, value in message.headers() or ())
        yield b"\n".join([message.key() or b"", message.value() or b"", headers])
    consumer.close()


@pytest.mark.parametrize("topic", OUTPUTS)
def test_no_number_in_a_topic_behind_the_account_stage(done, topic):
    kafka, prefix, _, _, stray, where = done
    blobs = [blob for blob in _records(kafka, prefix + topic) if stray not in blob]
    assert blobs or topic == "examples"
    assert sorted(where[number] for blob in blobs for number in find_planted(blob, where)) == []


def test_the_numbers_are_in_the_topics_before_it(done):
    kafka, prefix, _, _, _, where = done
    there = {
        number for topic in EXEMPT for blob in _records(kafka, prefix + topic) for number in find_planted(blob, where)
    }
    assert sorted(where[number] for number in set(where) - there) == []


def test_no_number_in_the_state(done, tmp_path):
    """Pair by pair, for blocks on disk are compressed; and the files as they are, for their logs."""
    _, _, directory, _, _, where = done
    stores = [path.parent for path in (directory / "state").rglob("CURRENT")]
    assert len(stores) >= 2 * PARTITIONS
    pairs = 0
    memory = StoreMemory(cache_bytes=128 << 20)
    for path in stores:
        store = RocksStore.open(path, memory=memory)
        try:
            for key, value in store.scan(b"", b"\xff" * 64, 10**6):
                pairs += 1
                assert not find_planted(key + b"\n" + value, where), (path, key)
        finally:
            store.close()
    assert pairs > 10
    assert _in_files(directory / "state", where) == []


def test_no_number_in_snapshots(done):
    _, _, directory, _, _, where = done
    files = [path for path in (directory / "snapshots").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert _in_files(directory / "snapshots", where) == []


def _in_files(directory, where):
    return [
        (str(path), where[number])
        for path in directory.rglob("*")
        if path.is_file()
        for number in find_planted(path.read_bytes(), where)
    ]


def test_no_number_in_logs_metrics_and_health(done):
    _, _, directory, pages, _, where = done
    for text in ((directory / "worker.log").read_text(errors="replace"), *pages):
        assert len(text) > 10
        assert sorted(where[number] for number in find_planted(text.encode(), where)) == []
