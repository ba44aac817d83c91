"""`fraud worker`: agents read, call, send; everything that decides stands in the stages and the runner.

One event loop does the work of all partitions that the group has given this process. A round is what has arrived for
one stage; checkpoints of all partitions go together, about once a second, and more rarely where little changes.
"""

import asyncio
import contextlib
import logging
import resource
import shutil
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from stream import collector, self_check
from stream.broker.topic_admin import describe_topics, id_bytes
from stream.errors import ConfigurationError, OperatorError, StateError
from stream.runner.errors import CANNOT_GO_ON, ForeignState, StateBehindLog, StepFailed, Unreadable
from stream.runner.partition import PartitionRunner, Reseek, Send, no_crash, suppress_below
from stream.settings import Settings
from stream.stages.account import TERMINAL_JOURNAL
from stream.stages.answers import DEAD_LETTERS, DECISIONS, DETAILS
from stream.stages.control import CONTROL
from stream.stages.intake import ACCOUNT_JOURNAL
from stream.stages.learn import LearnStage
from stream.stages.stage import Journal, Record, Stage
from stream.stages.state import State
from stream.stages.terminal import EXAMPLES, TerminalStage
from stream.stages.wiring import FOREIGN, GATHERING, Partitions, build_stage
from stream.version import ENGINE_VERSION
from stream.warm_up import warm_up
from stream.worker.control_log import ControlLog
from stream.worker.disk_offsets import DiskOffsets
from stream.worker.fetch import TP, FetchError, FetchSettings, Round
from stream.worker.host import Host, Status, damage_under
from stream.worker.membership import CommitFenced, MembershipSettings, create_app, run
from stream.worker.observe import Observer
from stream.worker.patience import Patience
from stream.worker.producer import WorkerProducer
from stream.worker.room import Room
from stream.worker.snapshots import (
    SnapshotError,
    SnapshotTorn,
    SnapshotUnavailable,
    restore,
    take_checkpoint,
    thin,
    upload_directory,
    whole,
)
from stream.worker.store import StoreCorrupt, StoreError, StoreFull, StoreMemory, StoreStuck, instance_lock
from stream.worker.uninterrupted import to_its_end
from topics.catalogue import JOURNAL_RETENTION_MS, PAYMENTS_RETENTION_MS
from topics.control import Skip, encode_control
from topics.journal import tick_block
from topics.limits import DAY_MS

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

STAGES = {
    "payments": "intake",
    "updates": "intake",
    "labels": "intake",
    ACCOUNT_JOURNAL: "account",
    TERMINAL_JOURNAL: "terminal",
    EXAMPLES: "learner",
    CONTROL: "control",
}
OUTPUTS = (DECISIONS, DETAILS, DEAD_LETTERS)
ACK_POLL_S, ACK_POLL_S_MAX = 0.002, 0.02  # twice as long each time: some topics' records gather for 250 ms
IDLE_POLL_S = 0.25
BATCH_BYTES = 512 << 10  # of one step: some thousand payments, a tenth of a second
CHECKPOINT_PAUSE_S_MIN = 0.05
CHECKPOINT_PAUSE_S_MAX = 10.0
CHECKPOINT_LITTLE_CHANGED = 1_000  # keys: what some 250 payments change, and what a kill makes them do again
HOLD_S_MAX = 8.0
LEAVE_HOLD_S_MAX = 4.0  # at SIGTERM: the rest of the ten seconds is for the group and the stores
DUE_TICK_S = 0.25
FULL_RETRY_S = 2.0
FULL_ROOM_BYTES = 16 << 20  # a memtable: what a checkpoint may need before it can be flushed
OPEN_AGAIN_S = 2.0  # when opening itself has failed; twice as long each time,
OPEN_AGAIN_S_MAX = 60.0
ACKS_S_MAX = 2.0  # how long one partition may keep the others' checkpoints waiting
ASK_AGAIN_S = 2.0
WATCH_EVERY_S = 20.0
DISK_THREADS = 4
STORE_CALLS_MAX = 64  # of the snapshot store, at a time
RESTORES_MAX = 8  # at a time; they may take minutes, and nobody who only looks waits for them
LOOK_S_MAX = 5.0  # for it to say what it has; without an answer it is as if it could not be reached
LOOK_EMPTY_S_MAX = 60.0  # the same where nothing is on the local disk, and the whole journal would be applied
UPLOAD_S_MAX = 900.0
QUERY_S = 10.0
LASTING = frozenset(  # all else is said by brokers that are away, or just back, or have just become leaders
    {
        KafkaError._AUTHENTICATION,
        KafkaError._FATAL,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.UNSUPPORTED_VERSION,
    }
)
UNKNOWN = frozenset(  # so speaks a topic that is gone, and for a moment one whose brokers have just come back
    {KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART}
)
NO_SNAPSHOTS = (
    "no snapshots are taken: without them a worker with an empty state directory can take a partition over only while "
    f"`payments` ({PAYMENTS_RETENTION_MS // DAY_MS} days) and the journals ({JOURNAL_RETENTION_MS // DAY_MS} days) "
    "reach back to `fraud init`. Operator: set FRAUD_SNAPSHOT_URL (--snapshot-url) to a place that all workers reach"
)
READ_ERRORS = {
    "offset_out_of_range": (
        "Operator: restore this partition's state directory or a snapshot; records below the log's beginning cannot be "
        f"answered any more. If there is none that stands within the log, {CANNOT_GO_ON}"
    ),
    "unknown_topic": "Operator: look on the brokers what became of it, then start this worker again",
    "not_authorised": "Operator: let the workers' user read it (`fraud topics acls`), then start this worker again",
    "broken": "Operator: start this worker again",
}
LATENCY_BUCKETS_S = [0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0]
TURN_S = 0.002  # so long a round of small steps keeps the event loop


