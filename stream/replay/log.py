"""A log in memory: topics, partitions, offsets and the broker's time, as far as a stage can see them."""

from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b

from stream.runner.partition import Send
from stream.stages.stage import Record


def local_topic_id(topic: str) -> bytes:
    """A topic id for a log that no broker made: a function of the name, so that runs are comparable."""
    return blake2b(topic.encode(), digest_size=16).digest()


class LocalLog:
    """Append and read. `at_ms` of a record is never below that of the record before it, as with LogAppendTime."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, int], list[Record]] = defaultdict(list)
        self._first: dict[tuple[str, int], int] = defaultdict(int)

    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        at_ms: int,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> int:
        """The offset at which it stands now."""
        records = self._records[topic, partition]
        offset = self._first[topic, partition] + len(records)
        records.append(Record(offset, at_ms, key, value, tuple(headers)))
        return offset

    def append_all(self, topic: str, partition: int, values: Sequence[bytes], at_ms: Sequence[int]) -> None:
        """`append` of each value."""
        end = self.end(topic, partition)
        self._records[topic, partition] += [
            Record(offset, ms, None, value) for offset, (value, ms) in enumerate(zip(values, at_ms, strict=True), end)
        ]

    def send(self, sends: Sequence[Send], at_ms: int) -> None:
        """What a step sent, in order."""
        to = None
        records: list[Record] = []
        first = 0
        for topic, partition, key, value, headers, _ in sends:
            if (topic, partition) != to:
                to = (topic, partition)
                records, first = self._records[to], self._first[to]
            records.append(Record(first + len(records), at_ms, key, value, headers))

    def read(self, topic: str, partition: int, offset: int, count: int) -> list[Record]:
        """At most `count` records from `offset` on that are still held."""
        start = max(0, offset - self._first[topic, partition])
        return self._records[topic, partition][start : start + count]

    def end(self, topic: str, partition: int) -> int:
        """The offset that the next record gets."""
        return self._first[topic, partition] + len(self._records[topic, partition])

    def forget_before(self, topic: str, partition: int, offset: int) -> None:
        """Drop what stands before `offset`, as retention does."""
        first = self._first[topic, partition]
        if offset > first:
            del self._records[topic, partition][: offset - first]
            self._first[topic, partition] = offset

    def partitions(self, topic: str) -> list[int]:
        return sorted(partition for name, partition in self._records if name == topic)
