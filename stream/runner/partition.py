"""One partition of one stage, without I/O: what to apply, what to send, what to write, in which order.

The live worker and the simulator drive this same code. They fetch, produce, write and commit; everything that decides
*whether* and *in which order* stands here.

    records ──► accept (epoch, next offset) ──► admit (origins, prev chain) ──► stage.apply ──► sends
    checkpoint:  1 freeze   2 wait for the acknowledgements of all that was sent up to K   3 one write   4 commit

Bounds: one entry per sender partition in `origins`, one per destination partition in `prevs`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from stream.runner.errors import (
    ForeignState,
    GapInJournal,
    StateAheadOfLog,
    StateBehindLog,
    StepFailed,
    Unreadable,
)
from stream.stages.stage import Header, Journal, Record, Row, Stage, Step
from stream.stages.state import Changes, State
from topics.journal import (
    BLOCK_BYTES_MAX,
    BLOCK_ITEMS_MAX,
    FIRST_PREV,
    LAYOUT,
    LAYOUT_OLDEST,
    RUNS,
    Block,
    Item,
    Raw,
    RawRun,
    check_block,
    decode_block,
    decode_dense,
    encode_block,
    last_of,
    width_of,
)

META_KEY = b"\x00meta"
META_LAYOUT = 1

_new = tuple.__new__

RAW_OVERHEAD_BYTES = 100  # of a raw record in a block, beside its value

CRASH_POINTS = (
    "step.before_apply",
    "step.after_apply",
    "checkpoint.after_freeze",
    "checkpoint.before_write",
    "checkpoint.after_write",
    "checkpoint.before_commit",
    "checkpoint.after_commit",
    "restore.after_read",
    "rebalance.before_start",
    "rebalance.after_leave",
    "send.between",
    "ack.before_count",
    "ack.after_count",
)
"""Every place at which a process is ended by the fault suite. `send.between`: some outputs of one step are with the
producer and others are not, as between two copies of a marker."""


class Send(NamedTuple):
    """One Kafka record to produce. `generation` goes back to `acknowledged` when the brokers have it."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: list[Header]
    generation: int


class Meta(Struct, frozen=True, array_like=True):
    """What a checkpoint keeps beside the stage's state, as of K. `next_offset` = K + 1."""

    layout: int
    topic_id: bytes
    partition: int
    next_offset: int
    origins: list[tuple[bytes, int, int, int]]
    prevs: list[tuple[str, int, int, int]]


class Checkpoint(NamedTuple):
    """A checkpoint under way: `next_offset` = K + 1; `changes` hold the stage's state and the meta record as of K."""

    next_offset: int
    generation: int
    changes: Changes


class Reseek(NamedTuple):
    """The driver must fetch again from `offset`."""

    offset: int


def read_meta(store_value: bytes | None) -> Meta | None:
    return None if store_value is None else msgspec.msgpack.decode(store_value, type=Meta)


def no_crash(_point: str) -> None:
    """The crash hook of production: nothing happens."""


