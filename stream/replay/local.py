"""The whole way in one thread over a log in memory: the same stages and the same runner as live.

`fraud evaluate`, replay and the simulation stand on it. It has no faults; the simulation adds them.
"""

from collections.abc import Callable
from typing import Final

from stream.model.learner import Learner
from stream.replay.log import LocalLog, local_topic_id
from stream.runner.partition import PartitionRunner, Reseek
from stream.stages.account import TERMINAL_JOURNAL
from stream.stages.keys import TABLE_PENDING
from stream.stages.learn import fresh_learner
from stream.stages.stage import Journal
from stream.stages.state import MemoryStore, State
from stream.stages.terminal import EXAMPLES, TerminalStage
from stream.stages.wiring import FOREIGN, GATHERING, STAGE_TOPICS, Partitions, build_stage
from topics.journal import tick_block

READ_MAX: Final = 1_000
CHECKPOINT_EVERY: Final = 20_000


def build_runner(
    journal: Journal,
    store: MemoryStore,
    partitions: Partitions,
    *,
    plain: bool = False,
    details: bool = True,
    start_offset: int = 0,
    learner: Callable[[], Learner] = fresh_learner,
) -> PartitionRunner:
    state = State(store, scanned=TABLE_PENDING)
    return PartitionRunner(
        journal,
        build_stage(journal, state, partitions, plain=plain, details=details, learner=learner),
        state,
        start_offset=start_offset,
        internal=journal.topic not in FOREIGN,
        gather=journal.topic in GATHERING,
    )


class Local:
    """All partitions of all stages, pumped in a fixed order until nothing is left to read.

    `checkpoint_every`: changed keys of a partition after which it is written to its store. None: never, which costs a
    tenth less where nobody looks at the stores, for these are in memory as well.
    """

    def __init__(
        self,
        log: LocalLog,
        partitions: Partitions,
        *,
        plain: bool = False,
        details: bool = True,
        batch: int = READ_MAX,
        learner: Callable[[], Learner] = fresh_learner,
        checkpoint_every: int | None = CHECKPOINT_EVERY,
    ) -> None:
        self.log = log
        self.checkpoint_every = checkpoint_every
        self.partitions = partitions
        self.batch = batch
        self.stores: dict[tuple[str, int], MemoryStore] = {}
        self.runners: dict[tuple[str, int], PartitionRunner] = {}
        self.now_ms = 0
        for topic in STAGE_TOPICS:
            for partition in range(partitions.of(topic)):
                store = MemoryStore()
                journal = Journal(topic, local_topic_id(topic), partition)
                at = (topic, partition)
                self.stores[at] = store
                self.runners[at] = build_runner(
                    journal, store, partitions, plain=plain, details=details, learner=learner
                )

    def take(self, topic: str, partition: int) -> None:
        """Apply all that was appended to one partition, as one round, whatever `batch` is: intake gathers by rounds."""
        self._apply(topic, partition, self.log.end(topic, partition))

    def pump(self) -> None:
        """Apply whatever has been appended, and what that causes, to the end."""
        busy = True
        while busy:
            busy = False
            for topic, partition in self.runners:
                while self._apply(topic, partition, self.batch):
                    busy = True

    def tick(self) -> None:
        """What the timers of a live worker do once."""
        self.log.append(EXAMPLES, 0, tick_block(self.now_ms), at_ms=self.now_ms)
        for partition in range(self.partitions.terminal):
            stage = self.runners[TERMINAL_JOURNAL, partition].stage
            assert isinstance(stage, TerminalStage)
            if stage.due_left:
                self.log.append(TERMINAL_JOURNAL, partition, tick_block(self.now_ms), at_ms=self.now_ms)

    def _apply(self, topic: str, partition: int, count: int) -> bool:
        runner = self.runners[topic, partition]
        records = self.log.read(topic, partition, runner.next_offset, count)
        if not records:
            return False
        sends = runner.step(records)
        assert not isinstance(sends, Reseek), "a log in memory has no gaps"
        if sends:
            self.log.send(sends, self.now_ms)
            runner.acknowledged(sends[0].generation, len(sends))
        if self.checkpoint_every is not None and runner.state.changed >= self.checkpoint_every:
            self.checkpoint((topic, partition))
        return True

    def checkpoint(self, at: tuple[str, int]) -> None:
        runner = self.runners[at]
        runner.write(runner.begin_checkpoint(), self.stores[at].write)
