"""One thread owns one consumer, and hands the event loop everything that has arrived, a stage at a time.

    librdkafka ──poll, consume──► the thread ──pending[stage]──► the loop takes a *round*: partition → records
                                      ▲                               │
                                      └──── waits when too much is pending or taken and not yet released

While the loop is busy records gather, so rounds grow with load and one wake-up serves many partitions. Positions are
ours alone: the consumer is only ever `assign`ed, joins no group, commits nothing and resets nothing.

Every fetched list carries the epoch of its `start`. Once `start` or `stop` has returned, no older epoch is *taken* any
more; but a round that was taken before may still be under way, so whoever works on it must compare epochs.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream.stages.stage import Record
from stream.worker.leaders import idle_s

log = logging.getLogger(__name__)

POLL_S = 0.1  # how long `start`, `stop` and `pause` may wait for the thread when nothing arrives
BLOCKED_S = 0.05  # how often a thread that waits for room looks for commands
CONSUME_MAX = 2_000  # records in one call; a call never waits for them
LOG_EVERY_S = 5.0
LOOK_EVERY_S = 1.0
UNKNOWN_TOPIC_S = 10.0  # nothing came of a partition for so long, not even its end
ASK_S = 2.0
STATISTICS_EVERY_S = 5.0
LEADER_SILENT_S_MAX = 20.0  # an election takes a few seconds; beyond this somebody must look
assert LEADER_SILENT_S_MAX > 3 * STATISTICS_EVERY_S, "a leader that talks must not seem silent between two looks"
_new = tuple.__new__

# What a partition cannot recover from by waiting. Everything else librdkafka retries by itself.
_LASTING = frozenset(
    {
        KafkaError._AUTO_OFFSET_RESET,  # the offset asked for is not in the log, and no policy may move it
        KafkaError.OFFSET_OUT_OF_RANGE,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
    }
)


class TP(NamedTuple):
    """One Kafka partition. Equal to Faust's and aiokafka's tuples of the same values."""

    topic: str
    partition: int


class Fetched(NamedTuple):
    """What arrived of one partition since the last round, in offset order, all of one epoch."""

    tp: TP
    epoch: int
    records: list[Record]


class Round(NamedTuple):
    """Everything that had arrived for one stage; goes back to `Fetcher.release` when its work is done."""

    stage: str
    parts: list[Fetched]
    records: int
    value_bytes: int


class FetchError(NamedTuple):
    """A partition cannot be read on from where it stands. `tp` is None if the whole consumer is broken."""

    tp: TP | None
    epoch: int
    cause: Literal["offset_out_of_range", "unknown_topic", "not_authorised", "broken"]
    text: str


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """How one fetcher reads. Bounds: memory ≤ about `held_bytes_max` + `queued_kbytes_max` + one `CONSUME_MAX`.

    `fetch_wait_ms`: how long the broker holds a fetch that has less than `fetch_min_bytes`; with 1 byte it answers at
    once when anything arrives, so the wait costs no latency and sets the idle load.
    """

    bootstrap_servers: str
    group_id: str  # librdkafka wants one; it is never used to join or to commit
    client_id: str = "fraudstream"
    security: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)  # librdkafka's own option names
    fetch_min_bytes: int = 1
    fetch_wait_ms: int = 500
    held_records_max: int = 50_000  # pending and taken, over all stages
    held_bytes_max: int = 64 * 1024 * 1024
    stage_records_max: int = 20_000  # pending for one stage: more would only wait
    round_records_max: int = 4_000
    queued_records_min: int = 20_000
    queued_kbytes_max: int = 16_384


class FetchStats(NamedTuple):
    """Counters since the start."""

    records: int
    value_bytes: int
    polls: int
    blocked_s: float
    transient_errors: dict[str, int]


class _Pending:
    """What one stage has not taken yet. Guarded by the fetcher's lock."""

    __slots__ = ("parts", "records", "signalled", "value_bytes")

    def __init__(self) -> None:
        self.parts: dict[TP, Fetched] = {}
        self.records = 0
        self.value_bytes = 0
        self.signalled = False


