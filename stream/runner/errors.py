"""What stops a partition, by name. Each message says who must do what."""

from typing import Protocol

from stream.errors import InternalError, StateError


class JournalName(Protocol):
    @property
    def topic(self) -> str: ...
    @property
    def topic_id(self) -> bytes: ...
    @property
    def partition(self) -> int: ...


def _at(journal: JournalName, offset: int) -> str:
    return f"{journal.topic}[{journal.partition}]@{offset}"


class ForeignState(StateError):
    """The state was made from another topic, or another partition of it."""

    def __init__(self, journal: JournalName, topic_id: bytes, partition: int) -> None:
        super().__init__(
            f"state of topic id {topic_id.hex()}[{partition}] found for {journal.topic}[{journal.partition}], whose id "
            f"is {journal.topic_id.hex()}: the topic was deleted and made again. Operator: restore the topic, or start "
            f"anew with `fraud init` and an empty state directory and snapshot store"
        )


class StateAheadOfLog(StateError):
    """The state has read further than the log reaches: the log lost records, or is another."""

    def __init__(self, journal: JournalName, next_offset: int, high: int) -> None:
        super().__init__(
            f"state stands before {_at(journal, next_offset)}, but the log ends at {high}. Operator: the broker lost "
            f"records (check replication and unclean leader election); restore the log, or a snapshot from before"
        )


class StateBehindLog(StateError):
    """Retention has deleted records that the state has not seen."""

    def __init__(self, journal: JournalName, next_offset: int, low: int) -> None:
        super().__init__(
            f"state stands before {_at(journal, next_offset)}, but the log begins at {low}: {low - next_offset} "
            f"records are lost to it. Operator: restore a newer snapshot, or accept the loss with `fraud init`"
        )


class GapInJournal(StateError):
    """A journal's offsets are contiguous; these were not, on a second look too."""

    def __init__(self, journal: JournalName, expected: int, found: int) -> None:
        super().__init__(
            f"expected {_at(journal, expected)}, and the log goes on at {found}. Operator: check who else writes to "
            f"{journal.topic} or has deleted records from it"
        )


class Unreadable(InternalError):
    """A record of a journal that is no block of ours. `first`: of the fetch that was to be applied with it."""

    def __init__(self, journal: JournalName, offset: int, cause: Exception, *, first: int | None = None) -> None:
        self.journal = journal
        self.offset = offset
        self.first = offset if first is None else first
        self.last = offset
        super().__init__(
            f"unreadable block at {_at(journal, offset)}: {cause}. Operator: look who wrote it; "
            f"`fraud skip {journal.topic} {journal.partition} {offset}` lets the partition go on without it"
        )


class StepFailed(InternalError):
    """`apply` raised. The partition restarts from its checkpoint, a record at a time; the named record stops it."""

    def __init__(self, journal: JournalName, first: int, last: int, cause: Exception) -> None:
        self.journal = journal
        self.first = first
        self.last = last
        failed = f"apply failed at {_at(journal, first)}"
        if first == last:
            way_out = (
                f"Operator: `fraud skip {journal.topic} {journal.partition} {last}` lets the partition go on without "
                f"that record"
            )
        else:  # nobody may take the last of a batch for the one that failed
            failed += f"..{last}"
            way_out = "Which record it is shows when they are applied one at a time"
        super().__init__(f"{failed}: {type(cause).__name__}: {cause}. Programmer: this is a bug. {way_out}")
