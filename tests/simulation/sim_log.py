"""The brokers as a simulation sees them: partitions with holes, broker time that never goes back, one group."""

from bisect import bisect_left
from hashlib import blake2b

from stream.runner.partition import Send
from stream.stages.stage import Record

TP = tuple[str, int]


class SimLog:
    """Topics in memory. Foreign partitions may have holes, as transactions leave them."""

    def __init__(self) -> None:
        self.records: dict[TP, list[Record]] = {}
        self.ends: dict[TP, int] = {}
        self.now_ms = 0

    def append(
        self,
        tp: TP,
        value: bytes | None,
        key: bytes | None = None,
        headers: tuple[tuple[str, bytes | None], ...] = (),
    ) -> int:
        offset = self.ends.get(tp, 0)
        self.ends[tp] = offset + 1
        self.records.setdefault(tp, []).append(Record(offset, self.now_ms, key, value, headers))
        return offset

    def send(self, send: Send) -> int:
        return self.append((send.topic, send.partition), send.value, send.key, tuple(send.headers))

    def hole(self, tp: TP) -> None:
        """An offset that no consumer gets to see."""
        self.ends[tp] = self.ends.get(tp, 0) + 1

    def end(self, tp: TP) -> int:
        return self.ends.get(tp, 0)

    def read(self, tp: TP, offset: int, count: int) -> list[Record]:
        records = self.records.get(tp, [])
        start = bisect_left(records, offset, key=lambda record: record.offset)
        return records[start : start + count]

    def all(self, tp: TP) -> list[Record]:
        return self.records.get(tp, [])

    def of(self, topic: str) -> list[tuple[int, Record]]:
        return [(p, record) for name, p in sorted(self.records) if name == topic for record in self.records[name, p]]

    def digest(self) -> str:
        """A hash of everything that stands anywhere."""
        state = blake2b(digest_size=16)
        for tp in sorted(self.records):
            for record in self.records[tp]:
                state.update(repr((tp, record.offset, record.at_ms, record.key, record.value, record.headers)).encode())
        return state.hexdigest()


class Group:
    """Who owns what, and how far it has committed. A lease that has ended cannot commit."""

    def __init__(self) -> None:
        self.owner: dict[TP, int] = {}
        self.lease: dict[TP, int] = {}
        self.offsets: dict[TP, tuple[int, str]] = {}

    def give(self, tp: TP, worker: int) -> int:
        self.owner[tp] = worker
        self.lease[tp] = self.lease.get(tp, 0) + 1
        return self.lease[tp]

    def commit(self, tp: TP, lease: int, point: tuple[int, str]) -> bool:
        """False: fenced."""
        if self.lease.get(tp) != lease:
            return False
        self.offsets[tp] = point
        return True
