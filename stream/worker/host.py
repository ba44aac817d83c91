"""One partition of one stage as a worker holds it: its store, its runner, and how it stands.

opening ──► running ──► closed            stopped: `apply` failed; waits for a skip in `control`
   ▲           │
   ├─ failed ──┼──► careful (from the checkpoint, a record at a time, to name the record) ──► stopped
   ├─ corrupt ─┤    the store is set aside, and rebuilt from a snapshot and the journal
   └─ full ────┘    waits for room on the disk, then from the checkpoint

A partition whose state the log does not reach any more waits, too, while its snapshots cannot be read: in `opening`.
"""

import asyncio
import enum
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from stream.runner.errors import StepFailed, Unreadable
from stream.runner.partition import META_KEY, Checkpoint, PartitionRunner, Reseek, Send, read_meta
from stream.stages.keys import TABLE_PENDING
from stream.stages.stage import Journal, Record, Stage
from stream.stages.state import State
from stream.worker.fetch import TP
from stream.worker.store import RocksStore, StoreCorrupt, StoreError, StoreMemory, set_aside
from topics.undecodable import UNDECODABLE

log = logging.getLogger(__name__)


class Status(enum.Enum):
    OPENING = "opening"
    RUNNING = "running"
    STOPPED = "stopped"
    CLOSED = "closed"


class Host:
    """`directory`: this partition's store; `build`: the stage over a state; `start_offset`: for one without state."""

    def __init__(
        self,
        tp: TP,
        journal: Journal,
        directory: Path,
        *,
        memory: StoreMemory,
        build: Callable[[Journal, State], Stage],
        internal: bool,
        gather: bool,
        crash: Callable[[str], None],
    ) -> None:
        self.tp = tp
        self.journal = journal
        self.directory = directory
        self.status = Status.OPENING
        self.failure: str = ""  # why it is stopped, or what its opening waits for
        self.full = False  # it waits for room on the disk:
        self.restore_bytes = 0  # for a snapshot of this size, or, at 0, for a checkpoint
        self.snapshots_unread = ""  # why they could not be read when it was opened last
        self.pause_s = 0.0  # before it was opened last
        self.careful_until = -1
        self.snapshot_below: int | None = None
        self.epoch = 0
        self.runner: PartitionRunner | None = None
        self.store: RocksStore | None = None
        self.checkpoint: Checkpoint | None = None
        self.writing = asyncio.Lock()
        self.written_offset = -1
        self.committed_offset = -1
        self.snapshot_offset = -1
        self.applied_at_s = time.monotonic()
        self.last_at_ms = 0
        self.begun_steps = 0  # of the runner's, in the checkpoint that was begun last
        self.settled_steps = 0  # in the one that was committed last
        self.restored_offset = -1
        self.reapplied = 0
        self.said_refused = ""  # the model version that cannot score, when it has been logged
        self._memory = memory
        self._build = build
        self._internal = internal
        self._gather = gather
        self._crash = crash

    # ---- open and close; in a thread ----

    def open_store(self) -> int | None:
        """Open the local store; its next offset, None if it has no state. A corrupt one is set aside."""
        try:
            self.store = RocksStore.open(self.directory, memory=self._memory)
            return self._next_offset(self.store)
        except StoreCorrupt as error:
            self.discard_store(error)
            self.store = RocksStore.open(self.directory, memory=self._memory)
            return None

    def discard_store(self, error: Exception) -> None:
        """Set a corrupt store aside. If it came from a snapshot, neither that one nor a newer one is taken again:
        the damage may be in there."""
        self.close()
        if self.store_came_from is not None:
            self.snapshot_below = self.store_came_from
            self.store_came_from = None
        if self.directory.exists():
            aside = set_aside(self.directory, str(error))
            log.error("%s[%d]: corrupt state set aside at %s: %s", *self.tp, aside, error)

    store_came_from: int | None = None  # the offset of the snapshot that was restored

    def replace_store(self, offset: int, restore: Callable[[Path], None]) -> None:
        """Put the snapshot at `offset` in the place of the local state, which goes only when it has opened well."""
        fetched = self.directory.with_name(f"{self.directory.name}.fetched")
        shutil.rmtree(fetched, ignore_errors=True)
        try:
            restore(fetched)
            with RocksStore.open(fetched, memory=self._memory) as store:
                found = self._next_offset(store)
            if found != offset:
                raise StoreCorrupt(f"the snapshot at {offset} holds a state at {found}")
            self.close()
            shutil.rmtree(self.directory, ignore_errors=True)
            fetched.rename(self.directory)
            self.store_came_from = offset
        finally:
            shutil.rmtree(fetched, ignore_errors=True)
        self.store = RocksStore.open(self.directory, memory=self._memory)

    @staticmethod
    def _next_offset(store: RocksStore) -> int | None:
        try:
            meta = read_meta(store.get_many([META_KEY])[0])
        except UNDECODABLE as error:
            raise StoreCorrupt(f"{store.directory}: its offset cannot be read: {error}") from error
        return None if meta is None else meta.next_offset

    def start(self, start_offset: int, suppress_below: int, skips: set[int]) -> PartitionRunner:
        """A runner over what the store holds."""
        assert self.store is not None
        state = State(self.store, scanned=TABLE_PENDING)
        self.epoch += 1
        self.checkpoint = None
        self.runner = PartitionRunner(
            self.journal,
            self._build(self.journal, state),
            state,
            start_offset=start_offset,
            internal=self._internal,
            gather=self._gather,
            suppress_below=suppress_below,
            skips=skips,
            crash=self._crash,
        )
        self.runner.epoch = self.epoch
        self.restored_offset = self.runner.next_offset
        has_state = self._next_offset(self.store) is not None
        self.written_offset = self.runner.next_offset if has_state else -1
        self.begun_steps = self.settled_steps = 0
        return self.runner

    def close(self) -> None:
        store, self.store = self.store, None
        if store is not None:
            store.close()

    # ---- work ----

    def step(self, records: list[Record], epoch: int) -> list[Send] | Reseek:
        """Apply what was fetched."""
        runner = self.runner
        assert runner is not None
        if records:
            self.last_at_ms = records[-1].at_ms
        return runner.step(records, epoch)

    @property
    def careful(self) -> bool:
        """Whether records are applied one at a time, so that a failure names its record."""
        return self.runner is not None and self.runner.next_offset < self.careful_until

    @property
    def unsettled(self) -> bool:
        """Whether steps were applied since the last checkpoint that was committed."""
        return self.runner is not None and self.runner.steps_applied != self.settled_steps

    def stop(self, error: Exception) -> None:
        self.status = Status.STOPPED
        self.failure = str(error)
        log.critical("%s[%d] STOPPED: %s", *self.tp, error)

    @property
    def stopped_at(self) -> int:
        """The offset whose skip would let this partition go on; -1: it is not stopped."""
        return self._stopped_at if self.status is Status.STOPPED else -1

    _stopped_at = -1

    def failed(self, error: StepFailed | Unreadable) -> bool:
        """Whether the record is named, so that the partition must stop; else it must restart carefully."""
        if error.first == error.last:
            self._stopped_at = error.last
            self.stop(error)
            return True
        self.careful_until = error.last + 1
        return False


def damage_under(error: BaseException) -> StoreError | None:
    """The store's error that made a step fail: it is not the record's fault."""
    cause = error.__cause__
    return error if isinstance(error, StoreError) else cause if isinstance(cause, StoreError) else None
