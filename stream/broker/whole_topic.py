"""One partition of a topic, from its first record to where it ends now."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, TopicPartition

from stream.broker.offsets import watermarks
from stream.errors import OperatorError
from stream.stages.stage import Record

WAIT_S: Final = 10.0
BATCH: Final = 5_000


def whole_partition(client: Mapping[str, Any], topic: str, partition: int) -> Iterator[Record]:
    """In order of offset. Joins no group, commits nothing. Raises `OperatorError` naming the partition."""
    consumer = Consumer(
        {
            **client,
            "group.id": "fraudstream-export",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
        }
    )
    try:
        if consumer.list_topics(topic, timeout=WAIT_S).topics[topic].error is not None:
            raise OperatorError(f"no topic {topic}")
        low, high = watermarks(consumer, topic, partition, timeout_s=WAIT_S)
        consumer.assign([TopicPartition(topic, partition, low)])
        at = low
        while at < high:
            first = consumer.poll(WAIT_S)
            if first is None:
                raise OperatorError(f"{topic}[{partition}]: no records for {WAIT_S} s before the end was reached")
            for message in (first, *consumer.consume(BATCH, 0)):
                error = message.error()
                if error is not None:
                    if error.code() != KafkaError._PARTITION_EOF:
                        raise OperatorError(f"{topic}[{partition}]: {error.str()}")
                    at = high
                    continue
                offset = message.offset() or 0
                if offset >= high:
                    return
                at = offset + 1
                yield Record(offset, message.timestamp()[1], message.key(), message.value())
    finally:
        consumer.close()