def _batches(records: list[Record], *, bytes_max: int) -> Iterator[list[Record]]:
    """`records` in pieces of about `bytes_max`, each of one record at least."""
    start = size = 0
    for i, record in enumerate(records):
        size += len(record.value or b"")
        if size >= bytes_max:
            yield records[start : i + 1]
            start, size = i + 1, 0
    if start < len(records):
        yield records[start:]


def _longer_s(host: Host) -> float:
    """How long to wait before `host` is opened again, which could not be opened."""
    host.pause_s = min(max(2.0 * host.pause_s, OPEN_AGAIN_S), OPEN_AGAIN_S_MAX)
    return host.pause_s


class Topology:
    """What the brokers have of the topics that we use: ids and numbers of partitions."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        prefix = settings.prefix
        names = [prefix + name for name in (*STAGES, *OUTPUTS)]
        found = describe_topics(settings.client(), names)
        missing = [name for name in names if name not in found]
        if missing:
            raise ConfigurationError(
                f"topics are missing: {', '.join(missing)}. Operator: `fraud init` makes those of a new deployment. In "
                f"one that has run they were deleted: restore them; `fraud topics create` makes them again, empty"
            )
        self.ids = {name: id_bytes(found[prefix + name].topic_id) for name in STAGES}
        counts = {name: len(found[prefix + name].partitions) for name in (*STAGES, *OUTPUTS)}
        for name in ("labels", EXAMPLES, CONTROL):
            if counts[name] != 1:
                raise ConfigurationError(f"{name} has {counts[name]} partitions: order needs exactly one")
        self.partitions = Partitions(
            payments=counts["payments"],
            account=counts[ACCOUNT_JOURNAL],
            terminal=counts[TERMINAL_JOURNAL],
            decisions=min(counts[DECISIONS], counts[DETAILS]),
        )

    def current_ids(self) -> dict[str, bytes]:
        """The ids of the topics as they are now; one that is gone is not among them. Raises `OperatorError`."""
        prefix = self._settings.prefix
        found = describe_topics(self._settings.client(), [prefix + name for name in STAGES])
        return {name: id_bytes(found[prefix + name].topic_id) for name in STAGES if prefix + name in found}


def _allow_files() -> None:
    """As many open files as the system lets us have: each partition's store keeps up to `OPEN_FILES_MAX`, and services
    often begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Worker:
    """One process of the group. `crash`: the hook of the fault suite; production passes nothing."""

    def __init__(self, settings: Settings, *, crash: Callable[[str], None] = no_crash) -> None:
        self.settings = settings
        self.hosts: dict[TP, Host] = {}
        self.topology = Topology(settings)
        self.latency_counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.latency_sum_s = 0.0
        self.checkpoint_seconds: list[float] = []
        self.checkpoints = 0
        self.disk_full = False
        self.snapshots_failing: dict[TP, str] = {}  # by partition, as the topology names it; until one is stored
        self.started_s = time.time()
        self._crash = crash
        log.info("loading the kernels; a machine that is new to them compiles them first, for about a minute")
        self_check.check()
        warm_up()  # here, and not in the way of payments
        self._memory = StoreMemory(cache_bytes=settings.block_cache_bytes)
        self._disk_offsets = DiskOffsets(settings.state_dir, self.topology.ids)
        self._room = Room(settings.state_dir)
        client = settings.client()
        # It is never polled, so nobody would take its log; what it is asked raises instead.
        self._query = Consumer(
            {**client, "group.id": f"{settings.group}-query", "enable.auto.commit": False, "log_level": 0}
        )
        self.control_log = ControlLog(client, settings.prefix + CONTROL, on_skip=self._skip_arrived)
        stages = {settings.prefix + topic: stage for topic, stage in STAGES.items()}
        security = settings.security()
        assert settings.bootstrap is not None
        self.membership = create_app(
            MembershipSettings(
                group_id=settings.group,
                bootstrap_servers=settings.bootstrap,
                security=security,
                session_timeout_s=settings.session_timeout_s,
            ),
            stages,
            fetch=FetchSettings(
                bootstrap_servers=settings.bootstrap, group_id=f"{settings.group}-fetch", security=security
            ),
            on_assigned=self._assigned,
            on_revoked=self._revoked,
            on_hold=self._hold,
            on_fetch_error=self._fetch_error,
            on_start=self._started,
            on_disk=self._on_disk,
        )
        self.producer = WorkerProducer(
            client, prefix=settings.prefix, linger_ms=settings.linger_ms, failed=self.membership.fail
        )
        for stage in dict.fromkeys(stages.values()):
            self.membership.agent(stage)(self._work)
        self.observer = Observer(self, STAGES, LATENCY_BUCKETS_S)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.Task[None]] = []
        self._directories: dict[TP, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._checkpointing = asyncio.Lock()
        self._much_changed = asyncio.Event()  # so much that a checkpoint should not wait for its second
        self._disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
        self._store_calls = Patience(STORE_CALLS_MAX)
        self._restores = Patience(RESTORES_MAX)
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> int:
        """Until SIGTERM, SIGINT or a failure; the exit code."""
        _allow_files()
        with instance_lock(self.settings.state_dir), self.observer.serving():
            try:
                return run(self.membership)
            finally:
                began_s = time.monotonic()
                self.control_log.close()
                self.producer.close()
                for host in self.hosts.values():
                    host.close()
                log.info("closed in %.1f s", time.monotonic() - began_s)

    # ---- called by the membership ----

    async def _started(self) -> None:
        self._loop = asyncio.get_running_loop()
        collector.settle()
        if self.settings.snapshot_url is None:
            log.warning(NO_SNAPSHOTS)
        self._disk_offsets.read()
        await asyncio.to_thread(self.control_log.read_to_end)
        self.control_log.follow()
        for work in (self._checkpoints(), self._ticks(), self._snapshots(), self._polls(), self._watches()):
            self._timers.append(self._spawn(self._guarded(work)))

    async def _assigned(self, added: set[TP]) -> None:
        for tp in sorted(added):
            self.hosts[tp] = host = self._host(self._logical(tp))
            self._spawn(self._open(tp, host))

    async def _revoked(self, lost: set[TP]) -> None:
        hosts = {tp: self.hosts.pop(tp) for tp in lost if tp in self.hosts}
        for host in hosts.values():
            self.snapshots_failing.pop(host.tp, None)
            host.status = Status.CLOSED  # before the first is closed: no snapshot of the others is begun meanwhile
        for tp, host in hosts.items():
            closing = self._close(tp, host)
            # A restore may take a minute, and nobody waits for it here; the next owner of the directory does.
            if self._directories[tp].locked():
                self._spawn(closing)
            else:
                await closing
        if self.membership.leaving:
            for timer in self._timers:
                timer.cancel()  # mode waits a second for tasks that go on

    async def _close(self, tp: TP, host: Host) -> None:
        async with self._directories[tp]:
            await self._soon(host.close)

    async def _hold(self, _owned: set[TP]) -> None:
        held_s_max = LEAVE_HOLD_S_MAX if self.membership.leaving else HOLD_S_MAX
        try:
            async with asyncio.timeout(held_s_max), self._checkpointing:
                await self._checkpoint(list(self.hosts.values()), held_s_max / 2)
        except (TimeoutError, CommitFenced, StoreError) as error:
            log.warning(
                "left without a last checkpoint (%s): the next owner repeats from the one before",
                str(error) or type(error).__name__,
            )

    def _on_disk(self) -> dict[TP, int]:
        """What the group is told of our state, of partitions that others have now, too."""
        self._note_offsets()
        return {TP(self.settings.prefix + tp.topic, tp.partition): at for tp, at in self._disk_offsets.known().items()}

    def _note_offsets(self) -> None:
        for host in self.hosts.values():
            if host.status is Status.RUNNING:
                self._disk_offsets.note(host.tp, host.written_offset)

    def _fetch_error(self, error: FetchError) -> None:
        host = None if error.tp is None else self.hosts.get(error.tp)
        if host is None or error.epoch != host.epoch or host.status is not Status.RUNNING:
            return
        topic, partition = host.tp
        why = f"cannot read {topic}[{partition}]: {error.cause}: {error.text}. {READ_ERRORS[error.cause]}"
        if error.cause == "offset_out_of_range":
            self._misfit(self._named(host), host, StateError(why))
        else:
            self._stop(host, StateError(why))

    # ---- opening ----

    def _logical(self, tp: TP) -> TP:
        return TP(tp.topic[len(self.settings.prefix) :], tp.partition)

    def _host(self, name: TP) -> Host:
        return Host(
            name,
            Journal(name.topic, self.topology.ids[name.topic], name.partition),
            self.settings.state_dir / name.topic / str(name.partition),
            memory=self._memory,
            build=self._build,
            internal=name.topic not in FOREIGN,
            gather=name.topic in GATHERING,
            crash=self._crash,
        )

    async def _open(self, tp: TP, host: Host) -> None:
        """From the higher of local state and snapshot, to the first fetch. One at a time has a directory."""
        try:
            async with self._directories[tp]:
                try:
                    if self.hosts.get(tp) is host:
                        await self._check_topic(host)
                        local = await asyncio.to_thread(host.open_store)
                        await self._restore_snapshot(host, local)
                        host.full = False
                        await self._start(tp, host)
                finally:
                    if self.hosts.get(tp) is not host:
                        await self._soon(host.close)
        except StoreFull as error:
            self._out_of_room(tp, host, error)
        except StoreCorrupt as error:
            self._rebuild(tp, host, error)
        except StateBehindLog as error:
            self._misfit(tp, host, error)
        except (OperatorError, StoreError) as error:
            self._stop(host, error)
        except Exception as error:
            if self.hosts.get(tp) is host:
                self.membership.fail(error)
            else:  # it was taken away, or the worker leaves: what it was waiting for has gone
                log.info("%s[%d]: opening was given up: %s", *host.tp, error)

    async def _check_topic(self, host: Host) -> None:
        """Raises `ForeignState` if the topic is another than when this process began."""
        while True:
            try:
                now = await asyncio.to_thread(self.topology.current_ids)
                break
            except OperatorError as error:
                log.warning("asking for the topics' ids again: %s", error)
                await asyncio.sleep(ASK_AGAIN_S)
        self._same_topic(host, now)

    def _same_topic(self, host: Host, now: Mapping[str, bytes]) -> None:
        journal = host.journal
        found = now.get(journal.topic)
        if found is None:
            raise StateError(
                f"topic {journal.topic} is gone. Operator: restore the brokers' data that hold it; a topic made again "
                f"under its name is another one. If they are lost, {CANNOT_GO_ON}"
            )
        if found != journal.topic_id:
            raise ForeignState(journal._replace(topic_id=found), journal.topic_id, journal.partition)

    def _build(self, journal: Journal, state: State) -> Stage:
        return build_stage(
            journal,
            state,
            self.topology.partitions,
            accounts_max=self.settings.accounts_in_memory,
            terminals_max=self.settings.terminals_in_memory,
        )

    async def _restore_snapshot(self, host: Host, local: int | None) -> None:
        """Start from the higher offset of local state and snapshot. Raises `StoreFull` before anything is written of
        a snapshot that does not fit."""
        host.restore_bytes, host.snapshots_unread = 0, ""
        url = self.settings.snapshot_url
        if url is None:
            host.pause_s = 0.0
            return
        topic_id = host.journal.topic_id.hex()
        look_s_max = LOOK_EMPTY_S_MAX if local is None else LOOK_S_MAX
        try:
            snapshots = whole(url, host.tp.topic, host.tp.partition, topic_id=topic_id)
            while True:
                manifest = await self._far(look_s_max, next, snapshots, None)
                if manifest is None or (local is not None and manifest.offset <= local):
                    break
                if host.snapshot_below is not None and manifest.offset >= host.snapshot_below:
                    continue
                log.info("%s[%d]: restoring the snapshot at offset %d", *host.tp, manifest.offset)
                try:
                    await self._restores.call(
                        None, host.replace_store, manifest.offset, partial(restore, url, manifest, room=self._room)
                    )
                except StoreFull:
                    if host.store_came_from != manifest.offset:  # else it is in its place, and only to be opened
                        host.restore_bytes = manifest.size_bytes
                    raise
                except (SnapshotTorn, StoreCorrupt) as error:
                    log.error("%s[%d]: this snapshot is no good, the one before is tried: %s", *host.tp, error)
                    self.snapshots_failing[host.tp] = str(error)
                    continue
                host.snapshot_offset = manifest.offset
                break
            host.pause_s = 0.0
        except SnapshotUnavailable as error:
            log.error("%s[%d]: snapshots unavailable, local state is used: %s", *host.tp, error)
            self.snapshots_failing[host.tp] = host.snapshots_unread = str(error)

    async def _start(self, tp: TP, host: Host) -> None:
        committed = (await self.membership.committed([tp])).get(tp)
        low, high = await self._watermarks(tp, host)
        if self.hosts.get(tp) is not host:
            return
        begin = self.control_log.start_offset(host.tp.topic, host.tp.partition) if host.tp.topic in FOREIGN else 0
        below = 0 if committed is None else suppress_below(host.journal.topic_id, *committed)
        skips = self.control_log.skips(host.journal.topic_id, host.tp.partition)
        runner = await asyncio.to_thread(host.start, begin, below, skips)
        runner.check_log(low, high)
        if self.hosts.get(tp) is not host:
            return
        host.status = Status.RUNNING
        host.failure = ""
        host.reapplied = max(0, below - runner.next_offset)
        log.info("%s[%d]: from offset %d of [%d, %d), group at %d", *host.tp, runner.next_offset, low, high, below)
        self.membership.fetcher.start(tp, runner.next_offset, host.epoch)

    async def _watermarks(self, tp: TP, host: Host) -> tuple[int, int]:
        """Asked again for as long as the partition is ours: a broker that is away comes back."""
        ask = partial(self._query.get_watermark_offsets, TopicPartition(*tp), timeout=QUERY_S)
        while True:
            try:
                return await asyncio.to_thread(ask)
            except KafkaException as error:
                cause = error.args[0]
                if cause.code() in LASTING or self.hosts.get(tp) is not host:
                    raise StateError(f"no answer for the offsets of {tp.topic}[{tp.partition}]: {error}") from error
                if cause.code() in UNKNOWN:
                    await self._check_topic(host)
                log.warning("asking for the offsets of %s[%d] again: %s", *host.tp, cause.str())
                await asyncio.sleep(ASK_AGAIN_S)

    # ---- working ----

    async def _work(self, arrived: Round) -> None:
        """A step for each part. What small steps send goes out together: a broker is asked once for each partition, and
        not for each step. A checkpoint that begins before that waits for it: sends count from when they are made."""
        turn_s = time.monotonic()
        made: list[tuple[PartitionRunner, list[Send]]] = []
        for fetched in arrived.parts:
            host = self.hosts.get(fetched.tp)
            if host is None or host.status is not Status.RUNNING or host.runner is None:
                continue
            runner = host.runner
            for batch in _batches(fetched.records, bytes_max=0 if host.careful else BATCH_BYTES):
                if self.membership.held:
                    # Of a backlog a round may last for minutes, and the group waits for nobody that long.
                    log.info(
                        "%s[%d]: a round is cut short at offset %d: the group changes", *host.tp, runner.next_offset
                    )
                    self._read_again(fetched.tp, host, runner)
                    break
                if host.status is not Status.RUNNING or host.runner is not runner:
                    break  # it was stopped or taken away while others had their turn
                try:
                    sends = host.step(batch, fetched.epoch)
                except (StepFailed, Unreadable, StateError, StoreError) as error:
                    self._failed(fetched.tp, host, error)
                    break
                if isinstance(sends, Reseek):
                    self._read_again(fetched.tp, host, runner)
                    break
                if sends:
                    made.append((runner, sends))
                if runner.state.changed > self.settings.checkpoint_changes_max:
                    self._much_changed.set()
                if time.monotonic() - turn_s > TURN_S:
                    await self._send(made)
                    await asyncio.sleep(0)  # a round of a backlog may be large: checkpoints and timers get their turn
                    turn_s = time.monotonic()
        await self._send(made)

    async def _send(self, made: list[tuple[PartitionRunner, list[Send]]]) -> None:
        """Hand what steps made to the producer; `made` is empty afterwards."""
        sending, made[:] = made[:], []
        for runner, sends in sending:
            await self.producer.send(runner, sends)
            if isinstance(runner.stage, TerminalStage):
                self._measure(runner.stage)

    def _read_again(self, tp: TP, host: Host, runner: PartitionRunner) -> None:
        """What was fetched and not applied comes again, under a new epoch."""
        host.epoch = runner.epoch = runner.epoch + 1
        self.membership.fetcher.start(tp, runner.next_offset, host.epoch)

    def _measure(self, stage: TerminalStage) -> None:
        """Time from the broker's timestamp of a payment to the moment its answer is handed to the producer."""
        answered, stage.answered_at_ms = stage.answered_at_ms, []
        now_s = time.time()
        for at_ms in answered:
            waited_s = max(now_s - at_ms / 1000.0, 0.0)
            self.latency_counts[bisect_left(LATENCY_BUCKETS_S, waited_s)] += 1
            self.latency_sum_s += waited_s

    def _stop(self, host: Host, error: Exception) -> None:
        host.stop(error)

    def _misfit(self, tp: TP, host: Host, error: StateError) -> None:
        """The log begins after what the state has seen. A snapshot may reach it: only when those could be read and do
        not, must the operator look for another."""
        if not host.snapshots_unread:
            self._stop(host, error)
            return
        pause_s = _longer_s(host)
        log.error(
            "%s[%d] waits for its snapshots and looks again in %.0f s; they cannot be read: %s; and without them: %s",
            *host.tp,
            pause_s,
            host.snapshots_unread,
            error,
        )
        self._again(tp, host, pause_s=pause_s)
        host.failure = f"waits for snapshots, which cannot be read: {host.snapshots_unread}; without them: {error}"

    def _failed(self, tp: TP, host: Host, error: Exception) -> None:
        """A damaged store is rebuilt, a full disk waited for; with a stuck one the process ends. Else: again from the
        checkpoint, a record at a time; or, if the record is named, when it is skipped."""
        self.membership.fetcher.stop(tp)
        damage = damage_under(error)
        if isinstance(damage, StoreCorrupt):
            self._rebuild(tp, host, damage)
        elif isinstance(damage, StoreFull):
            self._out_of_room(tp, host, damage)
        elif isinstance(damage, StoreStuck):
            self.membership.fail(damage)  # another worker, or the next process, goes on: nobody would start this one
        elif damage is not None or not isinstance(error, (StepFailed, Unreadable)):
            self._stop(host, damage or error)
        elif host.failed(error):
            self._stopped(tp, host)
        else:
            log.error("%s[%d]: %s: again from the checkpoint, a record at a time", *host.tp, error)
            self._again(tp, host)

    def _stopped(self, tp: TP, host: Host) -> None:
        """It stands before a record. An operator may have skipped that one already, when another had stopped there, or
        this worker before its last start; else it is told that the partition has stopped."""
        runner, offset = host.runner, host.stopped_at
        skipped = self.control_log.skips(host.journal.topic_id, host.tp.partition)
        if runner is not None and offset in skipped and offset not in runner.skips:
            log.warning("%s[%d]@%d has been skipped by an operator", *host.tp, offset)
            self._again(tp, host)
        else:
            self._tell_stopped(host)

    def _tell_stopped(self, host: Host) -> None:
        """On record in `control`: only after that does an operator's skip of this record count."""
        place = (host.journal.topic_id, host.tp.partition, host.stopped_at)
        if host.stopped_at < 0 or self.control_log.has_stopped(*place):
            return
        named = Skip(topic_id=place[0].hex(), partition=place[1], offset=place[2])
        why = f"a stage failed on {host.tp.topic}[{place[1]}]@{place[2]}"
        self.producer.send_untracked(CONTROL, 0, encode_control(kind="stopped", by="worker", why=why, payload=named))

    def _rebuild(self, tp: TP, host: Host, error: StoreCorrupt) -> None:
        """Set the store aside, and go on from a snapshot and the journal."""

        def discard() -> None:
            host.discard_store(error)

        log.error("%s[%d]: the store is damaged and is rebuilt: %s", *host.tp, error)
        self._again(tp, host, discard)

    def _out_of_room(self, tp: TP, host: Host, error: StoreFull) -> None:
        """RocksDB takes no writes after a failed one until it is opened again; before that there must be room.

        Where opening failed, it is tried less and less often: not every lack of room (a quota) shows in the bytes that
        are free."""
        if host.status is Status.CLOSED:
            return
        if host.restore_bytes:
            log.critical("DISK FULL: %s[%d] is not restored until there is room: %s", *host.tp, error)
        elif not self.disk_full:
            log.critical("DISK FULL: nothing is acknowledged until there is room: %s", error)
        self.disk_full = host.full = True
        pause_s = _longer_s(host) if host.status is Status.OPENING else 0.0
        self._again(tp, host, wait_for_room=True, pause_s=pause_s)
        host.failure = f"waits for room on the disk: {error}"

    def _again(
        self,
        tp: TP,
        host: Host,
        between: Callable[[], None] | None = None,
        *,
        wait_for_room: bool = False,
        pause_s: float = 0.0,
    ) -> None:
        """Open the partition again, from its last checkpoint, after `pause_s`."""
        self.membership.fetcher.stop(tp)
        if host.status is Status.CLOSED:
            return
        host.status = Status.OPENING
        host.failure = ""
        self._spawn(self._reopen(tp, host, between, wait_for_room=wait_for_room, pause_s=pause_s))

    async def _reopen(
        self,
        tp: TP,
        host: Host,
        between: Callable[[], None] | None = None,
        *,
        wait_for_room: bool = False,
        pause_s: float = 0.0,
    ) -> None:
        try:
            async with self._directories[tp]:
                async with self._checkpointing, host.writing:  # a checkpoint of the old runner may be under way
                    host.checkpoint = None
                await self._soon(host.close)
                if between is not None:
                    await asyncio.to_thread(between)
        except Exception as error:
            self.membership.fail(error)
            return
        await asyncio.sleep(pause_s)
        while wait_for_room and self.hosts.get(tp) is host and not self._has_room(host):
            await asyncio.sleep(FULL_RETRY_S)
        await self._open(tp, host)

    def _has_room(self, host: Host) -> bool:
        """Whether a checkpoint's worth of bytes would fit, or the snapshot that did not."""
        try:
            if host.restore_bytes:
                return not self._room.missing_bytes(host.restore_bytes)
            return self._room.free_bytes() >= FULL_ROOM_BYTES
        except OSError as error:
            log.error("%s[%d] waits for room: %s", *host.tp, error)
            return False

    def _skip_arrived(self, topic_id: bytes, partition: int, offset: int) -> None:
        """In the control log's thread: an operator has skipped a record."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._go_on, topic_id, partition, offset)

    def _go_on(self, topic_id: bytes, partition: int, offset: int) -> None:
        for tp, host in self.hosts.items():
            if host.journal.topic_id == topic_id and host.tp.partition == partition and host.stopped_at == offset:
                log.warning("%s[%d]@%d is skipped by an operator", *host.tp, offset)
                self._again(tp, host)

    # ---- checkpoints ----

    async def _checkpoints(self) -> None:
        while True:
            await self._until_due()
            try:
                async with self._checkpointing:
                    unsettled = [host for host in self.hosts.values() if host.unsettled or host.checkpoint is not None]
                    await self._checkpoint(unsettled, ACKS_S_MAX)
            except CommitFenced as error:
                log.warning("fenced: %s", error)

    async def _until_due(self) -> None:
        """A second, or sooner if much has changed, or longer while little has; later while checkpoints themselves take
        long, so that they cost at most a quarter of the time."""
        last_s = self.checkpoint_seconds[-1] if self.checkpoint_seconds else 0.0
        pause_s = max(self.settings.checkpoint_every_s, min(3.0 * last_s, CHECKPOINT_PAUSE_S_MAX))
        began_s = time.monotonic()
        self._much_changed.clear()
        await asyncio.sleep(CHECKPOINT_PAUSE_S_MIN)
        wait_s = pause_s - CHECKPOINT_PAUSE_S_MIN
        while not self._much_changed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._much_changed.wait()
            waited_s, wait_s = time.monotonic() - began_s, pause_s
            changed = sum(host.runner.state.changed for host in self.hosts.values() if host.runner is not None)
            if changed >= CHECKPOINT_LITTLE_CHANGED or waited_s >= self.settings.checkpoint_light_s:
                return

    async def _checkpoint(self, hosts: Iterable[Host], acks_s_max: float) -> None:
        """Steps 1 to 4 for all of `hosts`; those that are written are committed in one request.

        A partition whose outputs are not acknowledged within `acks_s_max` holds up no other: its turn goes on next
        time.
        """
        began_s = time.monotonic()
        begun: list[Host] = []
        for host in hosts:
            if host.status is Status.RUNNING and host.runner is not None and not host.runner.broken:
                try:
                    self._begin(host)
                    begun.append(host)
                except StoreError as error:
                    self._failed(self._named(host), host, error)
        offsets: dict[TP, tuple[int, str]] = {}
        waiting, pause_s = begun, ACK_POLL_S
        while waiting:
            late = time.monotonic() - began_s > acks_s_max
            ready = [host for host in waiting if self._acknowledged(host)]
            waiting = [host for host in waiting if host not in ready and host.status is Status.RUNNING]
            for host in ready:
                # A hold that runs out of time gives up waiting; the thread in the store does not.
                point = await to_its_end(self._write(host))
                if point is not None:
                    offsets[self._named(host)] = point
            if late:
                break
            if waiting and not ready:
                self.producer.poll()
                await asyncio.sleep(pause_s)
                pause_s = min(2.0 * pause_s, ACK_POLL_S_MAX)
        if not offsets:
            return
        self._note_offsets()
        await self._soon(self._disk_offsets.write, self._disk_offsets.encoded())
        self._crash("checkpoint.before_commit")
        await self.membership.commit(offsets)
        self._crash("checkpoint.after_commit")
        for host in begun:
            point = offsets.get(self._named(host))
            if point is not None:
                host.committed_offset = point[0]
                host.settled_steps = host.begun_steps
        self.disk_full = self.disk_full and any(host.full for host in self.hosts.values())
        self.checkpoints += 1
        self.checkpoint_seconds.append(time.monotonic() - began_s)
        del self.checkpoint_seconds[:-1000]

    def _named(self, host: Host) -> TP:
        return TP(self.settings.prefix + host.tp.topic, host.tp.partition)

    def _begin(self, host: Host) -> None:
        """Step 1, unless the checkpoint before is still under way."""
        if host.checkpoint is None:
            assert host.runner is not None
            steps = host.runner.steps_applied
            host.checkpoint = host.runner.begin_checkpoint()
            host.begun_steps = steps

    def _acknowledged(self, host: Host) -> bool:
        """Step 2."""
        runner, checkpoint = host.runner, host.checkpoint
        return runner is not None and checkpoint is not None and runner.may_write(checkpoint)

    async def _write(self, host: Host) -> tuple[int, str] | None:
        """Step 3 for one partition, to its end; where to commit, None if it was closed, failed or written meanwhile."""
        async with host.writing:
            runner, checkpoint, store = host.runner, host.checkpoint, host.store
            if runner is None or checkpoint is None or store is None or host.status is not Status.RUNNING:
                return None
            self._crash("checkpoint.before_write")
            try:
                await self._soon(store.write_changes, checkpoint.changes, sync=False)
            except StoreError as error:
                if host.status is Status.RUNNING:
                    self._failed(self._named(host), host, error)
                return None
            host.written_offset = checkpoint.next_offset
            runner.wrote(checkpoint)
            host.checkpoint = None
            self._crash("checkpoint.after_write")
            return runner.commit_point(checkpoint)

    # ---- timers ----

    async def _polls(self) -> None:
        """Acknowledgements are taken also when nothing arrives. Who waits for them, a checkpoint, asks by itself."""
        while True:
            await asyncio.sleep(IDLE_POLL_S)
            self.producer.poll()

    async def _watches(self) -> None:
        """Says again what stands still, and sees whether a topic was made anew under us."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                now = await asyncio.to_thread(self.topology.current_ids)
            except OperatorError as error:
                log.warning("topics cannot be looked at: %s", error)
                now = self.topology.ids
            for tp, host in list(self.hosts.items()):
                if host.status is Status.RUNNING:
                    try:
                        self._same_topic(host, now)
                    except StateError as error:
                        self.membership.fetcher.stop(tp)
                        self._stop(host, error)
                elif host.status is Status.STOPPED:
                    log.error("%s[%d] is STOPPED: %s", *host.tp, host.failure)
                    self._stopped(tp, host)
            if self.disk_full:
                log.error("DISK FULL: there is no room below %s", self.settings.state_dir)
            for name, why in sorted(self.snapshots_failing.items()):
                log.error("%s[%d]: snapshots fail: %s", *name, why)

    async def _ticks(self) -> None:
        last_s, ticked_at = time.monotonic(), -1
        while True:
            await asyncio.sleep(DUE_TICK_S)
            self.observer.look()
            now_ms = int(time.time() * 1000)
            for host in self.hosts.values():
                runner = host.runner
                if host.status is not Status.RUNNING or runner is None:
                    continue
                if isinstance(runner.stage, TerminalStage):
                    self._say_refused(host, runner.stage)
                    if runner.stage.due_left:
                        self.producer.send_untracked(TERMINAL_JOURNAL, host.tp.partition, tick_block(now_ms))
                if isinstance(runner.stage, LearnStage):
                    self._say_broken(host, runner.stage)
                due = time.monotonic() - last_s >= self.settings.tick_every_s
                if host.tp.topic == EXAMPLES and due and runner.next_offset > ticked_at + 1:
                    self.producer.send_untracked(EXAMPLES, 0, tick_block(now_ms))
                    last_s, ticked_at = time.monotonic(), runner.next_offset

    def _say_refused(self, host: Host, stage: TerminalStage) -> None:
        """Once for each version that cannot score."""
        refused, model = stage.decider.refused_model, stage.decider.model
        if refused and refused != host.said_refused:
            log.error(
                "%s[%d]: MODEL REFUSED, it cannot score: %s; %s. Operator: look what the learner has learned",
                *host.tp,
                refused,
                "rules alone decide" if model is None else f"{model.version} decides on",
            )
        host.said_refused = refused

    def _say_broken(self, host: Host, stage: LearnStage) -> None:
        """Once, when what was learned cannot score, and once when there is a version again."""
        if stage.broken and not host.said_refused:
            log.error(
                "%s[%d]: MODEL BROKEN, no version is published: %s; it is learned anew, and %s. Programmer: find out "
                "how that came about",
                *host.tp,
                stage.broken,
                f"{stage.active_version} decides on" if stage.active_version else "rules alone decide",
            )
        elif host.said_refused and not stage.broken:
            log.warning("%s[%d]: there are versions again", *host.tp)
        host.said_refused = stage.broken

    async def _snapshots(self) -> None:
        url = self.settings.snapshot_url
        if url is None:
            return
        while True:
            await asyncio.sleep(self.settings.snapshot_every_s)
            for host in list(self.hosts.values()):
                if host.status is not Status.RUNNING or host.written_offset <= host.snapshot_offset:
                    continue
                try:
                    await self._snapshot(host, url)
                    self.snapshots_failing.pop(host.tp, None)
                except (SnapshotError, StoreError) as error:
                    log.error("no snapshot of %s[%d]: %s", *host.tp, error)
                    if host.status is Status.RUNNING:  # else another has it by now, and its snapshots are its own
                        self.snapshots_failing[host.tp] = str(error)

    async def _snapshot(self, host: Host, url: str) -> None:
        """A frozen copy is taken between two writes; it is uploaded beside the work."""
        async with host.writing:
            store, offset = host.store, host.written_offset
            if store is None:
                return
            taken = await self._soon(take_checkpoint, store)
        try:
            await self._far(
                UPLOAD_S_MAX,
                upload_directory,
                taken,
                url,
                stage=host.tp.topic,
                partition=host.tp.partition,
                offset=offset,
                topic_id=host.journal.topic_id.hex(),
                engine=str(ENGINE_VERSION),
                now_ms=int(time.time() * 1000),
                digests=store.digests,
            )
        finally:
            await asyncio.to_thread(shutil.rmtree, taken, ignore_errors=True)
        host.snapshot_offset = offset
        await self._far(UPLOAD_S_MAX, thin, url, host.tp.topic, host.tp.partition, now_ms=int(time.time() * 1000))

    # ---- tasks ----

    async def _soon(self, call: Callable[P, T], *args: P.args, **settings: P.kwargs) -> T:
        """In a thread for what takes moments, on the local disk. Partitions that are opened may have all of
        `asyncio.to_thread`'s, and those that go on need their checkpoints."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, partial(call, *args, **settings))

    async def _far(self, s_max: float, call: Callable[P, T], *args: P.args, **settings: P.kwargs) -> T:
        """In a thread that may wait for the snapshot store. After `s_max` seconds the call is left behind, and
        `SnapshotUnavailable` raised."""
        try:
            return await self._store_calls.call(s_max, call, *args, **settings)
        except TimeoutError as error:
            raise SnapshotUnavailable(f"{self.settings.snapshot_url}: no answer within {s_max} s") from error

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, work: Any) -> None:
        """An unexpected error in a timer ends the process."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.membership.fail(error)
