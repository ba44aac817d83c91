"""How far the state on this instance's disk is, known before a store is opened.

The group asks every member that joins (`assignment.Claim.held`), and opening all stores for the answer would cost
seconds just when a worker comes back from a crash. So the offsets stand in one file beside the stores, written anew
at each checkpoint. They are a hint: the store itself says where its partition goes on.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from stream.worker.fetch import TP
from topics.undecodable import UNDECODABLE

log = logging.getLogger(__name__)

FILE = "offsets.json"


class _Topic(Struct):
    id: str
    offsets: dict[int, int]


class DiskOffsets:
    """`directory`: the instance's; `topic_ids`: of the topics as they are now. One writer, on the event loop.

    Bound: one entry for each partition of the topics.
    """

    def __init__(self, directory: Path, topic_ids: Mapping[str, bytes]) -> None:
        self._path = directory / FILE
        self._ids = {topic: found.hex() for topic, found in topic_ids.items()}
        self._offsets: dict[TP, int] = {}

    def read(self) -> None:
        """What the last process left. Without a readable file nothing is known."""
        try:
            topics = msgspec.json.decode(self._path.read_bytes(), type=dict[str, _Topic])
        except (OSError, *UNDECODABLE) as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("%s cannot be read, the group is told of no state: %s", self._path, error)
            return
        for topic, found in topics.items():
            if self._ids.get(topic) == found.id:
                for partition, offset in found.offsets.items():
                    if (self._path.parent / topic / str(partition) / "CURRENT").exists():
                        self._offsets[TP(topic, partition)] = offset

    def note(self, tp: TP, offset: int) -> None:
        """The state of `tp` is on disk up to `offset`; below 1: there is none."""
        if offset > 0:
            self._offsets[tp] = offset
        else:
            self._offsets.pop(tp, None)

    def known(self) -> dict[TP, int]:
        return dict(self._offsets)

    def encoded(self) -> bytes:
        """For `write`, which may run in another thread."""
        topics: dict[str, _Topic] = {}
        for (topic, partition), offset in sorted(self._offsets.items()):
            topics.setdefault(topic, _Topic(self._ids[topic], {})).offsets[partition] = offset
        return msgspec.json.encode(topics)

    def write(self, encoded: bytes) -> None:
        """Replaces the file, or leaves the one before if it cannot (a full disk)."""
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(encoded)
            os.replace(new, self._path)
        except OSError as error:
            log.debug("%s: %s", self._path, error)