class Fetcher:
    """Reads the partitions that it is told to, from the offsets that it is told.

    `ready(stage)` and `failed(error)` are called on `loop`; all public methods may be called from any thread, `take`
    and `release` from the loop's only.
    """

    def __init__(
        self,
        settings: FetchSettings,
        *,
        stage_of: Callable[[str], str],
        ready: Callable[[str], None],
        failed: Callable[[FetchError], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._settings = settings
        self._stage_of = stage_of
        self._ready = ready
        self._failed = failed
        self._loop = loop
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._commands: deque[tuple[str, TP, int, int]] = deque()
        self._muted: Counter[TP] = Counter()  # starts and stops that the thread has not obeyed yet
        self._pending: dict[str, _Pending] = {}
        self._held_records = 0
        self._held_bytes = 0
        self._closing = threading.Event()
        # Only the thread touches these.
        self._epochs: dict[TP, int] = {}
        self._paused: set[TP] = set()
        self._stages: dict[TP, str] = {}
        self._polls = 0
        self._records = 0
        self._bytes = 0
        self._blocked_s = 0.0
        self._transient: Counter[str] = Counter()
        self._logged_at = 0.0
        self._ends: dict[TP, int] = {}
        self._delivered: dict[TP, int] = {}
        self._marks: dict[TP, tuple[int, int]] = {}
        self._words: dict[TP, float] = {}  # when its leader was last heard, by `_listened_s`
        self._unheard: dict[TP, float] = {}  # started, and neither a record nor an end came: when to ask why
        self._looked_at = 0.0
        options = {**librdkafka_options(settings), "error_cb": self._client_error, "stats_cb": self._statistics}
        self._consumer = Consumer(options, logger=_quiet_logger())
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)

    # ---- any thread

    def begin(self) -> None:
        """Starts the thread. Call once."""
        self._thread.start()

    def close(self, timeout_s: float = 3.0) -> None:
        """Ends the thread and closes the consumer. What is pending is dropped."""
        self._closing.set()
        with self._room:
            self._room.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def start(self, tp: TP, offset: int, epoch: int) -> None:
        """Reads `tp` from `offset`; every list of it now carries `epoch`. Also how to seek: start again."""
        if offset < 0:
            raise ValueError(f"{tp.topic}[{tp.partition}] from {offset}: logical offsets are never used here")
        self._command("start", tp, offset, epoch)

    def stop(self, tp: TP) -> None:
        """Reads `tp` no more. What is pending of it is dropped; what was taken keeps its old epoch."""
        self._command("stop", tp, 0, 0)

    def pause(self, tp: TP) -> None:
        """Back-pressure: fetches nothing more of `tp` until `resume`. What has arrived may still come."""
        self._command("pause", tp, 0, 0)

    def resume(self, tp: TP) -> None:
        """Fetches `tp` again, from where it was paused."""
        self._command("resume", tp, 0, 0)

    def watermarks(self, tp: TP) -> tuple[int, int] | None:
        """First offset in the log and the one after its last, up to a second old. None before the first. No I/O."""
        return self._marks.get(tp)

    def end_reached(self, tp: TP) -> int | None:
        """The offset at which `tp` last had nothing more to read; None if it never had, or was started again.

        On a foreign topic this passes a transaction's own markers, which `watermarks` count and nobody can read.
        """
        return self._ends.get(tp)

    def leader_silent_s(self, tp: TP) -> float | None:
        """Since the leader of `tp` last said anything to us, or since `start` if it never has; None: not read here.

        Up to `STATISTICS_EVERY_S` + `fetch_wait_ms` of a leader that talks. Time in which fetching waits for room is
        not counted: nothing is asked for then.
        """
        word_s = self._words.get(tp)
        return None if word_s is None else max(0.0, self._listened_s() - word_s)

    def lag(self, tp: TP, next_offset: int) -> int | None:
        """How many records of the log are not applied yet, if `next_offset` is the next to be.

        None: not known yet; or we had all of it when its leader was last heard, and that is too long ago.
        A transaction's markers behind the last record are not counted; those before it are, until it is applied.
        """
        marks = self._marks.get(tp)
        if marks is None:
            return None
        end = self._ends.get(tp)
        at_end = end is not None and end >= marks[1] and next_offset >= self._delivered.get(tp, 0)
        lag = 0 if at_end else max(0, marks[1] - next_offset)
        return None if not lag and (self.leader_silent_s(tp) or 0.0) > LEADER_SILENT_S_MAX else lag

    def stats(self) -> FetchStats:
        """Counters since the start."""
        return FetchStats(self._records, self._bytes, self._polls, self._blocked_s, dict(self._transient))

    # ---- the loop

    def take(self, stage: str) -> Round | None:
        """What is pending for `stage`, at most about `round_records_max` records; None if nothing is.

        After None, `ready(stage)` is called again when something arrives.
        """
        with self._lock:
            pending = self._pending.get(stage)
            if pending is None:
                return None
            if not pending.parts:
                pending.signalled = False
                return None
            parts: list[Fetched] = []
            records = 0
            value_bytes = 0
            if pending.records <= self._settings.round_records_max:
                parts = list(pending.parts.values())
                records, value_bytes = pending.records, pending.value_bytes
                pending.parts = {}
                pending.records = pending.value_bytes = 0
                return Round(stage, parts, records, value_bytes)
            # A fair share of each partition, so that one with a backlog does not hold the others back.
            share = max(self._settings.round_records_max // len(pending.parts), 1)
            for tp, fetched in list(pending.parts.items()):
                taken = fetched.records[:share]
                parts.append(Fetched(tp, fetched.epoch, taken))
                records += len(taken)
                value_bytes += _value_bytes(taken)
                if len(taken) == len(fetched.records):
                    del pending.parts[tp]
                else:
                    pending.parts[tp] = Fetched(tp, fetched.epoch, fetched.records[share:])
            pending.records -= records
            pending.value_bytes -= value_bytes
            return Round(stage, parts, records, value_bytes)

    def release(self, done: Round) -> None:
        """Gives back the room of a round. Call exactly once for each one taken."""
        self._give_back(done.records, done.value_bytes)

    # ---- the thread

    def _command(self, what: str, tp: TP, offset: int, epoch: int) -> None:
        with self._room:
            self._commands.append((what, TP(*tp), offset, epoch))
            if what in ("start", "stop"):
                self._muted[TP(*tp)] += 1
                self._drop_pending(TP(*tp))
            self._room.notify_all()

    def _drop_pending(self, tp: TP) -> None:
        pending = self._pending.get(self._stage_of(tp.topic))
        dropped = pending.parts.pop(tp, None) if pending is not None else None
        if pending is None or dropped is None:
            return
        value_bytes = _value_bytes(dropped.records)
        pending.records -= len(dropped.records)
        pending.value_bytes -= value_bytes
        self._held_records -= len(dropped.records)
        self._held_bytes -= value_bytes

    def _give_back(self, records: int, value_bytes: int) -> None:
        with self._room:
            self._held_records -= records
            self._held_bytes -= value_bytes
            self._room.notify_all()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._obey()
                self._look_around()
                if not self._wait_for_room():
                    continue
                first = self._consumer.poll(POLL_S)
                self._polls += 1
                if first is None:
                    continue
                # `consume(n, t)` waits for n or for t; after a poll that brought one, what is there is enough.
                self._deliver([first, *self._consumer.consume(CONSUME_MAX, 0)])
        except Exception as error:
            log.exception("the fetching thread ended")
            self._tell(FetchError(None, 0, "broken", f"{type(error).__name__}: {error}"))
        finally:
            self._consumer.close()

    def _obey(self) -> None:
        while self._commands:
            with self._lock:
                what, tp, offset, epoch = self._commands.popleft()
            here = TopicPartition(tp.topic, tp.partition)
            if what in ("start", "stop"):
                if tp in self._epochs:
                    self._consumer.incremental_unassign([here])
                    del self._epochs[tp]
                    self._ends.pop(tp, None)
                    self._delivered.pop(tp, None)
                    self._marks.pop(tp, None)
                    self._unheard.pop(tp, None)
                    if what == "stop":
                        self._words.pop(tp, None)
                with self._lock:
                    self._muted[tp] -= 1
                    if not self._muted[tp]:
                        del self._muted[tp]
                self._paused.discard(tp)
                if what == "start":
                    self._epochs[tp] = epoch
                    self._stages[tp] = self._stage_of(tp.topic)
                    self._unheard[tp] = time.monotonic() + UNKNOWN_TOPIC_S
                    self._words.setdefault(tp, self._listened_s())
                    self._consumer.incremental_assign([TopicPartition(tp.topic, tp.partition, offset)])
            elif tp in self._epochs:
                if what == "pause" and tp not in self._paused:
                    self._paused.add(tp)
                    self._consumer.pause([here])
                elif what == "resume" and tp in self._paused:
                    self._paused.discard(tp)
                    self._consumer.resume([here])

    def _listened_s(self) -> float:
        """A clock that stands while fetching waits for room."""
        return time.monotonic() - self._blocked_s

    def _statistics(self, statistics: str) -> None:
        """Called by `poll`, so in our thread."""
        now = self._listened_s()
        try:
            idle = idle_s(statistics)
        except msgspec.DecodeError as error:  # payments do not stop for it; leaders seem silent, and that is told
            log.error("librdkafka's statistics cannot be read. Programmer: is it another version? %s", error)
            return
        for tp, word in self._words.items():
            # Of a paused one nothing is asked. What waited here while there was no room is of then, so never back.
            silent = 0.0 if tp in self._paused else idle.get(tp)
            if silent is not None:
                self._words[tp] = max(word, now - silent)

    def _look_around(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        # Here, because from another thread than the one that polls this call never returns (confluent-kafka 2.16.1),
        # as does `assign`. It takes 2 us.
        for tp in self._epochs:
            low, high = self._consumer.get_watermark_offsets(TopicPartition(tp.topic, tp.partition), cached=True)
            if high >= 0:
                self._marks[tp] = (max(low, 0), high)
        for tp in [tp for tp, due in self._unheard.items() if now >= due]:
            self._unheard[tp] = now + UNKNOWN_TOPIC_S
            self._ask_whether_it_exists(tp)

    def _ask_whether_it_exists(self, tp: TP) -> None:
        """librdkafka waits for ever, silently, for an assigned topic that does not exist."""
        try:
            found = self._consumer.list_topics(tp.topic, timeout=ASK_S).topics.get(tp.topic)
        except KafkaException as error:
            self._transient_error(error.args[0])
            return
        error = None if found is None else found.error
        if error is not None and error.code() not in _LASTING:
            self._transient_error(error)
        elif found is None or error is not None or tp.partition not in found.partitions:
            text = f"{tp.topic}[{tp.partition}] does not exist"
            self._tell(FetchError(tp, self._epochs[tp], "unknown_topic", text))

    def _wait_for_room(self) -> bool:
        """True if there is room to fetch into; else waits a little, so that commands are still obeyed."""
        settings = self._settings
        with self._room:
            if (
                self._held_records < settings.held_records_max
                and self._held_bytes < settings.held_bytes_max
                and all(pending.records < settings.stage_records_max for pending in self._pending.values())
            ):
                return True
            since = time.monotonic()
            self._room.wait(BLOCKED_S)
        self._blocked_s += time.monotonic() - since
        return False

    def _deliver(self, messages: list[Message]) -> None:
        fresh: dict[TP, list[Record]] = {}
        topic: str | None = None
        partition = -1
        records: list[Record] = []
        for message in messages:
            error = message.error()
            if error is not None:
                self._complain(message, error)
                continue
            if message.partition() != partition or message.topic() != topic:
                topic, partition = message.topic(), message.partition()
                assert topic is not None
                assert partition is not None
                records = fresh.setdefault(TP(topic, partition), [])
            records.append(_record(message))
        if fresh:
            for tp in fresh:
                self._unheard.pop(tp, None)
            self._hand_over(fresh)

    def _hand_over(self, fresh: dict[TP, list[Record]]) -> None:
        awake: list[str] = []
        with self._lock:
            for tp, records in fresh.items():
                epoch = self._epochs.get(tp)
                if epoch is None or tp in self._muted:
                    continue  # stopped, or started again, while these were under way
                value_bytes = _value_bytes(records)
                pending = self._pending.setdefault(self._stages[tp], _Pending())
                before = pending.parts.get(tp)
                if before is None:
                    pending.parts[tp] = Fetched(tp, epoch, records)
                else:
                    before.records.extend(records)
                pending.records += len(records)
                pending.value_bytes += value_bytes
                self._held_records += len(records)
                self._held_bytes += value_bytes
                self._delivered[tp] = records[-1].offset + 1
                self._records += len(records)
                self._bytes += value_bytes
                if not pending.signalled:
                    pending.signalled = True
                    awake.append(self._stages[tp])
        if awake:
            self._on_loop(self._wake, awake)

    def _wake(self, stages: Iterable[str]) -> None:
        for stage in stages:
            self._ready(stage)

    def _complain(self, message: Message, error: KafkaError) -> None:
        code = error.code()
        topic, partition = message.topic(), message.partition()
        tp = TP(topic, partition) if topic is not None and partition is not None and partition >= 0 else None
        if code == KafkaError._PARTITION_EOF:
            if tp is not None and tp in self._epochs:
                self._ends[tp] = message.offset() or 0
                self._unheard.pop(tp, None)
            return
        if error.fatal():
            self._tell(FetchError(None, 0, "broken", error.str()))
        elif code in _LASTING and tp is not None:
            epoch = self._epochs.get(tp)
            if epoch is not None:
                self._unheard.pop(tp, None)
                self._tell(FetchError(tp, epoch, _cause(code), error.str()))
        else:
            self._transient_error(error)

    def _client_error(self, error: KafkaError) -> None:
        """librdkafka's own: a lost connection, all brokers down. Called by `poll`, so in our thread."""
        if error.fatal():
            self._tell(FetchError(None, 0, "broken", error.str()))
        else:
            self._transient_error(error)

    def _transient_error(self, error: KafkaError) -> None:
        self._transient[error.name()] += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            log.warning("fetching goes on after %s: %s", error.name(), error.str())

    def _tell(self, error: FetchError) -> None:
        self._on_loop(self._failed, error)

    def _on_loop(self, function: Callable[[Any], None], argument: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:  # the loop was closed under us: the process is ending
            self._closing.set()


def librdkafka_options(settings: FetchSettings) -> dict[str, str | int | bool]:
    """The consumer's configuration. Security options come last and are passed through as they are."""
    return {
        "bootstrap.servers": settings.bootstrap_servers,
        "group.id": settings.group_id,
        "client.id": settings.client_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "statistics.interval.ms": int(STATISTICS_EVERY_S * 1000),
        "check.crcs": True,
        "fetch.min.bytes": settings.fetch_min_bytes,
        "fetch.wait.max.ms": settings.fetch_wait_ms,
        # The default waits a whole second after the queue was full once.
        "fetch.queue.backoff.ms": 5,
        "queued.min.messages": settings.queued_records_min,
        "queued.max.messages.kbytes": settings.queued_kbytes_max,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 1_000,
        "socket.nagle.disable": True,
        **settings.security,
    }


class _OncePer(logging.Filter):
    """One line in `LOG_EVERY_S`: while a broker is away librdkafka logs dozens in a second."""

    def __init__(self) -> None:
        super().__init__()
        self._next_at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + LOG_EVERY_S
        return True


def _quiet_logger() -> logging.Logger:
    logger = log.getChild("librdkafka")
    if not logger.filters:
        logger.addFilter(_OncePer())
    return logger


def _cause(code: int) -> Literal["offset_out_of_range", "unknown_topic", "not_authorised"]:
    if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        return "offset_out_of_range"
    return "not_authorised" if code == KafkaError.TOPIC_AUTHORIZATION_FAILED else "unknown_topic"


def _record(message: Message) -> Record:
    offset = message.offset()
    assert offset is not None
    # A fetched record's headers are always a list. `tuple.__new__` takes half of the time of `Record(...)`.
    return _new(Record, (offset, message.timestamp()[1], message.key(), message.value(), message.headers() or ()))


def _value_bytes(records: Iterable[Record]) -> int:
    return sum(len(record.value) for record in records if record.value is not None)
