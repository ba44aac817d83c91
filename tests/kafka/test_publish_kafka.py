"""Publishing to a real broker: what arrives is what was sent, in order, with the broker's own times."""

import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, TopicPartition

from stream.broker.topic_admin import create_topics
from stream.dataset import Dataset, write_dataset
from stream.publish import Publisher, PublishFailed, connect, publish
from stream.simulate import SimulationSettings, simulate
from topics.catalogue import catalogue

pytestmark = pytest.mark.kafka


def read_all(client: dict[str, str], topic: str) -> dict[int, list[Any]]:
    """All records of a topic by partition, in order of offset."""
    consumer = Consumer({**client, "group.id": "reader", "enable.partition.eof": False})
    partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    ends = {number: consumer.get_watermark_offsets(TopicPartition(topic, number))[1] for number in partitions}
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    found: dict[int, list[Any]] = {number: [] for number in partitions}
    while sum(map(len, found.values())) < sum(ends.values()):
        for message in consumer.consume(1_000, 5.0):
            assert message.error() is None
            found[message.partition()].append(message)
    consumer.close()
    return found


def test_a_dataset_arrives_whole_and_in_order(kafka: Any, tmp_path: Path):
    prefix = kafka.fresh_prefix()
    wanted = catalogue(prefix, None)
    create_topics(kafka.client, list(wanted.values()))
    world = simulate(SimulationSettings(accounts=100, terminals=50, days=20, payments_per_day=200, fraud_rate=0.05))
    paths = write_dataset(tmp_path, world.tables())
    dataset = Dataset(paths["payments"], paths["labels"], paths["updates"])
    events = list(dataset.events())
    before_ms = time.time() * 1_000
    publisher = Publisher(connect(kafka.client), prefix=prefix)
    publisher.require_topics(["payment", "label", "update"])
    done = publish(events, publisher)
    assert done.records == len(events)

    by_partition = read_all(kafka.client, prefix + "payments")
    payments = [event for event in events if event.kind == "payment"]
    assert sum(map(len, by_partition.values())) == len(payments)
    where = {message.value(): number for number, messages in by_partition.items() for message in messages}
    for number, messages in by_partition.items():
        assert [message.value() for message in messages] == [
            event.value for event in payments if where[event.value] == number
        ]
        for message in messages:
            kind, at_ms = message.timestamp()
            assert kind == TIMESTAMP_LOG_APPEND_TIME
            assert at_ms >= before_ms - 1_000
    accounts = {event.value: event.account_id.encode() for event in payments}
    assert all(message.key() == accounts[message.value()] for messages in by_partition.values() for message in messages)

    labels = read_all(kafka.client, prefix + "labels")
    assert [message.value() for message in labels[0]] == [
        event.value for event in events if event.kind in ("label", "clock")
    ]


def test_missing_topics_are_not_made_by_accident(kafka: Any):
    publisher = Publisher(connect(kafka.client), prefix=kafka.fresh_prefix())
    for _ in range(2):
        with pytest.raises(PublishFailed, match="no topic"):
            publisher.require_topics(["payment"])
