"""What stops a partition, by name. Each message says who must do what."""

from typing import Final, Protocol

from stream.errors import InternalError, StateError

CANNOT_GO_ON: Final = (
    "this deployment cannot go on: begin a new one (`fraud init` and its workers with another --prefix, and another "
    "--group, an empty state directory and an empty snapshot store), and keep these topics as evidence"
)
"""The end of an operator's ways out: what state and log together no longer hold, `fraud init` does not bring back."""


class JournalName(Protocol):
    @property
    def topic(self) -> str: ...
    @property
    def topic_id(self) -> bytes: ...
    @property
    def partition(self) -> int: ...


def _at(journal: JournalName, offset: int) -> str:
    return f"{journal.topic}[{journal.partition}]@{offset}"


def _skip(journal: JournalName, offset: int) -> str:
    """The command, whole: an operator has nothing to fill in but two words."""
    return f"`fraud skip {journal.topic} {journal.partition} {offset} --by WHO --why WHY`"


class ForeignState(StateError):
    """The state was made from another topic, or another partition of it."""

    def __init__(self, journal: JournalName, topic_id: bytes, partition: int) -> None:
        super().__init__(
            f"state of topic id {topic_id.hex()}[{partition}] found for {journal.topic}[{journal.partition}], whose id "
            f"is {journal.topic_id.hex()}: the topic was deleted and made again, or the state is another deployment's. "
            f"Operator: give this worker the state directory and snapshots of this deployment. If the topic was made "
            f"again, {CANNOT_GO_ON}"
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
            f"records are lost to it. Operator: restore a newer state directory or snapshot of this partition. "
            f"If there is none, {CANNOT_GO_ON}"
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
            f"{_skip(journal, offset)} lets the partition go on without it"
        )


class StepFailed(InternalError):
    """`apply` raised. The partition restarts from its checkpoint, a record at a time; the named record stops it."""

    def __init__(self, journal: JournalName, first: int, last: int, cause: Exception) -> None:
        self.journal = journal
        self.first = first
        self.last = last
        failed = f"apply failed at {_at(journal, first)}"
        if first == last:
            way_out = f"Operator: {_skip(journal, last)} lets the partition go on without that record"
        else:  # nobody may take the last of a batch for the one that failed
            failed += f"..{last}"
            way_out = "Which record it is shows when they are applied one at a time"
        super().__init__(f"{failed}: {type(cause).__name__}: {cause}. Programmer: this is a bug. {way_out}")
