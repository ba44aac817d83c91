"""The worker's producer against a real broker."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from stream.broker.topic_admin import Topic, create_topics
from stream.runner.partition import PartitionRunner, Send
from stream.stages.answers import DECISIONS, DETAILS
from stream.worker import producer
from stream.worker.producer import WorkerProducer

pytestmark = pytest.mark.kafka
RECORDS = 400


class Acknowledged:
    """What a runner is told."""

    def __init__(self) -> None:
        self.by_generation: Counter[int] = Counter()

    def acknowledged(self, generation: int, count: int = 1) -> None:
        self.by_generation[generation] += count


def on_topic(client: dict[str, Any], topic: str) -> list[tuple[int, bytes | None, bytes | None]]:
    consumer = Consumer({**client, "group.id": "producer-test", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(2)])
    found: list[tuple[int, bytes | None, bytes | None]] = []
    while len(found) < RECORDS:
        message = consumer.poll(30.0)
        assert message is not None, f"{len(found)} of {RECORDS} records of {topic}"
        found.append((message.partition() or 0, message.key(), message.value()))
    assert consumer.poll(1.0) is None
    consumer.close()
    return found


@pytest.mark.parametrize("room", [producer.QUEUE_MESSAGES_MAX, 30])
def test_all_arrive_once_and_are_acknowledged_also_when_the_queue_is_short(
    kafka: Any, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "QUEUE_MESSAGES_MAX", room)
    prefix = f"producer-{room}."
    client = {"bootstrap.servers": kafka.bootstrap}
    topics = [Topic(name=prefix + name, partitions=2) for name in (DECISIONS, DETAILS)]
    create_topics(client, topics, replication=1)
    sends = [
        Send(topic, i % 2, b"key %d" % i, b"%s %d" % (topic.encode(), i), [], 7)
        for i in range(RECORDS)
        for topic in (DECISIONS, DETAILS)
    ]
    failures: list[BaseException] = []
    told = Acknowledged()

    async def send() -> int:
        made = WorkerProducer(client, prefix=prefix, linger_ms=1.0, failed=failures.append)
        runner: PartitionRunner = told  # pyright: ignore[reportAssignmentType]
        await made.send(runner, sends)
        while made.queued:
            made.poll()
            await asyncio.sleep(0.01)
        made.poll()
        waits = made.waits
        made.close()
        return waits

    waits = asyncio.run(send())
    assert not failures
    assert (waits > 0) == (room < RECORDS), "the short queue was waited for"
    assert told.by_generation == {7: 2 * RECORDS}
    answers = on_topic(client, prefix + DECISIONS)
    for partition in range(2):  # answers come in order
        sent = [send.value for send in sends if send.topic == DECISIONS and send.partition == partition]
        assert [value for at, _, value in answers if at == partition] == sent
    wanted = sorted((send.partition, send.key, send.value) for send in sends if send.topic == DETAILS)
    assert sorted(on_topic(client, prefix + DETAILS)) == wanted  # pyright: ignore[reportArgumentType]
