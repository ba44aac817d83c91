"""Journals from a broker into files, as they stand: what `stream.replay.rerun` reads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from stream.errors import OperatorError
from stream.replay.journal_files import SUFFIX, Head, JournalWriter
from stream.replay.rerun import COMPARED, JOURNALS
from stream.stages.stage import Record
from stream.version import ENGINE_VERSION

Ends = Callable[[str], Mapping[int, tuple[int, int]]]
"""Of a topic: per partition its first offset and the one after its last."""
Read = Callable[[str, int, int, int], Iterable[Sequence[Record]]]
"""Topic, partition, low, high: the records `[low, high)` that stand there, in order, some at a time."""

ORDER: Final = (*COMPARED, *JOURNALS)
"""Outputs' ends are asked for first: the cause of each output that is written is then in the journals, too."""


class DirectoryTaken(OperatorError):
    """There are journals in the directory. They may hold what the broker has deleted since."""


class Place(Struct, frozen=True, kw_only=True):
    """A partition to write: `topic` without prefix, and the records `[low, high)` that stand in it."""

    topic: str
    topic_id: bytes
    partition: int
    partitions: int
    low: int
    high: int


def places(ids: Mapping[str, bytes], prefix: str, ends: Ends) -> list[Place]:
    """Where everything ends now, in `ORDER`. `ids`: topic ids by name without prefix."""
    found: list[Place] = []
    for topic in ORDER:
        partitions = ends(prefix + topic)
        for partition, (low, high) in partitions.items():
            found.append(
                Place(
                    topic=topic,
                    topic_id=ids[topic],
                    partition=partition,
                    partitions=len(partitions),
                    low=low,
                    high=high,
                )
            )
    return found


def dump(
    read: Read,
    wanted: Sequence[Place],
    directory: Path,
    *,
    prefix: str = "",
    progress: Callable[[int], None] = lambda more: None,
) -> int:
    """Write one file a place; returns the records written. When `read` raises, the file it was at has no end.

    Raises `DirectoryTaken` if there are journals in `directory`.
    """
    require_free(directory)
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
            for records in read(prefix + place.topic, place.partition, place.low, place.high):
                writer.add(records)
                progress(len(records))
        total += writer.count
    return total


def require_free(directory: Path) -> None:
    """Raises `DirectoryTaken` if there are journals in `directory`, whole or not."""
    found = sorted(path.name for path in directory.glob(f"*{SUFFIX}"))
    if found:
        raise DirectoryTaken(
            f"{directory}: holds {len(found)} journals of a dump before ({found[0]}, ...), which may reach further "
            f"back than the broker does now. Operator: give each dump a directory of its own; if that one was not "
            f"finished, remove it first"
        )