class PartitionRunner:
    """Drives one stage over one partition.

    `internal`: the journal is ours: blocks, contiguous offsets. Else records are foreign: any bytes, gaps allowed.
    `gather`: outputs of several steps to one destination share a block (intake only: each foreign record is a step).
    `suppress_below`: outputs to topics that are not journals are not sent again for offsets below it.
    """

    def __init__(
        self,
        journal: Journal,
        stage: Stage,
        state: State,
        *,
        start_offset: int,
        internal: bool = True,
        gather: bool = False,
        suppress_below: int = 0,
        skips: Collection[int] = (),
        crash: Callable[[str], None] = no_crash,
    ) -> None:
        self.journal = journal
        self.stage = stage
        self.state = state
        self.next_offset = start_offset
        self.internal = internal
        self.gather = gather
        self.suppress_below = suppress_below
        self.skips = set(skips)
        self.epoch = 0
        self.gap_items = 0
        self.open_gaps: dict[tuple[bytes, int], tuple[int, int]] = {}
        self.dropped_items = 0
        self.suppressed = 0
        self.steps_applied = 0
        self._crash = crash
        self._origins: dict[tuple[bytes, int], tuple[int, int]] = {}
        self._prevs: dict[tuple[str, int], tuple[int, int]] = {}
        self._generation = 0
        self._outstanding: dict[int, int] = {0: 0}
        self._gap: tuple[int, int] | None = None
        self.broken = False
        self._restore()

    # ---- start ----

    def _restore(self) -> None:
        meta = read_meta(self.state.get(META_KEY))
        self._crash("restore.after_read")
        if meta is None:
            return
        if meta.topic_id != self.journal.topic_id or meta.partition != self.journal.partition:
            raise ForeignState(self.journal, meta.topic_id, meta.partition)
        self.next_offset = meta.next_offset
        self._origins = {(topic, partition): (offset, n) for topic, partition, offset, n in meta.origins}
        self._prevs = {(topic, partition): (offset, n) for topic, partition, offset, n in meta.prevs}

    def check_log(self, low: int, high: int) -> None:
        """`low`, `high`: the journal's first offset and the one after its last. Raises when the state does not
        stand within it; nothing resets an offset by policy."""
        self._crash("rebalance.before_start")
        if self.next_offset > high:
            raise StateAheadOfLog(self.journal, self.next_offset, high)
        if self.next_offset < low and self.internal:
            raise StateBehindLog(self.journal, self.next_offset, low)

    def leave(self) -> None:
        """The group has given the partition to another. What was sent and not yet acknowledged may still arrive."""
        self._crash("rebalance.after_leave")

    # ---- steps ----

    def step(self, records: Sequence[Record], epoch: int | None = None) -> list[Send] | Reseek:
        """Apply a batch of fetched records, in offset order; what must be sent, in order.

        Records of another epoch, or below the next offset, are dropped: the fetch is older than the last seek.
        """
        if epoch is not None and epoch != self.epoch:
            return []
        fresh = [record for record in records if record.offset >= self.next_offset]
        if not fresh:
            return []
        gap = self._gap_in(fresh)
        if gap is not None and gap != self._gap:
            self._gap = gap
            return Reseek(self.next_offset)
        if gap is not None and self.internal:
            raise GapInJournal(self.journal, *gap)
        self._gap = None
        blocks = [self._decoded(record, fresh[0].offset) for record in fresh] if self.internal else []
        self._crash("step.before_apply")
        out = _Outbox(self)
        run: list[Step] = []
        foreign = [] if self.internal else self._foreign(fresh)
        for i, record in enumerate(fresh):
            steps = self._admitted(record, blocks[i], fresh[0].offset) if self.internal else foreign[i : i + 1]
            if record.offset in self.skips:
                self._apply(run, out)
                run = []
                self._apply(steps, out, skip=True)
            else:
                run += steps
            self.next_offset = record.offset + 1
        self._apply(run, out)
        self.steps_applied += len(fresh)
        self._crash("step.after_apply")
        return out.sends()

    def _gap_in(self, fresh: Sequence[Record]) -> tuple[int, int] | None:
        """(expected, found) where offsets are missing. Within a fetch of a foreign topic they are holes, as
        transactions leave them; before it, the fetch may be one that was under way when we sought elsewhere. So it is
        taken for a hole if a second look finds the same."""
        expected = self.next_offset
        if not self.internal:
            return None if fresh[0].offset == expected else (expected, fresh[0].offset)
        for record in fresh:
            if record.offset != expected:
                return expected, record.offset
            expected += 1
        return None

    def _apply(self, run: list[Step], out: "_Outbox", *, skip: bool = False) -> None:
        if not run:
            return
        try:
            (self.stage.skip if skip else self.stage.apply)(run, out)
        except Exception as error:
            self.broken = True
            raise StepFailed(self.journal, run[0].offset, run[-1].offset, error) from error

    def _decoded(self, record: Record, first: int) -> Block | None:
        """The block in a record; None: it cannot be read, and is skipped. `first`: of the fetch, for the error."""
        try:
            block = decode_dense(record.value or b"")
            check_block(block)
            if record.offset in self.skips:
                decode_block(record.value or b"")  # one whose texts are damaged is skipped as one that is no block
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if record.offset in self.skips:
                return None
            raise Unreadable(self.journal, record.offset, error, first=first) from error
        return block

    def _foreign(self, records: Sequence[Record]) -> list[Step]:
        sender = (self.journal.topic_id, self.journal.partition)
        return [Step(record.offset, 0, record.at_ms, sender, record) for record in records]

    def _admitted(self, record: Record, block: Block | None, first: int) -> list[Step]:
        try:
            return self._admit(record, block)
        except msgspec.DecodeError as error:  # a run that had to be spread out is damaged
            raise Unreadable(self.journal, record.offset, error, first=first) from error

    def _admit(self, record: Record, block: Block | None) -> list[Step]:
        """The items of a block that have not been applied yet and follow on what was."""
        if block is None:
            return []
        offset, at_ms, sender = record.offset, record.at_ms, (block.sender, block.partition)
        if not block.sender:
            return [Step(offset, i, at_ms, sender, item) for i, item in enumerate(block.items)]
        last, prev, place = self._origins.get(sender, FIRST_PREV), block.prev, 0
        admitted: list[Step] = []
        for item in block.items:
            # Of a run a part may have been here: another release may have cut it elsewhere.
            cut = (item.offset, item.n) <= last < last_of(item)
            for part in item.spread() if cut and isinstance(item, RUNS) else (item,):
                this, width, end = (part.offset, part.n), width_of(part), last_of(part)
                if this <= last:
                    self.dropped_items += width
                elif prev == last:
                    admitted.append(Step(offset, place, at_ms, sender, part))
                    last = end
                else:
                    self.gap_items += width
                    self.open_gaps.setdefault(sender, last)
                prev = end
                place += width
        if admitted:
            self._origins[sender] = last
            self.open_gaps.pop(sender, None)
        return admitted

    # ---- acknowledgements and checkpoints ----

    def handed(self, sends: Sequence[Send]) -> Iterator[Send]:
        """The sends of a step, one by one, as a driver hands them to its producer."""
        for i, send in enumerate(sends):
            if i:
                self._crash("send.between")
            yield send

    def acknowledged(self, generation: int, count: int = 1) -> None:
        """`count` sends of `generation` are on the brokers (acks=all)."""
        self._crash("ack.before_count")
        self._outstanding[generation] -= count
        self._crash("ack.after_count")

    @property
    def unacknowledged(self) -> int:
        return sum(self._outstanding.values())

    def begin_checkpoint(self) -> Checkpoint:
        """Step 1: copy the dirty state aside, as of K = the last applied offset. Processing may go on."""
        assert not self.broken, "a step failed half-way: only the last checkpoint is sound"
        self.stage.settle()
        self.state.put(META_KEY, self._meta())
        changes = self.state.freeze()
        checkpoint = Checkpoint(self.next_offset, self._generation, changes)
        self._generation += 1
        self._outstanding[self._generation] = 0
        self._crash("checkpoint.after_freeze")
        return checkpoint

    def may_write(self, checkpoint: Checkpoint) -> bool:
        """Step 2: whether every output up to K is acknowledged."""
        return not any(count for generation, count in self._outstanding.items() if generation <= checkpoint.generation)

    def write(self, checkpoint: Checkpoint, write: Callable[[Changes], None]) -> None:
        """Step 3: one atomic write of state, origins, chain and offset, all as of K."""
        assert self.may_write(checkpoint), "outputs up to K are not acknowledged yet"
        self._crash("checkpoint.before_write")
        write(checkpoint.changes)
        self.wrote(checkpoint)
        self._crash("checkpoint.after_write")

    def wrote(self, checkpoint: Checkpoint) -> None:
        """The second half of step 3, for a driver that writes in a thread."""
        self.state.written()
        for generation in [g for g in self._outstanding if g <= checkpoint.generation]:
            del self._outstanding[generation]

    def commit_point(self, checkpoint: Checkpoint) -> tuple[int, str]:
        """Step 4: what the group's own consumer commits, as (offset, metadata)."""
        return checkpoint.next_offset, commit_metadata(self.journal.topic_id, checkpoint.next_offset)

    def _meta(self) -> bytes:
        return msgspec.msgpack.encode(
            Meta(
                META_LAYOUT,
                self.journal.topic_id,
                self.journal.partition,
                self.next_offset,
                [(*sender, *last) for sender, last in sorted(self._origins.items())],
                [(*to, *last) for to, last in sorted(self._prevs.items())],
            )
        )

    def last_sent(self, topic: str, partition: int) -> tuple[int, int]:
        return self._prevs.get((topic, partition), FIRST_PREV)

    def sent_up_to(self, topic: str, partition: int, origin: tuple[int, int]) -> None:
        self._prevs[topic, partition] = origin

    @property
    def generation(self) -> int:
        """Which checkpoint what is sent now belongs to."""
        return self._generation

    def count_sends(self, count: int) -> None:
        """`count` records were made that must be acknowledged before the next checkpoint is written."""
        self._outstanding[self._generation] += count


