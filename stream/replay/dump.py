"""Journals from a broker into files, as they stand: what `stream.replay.rerun` reads."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from msgspec import Struct

from stream.errors import OperatorError
from stream.replay.journal_files import Head, JournalWriter
from stream.replay.rerun import JOURNALS, OUTPUTS
from stream.stages.stage import Record
from stream.version import ENGINE_VERSION

TIMEOUT_S: Final = 30.0
BATCH: Final = 5_000

ORDER: Final = (*OUTPUTS, *JOURNALS)
"""Outputs' ends are asked for first: the cause of each output that is written is then in the journals, too."""


class DumpFailed(OperatorError):
    """The broker did not give all records."""


class Place(Struct, frozen=True, kw_only=True):
    """A partition to write: `topic` without prefix, and the records `[low, high)` that stand in it."""

    topic: str
    topic_id: bytes
    partition: int
    partitions: int
    low: int
    high: int


def consumer_of(client: Mapping[str, Any]) -> Consumer:
    """A consumer in no group's name: it commits nothing."""
    return Consumer(
        {
            **client,
            "group.id": "fraudstream-dump",
            "enable.auto.commit": False,
            "enable.partition.eof": False,
            "auto.offset.reset": "error",
        }
    )


def places(
    consumer: Consumer,
    ids: Mapping[str, bytes],
    prefix: str,
    watermarks: Callable[[Consumer, str, int], tuple[int, int]],
) -> list[Place]:
    """Where everything ends now, in `ORDER`. `ids`: topic ids by name without prefix. Raises `DumpFailed`."""
    found: list[Place] = []
    for topic in ORDER:
        try:
            metadata = consumer.list_topics(prefix + topic, timeout=TIMEOUT_S).topics[prefix + topic]
            count = len(metadata.partitions)
            for partition in range(count):
                low, high = watermarks(consumer, prefix + topic, partition)
                found.append(
                    Place(
                        topic=topic,
                        topic_id=ids[topic],
                        partition=partition,
                        partitions=count,
                        low=low,
                        high=high,
                    )
                )
        except KafkaException as error:
            raise DumpFailed(f"{prefix + topic}: {error}") from error
    return found


def dump(
    consumer: Consumer,
    wanted: Sequence[Place],
    directory: Path,
    *,
    prefix: str = "",
    progress: Callable[[int], None] = lambda more: None,
) -> int:
    """Write one file a place; returns the records written. Raises `DumpFailed`: the file it was at has no end then."""
    directory.mkdir(parents=True, exist_ok=True)
    total = 0
    for place in wanted:
        head = Head(
            topic=place.topic,
            topic_id=place.topic_id,
            partition=place.partition,
            partitions=place.partitions,
            engine=ENGINE_VERSION,
            first_offset=place.low,
        )
        with JournalWriter(directory, head) as writer:
            _copy(consumer, place, prefix + place.topic, writer, progress)
        total += writer.count
    return total


def _copy(consumer: Consumer, place: Place, topic: str, writer: JournalWriter, progress: Callable[[int], None]) -> None:
    if place.high <= place.low:
        return
    consumer.assign([TopicPartition(topic, place.partition, place.low)])
    following = place.low
    while following < place.high:
        first = consumer.poll(TIMEOUT_S)
        if first is None:
            raise DumpFailed(f"{topic}[{place.partition}]: nothing from offset {following} on in {TIMEOUT_S:.0f} s")
        records: list[Record] = []
        for message in (first, *consumer.consume(BATCH, 0)):  # `consume(n, t)` would wait for n or for t
            record = _record(message, topic)
            following = record.offset + 1
            if record.offset < place.high:
                records.append(record)
        writer.add(records)
        progress(len(records))
    consumer.unassign()


def _record(message: Message, topic: str) -> Record:
    error = message.error()
    if error is not None:
        raise DumpFailed(f"{topic}: {error}")
    offset = message.offset()
    assert offset is not None, "a fetched record has an offset"
    headers: Any = message.headers() or ()
    key: Any = message.key()
    value: Any = message.value()
    return Record(offset, message.timestamp()[1], key, value, tuple(headers))
