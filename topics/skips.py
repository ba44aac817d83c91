"""Which skips count: those of records at which a partition had stopped before. By the order of `control` alone.

A stage fails on a record wherever it is applied, so nobody has answered from it, and to skip it changes nothing that
was said. A skip of any other record would: whoever applied it live goes on, and a replay, or a worker that starts from
an older state, leaves it out. So such a skip is on record, and does nothing, for ever.

>>> at = Skip(topic_id="ab" * 16, partition=0, offset=7)
>>> skips = Skips()
>>> skips.take(record_of("skip", at)), skips.of(bytes.fromhex("ab" * 16), 0)
(None, set())
>>> skips.take(record_of("stopped", at)), skips.take(record_of("skip", at)) == at
(None, True)
>>> skips.of(bytes.fromhex("ab" * 16), 0)
{7}
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from topics.control import Control, Skip, encode_control, parse_control, payload_as
from topics.refusals import Refusal

Place = tuple[bytes, int, int]


class Skips:
    """Fed with the records of `control` in order. Bounded by them: it keeps those of the kinds `stopped`, `skip`."""

    def __init__(self) -> None:
        self._stopped: set[Place] = set()
        self._skips: dict[tuple[bytes, int], set[int]] = defaultdict(set)

    @classmethod
    def said_in(cls, values: Iterable[bytes | None]) -> "Skips":
        """Those in the records of `control`, from the first on."""
        found = cls()
        for value in values:
            control = parse_control(value)
            if not isinstance(control, Refusal):
                with contextlib.suppress(msgspec.MsgspecError, ValueError):  # whoever wrote it: it skips nothing
                    found.take(control)
        return found

    def take(self, record: Control) -> Skip | None:
        """The skip in `record`, if it is one that counts. Raises `msgspec.MsgspecError` or `ValueError`."""
        if record.kind not in ("skip", "stopped"):
            return None
        named = payload_as(record, Skip)
        topic_id = topic_id_in(named)
        place = (topic_id, named.partition, named.offset)
        if record.kind == "stopped":
            self._stopped.add(place)
            return None
        if place not in self._stopped:
            return None
        self._skips[topic_id, named.partition].add(named.offset)
        return named

    def has_stopped(self, topic_id: bytes, partition: int, offset: int) -> bool:
        """Whether a worker has said that it stopped there."""
        return (topic_id, partition, offset) in self._stopped

    def of(self, topic_id: bytes, partition: int) -> set[int]:
        """The offsets of a topic's partition that are skipped."""
        return set(self._skips.get((topic_id, partition), ()))


def topic_id_in(named: Skip) -> bytes:
    """16 bytes. ValueError if it is no UUID."""
    return bytes.fromhex(named.topic_id.replace("-", ""))


def record_of(kind: str, named: Skip, *, by: str = "worker", why: str = "apply failed") -> Control:
    """What `control` holds."""
    record = parse_control(encode_control(kind=kind, by=by, why=why, payload=named))
    assert not isinstance(record, Refusal)
    return record