def commit_metadata(topic_id: bytes, offset: int) -> str:
    """What goes with a commit: which topic, by id, the offset belongs to."""
    return f"1:{topic_id.hex()}:{offset}"


def suppress_below(topic_id: bytes, offset: int, metadata: str) -> int:
    """The offset below which answers need not be sent again: the group's, if its metadata says that *we* wrote it for
    this very topic and offset. An operator's reset carries no such metadata, and suppresses nothing."""
    return offset if metadata == commit_metadata(topic_id, offset) else 0


def _raw_bytes(item: Raw | RawRun) -> int:
    if isinstance(item, RawRun):
        return len(item.values) + item.count * (RAW_OVERHEAD_BYTES - 1)
    return len(item.value) + RAW_OVERHEAD_BYTES


class _Outbox:
    """Collects one batch's outputs, and makes blocks of those that go to journals."""

    def __init__(self, runner: PartitionRunner) -> None:
        self._runner = runner
        self._sends: list[Send] = []
        self._open: dict[tuple[str, int], list[Item]] = {}
        self._raw_bytes: dict[tuple[str, int], int] = {}
        self._in_runs: dict[tuple[str, int], int] = {}  # by how much a block's runs make it longer than it looks
        self._offset = -1
        self._gather = runner.gather
        self._generation = runner.generation

    def journal(self, step: Step, topic: str, partition: int, item: Item) -> None:
        if step.offset != self._offset:
            if not self._gather:
                self._close_all()
            self._offset = step.offset
        to = (topic, partition)
        items = self._open.get(to)
        if items is None:
            items = self._open[to] = []
        elif len(items) + self._beyond(to, item) >= BLOCK_ITEMS_MAX:
            self._close(to)
            items = self._open[to] = []
        if type(item) is Raw or type(item) is RawRun:  # else bounded by what came in, plus some hundred bytes
            self._raw(to, item)
            return
        if isinstance(item, RUNS):
            self._in_runs[to] = self._in_runs.get(to, 0) + item.count - 1
        items.append(item)

    def _raw(self, to: tuple[str, int], item: Raw | RawRun) -> None:
        """Records as they came, in blocks that are bounded in bytes, too."""
        items = self._open[to]
        size = _raw_bytes(item)
        if items and self._raw_bytes[to] + size > BLOCK_BYTES_MAX:
            self._close(to)
            items = self._open[to] = []
        if type(item) is RawRun:
            if item.count > 1 and (item.count > BLOCK_ITEMS_MAX or size > BLOCK_BYTES_MAX):
                half = item.count // 2
                for part in (item.part(0, half), item.part(half, item.count)):
                    self._close(to)
                    self._open[to] = []
                    self._raw(to, part)
                return
            self._in_runs[to] = self._in_runs.get(to, 0) + item.count - 1
        self._raw_bytes[to] = (self._raw_bytes[to] if items else 0) + size
        items.append(item)

    def _beyond(self, to: tuple[str, int], item: Item) -> int:
        """By how much the block that is open, with this item in it, is longer than it looks."""
        of_item = item.count - 1 if isinstance(item, RUNS) else 0
        return of_item + self._in_runs.get(to, 0) if self._in_runs else of_item

    def records(self, steps: Sequence[Step], topic: str, rows: Iterable[Row]) -> None:
        runner, generation = self._runner, self._generation
        if steps[0].offset < runner.suppress_below:
            rows = [row for step, row in zip(steps, rows, strict=True) if step.offset >= runner.suppress_below]
            runner.suppressed += len(steps) - len(rows)
        # `tuple.__new__` takes half of the time of `Send(...)`.
        self._sends += [_new(Send, (topic, *row, generation)) for row in rows]

    def _close(self, to: tuple[str, int]) -> None:
        items = self._open.pop(to, None)
        if not items:
            return
        runner = self._runner
        block = Block(
            layout=LAYOUT_OLDEST if self._in_runs.pop(to, None) is None else LAYOUT,
            sender=runner.journal.topic_id,
            partition=runner.journal.partition,
            prev=runner.last_sent(*to),
            items=items,
        )
        runner.sent_up_to(*to, last_of(items[-1]))
        self._sends.append(Send(*to, None, encode_block(block), [], self._generation))

    def _close_all(self) -> None:
        for to in list(self._open):
            self._close(to)

    def sends(self) -> list[Send]:
        self._close_all()
        self._runner.count_sends(len(self._sends))
        return self._sends
