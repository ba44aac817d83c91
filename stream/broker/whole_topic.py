"""What stands in a topic now, read as it arrives: no group is joined, nothing is committed."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream.broker.offsets import watermarks
from stream.errors import OperatorError
from stream.stages.stage import Record

WAIT_S: Final = 30.0  # for more, before the end is reached
BATCH: Final = 5_000


class TopicReader:
    """A context manager. `name`: in whose name the broker's log shows it. One stretch at a time."""

    def __init__(self, client: Mapping[str, Any], name: str) -> None:
        self._consumer = Consumer(
            {
                **client,
                "group.id": f"fraudstream-{name}",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
            }
        )

    def __enter__(self) -> "TopicReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def ends(self, topic: str) -> dict[int, tuple[int, int]]:
        """Per partition its first offset and the one after its last. Raises `OperatorError`."""
        try:
            found = self._consumer.list_topics(topic, timeout=WAIT_S).topics[topic]
        except KafkaException as error:
            raise OperatorError(f"{topic}: {error}") from error
        if found.error is not None:
            raise OperatorError(f"no topic {topic}")
        return {partition: self.ends_of(topic, partition) for partition in sorted(found.partitions)}

    def ends_of(self, topic: str, partition: int) -> tuple[int, int]:
        """The same of one partition."""
        try:
            return watermarks(self._consumer, topic, partition)
        except KafkaException as error:
            raise OperatorError(f"{topic}[{partition}]: {error}") from error

    def messages(self, topic: str, partition: int, low: int, high: int) -> Iterator[list[Message]]:
        """What can be read of `[low, high)`, in order, as many at a time as have arrived.

        Ends where the partition does, too: a transaction's markers have offsets, and nobody can read them. Raises
        `OperatorError` naming the partition.
        """
        if high <= low:
            return
        consumer = self._consumer
        consumer.assign([TopicPartition(topic, partition, low)])
        at = low
        while at < high:
            first = consumer.poll(WAIT_S)
            if first is None:
                raise OperatorError(f"{topic}[{partition}]: nothing from offset {at} on in {WAIT_S:.0f} s, of {high}")
            found: list[Message] = []
            # `consume(n, t)` waits for n or for t; after a poll that brought one, what is there is enough.
            for message in (first, *consumer.consume(BATCH, 0)):
                error, offset = message.error(), message.offset()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise OperatorError(f"{topic}[{partition}]: {error.str()}")
                if error is not None or offset is None or offset >= high:
                    at = high
                else:
                    found.append(message)
                    at = max(at, offset + 1)
            if found:
                yield found
        consumer.unassign()

    def records(self, topic: str, partition: int, low: int, high: int) -> Iterator[list[Record]]:
        """The same, as the stages take them."""
        for messages in self.messages(topic, partition, low, high):
            yield [_record(message) for message in messages]


def whole_partition(client: Mapping[str, Any], topic: str, partition: int) -> Iterator[Record]:
    """From its first record to where it ends now. Raises `OperatorError` naming the partition."""
    with TopicReader(client, "export") as reader:
        for records in reader.records(topic, partition, *reader.ends(topic)[partition]):
            yield from records


def _record(message: Message) -> Record:
    offset = message.offset()
    assert offset is not None, "a fetched record has an offset"
    headers: Any = message.headers() or ()
    key: Any = message.key()
    value: Any = message.value()
    return Record(offset, message.timestamp()[1], key, value, tuple(headers))
