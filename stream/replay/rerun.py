"""Apply recorded journals again, in a fresh state, and hold the answers against those that were recorded.

    account-journal, terminal-journal, examples ──► the stages ──► answers, details, dead letters, model versions
                                                                        │ byte for byte
    decisions, -details, dead-letters, control (as recorded) ───────────┘

The stages see the journals only: what was recorded of their outputs is read afterwards. What the live way may do to a
stage's outputs is to send them again; so an output counts as reproduced however often it was recorded, and two recorded
ones of the same cause must be equal.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from msgspec import Struct

from stream.errors import OperatorError
from stream.replay.journal_files import JournalReader, journals_in
from stream.runner.partition import PartitionRunner, Reseek, Send
from stream.stages.account import TERMINAL_JOURNAL
from stream.stages.answers import DEAD_LETTERS, DECISIONS, DETAILS
from stream.stages.control import CONTROL
from stream.stages.intake import ACCOUNT_JOURNAL
from stream.stages.keys import TABLE_PENDING
from stream.stages.stage import Journal, Record
from stream.stages.state import MemoryStore, State
from stream.stages.terminal import EXAMPLES
from stream.stages.wiring import Partitions, build_stage
from stream.version import ENGINE_VERSION
from topics.control import parse_control
from topics.refusals import Refusal
from topics.skips import Skips

JOURNALS = (ACCOUNT_JOURNAL, TERMINAL_JOURNAL, EXAMPLES)
OUTPUTS = (DECISIONS, DEAD_LETTERS, CONTROL)
RECORDED = (*JOURNALS, *OUTPUTS)
"""What is kept of a run, so that it can be verified."""

COMPARED = (*OUTPUTS, DETAILS)
"""What is held against the rerun, if it is there: an evaluation and dumps of before have no details."""

CHECKPOINT_EVERY = 20_000
DIFFERENCES_MAX = 20


class CannotRerun(OperatorError):
    """The journals in the directory can't be applied again. The message says why, and what to do."""


class Compared(Struct, kw_only=True):
    """One topic. `recorded`, `reproduced`: distinct outputs; `missing`: of the rerun, not recorded; `unexpected`:
    recorded, not of the rerun; `differing`: of both, with other bytes; `conflicting`: recorded twice, unequal."""

    recorded: int = 0
    reproduced: int = 0
    missing: int = 0
    unexpected: int = 0
    differing: int = 0
    conflicting: int = 0

    @property
    def equal(self) -> bool:
        return not (self.missing or self.unexpected or self.differing or self.conflicting)


class Rerun(Struct, kw_only=True):
    """What came of it. `topics`: by name; `records`: applied, by journal; `sha`: of all answers in order of origin;
    `first_differences`: origins, for people."""

    equal: bool
    records: dict[str, int]
    topics: dict[str, Compared]
    sha: str
    first_differences: list[str]


def _digest(value: bytes | None) -> bytes:
    return blake2b(value or b"", digest_size=16).digest()


Outputs = dict[str, dict[bytes, bytes]]
"""Digest of an output's value by its cause, by topic."""


def _cause(topic: str, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]) -> bytes:
    """What an output is an output of: the record that an answer answers; else its own content."""
    if topic == DECISIONS:
        for name, found in headers:
            if name == "origin" and found is not None:
                return found
    return _digest(value)


class _Files:
    """The journals of a directory, checked to be whole and of one deployment."""

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise CannotRerun(f"{directory}: no such directory")
        self.paths = journals_in(directory)
        if (ACCOUNT_JOURNAL, 0) not in self.paths or (TERMINAL_JOURNAL, 0) not in self.paths:
            raise CannotRerun(f"{directory}: holds no {ACCOUNT_JOURNAL} and {TERMINAL_JOURNAL}; see --keep-journals")
        partitions: dict[str, int] = {}
        for (topic, partition), path in self.paths.items():
            head = JournalReader(path).head
            if head.engine > ENGINE_VERSION:
                raise CannotRerun(f"{path}: of engine {head.engine}; this release holds engines up to {ENGINE_VERSION}")
            if topic in JOURNALS and head.first_offset > 0:
                raise CannotRerun(
                    f"{path}: begins at offset {head.first_offset}; what came before is needed, and is deleted"
                )
            if partitions.setdefault(topic, head.partitions) != head.partitions:
                raise CannotRerun(f"{path}: {head.partitions} partitions, other files of the topic say otherwise")
            if partition >= head.partitions:
                raise CannotRerun(f"{path}: partition {partition} of {head.partitions}")
        for topic, count in partitions.items():
            lost = [str(partition) for partition in range(count) if (topic, partition) not in self.paths]
            if lost:
                raise CannotRerun(f"{directory}: partition {', '.join(lost)} of {topic} is not there")
        self.partitions = Partitions(
            account=partitions[ACCOUNT_JOURNAL],
            terminal=partitions[TERMINAL_JOURNAL],
            decisions=partitions.get(DECISIONS, 1),
        )

    def holds(self, topic: str) -> bool:
        return any(name == topic for name, _ in self.paths)

    def of(self, topic: str) -> Iterator[JournalReader]:
        for (name, _), path in sorted(self.paths.items()):
            if name == topic:
                yield JournalReader(path)

    def skips(self) -> Skips:
        """Read ahead of everything else."""
        return Skips.said_in(record.value for reader in self.of(CONTROL) for record in reader.records())


def rerun(directory: Path, *, batch: int = 1_000, plain: bool = False) -> Rerun:
    """Apply the journals in `directory` again and compare. `batch`: records applied at once; `plain`: without numba.

    Raises `CannotRerun` or `JournalDamaged`; whatever stops a stage stops this, too.
    """
    files = _Files(directory)
    skips = files.skips()
    applied: Counter[str] = Counter()
    outputs: Outputs = {topic: {} for topic in COMPARED}
    details = files.holds(DETAILS)
    for topic in JOURNALS:
        for reader in files.of(topic):
            head = reader.head
            skipped = skips.of(head.topic_id, head.partition)
            for sends, count in _apply(reader, files.partitions, skipped, batch, plain, details):
                applied[topic] += count
                _take(sends, outputs)
    recorded, conflicting = _recorded(files)
    topics: dict[str, Compared] = {}
    differences: list[str] = []
    for topic in COMPARED:
        if files.holds(topic):
            topics[topic] = _compare(topic, outputs[topic], recorded[topic], conflicting[topic], differences)
    sha = blake2b(digest_size=32)
    for cause in sorted(outputs[DECISIONS]):
        sha.update(cause + outputs[DECISIONS][cause])
    return Rerun(
        equal=all(compared.equal for compared in topics.values()),
        records=dict(applied),
        topics=topics,
        sha=sha.hexdigest(),
        first_differences=differences[:DIFFERENCES_MAX],
    )


def _apply(
    reader: JournalReader, partitions: Partitions, skipped: set[int], batch: int, plain: bool, details: bool
) -> Iterator[tuple[list[Send], int]]:
    head = reader.head
    journal = Journal(head.topic, head.topic_id, head.partition)
    store = MemoryStore()
    state = State(store, scanned=TABLE_PENDING)
    stage = build_stage(journal, state, partitions, plain=plain, details=details)
    runner = PartitionRunner(journal, stage, state, start_offset=0, skips=skipped)
    records = reader.records()
    while chunk := list(islice(records, batch)):
        sends = _step(runner, chunk)
        if sends:
            runner.acknowledged(sends[0].generation, len(sends))
        if state.changed >= CHECKPOINT_EVERY:
            runner.write(runner.begin_checkpoint(), store.write)
        yield sends, len(chunk)


def _step(runner: PartitionRunner, records: list[Record]) -> list[Send]:
    sends = runner.step(records)
    if isinstance(sends, Reseek):  # a file has no second look: the same records again are that look
        sends = runner.step(records)
    assert not isinstance(sends, Reseek), "a second look is believed"
    return sends


def _take(sends: list[Send], outputs: Outputs) -> None:
    for send in sends:
        if send.topic in outputs:
            outputs[send.topic][_cause(send.topic, send.value, send.headers)] = _digest(send.value)


def _recorded(files: _Files) -> tuple[Outputs, Counter[str]]:
    """What was recorded, and how many of it twice with other bytes."""
    recorded: Outputs = {topic: {} for topic in COMPARED}
    conflicting: Counter[str] = Counter()
    for topic in COMPARED:
        for reader in files.of(topic):
            for record in reader.records():
                if topic == CONTROL and not _by_learner(record.value):
                    continue
                cause = _cause(topic, record.value, record.headers)
                digest = _digest(record.value)
                if recorded[topic].setdefault(cause, digest) != digest:
                    conflicting[topic] += 1
    return recorded, conflicting


def _by_learner(value: bytes | None) -> bool:
    """People write to control, too; only the learner's versions are an output of a stage."""
    control = parse_control(value)
    return not isinstance(control, Refusal) and control.kind == "model" and control.by == "learner"


def _compare(
    topic: str, ours: dict[bytes, bytes], recorded: dict[bytes, bytes], conflicting: int, differences: list[str]
) -> Compared:
    found = Compared(recorded=len(recorded), conflicting=conflicting)
    for cause, digest in ours.items():
        theirs = recorded.get(cause)
        if theirs == digest:
            found.reproduced += 1
            continue
        if theirs is None:
            found.missing += 1
        else:
            found.differing += 1
        differences.append(f"{topic} {cause.decode() if topic == DECISIONS else cause.hex()}")
    for cause in recorded.keys() - ours.keys():
        found.unexpected += 1
        differences.append(f"{topic} {cause.decode() if topic == DECISIONS else cause.hex()}")
    return found
